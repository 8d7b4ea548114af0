"""examples/gradio is launched for real, on this machine alone, and asked by Gradio's own client."""

from __future__ import annotations

import importlib
import re
import socket
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest

from semo_sdk import Animator
from semo_sdk.backends import fake_engines
from semo_sdk.constants import SAMPLES_PER_FRAME
from semo_sdk.media.audio import load_audio
from semo_sdk.media.image import Portrait
from semo_sdk.media.video import read_video
from semo_sdk.pipeline.graphs import Graphs
from tests.conftest import EXAMPLES, TINY
from tests.page_tools import CHROMIUM, FLAGS

FOLDER = EXAMPLES / "gradio"
FRAMES = 125  # of the speech

# Importing gradio takes seconds, so it is imported where it is used.
pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec("gradio") is None, reason="needs gradio")]


@pytest.fixture(scope="module")
def app() -> Iterator[ModuleType]:
    """The script, imported as Gradio and a Space run it: from its own folder."""
    patch = pytest.MonkeyPatch()
    patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    patch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("app")
    patch.undo()
    for name in ("app", "segments"):
        del sys.modules[name]


@pytest.fixture(scope="module")
def animator(portrait: Portrait) -> Animator:
    return Animator.from_graphs(portrait, Graphs(fake_engines(TINY), TINY))


@pytest.fixture(scope="module")
def page(app: ModuleType, animator: Animator) -> Iterator[str]:
    """The address of the page."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    demo = app.build(animator)
    _, url, shared = demo.launch(
        share=False, server_name="127.0.0.1", server_port=port, prevent_thread_lock=True, quiet=True, ssr_mode=False
    )
    assert shared is None
    yield url
    demo.close()


@pytest.fixture(scope="module")
def web() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=60, trust_env=False) as client:
        yield client


def settings(**changes: Any) -> dict[str, Any]:
    """What the page's inputs send; paths are uploaded."""
    from gradio_client import handle_file

    values = {
        "photo": EXAMPLES / "portrait2.jpg",
        "speech": EXAMPLES / "speech.wav",
        "consent": True,
        "expressiveness": 2.0,
        "head_motion": 1.0,
        "blink": 1.0,
        "latency": "quality",
        "seed": 0,
        "face": -1,
    } | changes
    return {name: handle_file(value) if isinstance(value, Path) else value for name, value in values.items()}


def test_the_video_plays_while_it_is_made(page: str, web: httpx.Client) -> None:
    from gradio_client import Client

    job = Client(page, verbose=False, download_files=False).submit(**settings(), api_name="/animate")
    updates = list(job)
    playlist = next(value for value in walk(updates[0][0]) if value.startswith(page))  # known from the first piece on
    stream = playlist.rpartition("/")[0]
    text = web.get(playlist).text
    lengths = [float(length) for length in re.findall(r"#EXTINF:([\d.]+)", text)]
    assert text.rstrip().endswith("#EXT-X-ENDLIST") and len(lengths) == 3
    assert sum(lengths) == pytest.approx(FRAMES / 25, abs=0.1) and max(lengths) < 2.1
    names = [line for line in text.splitlines() if line and not line.startswith("#")]
    pieces = [web.get(f"{stream}/{name}").content for name in names]
    assert [sum(1 for _ in read_video(piece)) for piece in pieces] == [48, 48, 29]
    address = next(value for value in walk(updates[-1][1]) if value.startswith(page))
    whole = web.get(address).content
    assert address.endswith("/talking.mp4") and sum(1 for _ in read_video(whole)) == FRAMES
    heard, said = load_audio(whole), load_audio(EXAMPLES / "speech.wav")
    assert 0 <= len(heard) - FRAMES * SAMPLES_PER_FRAME < 1_024  # the end of AAC's last frame
    assert lag(heard, said) <= 16  # 1 ms
    joined = web.get(f"{stream}/playlist-file").content  # the button that downloads the stream
    assert sum(1 for _ in read_video(joined)) == FRAMES


def walk(value: Any) -> Iterator[str]:
    """Every string in a client's answer."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from walk(inner)


def lag(heard: np.ndarray, said: np.ndarray) -> int:
    """How many samples one is behind the other."""
    count = min(len(heard), len(said))
    spectrum = np.fft.rfft(heard[:count], 2 * count) * np.fft.rfft(said[:count], 2 * count).conj()
    shift = int(np.fft.irfft(spectrum).argmax())
    return min(shift, 2 * count - shift)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_plays_it(page: str) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    asked: list[str] = []
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        tab = browser.new_page()
        tab.set_default_timeout(120_000)
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(page)
        for number, file in enumerate((EXAMPLES / "portrait2.jpg", EXAMPLES / "speech.wav")):
            tab.locator("input[type=file]").nth(0 if number == 0 else -1).set_input_files(file)
        tab.get_by_label("agree").check()
        tab.get_by_role("button", name="Speak").click()
        tab.wait_for_function("(document.querySelector('video') || {}).currentTime > 4")
        tab.wait_for_function("[...document.links].some((link) => link.href.endsWith('/talking.mp4'))")
        browser.close()
    assert not [url for url in asked if not url.startswith((page, "data:", "blob:"))]


def test_settings_make_another_video(app: ModuleType, animator: Animator, tmp_path: Path) -> None:
    clips = [
        animator.from_audio(EXAMPLES / "speech.wav", seed=seed, latency=latency)
        for seed, latency in ((0, "quality"), (1, "low"))
    ]
    films = []
    for number, clip in enumerate(clips):
        folder = tmp_path / str(number)
        folder.mkdir()
        pieces = list(app.segments(clip, folder))
        assert sum(app.seconds_of(piece) for piece in pieces) == pytest.approx(clip.duration, abs=0.1)
        films.append(np.stack(list(read_video(app.concatenated(pieces, folder / "film.mp4")))))
        assert np.abs(films[-1].astype(int).mean(axis=(1, 2)) - clip.frames.mean(axis=(1, 2))).max() < 3
    assert films[0].shape == films[1].shape and not np.array_equal(films[0], films[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"consent": False}, "agree"),
        ({"speech": None}, "Choose a photo"),
        ({"speech": EXAMPLES / "portrait.jpg"}, "no sound"),
        ({"photo": EXAMPLES / "speech.wav"}, ""),
        ({"face": 5}, "face_index=5"),
    ],
)
def test_errors_say_what_to_do(page: str, change: dict[str, Any], message: str) -> None:
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    client = Client(page, verbose=False)
    with pytest.raises(AppError, match=message):
        client.predict(**settings(**change), api_name="/animate")


def test_the_page_is_ours_alone(page: str, web: httpx.Client) -> None:
    config = web.get(f"{page}config").json()
    assert config["analytics_enabled"] is False and not config.get("space_id")
    assert [each["api_name"] for each in config["dependencies"] if each["api_visibility"] == "public"] == ["animate"]
    assert not [sheet for sheet in config["stylesheets"] if sheet.startswith("http")]
    text = " ".join(str(each["props"].get("value")) for each in config["components"])
    assert "people who agreed" in text and "AI-generated" in text


def test_it_can_be_a_space() -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    front = dict(line.split(": ", 1) for line in card.split("---")[1].strip().splitlines())
    assert front["sdk"] == "gradio" and (FOLDER / front["app_file"]).exists() and front["license"] == "apache-2.0"
    needed = (FOLDER / "requirements.txt").read_text(encoding="utf-8")
    assert f"gradio>={front['sdk_version']}".rpartition(".")[0] in needed
