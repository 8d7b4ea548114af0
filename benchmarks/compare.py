"""Two results of the same benchmark side by side: ``semo bench --compare BEFORE.json AFTER.json``.

Every number that both have and of which it is known which way is better is a row: before, after, how many times better;
of ``quality``, whose numbers stand beside those of its baselines, what has an aim.
What got worse by more than the tolerance is marked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from semo_sdk.benchmarks.report import table
from semo_sdk.errors import InputError

TOLERANCE = 0.05  # of noise between two runs on the same machine
# The last of these words in a number's path says which way is better.
LOWER = ("_ms", "_s", "_mib", "rtf", "seconds", "joule", "late", "share_of_one_session", "busy")
HIGHER = ("fps", "megapixels_per_s", "tflops", "share_of_peak", "carried", "times_naive", "frames_per_s")
MEANS = ("correlation", "best_correlation", "beyond_rhythm", "detection_rate")  # of lipsync: more is better
# Of a spread only these are compared: a mean hides what the others show, and a count is no speed.
SPREAD = ("p50", "p95", "p99")
SKIPPED = ("fingerprint", "weights", "video_seconds", "hop_ms", "seconds", "joules")


def numbers(result: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    """Every number of a result with its path; rows of a list are named by what they vary."""
    if isinstance(result, bool):
        return
    if isinstance(result, int | float):
        yield path, float(result)
    elif isinstance(result, Mapping):
        for key, value in result.items():
            if key not in SKIPPED or (key == "seconds" and isinstance(value, Mapping)):
                yield from numbers(value, (*path, str(key)))
    elif isinstance(result, list):
        for index, value in enumerate(result):
            row = value if isinstance(value, Mapping) else {}
            name = next((f"{k}={row[k]}" for k in ("batch", "sessions") if k in row), str(index))
            yield from numbers(value, (*path, name))


def direction(path: tuple[str, ...]) -> int:
    """1 where more is better, -1 where less is, 0 where neither is known or the number is not compared."""
    words = list(path)
    if words[-1] == "mean" and words[-2] in MEANS:
        return 1
    if words[-1] in ("mean", "count"):
        return 0
    if words[-1] in SPREAD:
        words.pop()
    for word in reversed(words):
        if word.endswith(HIGHER):
            return 1
        if word.endswith(LOWER):
            return -1
    return 0


def _directed(result: Mapping[str, Any]) -> dict[str, tuple[int, float]]:
    """Name -> which way is better, and value, of what can be compared."""
    if aims := result.get("targets"):
        return {
            row["what"]: (1 if row["target"].startswith(">") else -1, row["measured"])
            for row in aims
            if row["measured"] is not None
        }
    return {".".join(path): (sign, value) for path, value in numbers(result) if (sign := direction(path))}


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows with ``what``, ``before``, ``after``, ``better`` (times; below 1 is worse) and ``regression``.

    Raises:
        InputError: results of different benchmarks.
    """
    kinds = before.get("benchmark"), after.get("benchmark")
    if kinds[0] != kinds[1] or kinds[0] is None:
        raise InputError(f"these are results of {kinds[0]} and {kinds[1]}; compare two of the same benchmark")
    new, old_ones = _directed(after), _directed(before)
    rows = []
    for path, (sign, old) in old_ones.items():
        value = new.get(path, (0, 0.0))[1]
        if old <= 0 or value <= 0:
            continue
        ratio = (value / old) ** sign
        rows.append(
            {
                "what": path,
                "before": old,
                "after": value,
                "better": round(ratio, 3),
                "regression": ratio < 1 - TOLERANCE,
            }
        )
    return rows


def markdown(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The comparison as a Markdown table, with what was compared above it and the verdict below."""
    rows = compare(before, after)
    worse = [row for row in rows if row["regression"]]
    lines = [
        [
            row["what"],
            f"{row['before']:g}",
            f"{row['after']:g}",
            f"{row['better']:.2f}x",
            "WORSE" if row["regression"] else "",
        ]
        for row in rows
    ]
    heads = []
    for name, result in (("before", before), ("after", after)):
        print_of = result.get("fingerprint", {})
        gpus = [gpu["name"] for gpu in print_of.get("gpu", [])]
        machine = ", ".join(gpus) or print_of.get("cpu", {}).get("model", "unknown machine")
        heads.append(
            f"{name}: {_model(result)}, {result.get('backend')} "
            f"{result.get('precision')}, {machine}, semo-sdk {print_of.get('semo_sdk')}"
        )
    if rows:
        mean = math.exp(sum(math.log(row["better"]) for row in rows if row["better"] > 0) / len(rows))
        verdict = f"{len(worse)} of {len(rows)} numbers got worse by more than {100 * TOLERANCE:.0f} %; "
        verdict += f"geometric mean {mean:.2f}x"
    else:
        verdict = "the two have no number in common"
    return "\n".join([*heads, "", table(["what", "before", "after", "better", ""], lines), "", verdict])


def _model(result: Mapping[str, Any]) -> str:
    """Its bundle, and where the result says so whether the weights are trained.

    Results of ``latency`` say it beside the provenance, which may speak of random things that are no weights.
    """
    name = str(result.get("bundle") or result.get("model", {}).get("name"))
    label = result.get("weights_label", result.get("weights"))
    return f"{name} ({label})" if label else name


def load(path: Path) -> dict[str, Any]:
    """A result.

    Raises:
        InputError: it cannot be read, or is not one.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(result, dict) or "benchmark" not in result:
        raise InputError(f"{path} is not a result of semo bench")
    return result
