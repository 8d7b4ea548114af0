"""Runs the checks, each on an avatar of its own."""

from __future__ import annotations

import asyncio
import importlib.metadata
import inspect
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

from semo_sdk.errors import ConfigError
from semo_sdk.testing.checks import CHECKS
from semo_sdk.testing.port import Failure, Port
from semo_sdk.testing.report import Check, Report

if TYPE_CHECKING:
    from livekit.agents.voice.avatar import AvatarOptions, VideoGenerator
    from pipecat.processors.frame_processor import FrameProcessor

__all__ = ["check_video_generator", "check_video_service"]

PATIENCE = 5.0


async def check_video_generator(
    make: Callable[[], VideoGenerator | Awaitable[VideoGenerator]],
    *,
    options: AvatarOptions | None = None,
    checks: Iterable[str] = tuple(CHECKS),
    long_run: float = 10.0,
    patience: float = PATIENCE,
) -> Report:
    """Checks a generator for LiveKit's ``AvatarRunner``.

    Args:
        make: makes one, ready to use; called for each check. If it has an ``aclose``, that is called afterwards.
        options: what it promises; by default its attribute ``options``.
        checks: names of :data:`semo_sdk.testing.CHECKS`.
        long_run: seconds of the check of that name.
        patience: seconds until something that does not come counts as missing.

    Raises:
        ConfigError: no such check, or no options.
        MissingDependencyError: LiveKit Agents is not installed.
    """
    from semo_sdk.testing.livekit_port import LiveKitPort

    def port(generator: Any) -> Port:
        promised = options or getattr(generator, "options", None)
        if promised is None:
            raise ConfigError(f"{type(generator).__name__} has no attribute 'options': give options=AvatarOptions(...)")
        return LiveKitPort(generator, promised, patience)

    return await _run(make, port, "livekit-agents", checks, long_run, patience)


async def check_video_service(
    make: Callable[[], FrameProcessor | Awaitable[FrameProcessor]],
    *,
    fps: float = 25.0,
    sample_rate: int = 24_000,
    size: tuple[int, int] | None = None,
    checks: Iterable[str] = tuple(CHECKS),
    long_run: float = 10.0,
    patience: float = PATIENCE,
) -> Report:
    """Checks a video service for Pipecat: ``TTSAudioRawFrame`` in, pictures and the same sound out.

    Args:
        make: makes one; called for each check.
        fps: pictures a second that it promises.
        sample_rate: of the speech that it gets, in Hz.
        size: (width, height) that it promises; None accepts any.
        checks, long_run, patience: as for :func:`check_video_generator`.

    Raises:
        ConfigError: no such check.
        MissingDependencyError: Pipecat is not installed.
    """
    from semo_sdk.testing.pipecat_port import PipecatPort

    def port(service: Any) -> Port:
        return PipecatPort(service, fps=fps, rate=sample_rate, size=size, patience=patience)

    return await _run(make, port, "pipecat-ai", checks, long_run, patience)


async def _run(
    make: Callable[[], Any],
    port: Callable[[Any], Port],
    package: str,
    checks: Iterable[str],
    long_run: float,
    patience: float,
) -> Report:
    names = list(checks)
    unknown = [name for name in names if name not in CHECKS]
    if unknown:
        raise ConfigError(f"no check {unknown[0]!r}; there are {', '.join(CHECKS)}")
    subject, found = "", []
    for name in names:
        made = make()
        avatar = await made if inspect.isawaitable(made) else made
        subject = type(avatar).__name__
        found.append(await _check(name, port(avatar), long_run, patience))
    return Report(subject, f"{package} {importlib.metadata.version(package)}", tuple(found))


async def _check(name: str, port: Port, long_run: float, patience: float) -> Check:
    begun = time.monotonic()
    try:
        await port.open()
        detail, ok = await CHECKS[name](port, long_run), True
    except Failure as failure:
        detail, ok = str(failure), False
    except Exception as error:  # whatever a third party's code raises
        detail, ok = f"it broke: {type(error).__name__}: {error}", False
    seconds = time.monotonic() - begun
    try:
        await asyncio.wait_for(port.close(), patience)
    except Exception as error:
        if ok:
            detail, ok = f"it could not be closed: {type(error).__name__}: {error}", False
    return Check(name, ok, detail, seconds)
