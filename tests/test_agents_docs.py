"""The code in docs/agents.md runs as it stands, with the model that ships."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import numpy as np
import pytest

pytest.importorskip("livekit.agents")
pytest.importorskip("pipecat")

from pipecat.transports import base_output

from semo_sdk.animator import Animator
from semo_sdk.serving import avatar
from semo_sdk.serving import pipecat as adapter
from semo_sdk.serving.engine import Engine
from tests.agents_tools import run, virtual_engine
from tests.test_livekit import Room
from tests.test_pipecat import Screen
from tests.virtual_time import run_virtually, virtual_clock

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "agents.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)


def block(word: str) -> dict[str, Any]:
    """What the block that holds a word defines."""
    (code,) = (code for code in BLOCKS if word in code)
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(code, f"docs/agents.md, {word}", "exec"), names)
    return names


def test_the_livekit_agent(folder: None) -> None:
    room = Room()
    context = SimpleNamespace(room=room, connect=AsyncMock())
    run(block("def entrypoint")["entrypoint"](context))
    listener = room.local_participant
    assert len(listener.pictures) > 20 and np.abs(listener.heard).max() > 1000


def test_the_pipecat_bot(folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In virtual time: a machine that makes 25 frames a second is not asked for."""
    engines: list[Engine] = []

    def measured(animator: Animator, latency: str) -> Engine:
        engines.append(virtual_engine(animator))
        return engines[0]

    monkeypatch.setattr(avatar, "_measured", measured)
    monkeypatch.setattr(Engine, "start", lambda engine: None)
    virtual_clock(monkeypatch, adapter, base_output)
    names, screen = block("def bot"), Screen(video_out_is_live=True)
    assert names["PARAMS"].video_out_framerate == 25
    run_virtually(names["bot"](screen), lambda: any(engine.step() for engine in engines))
    assert len(screen.pictures) > 20 and np.abs(screen.heard).max() > 1000


@pytest.mark.parametrize("word", ["use_them", "check_video_generator"])
def test_the_other_blocks(folder: None, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = block(word)
    if "report" in names:
        names["report"].raise_for_failures()
        assert "conforms" in capsys.readouterr().out


def test_every_block_is_tried() -> None:
    assert len(BLOCKS) == 4
    assert all((ROOT / "docs" / link).exists() for link in re.findall(r"\]\(([^)#:]+)\)", PAGE))
