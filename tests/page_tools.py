"""Chromium on a page, what it saw and heard there, and a model whose mouth is as bright as the sound is loud."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from semo_sdk.constants import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from semo_sdk.serving import launcher
from tests.serving_tools import LIMIT

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
]
MOUTH = (slice(168, 208), slice(96, 160))  # rows and columns of 256
BEEP_EVERY, BEEP_FRAMES, BEEPS = 17, 4, 12  # in frames of the video, so that a beep and its first frame begin together

# Every frame that is shown: when, mean of the mouth, and mean absolute difference from the frame before over the mouth.
# Every 4 ms: when, and how loud the sound is that plays.
WATCH = """() => {
  const video = document.getElementById("video");
  const canvas = Object.assign(document.createElement("canvas"), { width: 64, height: 64 });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const log = (window.log = { frames: [], sound: [] });
  let last = null;
  const look = (now) => {
    context.drawImage(video, 0, 0, 64, 64);
    const { data } = context.getImageData(24, 42, 16, 10);
    const grey = [];
    for (let i = 0; i < data.length; i += 4) grey.push((data[i] + data[i + 1] + data[i + 2]) / 3);
    const mean = grey.reduce((a, b) => a + b) / grey.length;
    const moved = last ? grey.reduce((sum, value, i) => sum + Math.abs(value - last[i]), 0) / grey.length : 0;
    log.frames.push([now, mean, moved]);
    last = grey;
    video.requestVideoFrameCallback(look);
  };
  video.requestVideoFrameCallback(look);
  const audio = new AudioContext();
  const analyser = audio.createAnalyser();
  analyser.fftSize = 256;
  audio.createMediaStreamSource(video.srcObject).connect(analyser);
  const heard = new Float32Array(256);
  setInterval(() => {
    analyser.getFloatTimeDomainData(heard);
    log.sound.push([performance.now(), Math.sqrt(heard.reduce((sum, x) => sum + x * x, 0) / heard.length)]);
  }, 4);
}"""


def beeps() -> np.ndarray:
    """(n,) float32 at 16 kHz: beeps of 160 ms between silences, each beginning with a frame."""
    pcm = np.zeros(SAMPLES_PER_FRAME * BEEP_EVERY * (BEEPS + 1), np.float32)
    length = SAMPLES_PER_FRAME * BEEP_FRAMES
    tone = 0.4 * np.sin(2 * np.pi * 440 * np.arange(length) / SAMPLE_RATE)
    for number in range(BEEPS):
        begin = SAMPLES_PER_FRAME * (BEEP_EVERY * number + 5)
        pcm[begin : begin + length] = tone
    return pcm


@contextlib.contextmanager
def loud_mouth(crop: np.ndarray) -> Iterator[None]:
    """All sessions show this portrait, (256, 256, 3) uint8, with a mouth that is as bright as their sound is loud."""
    real = launcher.step_batch

    def fake(*arguments: Any, **settings: Any) -> Any:
        made = []
        for chunk, state in real(*arguments, **settings):
            count = len(chunk.frames)
            frames = np.repeat(crop[None], count, axis=0)
            for frame, sound in zip(frames, np.array_split(chunk.audio, count), strict=True):
                frame[MOUTH] = min(4 * float(np.sqrt(np.mean(np.square(sound)))), 1.0) * 255
            made.append((replace(chunk, drawn=frames), state))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launcher, "step_batch", fake)
        yield


@contextlib.contextmanager
def chromium(microphone: Path) -> Iterator[Browser]:
    """A browser whose microphone plays a WAV file again and again; skips the test if there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        flags = [*FLAGS, f"--use-file-for-fake-audio-capture={microphone}"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page that is open, and what went wrong on it."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def come_alive(self, button: str = "#example") -> None:
        """One click, and the portrait lives."""
        self.page.click(button)
        self.page.wait_for_selector("#screen.live")

    def state(self, name: str, seconds: float = LIMIT) -> None:
        """Waits for a state."""
        self.page.wait_for_selector(f'#screen[data-state="{name}"]', timeout=1000 * seconds)

    def watch(self) -> None:
        """Begins to note what is seen and heard."""
        self.page.evaluate(WATCH)

    def seen_and_heard(self) -> tuple[np.ndarray, np.ndarray]:
        """Since the last time. Frames (n, 3): ms, mean, movement; sound (m, 2): ms, level."""
        log = self.page.evaluate(
            "({ frames: window.log.frames.splice(0), sound: window.log.sound.splice(0) })"  # and forgets them
        )
        return np.array(log["frames"]), np.array(log["sound"])


@contextlib.contextmanager
def visit(browser: Browser, url: str, **settings: Any) -> Iterator[Visit]:
    """Opens the page; afterwards nothing was complained about and no other host was asked."""
    page = browser.new_page(**{"viewport": {"width": 1200, "height": 860}, **settings})
    page.set_default_timeout(1000 * LIMIT)
    here = Visit(page, url)
    page.on("console", lambda message: here.complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: here.complaints.append(str(error)))
    page.on("request", lambda request: here.requests.append(request.url))
    page.goto(url)
    page.locator("#latency-mode option, #key-form:not([hidden])").first.wait_for(state="attached")
    try:
        yield here
    finally:
        page.close()
    assert not here.complaints
    assert here.requests and all(request.startswith((url, f"blob:{url}")) for request in here.requests)


def onsets(times: np.ndarray, values: np.ndarray, threshold: float) -> np.ndarray:
    """When values rise over the threshold, in the unit of ``times``."""
    over = values > threshold
    return times[1:][over[1:] & ~over[:-1]]


def offsets(pictures: np.ndarray, sounds: np.ndarray) -> np.ndarray:
    """Picture minus the sound that is nearest, in ms: negative if the picture is early."""
    half = 1000 * BEEP_EVERY / FPS / 2
    nearest = np.array([picture - sounds[np.abs(sounds - picture).argmin()] for picture in pictures])
    return nearest[np.abs(nearest) < half]
