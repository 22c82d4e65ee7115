"""What a demo run found: one JSON file for programs, one self-contained HTML page for people."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from rich.table import Table
from torch import Tensor

from sr3d import figures, page
from sr3d.io.atomic import atomic

METHODS = {
    "coarse": "one Gaussian per low-resolution pixel",
    "upsampled": "one Gaussian per pixel of the bicubically enlarged views: the baseline to beat",
    "scaffold": "the network's input: coarse Gaussians split into children, coloured from the views",
    "sr3d": "scaffold plus the network's residuals, one forward pass",
}
_GAINS = (("psnr_covered", 2), ("psnr", 2), ("ssim", 3))
_VIDEO_LIMIT = 3_000_000
_DETAIL = 5


@dataclass(kw_only=True)
class Comparison:
    """One target view, drawn by every method.

    Attributes:
        title: What is shown.
        given: The input view nearest to the target, low resolution.
        renderings: Per method.
        depths: z-depth per method, world units, 0 where unknown; `truth` where it is known.
        truth: The photograph that no method was given.
        covered: Pixels that the scores "covered" count.
        scores: Per method: `psnr`, `psnr_covered`, `ssim` of this view.
    """

    title: str
    given: Float[Tensor, "lh lw 3"]
    renderings: dict[str, Float[Tensor, "h w 3"]]
    depths: dict[str, Float[Tensor, "h w"]]
    truth: Float[Tensor, "h w 3"]
    covered: Bool[Tensor, "h w"]
    scores: dict[str, dict[str, float]]


@dataclass(kw_only=True)
class Experiment:
    """One row of the headline table.

    Attributes:
        key: Name in the JSON file: `procedural`, `procedural_depth`, `real`, `real_depth`.
        title: Name on the page.
        result: `coverage`, `views`, and `psnr`, `psnr_covered`, `ssim`, `gaussians` per method.
        comparisons: Target views to show.
    """

    key: str
    title: str
    result: dict[str, Any]
    comparisons: list[Comparison] = field(default_factory=list)


@dataclass(kw_only=True)
class ZoomShown:
    """A zoom into one scene.

    Attributes:
        key: Name in the JSON file.
        title: Name on the page.
        metrics: Plain values.
        sheet: Contact sheet of all levels, PNG or JPEG.
        video: MP4 of the flight.
    """

    key: str
    title: str
    metrics: dict[str, Any]
    sheet: Path | None = None
    video: Path | None = None


@dataclass(kw_only=True)
class Report:
    """Everything a demo run found.

    Attributes:
        experiments: Evaluations, in the order of the page.
        missing: Experiments that were left out: JSON key → reason.
        zooms: Zooms, in the order of the page.
        curves: Columns of the training log, see `sr3d.figures.read_curves`.
        seconds: Wall time per stage.
        versions: Package → version.
        hardware: Part → description.
        protocol: How the numbers were made, JSON values.
        words: The protocol in sentences.
    """

    experiments: list[Experiment] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    zooms: list[ZoomShown] = field(default_factory=list)
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, str] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: one entry per experiment, and the rest under its own name."""
        return {
            **{e.key: e.result for e in self.experiments},
            "missing": self.missing,
            "zoom": {z.key: z.metrics for z in self.zooms},
            "seconds": self.seconds,
            "versions": self.versions,
            "hardware": self.hardware,
            "protocol": self.protocol,
        }


def write_report(report: Report, folder: Path) -> Path:
    """Write `report.json` and `report.html` into an existing folder.

    Returns:
        Path of the page.
    """
    target = folder / "report.html"
    content = {
        folder / "report.json": json.dumps(report.as_dict(), indent=2, ensure_ascii=False) + "\n",
        target: render_html(report, folder),
    }
    for path, text in content.items():
        with atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return target


def gain(result: dict[str, Any], metric: str) -> float:
    """`metric` of sr3d minus that of `upsampled`; negative where the network loses."""
    return float(result["sr3d"][metric] - result["upsampled"][metric])


def method_table(result: dict[str, Any], title: str) -> Table:
    """The scores of one experiment for a terminal; `result` as in `Experiment`."""
    table = Table(title=title, title_justify="left")
    for head in ("", "PSNR covered", "PSNR whole", "SSIM", "Gaussians"):
        table.add_column(head, justify="right" if head else "left")
    for m in METHODS:
        table.add_row(m, *_score_cells(result[m]))
    gains = (f"{gain(result, metric):+.{digits}f}" for metric, digits in _GAINS)
    table.add_row("sr3d minus upsampled", *gains, "", style="bold")
    table.caption = f"{result['views']} target views, {100 * result['coverage']:.0f} % covered"
    return table


def _score_cells(scores: dict[str, float]) -> list[str]:
    return [
        f"{scores['psnr_covered']:.2f}",
        f"{scores['psnr']:.2f}",
        f"{scores['ssim']:.3f}",
        f"{scores['gaussians']:,.0f}",
    ]


def render_html(report: Report, folder: Path) -> str:
    """The page, self-contained; videos of 3 MB and more are linked relative to `folder`."""
    sections = [
        _headline(report),
        *(_experiment(e) for e in report.experiments),
        *(_zoom(z, folder) for z in report.zooms),
        _training(report),
        _protocol(report),
        _machine(report),
    ]
    return page.document("sr3d demo", "\n".join(s for s in sections if s))


def _headline(report: Report) -> str:
    lead = (
        "Two low-resolution views in, 4× finer Gaussians out, by one pass of a network that was trained on procedural "
        f"places just now, in {_duration(report.seconds.get('training', 0.0))}. Everything below took "
        f"{_duration(sum(report.seconds.values(), 0.0))} on this machine."
    )
    heads = "".join(f"<th>{m}</th>" for m in METHODS)
    head = (
        "<tr><th rowspan=2>target views</th><th colspan=4>PSNR on covered pixels, dB</th>"
        "<th colspan=3>sr3d minus upsampled</th><th rowspan=2>views</th><th rowspan=2>covered</th></tr>"
        f"<tr>{heads}<th>PSNR covered</th><th>PSNR whole</th><th>SSIM</th></tr>"
    )
    left_out = "".join(
        f"<p class=note>Not measured, {html.escape(k)}: {html.escape(v)}.</p>" for k, v in report.missing.items()
    )
    legend = "".join(f"<li><b>{m}</b> {text}</li>" for m, text in METHODS.items())
    body = (
        page.table(head, [_headline_row(e) for e in report.experiments]) + left_out + f"<ul class=legend>{legend}</ul>"
    )
    title = "Views that were not given: PSNR, and gain over bicubic enlargement"
    return f"<header><h1>sr3d demo</h1><p class=lead>{lead}</p></header>" + page.card(title, body)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.1f} minutes"


def _headline_row(experiment: Experiment) -> str:
    r = experiment.result
    cells = "".join(f"<td>{r[m]['psnr_covered']:.2f}</td>" for m in METHODS)
    gains = "".join(_gain_cell(gain(r, metric), digits) for metric, digits in _GAINS)
    link = f'<a href="#{experiment.key}">{html.escape(experiment.title)}</a>'
    return f"<tr><th>{link}</th>{cells}{gains}<td>{r['views']}</td><td>{100 * r['coverage']:.0f} %</td></tr>"


def _gain_cell(value: float, digits: int) -> str:
    rounded = round(value, digits)
    kind = "win" if rounded > 0 else "loss" if rounded < 0 else ""
    return f'<td class="gain {kind}">{value:+.{digits}f}</td>'


def _experiment(experiment: Experiment) -> str:
    rows = [page.row([m, *_score_cells(experiment.result[m])]) for m in METHODS]
    head = page.row(["", "PSNR covered", "PSNR whole", "SSIM", "Gaussians"], "th")
    shown = "".join(_comparison(c) for c in experiment.comparisons)
    return page.card(experiment.title, page.table(head, rows) + shown, experiment.key)


def _comparison(c: Comparison) -> str:
    """Columns: nearest input view, the methods, truth. Rows: image, detail, error, depth."""
    size = max(16, max(c.truth.shape[:2]) // _DETAIL)
    top, left = figures.busiest_window(c.truth, size)
    limits = figures.depth_range(c.depths.get("truth", c.depths["coarse"]))
    scale = round(c.truth.shape[0] / c.given.shape[0])
    heads = [f"<b>input</b><span>nearest view, {scale}× nearest</span>", "<b>input</b><span>same, bicubic</span>"]
    heads += [f"<b>{m}</b><span>{s['psnr_covered']:.2f} dB</span>" for m, s in c.scores.items()]
    heads += ["<b>ground truth</b><span>not given</span>"]
    bicubic = torch.nn.functional.interpolate(
        c.given.movedim(-1, 0)[None], size=c.truth.shape[:2], mode="bicubic", align_corners=False
    )[0].movedim(0, -1)
    pictures = [_nearest(c.given, scale), bicubic, *c.renderings.values(), c.truth]
    crops = [p[top : top + size, left : left + size] for p in pictures]
    errors = [*(figures.error_map(r, c.truth) for r in c.renderings.values()), None]
    depths = [*(c.depths.get(m) for m in c.renderings), c.depths.get("truth")]
    colored = [None if d is None else figures.depth_map(d, limits) for d in depths]
    rows = [
        "".join(f"<div class=head>{h}</div>" for h in heads),
        _tiles(pictures, "image"),
        _tiles([_nearest(p, max(1, 256 // size)) for p in crops], "detail", pixelated=True),
        _label("error", f"mean absolute difference; black 0, white {figures.ERROR_RANGE} and more"),
        _tiles(errors, "error"),
        _label("depth", "near yellow, far violet, unknown grey; one scale for the row"),
        _tiles(colored, "depth"),
    ]
    note = f"{100 * float(c.covered.float().mean()):.0f} % of this view is seen by an input."
    return (
        f"<h3>{html.escape(c.title)} <small>{note}</small></h3><div class=scroll>"
        f'<div class=grid style="--columns:{len(heads)}">{"".join(rows)}</div></div>'
    )


def _label(name: str, text: str) -> str:
    """Fills the two cells of a row that has no pictures of the inputs."""
    return f"<div class=label><b>{name}</b><span>{text}</span></div>"


def _nearest(image: Tensor, scale: int) -> Tensor:
    return image.repeat_interleave(scale, 0).repeat_interleave(scale, 1)


def _tiles(images: Sequence[Tensor | None], label: str, pixelated: bool = False) -> str:
    kind = f'{"class=pixelated " if pixelated else ""}loading=lazy alt="{label}" title="{label}"'
    uris = [None if i is None else figures.image_uri(figures.thumbnail(i)) for i in images]
    return "".join("<div></div>" if uri is None else f'<img {kind} src="{uri}">' for uri in uris)


def _zoom(zoom: ZoomShown, folder: Path) -> str:
    sheet = video = ""
    if zoom.sheet is not None:
        kind = "image/png" if zoom.sheet.suffix == ".png" else "image/jpeg"
        uri = figures.file_uri(zoom.sheet, kind)
        sheet = f'<div class=scroll><img class=wide alt="contact sheet" src="{uri}"></div>'
    if zoom.video is not None and zoom.video.stat().st_size < _VIDEO_LIMIT:
        video = f'<video controls muted loop playsinline src="{figures.file_uri(zoom.video, "video/mp4")}"></video>'
    elif zoom.video is not None:
        video = f'<p><a href="{html.escape(os.path.relpath(zoom.video, folder))}">Video of the flight</a></p>'
    return page.card(zoom.title, sheet + video + page.value_tables(zoom.metrics), f"zoom-{zoom.key}")


def _training(report: Report) -> str:
    if not report.curves:
        return ""
    return page.card("Training", f"<div class=curves>{figures.curves_svg(report.curves)}</div>")


def _protocol(report: Report) -> str:
    words = "".join(f"<li>{html.escape(w)}</li>" for w in report.words)
    values = html.escape(json.dumps(report.protocol, indent=2, ensure_ascii=False))
    details = f"<details><summary>All settings</summary><pre>{values}</pre></details>"
    return page.card("How this was measured", f"<ul>{words}</ul>{details}")


def _machine(report: Report) -> str:
    longest = max(report.seconds.values(), default=1.0)
    bars = "".join(
        f'<dt>{html.escape(k)}</dt><dd><span class=bar style="width:{60 * v / longest:.1f}%"></span>{v:.0f} s</dd>'
        for k, v in report.seconds.items()
    )
    packages = f"<details><summary>Versions</summary>{page.facts(report.versions)}</details>"
    return page.card("Time, machine, versions", f"<dl>{bars}</dl>{page.facts(report.hardware)}{packages}")
