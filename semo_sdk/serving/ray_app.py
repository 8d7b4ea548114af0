"""The server as a Ray Serve application: many replicas behind one address, scaled by the live sessions that are there.

>>> from ray import serve
>>> serve.run(build({"sessions": 4, "max_replicas": 8}), name="semo")

A live session is one web socket, for Ray one request that lasts, so Serve's autoscaling on ongoing requests counts
sessions. What one replica has to know of another (uploaded portraits, saved sessions) is in
:mod:`semo_sdk.serving.ray_store`; that is why a session can go on elsewhere when its replica dies.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from semo_sdk.backends import load_engines
from semo_sdk.bundle import Bundle
from semo_sdk.errors import ConfigError, EngineError
from semo_sdk.media.image import find_portrait, load_image
from semo_sdk.pipeline.graphs import Graphs
from semo_sdk.provenance.policy import Provenance
from semo_sdk.serving.app import create_app
from semo_sdk.serving.capacity import Capacity
from semo_sdk.serving.engine import Engine
from semo_sdk.serving.keys import ANYBODY
from semo_sdk.serving.metrics import Metrics
from semo_sdk.serving.portraits import DEFAULT
from semo_sdk.serving.ray_store import SharedPortraits, SharedStates, open_store
from semo_sdk.serving.service import Service
from semo_sdk.serving.settings import Settings

__all__ = ["ClusterSettings", "build"]

STATES_PER_SESSION = 2  # of :class:`~semo_sdk.serving.client_lasting.LastingLive`
SHORT_REQUESTS = 8  # that a replica takes beside its live sessions
LOOK_BACK_SECONDS = 20.0
ROUTER = "semo_sdk.serving.ray_router.SessionRouter"


class ClusterSettings(BaseModel):
    """Arguments of the application, in Python or in a Serve config file. Paths must exist on every node."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: str = "semo-tiny"
    backend: str = "auto"
    precision: str = "auto"
    threads: int | None = Field(None, ge=1, description="CPU threads of each replica; None: as many as it has CPUs")
    latency: str = Field("low,balanced,quality", description="latencies served, the usual one first")
    batch_sizes: tuple[int, ...] = Field((1,), description="see `semo serve --batch-sizes`; more than one pays on GPUs")
    portrait: Path | None = Field(None, description="photo that everybody may use, as portrait_id=default")
    provenance: bool = Field(True, description="a watermark in every frame, a signed manifest in every video")
    data: Path = Field(Path("semo-data"), description="finished videos: in it, each replica has a folder of its own")
    keys: Path | None = Field(None, description="file of API keys; without, only requests to localhost are served")
    origins: tuple[str, ...] = ()
    sessions_per_key: int = Field(4, ge=1, description="live sessions of one key on one replica")

    sessions: int = Field(4, ge=1, description="live sessions of a replica at most: what `semo bench load` measured")
    target: float = Field(0.75, gt=0, le=1, description="share of them beyond which the cluster grows")
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(4, ge=1)
    upscale_seconds: float = Field(5, ge=0, description="how long more replicas must be wanted")
    downscale_seconds: float = Field(300, ge=0, description="how long fewer must be")
    drain_seconds: float = Field(300, ge=0, description="that sessions may go on in a replica that is taken away")
    cpus: float = Field(1, ge=0, description="of each replica")
    gpus: float = Field(0, ge=0)

    portraits: int = Field(256, ge=1, description="of the whole cluster, in the memory of its head node; 11 MB each")
    states: int = Field(2048, ge=1, description="saved sessions likewise; 0.2 MB each")


class Replica:
    """One copy of the model with the whole HTTP and web socket API.

    Args:
        fields: of :class:`ClusterSettings`.

    Raises:
        SemoError: the model does not open, or fails; Serve tries again and then reports it.
    """

    def __init__(self, fields: dict[str, Any]) -> None:
        from ray import serve

        context = serve.get_replica_context()
        settings = ClusterSettings.model_validate(fields)
        opened = Bundle.open(settings.bundle)
        threads = settings.threads or max(int(settings.cpus), 1)
        engines = load_engines(opened, backend=settings.backend, precision=settings.precision, threads=threads)
        metrics = Metrics()
        engine = Engine(
            Graphs(engines, opened.config, provenance=Provenance.of(opened, settings.provenance) or False),
            sizes=settings.batch_sizes,
            latencies=[name.strip() for name in settings.latency.split(",")],
            capacity=Capacity(max_sessions=settings.sessions),
            observer=metrics,
        )
        limits = Settings(
            data=settings.data / context.replica_id.unique_id,  # a server clears its folder when it starts
            keys=settings.keys,
            origins=settings.origins,
            sessions_per_key=settings.sessions_per_key,
            drain_seconds=0,
        )
        service = PreparedService(engine, limits, metrics)
        per_key = (limits.portraits_per_key, max(limits.states_per_key, STATES_PER_SESSION * settings.sessions_per_key))
        store = open_store(
            context.app_name, settings.portraits, per_key[0], settings.states, per_key[1] * settings.max_replicas
        )
        service.portraits, service.states = SharedPortraits(store), SharedStates(store)
        if settings.portrait is not None:
            service.portraits.add(find_portrait(load_image(settings.portrait)), ANYBODY, DEFAULT)
        engine.calibrate(prune=False)
        engine.start()
        self._service, self._engine = service, engine

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve calls it after the constructor."""
        return create_app(self._service)

    def check_health(self) -> None:
        """Serve replaces a replica for which it raises three times in a row."""
        if not self._engine.healthy:
            raise EngineError("the engine does not run, or every pass fails")

    def describe(self) -> dict[str, Any]:
        """Where it is and what it does."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        return {"pid": os.getpid(), "node": node, "sessions": self._engine.sessions}


class PreparedService(Service):
    """A service whose engine runs already: Serve sends requests as soon as the constructor is done."""

    def start(self) -> None:
        """Nothing is left to do."""


def build(fields: Mapping[str, Any] | None = None) -> Any:
    """The application, for ``serve.run`` and for ``serve run semo_sdk.serving.ray_app:build sessions=4``.

    Args:
        fields: of :class:`ClusterSettings`.

    Returns:
        A Serve application.

    Raises:
        ConfigError: an impossible setting.
    """
    from ray import serve

    try:
        settings = ClusterSettings.model_validate(dict(fields or {}))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if settings.min_replicas > settings.max_replicas:
        raise ConfigError(f"min_replicas {settings.min_replicas} is more than max_replicas {settings.max_replicas}")
    deploy = serve.deployment(
        name="Semo",
        max_ongoing_requests=settings.sessions + SHORT_REQUESTS,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.target * settings.sessions,
            "upscale_delay_s": settings.upscale_seconds,
            "downscale_delay_s": settings.downscale_seconds,
            "look_back_period_s": LOOK_BACK_SECONDS,
        },
        request_router_config={"request_router_class": ROUTER},
        graceful_shutdown_timeout_s=settings.drain_seconds,
        health_check_period_s=5,
        health_check_timeout_s=30,
    )
    return deploy(serve.ingress()(Replica)).bind(settings.model_dump(mode="json"))
