"""From one machine to many: how many machines a number of streams needs, and what a stream costs an hour.

    python -m semo_sdk.benchmarks.fleet benchmarks/results/speed/sessions.json --price 0.40 --streams 1000

Only what was measured is multiplied: the sessions that one machine carried (``semo bench sessions``). A share of it
stays free, for passes that take longer than usual and for sessions that move when a machine is lost. Sessions share
nothing but the weights, so a second machine carries as many again; nothing else is assumed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from semo_sdk.benchmarks.report import table
from semo_sdk.errors import ConfigError

UTILISATION = 0.8  # what `semo serve` lets live sessions fill


def fleet(result: Mapping[str, Any], *, price: float, streams: int, utilisation: float = UTILISATION) -> dict[str, Any]:
    """The arithmetic for one result of ``semo bench sessions``.

    Args:
        result: see above.
        price: of one such machine for one hour, in any currency.
        streams: live sessions at the same time.
        utilisation: share of what was carried that is planned with.

    Returns:
        ``carried``, ``planned`` (sessions a machine), ``machines``, ``price_per_stream_hour`` (at full machines) and
        ``price_per_hour`` of all machines.

    Raises:
        ConfigError: an impossible number.
    """
    if price < 0 or streams < 1 or not 0 < utilisation <= 1:
        raise ConfigError(f"price {price}, streams {streams}, utilisation {utilisation}: give >= 0, >= 1 and 0 to 1")
    planned = max(math.floor(result["carried"] * utilisation), min(result["carried"], 1))
    machines = math.ceil(streams / planned) if planned else None
    return {
        "carried": result["carried"],
        "planned": planned,
        "machines": machines,
        "price_per_stream_hour": round(price / planned, 5) if planned else None,
        "price_per_hour": round(price * machines, 2) if machines else None,
    }


def machine(result: Mapping[str, Any]) -> str:
    """What a result was measured on."""
    prints = result["fingerprint"]
    gpus = ", ".join(gpu["name"] for gpu in prints["gpu"])
    threads = result.get("threads") or prints["cpu"]["usable_cores"]
    return gpus or f"{prints['cpu']['model']}, {threads} {'core' if threads == 1 else 'cores'}"


def markdown(results: Sequence[Mapping[str, Any]], *, price: float = 1.0, streams: int = 1000) -> str:
    """The arithmetic for several results as a Markdown table."""
    rows = []
    for result in results:
        found = fleet(result, price=price, streams=streams)
        cost = found["price_per_stream_hour"]
        rows.append(
            [
                machine(result),
                f"`{result['bundle']}`, `{result['latency']}`",
                found["carried"],
                found["planned"],
                "none" if cost is None else f"{price:g} / {found['planned']} = {cost:.4g}",
                "none" if not found["machines"] else f"{streams} / {found['planned']} = {found['machines']}",
            ]
        )
    head = ["machine", "model, latency", "carried", f"planned ({100 * UTILISATION:.0f} %)"]
    return table([*head, f"a stream-hour at {price:g} a machine-hour", f"machines for {streams} streams"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m semo_sdk.benchmarks.fleet", description="Machines and money.")
    parser.add_argument("results", type=Path, nargs="+", help="results of semo bench sessions")
    parser.add_argument("--price", type=float, default=1.0, help="of one machine for one hour")
    parser.add_argument("--streams", type=int, default=1000, help="live sessions at the same time")
    options = parser.parse_args(arguments)
    loaded = [json.loads(path.read_text(encoding="utf-8")) for path in options.results]
    sys.stdout.write(markdown(loaded, price=options.price, streams=options.streams) + "\n")


if __name__ == "__main__":
    main()
