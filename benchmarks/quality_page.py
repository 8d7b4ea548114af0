"""The quality benchmark as one HTML page: tables, curves as SVG, videos beside it in a folder."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from semo_sdk.benchmarks import quality_tables
from semo_sdk.benchmarks.faces import FaceSeries
from semo_sdk.benchmarks.footage import Footage
from semo_sdk.constants import FPS, IMAGE_SIZE
from semo_sdk.files import write_text
from semo_sdk.media.image import Portrait
from semo_sdk.media.video import VideoWriter

WIDTH, HEIGHT, LEFT, BOTTOM = 760, 220, 52, 34  # pixels of a plot and of its margins
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")
STYLE = """body{font:15px/1.45 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.6em 0 1.6em}td,th{border:1px solid #ccc;padding:.25em .6em;text-align:right}
td:first-child,th:first-child{text-align:left}th{background:#f3f3f3}figure{margin:.8em 0 1.6em}
video{max-width:100%;background:#000}figcaption{color:#555}.warn{background:#fff3cd;padding:.6em 1em}"""


@dataclass
class Gallery:
    """Collects the page's videos while the benchmark runs.

    Args:
        folder: where the videos go; None collects nothing.
        limit: videos of each kind and group of clips.
    """

    folder: Path | None
    limit: int
    figures: list[tuple[str, str, str]] = field(default_factory=list)  # kind, caption, HTML
    _counts: dict[tuple[str, str], int] = field(default_factory=dict)

    def _takes(self, kind: str, group: str) -> bool:
        count = self._counts.get((kind, group), 0)
        self._counts[kind, group] = count + 1
        return self.folder is not None and count < self.limit

    def reconstruction(self, clip: Footage, made: Mapping[str, np.ndarray]) -> None:
        """Shows a clip beside what the methods make of it."""
        if self._takes("reconstruction", clip.group):
            names = ", ".join(quality_tables.METHODS[name] for name in made)
            caption = f"{clip.name}: real, {names}"
            self._add("reconstruction", clip, f"reconstruction_{clip.name}", [clip.frames, *made.values()], caption)

    def portrait(self, clip: Footage, portrait: Portrait, frames: np.ndarray, face: FaceSeries) -> None:
        """Shows a portrait speaking beside the real speaker, and both mouths as curves."""
        if self._takes("generation", clip.group):
            still = np.repeat(portrait.crop[None], len(frames), axis=0)
            shown = self._counts["generation", clip.group]
            caption = f"speech of {clip.name}: portrait, generated from the sound alone, real speaker"
            curves = {"generated": face.track.mouth, "real": clip.face.track.mouth}
            plot = line_plot(curves, step=1 / FPS, x_label="s", y_label="mouth opening")
            name = f"speech_{clip.group}_{shown}_{clip.name}"
            self._add("generation", clip, name, [still, frames, clip.frames], caption, plot)

    def _add(
        self, kind: str, clip: Footage, name: str, columns: Sequence[np.ndarray], caption: str, plot: str = ""
    ) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name}.mp4"
        count = min(len(column) for column in columns)
        with VideoWriter(path, (IMAGE_SIZE * len(columns), IMAGE_SIZE), audio=clip.pcm) as writer:
            writer.write(np.concatenate([column[:count] for column in columns], axis=2))
        source = html.escape(f"{self.folder.name}/{path.name}")
        width = min(IMAGE_SIZE * len(columns), 1100)
        video = f'<video controls preload="none" width="{width}" src="{source}"></video>'
        self.figures.append((kind, caption, f"{video}{plot}"))


def line_plot(
    series: Mapping[str, Sequence[float | None] | np.ndarray], *, step: float, x_label: str, y_label: str
) -> str:
    """Curves as SVG text; gaps where a value is None or NaN.

    Args:
        series: name and values, all with the first one at 0.
        step: distance of two values on the x axis.
    """
    rows = {name: np.array([np.nan if v is None else v for v in values], float) for name, values in series.items()}
    known = np.concatenate([[0.0], *(values[np.isfinite(values)] for values in rows.values())])
    low, high = float(known.min()), max(float(known.max()) * 1.05, float(known.min()) + 1e-6)
    end = max(max((len(values) - 1 for values in rows.values()), default=1), 1) * step

    def place(x: float, y: float) -> str:
        across = LEFT + (WIDTH - LEFT - 10) * x / end
        return f"{across:.1f},{10 + (HEIGHT - BOTTOM - 10) * (1 - (y - low) / (high - low)):.1f}"

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" font-size="12">']
    for share in (0, 0.25, 0.5, 0.75, 1):
        y, x = low + (high - low) * share, end * share
        start, stop = place(0, y), place(end, y)
        parts.append(f'<polyline points="{start} {stop}" stroke="#ddd" fill="none"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{start.split(",")[1]}" text-anchor="end">{y:.3g}</text>')
        across = place(x, low).split(",")[0]
        parts.append(f'<text x="{across}" y="{HEIGHT - 16}" text-anchor="middle">{x:.3g}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 2}" text-anchor="middle">{html.escape(x_label)}</text>')
    parts.append(f'<text x="{LEFT}" y="9">{html.escape(y_label)}</text>')
    for number, (name, values) in enumerate(rows.items()):
        colour = COLOURS[number % len(COLOURS)]
        whole = np.split(np.arange(len(values)), np.flatnonzero(~np.isfinite(values)))
        for run in whole:
            points = " ".join(place(i * step, values[i]) for i in run if np.isfinite(values[i]))
            if points:
                parts.append(f'<polyline points="{points}" stroke="{colour}" stroke-width="1.6" fill="none"/>')
        parts.append(f'<text x="{WIDTH - 14}" y="{24 + 15 * number}" fill="{colour}" text-anchor="end">{name}</text>')
    return "".join([*parts, "</svg>"])


def write_page(path: Path, result: Mapping[str, Any], gallery: Gallery) -> None:
    """Writes the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page(result, gallery))


def page(result: Mapping[str, Any], gallery: Gallery) -> str:
    """The page's text; it needs nothing from elsewhere but its videos."""
    model = result["model"]
    about = f"{model['name']} on {result['backend']} {result['precision']}, latency {result['latency']}, seed "
    body = [f"<h1>Quality of {html.escape(model['name'])}</h1><p>{html.escape(about)}{result['seed']}.</p>"]
    if "random" in str(model["provenance"].get("weights", "")):
        body.append('<p class="warn">This bundle has <b>random weights</b>: the numbers say nothing about quality.</p>')
    body.append(_table(quality_tables.target_table(result)))
    body.append("<h2>Video reconstruction</h2>")
    body += [_table(one) for one in quality_tables.reconstruction_tables(result)]
    body += _figures(gallery, "reconstruction")
    body.append("<h2>Audio-driven generation</h2>")
    body += [_table(one) for one in quality_tables.generation_tables(result)]
    if result["identity_scale"]:
        body.append(f"<p>What the identity numbers are worth: {_pairs(result['identity_scale'])}.</p>")
    body += _figures(gallery, "generation")
    body += ["<h2>Long speech</h2>", _long_run(result["long_run"])]
    body += ["<h2>Controls</h2>", _table(quality_tables.controls_table(result))]
    body += ["<h2>Silence</h2>", _table(quality_tables.silence_table(result))]
    begin = result["silence"]["silence_from_second"]
    label = f"s (silence from {begin:g} s on)"
    opening = {"mouth opening": result["silence"]["series"]}
    body.append(line_plot(opening, step=1 / FPS, x_label=label, y_label="eye distances"))
    metrics = [[name, one["status"], one["definition"]] for name, one in result["metrics"].items()]
    body += ["<h2>Metrics</h2>", _table(("", ["", "status", "definition"], metrics))]
    left_out = [[one["file"], one["reason"]] for one in result["left_out"]]
    if left_out:
        body += ["<h2>Left out</h2>", _table(("", ["file", "reason"], left_out))]
    body.append(f"<details><summary>Machine</summary><pre>{html.escape(str(result['fingerprint']))}</pre></details>")
    head = f'<meta charset="utf-8"><title>Quality of {html.escape(model["name"])}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'


def _table(table: quality_tables.Table) -> str:
    title, head, rows = table
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    heading = f"<h3>{html.escape(title)}</h3>" if title else ""
    return f"{heading}<table><tr>{top}</tr>{lines}</table>"


def _figures(gallery: Gallery, kind: str) -> list[str]:
    return [
        f"<figure><figcaption>{html.escape(caption)}</figcaption>{content}</figure>"
        for name, caption, content in gallery.figures
        if name == kind
    ]


def _pairs(values: Mapping[str, float]) -> str:
    return html.escape(", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in values.items()))


def _long_run(result: Mapping[str, Any]) -> str:
    windows = result["windows"]
    step = windows[1]["start"] - windows[0]["start"] if len(windows) > 1 else 1
    names = {"sharpness_ratio": "sharpness / portrait", "identity_cosine": "identity cosine"}
    curves = {label: [window.get(name) for window in windows] for name, label in names.items()}
    return line_plot(curves, step=step, x_label="s", y_label="means of 10 s")
