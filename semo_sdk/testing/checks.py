"""The checks: what people's avatars get wrong (LiveKit and Pipecat say most of it in one sentence of their code)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from semo_sdk.testing.port import Failure, Output, Port, speech

__all__ = ["CHECKS", "Rule"]

AHEAD_SECONDS = 0.12  # that sound and picture may be apart in what comes out
AT_ONCE_SECONDS = 0.12  # of sound that may still come after an interruption
ENVELOPE_SECONDS = 0.02
ALIKE = 0.9  # correlation of envelopes: resampling is fine, other sound is not

Rule = Callable[[Port, float], Awaitable[str]]  # measures, returns what it measured, raises Failure


async def idle(port: Port, _: float) -> str:
    """Without speech there are pictures at the promised rate and size, no sound and no ends."""
    await port.wait(lambda: port.count("picture") > 0, "the first picture")
    begun, start = time.monotonic(), len(port.outputs)
    await port.idle(1.2)
    shown = port.count("picture", start) / (time.monotonic() - begun)
    if not 0.8 * port.fps <= shown <= 1.25 * port.fps:
        raise Failure(f"{shown:.1f} pictures a second while nothing is said, {port.fps:g} were promised")
    if port.count("sound") or port.count("end"):
        raise Failure(f"{port.seconds():.2f} s of sound and {port.count('end')} ends though nothing was said")
    sizes = {output.size for output in port.outputs if output.kind == "picture"}
    if len(sizes) != 1 or port.size not in (None, *sizes):
        raise Failure(f"pictures of {sorted(sizes)}, promised {port.size or 'one size'}")
    return f"{shown:.1f} pictures a second of {next(iter(sizes))}"


async def pairing(port: Port, _: float) -> str:
    """All sound comes out once, in order, and pictures keep step with it."""
    said = speech(2.0, port.rate, seed=1)
    start = len(port.outputs)
    await port.speak(said)
    await port.end()
    await _whole(port, 2.0, start)
    _compare(port, port.outputs[start:], said)
    came = port.outputs[start:]
    sounds = [number for number, output in enumerate(came) if output.kind == "sound"]
    pictures, sound, apart = 0, 0.0, 0.0
    for output in came[sounds[0] : sounds[-1] + 1]:
        pictures += output.kind == "picture"
        sound += len(output.pcm) / output.rate
        apart = max(apart, abs(sound - pictures / port.fps))
    if apart > AHEAD_SECONDS:
        raise Failure(f"sound and pictures are up to {1000 * apart:.0f} ms apart")
    return f"{sound:.2f} s of sound, pictures at most {1000 * apart:.0f} ms apart"


async def segment_end(port: Port, _: float) -> str:
    """Each reply, however short, has exactly one end, after its last sound and before the next reply's first."""
    start = len(port.outputs)
    lengths = (0.6, 0.41, 0.01)
    for number, seconds in enumerate(lengths):
        await port.speak(speech(seconds, port.rate, seed=number))
        await port.end()
    await port.wait(lambda: port.count("end", start) >= len(lengths), "an end of each of three replies")
    await port.idle(0.3)
    if port.count("end", start) != len(lengths):
        raise Failure(f"{port.count('end', start)} ends of three replies")
    came = [0.0]
    for output in port.outputs[start:]:
        came[-1] += len(output.pcm) / output.rate
        if output.kind == "end":
            came.append(0.0)
    for seconds, found in zip((*lengths, 0.0), came, strict=True):
        if abs(found - seconds) > 1.01 / port.fps:
            raise Failure(
                f"{', '.join(f'{s:.2f}' for s in came)} s of sound between the ends of replies of {lengths} s"
            )
    return "three replies, three ends in their places"


async def barge_in(port: Port, _: float) -> str:
    """An interruption drops sound at once, no end comes for the reply, pictures go on, the next reply is whole."""
    await port.speak(speech(4.0, port.rate, seed=2))
    await port.end()
    await port.wait(lambda: port.seconds() > 0.4, "sound")
    await port.interrupt()
    start = len(port.outputs)
    if port.ends_need_speech:
        await port.end()  # as an agent does after an interruption
    await port.idle(0.8)
    late = port.seconds(start)
    if late > AT_ONCE_SECONDS:
        raise Failure(f"{late:.2f} s of the interrupted reply came after the interruption")
    if port.count("end"):
        raise Failure("an end came for the interrupted reply")
    if port.count("picture", start) < 0.6 * 0.8 * port.fps:
        raise Failure(f"{port.count('picture', start)} pictures in 0.8 s after the interruption")
    await _reply(port, 0.5, seed=3)
    return f"{1000 * late:.0f} ms of sound after the interruption"


async def reset(port: Port, _: float) -> str:
    """After interruptions at awkward moments nothing is left over: the next reply is exactly what was said."""
    for number, moment in enumerate((0.0, 0.1, 0.5)):
        await port.speak(speech(0.633, port.rate, seed=number))
        await port.idle(moment)
        await port.interrupt()
    await port.idle(0.3)
    await port.interrupt()  # nothing is said
    await _reply(port, 0.7, seed=5)
    return "whole reply after four interruptions"


async def long_run(port: Port, seconds: float) -> str:
    """Reply after reply: each is whole and ends, and pictures keep coming."""
    begun, start, said, replies = time.monotonic(), len(port.outputs), 0.0, 0
    generator = np.random.default_rng(0)
    while time.monotonic() - begun < seconds:
        length = float(generator.uniform(0.3, 1.0))
        said += await _reply(port, length, seed=replies)
        replies += 1
        await port.idle(float(generator.uniform(0, 0.3)))
    lasted = time.monotonic() - begun
    if port.count("end", start) != replies:
        raise Failure(f"{port.count('end', start)} ends of {replies} replies")
    times = [output.at for output in port.outputs if output.kind == "picture"]
    gap = float(np.diff(times).max(initial=0))
    shown = port.count("picture", start) / lasted
    if shown < 0.9 * port.fps or gap > 0.5:
        raise Failure(f"{shown:.1f} pictures a second ({port.fps:g} promised), the longest gap {1000 * gap:.0f} ms")
    return f"{replies} replies in {lasted:.0f} s, {shown:.1f} pictures a second, longest gap {1000 * gap:.0f} ms"


async def close(port: Port, _: float) -> str:
    """It can be ended while it speaks."""
    await port.speak(speech(3.0, port.rate))
    await port.wait(lambda: port.seconds() > 0, "sound")
    begun = time.monotonic()
    try:
        await asyncio.wait_for(port.close(), port.patience)
    except TimeoutError:
        raise Failure(f"it did not end within {port.patience:g} s") from None
    return f"ended in {1000 * (time.monotonic() - begun):.0f} ms"


CHECKS: dict[str, Rule] = {
    rule.__name__: rule for rule in (idle, pairing, segment_end, barge_in, reset, long_run, close)
}


async def _whole(port: Port, seconds: float, since: int) -> None:
    """Waits until a reply has ended."""
    await port.wait(lambda: port.count("end", since) > 0, "the end of a reply", seconds + port.patience)


async def _reply(port: Port, seconds: float, seed: int) -> float:
    """A reply that must come out whole, with one end; its seconds."""
    said = speech(seconds, port.rate, seed)
    start = len(port.outputs)
    await port.speak(said)
    await port.end()
    await _whole(port, seconds, start)
    _compare(port, port.outputs[start:], said)
    return seconds


def _compare(port: Port, outputs: Sequence[Output], said: np.ndarray) -> None:
    """Whether the sound is what was said, at any rate."""
    sounds = [output for output in outputs if output.kind == "sound"]
    came, seconds = sum(len(s.pcm) / s.rate for s in sounds), len(said) / port.rate
    if abs(came - seconds) > 1.01 / port.fps:
        raise Failure(f"{came:.3f} s of sound came for a reply of {seconds:.3f} s")
    mine = _envelope(np.concatenate([s.pcm for s in sounds]), sounds[0].rate)
    theirs = _envelope(said, port.rate)
    length = min(len(mine), len(theirs))
    alike = float(np.corrcoef(mine[:length], theirs[:length])[0, 1]) if length > 2 and mine.any() else 0.0
    if not alike >= ALIKE:
        raise Failure(f"the sound is not what was said: correlation of their loudness {alike:.2f}")


def _envelope(pcm: np.ndarray, rate: int) -> np.ndarray:
    size = max(int(ENVELOPE_SECONDS * rate), 1)
    whole = pcm[: len(pcm) // size * size].astype(np.float64).reshape(-1, size)
    return np.asarray(np.sqrt(np.square(whole).mean(1)))
