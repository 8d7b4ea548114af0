"""The page in a real browser: a portrait lives and speaks over WebRTC, by mouse, keyboard, with a key, on a phone."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("aiortc")

from semo_sdk.media.image import Portrait, find_portrait  # noqa: E402
from semo_sdk.media.video import read_video  # noqa: E402
from semo_sdk.serving.keys import add_key  # noqa: E402
from semo_sdk.serving.session import LiveSession  # noqa: E402
from semo_sdk.serving.site import FILES  # noqa: E402
from tests.page_tools import beeps, chromium, loud_mouth, offsets, onsets, visit  # noqa: E402
from tests.serving_tools import Running, png, serving, wait_for, wav  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parent.parent
PAGE, DOCS = ROOT / "semo_sdk" / "serving" / "page", ROOT / "docs" / "serving.md"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    sound = tmp_path_factory.mktemp("microphone") / "beeps.wav"
    sound.write_bytes(wav(beeps()))
    with chromium(sound) as opened:
        yield opened


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, portrait: Portrait) -> Iterator[Running]:
    with loud_mouth(portrait.crop), serving(tmp_path_factory.mktemp("page"), portrait) as server:
        yield server


@pytest.fixture(autouse=True)
def _everybody_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "running" in request.fixturenames:
        server: Running = request.getfixturevalue("running")
        wait_for(lambda: server.service.engine.sessions == 0)


def file(name: str, kind: str, content: bytes) -> Any:
    """A file that somebody chooses."""
    return [{"name": name, "mimeType": kind, "buffer": content}]


def recording(seconds: float | None = None) -> Any:
    pcm = beeps()
    pcm = pcm if seconds is None else np.resize(pcm, round(seconds * 16_000))
    return file("speech.wav", "audio/wav", wav(pcm))


def test_the_page_needs_nobody_else_and_its_policy_says_so(running: Running) -> None:
    assert {path.name for path in PAGE.iterdir()} == set(FILES)
    for name in FILES:
        answer = httpx.get(running.url + ("/" if name == "index.html" else f"/page/{name}"))
        assert answer.status_code == 200 and answer.headers["content-type"] == FILES[name]
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "*" not in policy
        if FILES[name].startswith("text/"):
            assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)\w", answer.text), f"{name} names another host"
            assert not re.search(r"innerHTML|eval\(|style=|localStorage|sessionStorage|\son\w+=\"", answer.text)
    assert httpx.get(running.url + "/page/..%2fkeys.py").status_code == 404


@pytest.mark.slow
def test_a_portrait_comes_alive_speaks_in_step_and_is_interrupted(running: Running, browser: Browser) -> None:
    with visit(browser, running.url) as here:
        page = here.page
        assert page.is_disabled("#interrupt") and page.is_disabled("#microphone")
        here.come_alive()
        here.state("idle")
        here.watch()
        rounds: list[tuple[float, np.ndarray]] = []  # how late timers were, picture minus sound of each beep, in ms
        for _ in range(4):  # a browser that was starved of computing time finds its way back to step slowly
            time.sleep(1.0)
            page.set_input_files("#audio-file", recording())
            here.state("speaking")
            here.state("idle")
            frames, sound = here.seen_and_heard()
            shown = onsets(frames[:, 0], frames[:, 1], 100)
            found = offsets(shown, onsets(sound[:, 0], sound[:, 1], 0.05))
            late = float(np.percentile(np.diff(sound[:, 0]), 99))  # a timer that should ring every 4 ms
            rounds.append((late, found))
            if in_step := len(found) >= 6 and abs(np.median(found)) < 100:
                break
        # who gets no computing time is late, whatever the server does: then nothing can be said
        assert in_step or rounds[-1][0] > 30, rounds
        if in_step:
            before, speaking = (frames[frames[:, 0] < shown[0]][2:, 2], frames[frames[:, 0] >= shown[0]][:, 2])
            assert not len(before) or speaking.mean() > 2 * before.mean()
        assert sound[:, 1].max() > 0.1
        assert page.evaluate("document.getElementById('video').srcObject.getAudioTracks()[0].readyState") == "live"
        for number in ("#latency", "#network"):
            assert re.fullmatch(r"\d+ ms", page.inner_text(number)), number
        page.wait_for_function("Number(document.getElementById('fps').textContent) > 0")  # how many: see above

        page.set_input_files("#audio-file", recording(50))
        here.state("speaking")
        page.locator("#controls input").first.fill("0.5")  # while it speaks
        page.click("#interrupt")
        here.state("idle", 40)  # long before the end of what it had to say
        page.click("#mute")
        assert page.evaluate("document.getElementById('video').muted")
        page.click("#stop")
        here.state("off")
        assert page.is_visible("#start") and page.is_disabled("#interrupt")


@pytest.mark.slow
def test_a_microphone_speaks_and_the_reply_is_downloaded(running: Running, browser: Browser, tmp_path: Path) -> None:
    with visit(browser, running.url, permissions=["microphone"]) as here:
        page = here.page
        here.come_alive("#default")
        page.click("#microphone")
        here.state("speaking")
        time.sleep(1.5)
        assert page.get_attribute("#microphone", "aria-pressed") == "true"
        page.click("#microphone")
        assert page.get_attribute("#microphone", "aria-pressed") == "false"
        here.state("idle")
        with page.expect_download() as download:
            page.click("#download")
        download.value.save_as(tmp_path / "reply.mp4")
        frames = list(read_video(tmp_path / "reply.mp4"))
        assert len(frames) > 25
        assert page.inner_text("#download") == "Download the last reply"
        page.click("#stop")


@pytest.mark.slow
def test_hands_that_use_the_keyboard_alone(running: Running, browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt, interrupted = LiveSession.interrupt, threading.Event()

    def note(session: LiveSession) -> None:
        interrupted.set()
        interrupt(session)

    monkeypatch.setattr(LiveSession, "interrupt", note)
    with visit(browser, running.url) as here:
        page = here.page

        def tab_to(name: str) -> None:
            for _ in range(25):
                page.keyboard.press("Tab")
                if page.evaluate("document.activeElement.id") == name:
                    return
            raise AssertionError(f"Tab never comes to {name}")

        tab_to("example")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"  # one sees where one is
        page.keyboard.press("Enter")
        page.wait_for_selector("#screen.live")
        tab_to("expressiveness")
        before = page.input_value("#expressiveness")
        page.keyboard.press("ArrowRight")
        assert page.input_value("#expressiveness") != before
        tab_to("latency-mode")
        page.keyboard.press("ArrowDown")  # another session, with another rhythm
        here.state("connecting")
        page.wait_for_selector("#screen.live")
        tab_to("example-speech")
        page.keyboard.press("Enter")
        here.state("speaking")
        interrupted.clear()
        page.keyboard.press("Escape")
        wait_for(interrupted.is_set)
        here.state("idle")
        tab_to("stop")
        page.keyboard.press("Space")
        here.state("off")
        nameless = page.evaluate(
            "[...document.querySelectorAll('button, input, select')].filter((one) => !one.hidden && one.offsetParent"
            " && !(one.textContent.trim() || one.labels?.length || one.ariaLabel)).map((one) => one.id)"
        )
        assert nameless == []


@pytest.mark.slow
def test_a_key_is_asked_for_only_if_it_is_needed_and_kept_nowhere(
    browser: Browser, tmp_path: Path, portrait: Portrait
) -> None:
    keys = tmp_path / "keys.json"
    key = add_key(keys, "me")
    with (
        loud_mouth(portrait.crop),
        serving(tmp_path, portrait, keys=keys) as locked,
        visit(browser, locked.url) as here,
    ):
        page = here.page
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        page.locator("#alert", has_text="not valid").wait_for()
        page.fill("#key", key)
        page.keyboard.press("Enter")
        page.wait_for_selector("#key-form", state="hidden")
        here.come_alive()
        kept = page.evaluate("[localStorage.length, sessionStorage.length, document.cookie, document.body.innerHTML]")
        assert kept[:3] == [0, 0, ""] and key not in kept[3] and not any(key in url for url in here.requests)
        page.click("#stop")
        here.complaints[:] = [text for text in here.complaints if "401" not in text]  # the browser notes refusals


@pytest.mark.slow
def test_the_snippet_of_the_documentation_runs(running: Running, browser: Browser) -> None:
    snippet = re.findall(r"```js\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)[0]
    with visit(browser, running.url) as here:
        told = here.page.evaluate(
            """async () => {
              const key = "", pcm16 = new Int16Array(16000).fill(1000), told = [];
              const video = document.getElementById("video"), console = { log: (event) => told.push(event.type) };
            """
            + snippet
            + """
              for (const end = performance.now() + 20000; performance.now() < end && !told.includes("speech.done");)
                await new Promise((next) => setTimeout(next, 50));
              while (!video.videoWidth) await new Promise((next) => setTimeout(next, 50));
              pc.close();
              return told;
            }"""
        )
        assert told[0] == "session.started" and "speech.done" in told


@pytest.mark.slow
def test_errors_are_told_in_plain_words(running: Running, browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    with visit(browser, running.url) as here:
        page = here.page

        def told(words: str) -> None:
            page.locator("#alert", has_text=words).wait_for()

        def photo(content: bytes) -> None:
            page.set_input_files("#portrait-file", file("x.png", "image/png", content))

        drop = """(zone, content) => {
          const files = new DataTransfer();
          files.items.add(new File([Uint8Array.from(content)], "x.png", { type: "image/png" }));
          zone.dispatchEvent(new DragEvent("drop", { dataTransfer: files, cancelable: true }));
        }"""
        page.locator("#screen").evaluate(drop, list(png(300, 300)))
        told("No face was found")
        photo(b"nothing")
        told("not a photo that can be used")
        monkeypatch.setattr(running.service.engine.capacity, "max_sessions", 0)
        other = running.service.engine.open(
            running.service.portraits.get("default", "local").reference(running.service.engine)
        )
        page.click("#example")
        told("The server is busy. Try again in")
        other.close()
        monkeypatch.undo()
        here.come_alive()
        page.set_input_files("#audio-file", file("x.wav", "audio/wav", b"junk" * 100))
        told("cannot be read by the browser")
        page.click("#stop")
        here.complaints[:] = [text for text in here.complaints if "Failed to load resource" not in text]


@pytest.mark.slow
def test_advice_on_a_photo_is_shown(running: Running, browser: Browser) -> None:
    photo = Image.open(PAGE / "portrait.jpg")
    face = find_portrait(np.asarray(photo)).face.size
    small = io.BytesIO()
    photo.resize([round(side * 70 / face) for side in photo.size], Image.Resampling.LANCZOS).save(small, "PNG")
    with visit(browser, running.url) as here:
        here.page.set_input_files("#portrait-file", file("small.png", "image/png", small.getvalue()))
        here.page.locator("#alert", has_text="take a larger photo").wait_for()
        here.state("idle")
        here.page.click("#stop")


@contextlib.contextmanager
def semo_serve(*arguments: str) -> Iterator[str]:
    """`semo serve` with the model that ships, as users start it; gives its address when it is ready."""
    command = [str(Path(sys.executable).parent / "semo"), "serve", "--port", "0", "--batch-sizes", "1", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        url = process.stderr.readline().split()[2]
        wait_for(lambda: httpx.get(url + "/ready").status_code == 200, 240)
        yield url
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_pictures_of_the_page(browser: Browser, tmp_path: Path) -> None:
    """With the model that ships; SEMO_SCREENSHOTS=docs keeps them."""
    folder = Path(os.environ.get("SEMO_SCREENSHOTS", tmp_path))
    wide, phone = {"width": 1200, "height": 800}, {"width": 390, "height": 844}
    looks: dict[str, dict[str, Any]] = {
        "page-speaking": {"viewport": wide, "color_scheme": "light"},
        "page-idle": {"viewport": wide, "color_scheme": "dark"},
        "page-phone": {"viewport": phone, "color_scheme": "light", "is_mobile": True, "has_touch": True},
    }
    with semo_serve("--data", str(tmp_path), "--latency", "low,quality") as url:
        for name, look in looks.items():
            with visit(browser, url, **look) as here:
                here.come_alive()
                here.state("idle")
                if name != "page-idle":
                    here.page.click("#example-speech")
                    here.state("speaking")
                time.sleep(2.5)
                width, screen = here.page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
                assert width <= screen, "the page is wider than the screen"
                shot = here.page.screenshot(type="jpeg", quality=72, full_page=name == "page-phone")
                here.page.evaluate("document.getElementById('stop').click()")
                here.state("off")
            assert len(shot) < 150_000
            (folder / f"{name}.jpg").write_bytes(shot)
