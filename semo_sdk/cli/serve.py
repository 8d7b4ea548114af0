"""``semo serve`` and ``semo keys``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from semo_sdk.cli.outcome import need, outcome
from semo_sdk.cli.provenance import NoProvenance, SignCert, SignKey, chosen
from semo_sdk.errors import ConfigError

LOCAL = ("127.0.0.1", "::1", "localhost")

keys_app = typer.Typer(no_args_is_help=True, help="API keys of `semo serve`.")


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(serve)
    app.add_typer(keys_app, name="keys")


@keys_app.command("add")
def keys_add(
    name: Annotated[str, typer.Argument(help="whom the key is for")],
    keys: Annotated[Path, typer.Option(help="file of keys; made if there is none")],
) -> None:
    """Make a key. It is shown once; the file holds only its hash. To revoke it, delete its entry from the file."""
    with outcome():
        from semo_sdk.serving.keys import add_key

        typer.echo(add_key(keys, name))


def serve(
    host: Annotated[str, typer.Option(help="address to listen on; beyond this machine only with --keys")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one")] = 8000,
    bundle: Annotated[str, typer.Option("--bundle", "-b", help="bundle folder, or an embedded bundle's name")] = (
        "semo-tiny"
    ),
    backend: Annotated[str, typer.Option(help="auto, openvino, onnxruntime or torch")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of the engines")] = None,
    latency: Annotated[str, typer.Option(help="latencies served, the usual one first, separated by commas")] = (
        "low,balanced,quality"
    ),
    batch_sizes: Annotated[
        str | None, typer.Option(help="for example 1,2,4; a single one makes frames independent of the crowd")
    ] = None,
    max_sessions: Annotated[int, typer.Option(min=1, help="live sessions, however fast the machine is")] = 64,
    portrait: Annotated[Path | None, typer.Option(help="photo that everybody may use, as portrait_id=default")] = None,
    data: Annotated[Path, typer.Option(help="folder of the finished videos")] = Path("semo-data"),
    keys: Annotated[Path | None, typer.Option(help="file of API keys, see `semo keys add`")] = None,
    origin: Annotated[list[str] | None, typer.Option(help="web origin that may use the API; may be repeated")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="certificate (PEM) for HTTPS")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="its private key (PEM)")] = None,
    ice: Annotated[
        Path | None, typer.Option(help="JSON list of STUN and TURN servers for WebRTC beyond one network")
    ] = (None),
    no_provenance: NoProvenance = False,
    sign_cert: SignCert = None,
    sign_key: SignKey = None,
    drain: Annotated[float, typer.Option(min=0, help="seconds that sessions may go on after SIGTERM")] = 30.0,
) -> None:
    """Serve a page, videos and live sessions over HTTP, WebSocket and WebRTC. Documentation is at /docs."""
    with outcome():
        need("serve", "fastapi", "uvicorn", "websockets", "multipart", "prometheus_client", "aiortc")
        if keys is None and host not in LOCAL:
            raise ConfigError(f"listening on {host} needs API keys: semo keys add NAME --keys FILE, then --keys FILE")
        if (tls_cert is None) != (tls_key is None):
            raise ConfigError("--tls-cert and --tls-key belong together")
        from semo_sdk.backends import load_engines
        from semo_sdk.bundle import Bundle
        from semo_sdk.media.image import find_portrait, load_image
        from semo_sdk.pipeline.graphs import Graphs
        from semo_sdk.provenance.policy import Provenance
        from semo_sdk.serving.app import create_app
        from semo_sdk.serving.capacity import Capacity
        from semo_sdk.serving.engine import Engine
        from semo_sdk.serving.metrics import Metrics
        from semo_sdk.serving.server import Server
        from semo_sdk.serving.service import Service
        from semo_sdk.serving.settings import Settings, read_ice_servers

        opened = Bundle.open(bundle)
        marks = Provenance.of(opened, chosen(no_provenance, sign_cert, sign_key))
        if marks is not None:
            marks.check()
        engines = load_engines(opened, backend=backend, precision=precision, threads=threads)
        graphs, metrics = Graphs(engines, opened.config, provenance=marks or False), Metrics()
        latencies = [name.strip() for name in latency.split(",")]
        engine = Engine(
            graphs,
            sizes=_batch_sizes(batch_sizes, engines.backend, len(latencies)),
            latencies=latencies,
            capacity=Capacity(max_sessions=max_sessions),
            observer=metrics,
        )
        service = Service(
            engine,
            Settings(
                data=data,
                keys=keys,
                origins=tuple(origin or ()),
                ice_servers=read_ice_servers(ice) if ice else (),
                drain_seconds=drain,
            ),
            metrics,
            portrait=find_portrait(load_image(portrait)) if portrait else None,
            prune=batch_sizes is None,
        )
        tls: dict[str, Any] = {"ssl_certfile": tls_cert, "ssl_keyfile": tls_key} if tls_cert else {}
        logging.getLogger("semo_sdk.serving").setLevel(logging.INFO)
        try:
            Server.of(create_app(service), service, host=host, port=port, announce=_announce, **tls).run()
        finally:
            graphs.close()


def _announce(address: str) -> None:
    typer.echo(f"semo serve: {address} (the page; documentation: {address}/docs)", err=True)


def _batch_sizes(text: str | None, backend: str, latencies: int) -> Sequence[int]:
    from semo_sdk.backends import openvino

    if text is None:
        # On a CPU a batch costs as much as its items one by one (measured, semo-tiny on a Zen 4 core: 129, 133, 135 ms
        # an item for 1, 2, 4 items) and each size takes hundreds of megabytes, so there sessions take turns.
        return (1,) if backend == openvino.NAME else (1, 2, 4, 8)
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--batch-sizes takes whole numbers separated by commas, got {text!r}") from None
    if backend == openvino.NAME and len(sizes) * latencies > openvino.MAX_COMPILED:
        raise ConfigError(
            f"{len(sizes)} batch sizes for {latencies} latencies are more shapes than OpenVINO keeps compiled "
            f"({openvino.MAX_COMPILED}), and compiling stops everybody: name fewer --batch-sizes or --latency"
        )
    return sizes
