"""Prometheus metrics. Numbers only: no names, addresses or contents of users."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from semo_sdk.serving.speech import Observer

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

LATENCY = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0, 5.0)
GAP = (0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.12, 0.2, 0.5, 1.0, 2.0)
FACTOR = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.5, 2.0, 4.0)


class Metrics(Observer):
    """What ``/metrics`` shows."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, CPU seconds, open files (Linux)
        self._first = Histogram(
            "semo_first_frame_seconds",
            "First sound of an utterance to its first frame handed out",
            buckets=LATENCY,
            registry=registry,
        )
        self._gap = Histogram(
            "semo_frame_gap_seconds", "Between two frames of a live session", buckets=GAP, registry=registry
        )
        self._batch = Histogram(
            "semo_batch_size", "Sessions and jobs in one pass", buckets=tuple(range(1, 9)), registry=registry
        )
        self._pass = Histogram("semo_pass_seconds", "One pass of a batch", buckets=LATENCY, registry=registry)
        self._factor = Histogram(
            "semo_real_time_factor",
            "Seconds of computing for a second of video, by pass; below 1 is faster than real time",
            buckets=FACTOR,
            registry=registry,
        )
        self._late = Counter("semo_late_chunks", "Chunks that came after their deadline", registry=registry)
        self._refused = Counter("semo_refused_sessions", "Live sessions refused for capacity", registry=registry)
        self._videos = Counter("semo_videos", "Video jobs by outcome", ["status"], registry=registry)
        self._requests = Histogram(
            "semo_http_request_seconds",
            "HTTP requests",
            ["method", "route", "status"],
            buckets=LATENCY,
            registry=registry,
        )

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A number that is asked for when it is shown."""
        Gauge(name, text, registry=self.registry).set_function(value)

    def render(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self.registry)

    def first_frame(self, seconds: float) -> None:
        """See :class:`Observer`."""
        self._first.observe(seconds)

    def frame_gap(self, seconds: float) -> None:
        """See :class:`Observer`."""
        self._gap.observe(seconds)

    def batch(self, items: int, seconds: float, video_seconds: float) -> None:
        """See :class:`Observer`."""
        self._batch.observe(items)
        self._pass.observe(seconds)
        self._factor.observe(seconds / video_seconds)

    def late(self) -> None:
        """See :class:`Observer`."""
        self._late.inc()

    def refused(self) -> None:
        """See :class:`Observer`."""
        self._refused.inc()

    def video(self, status: str) -> None:
        """A video job ended."""
        self._videos.labels(status).inc()

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """An HTTP request was answered; ``route`` is the pattern, not the path."""
        self._requests.labels(method, route, str(status)).observe(seconds)
