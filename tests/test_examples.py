"""The scripts in examples/ run, here on fake engines: frames, sound and lengths are real, the pictures are not."""

from __future__ import annotations

import importlib.util
import wave
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from semo_sdk import Animator
from semo_sdk.constants import SAMPLES_PER_FRAME
from semo_sdk.media.audio import load_audio
from semo_sdk.media.image import find_portrait, load_image
from semo_sdk.media.video import read_video
from semo_sdk.pipeline.graphs import Graphs

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def script(
    request: pytest.FixtureRequest, graphs: Graphs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> ModuleType:
    """The module of one example, whose Animator runs on fakes."""
    spec = importlib.util.spec_from_file_location(f"example_{request.param}", EXAMPLES / f"{request.param}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def fake(portrait: Any) -> Animator:
        return Animator.from_graphs(find_portrait(load_image(portrait)), graphs)

    monkeypatch.setattr(module, "Animator", fake)
    monkeypatch.chdir(tmp_path)
    return module


@pytest.mark.parametrize("script", ["animate"], indirect=True)
def test_animate(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    script.main([])
    assert sum(1 for _ in read_video("talking.mp4")) == 125
    assert "talking.mp4: 5.00 s of video" in capsys.readouterr().out
    with wave.open("short.wav", "wb") as short, wave.open(str(EXAMPLES / "grid.wav")) as long:
        short.setparams(long.getparams())
        short.writeframes(long.readframes(3_000))
    script.main([str(EXAMPLES / "portrait2.jpg"), "short.wav", "full.mp4", "--paste-back"])
    assert [frame.shape for frame in read_video("full.mp4")] == [(400, 400, 3)] * 5
    with pytest.raises(SystemExit, match="AudioError.*no such file"):
        script.main([str(EXAMPLES / "portrait.jpg"), "missing.wav"])


@pytest.mark.parametrize("script", ["stream"], indirect=True)
def test_stream(script: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script.time, "sleep", lambda seconds: None)  # nobody really speaks here
    script.main([str(EXAMPLES / "portrait.jpg"), str(EXAMPLES / "grid.wav")])
    frames = -(-len(load_audio(EXAMPLES / "grid.wav")) // SAMPLES_PER_FRAME)
    assert sum(1 for _ in read_video("live.mp4")) == frames
    assert len(load_audio("live.mp4")) == frames * SAMPLES_PER_FRAME
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == -(-frames // 4) and all("4 frames" in line for line in lines[:-1])
