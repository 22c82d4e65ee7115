"""The page of a zoom: headline numbers, video, level sheet, cost of every level, and the tree of branches."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sr3d import page
from sr3d.errors import Sr3dError
from sr3d.figures import file_uri
from sr3d.io.atomic import atomic

_VIDEO_LIMIT = 3_000_000  # bytes; larger videos stay files
_PITCH, _TALL = 72, 150  # of a plot's bars
_BESIDE = 7  # plots of more bars stand below each other
_PLOTS = {"gaussians": "Gaussians per level", "seconds": "Seconds per level"}


def write_zoom_page(
    folder: str | Path,
    *,
    title: str,
    metrics: dict[str, Any],
    sheet: Path,
    video: Path | None = None,
    tree: str = "",
    words: Sequence[str] = (),
) -> Path:
    """Write `index.html`, which needs no other file, except a video of 3 MB and more, which is named relative to it.

    Args:
        folder: Existing folder.
        title: Of the page.
        metrics: JSON values: `gaussians`, `levels` (each with `level`, `magnification`, `gaussians`, `seconds`, and
            more), `seconds` (a number, or one for each stage), and more.
        sheet: Level sheet, PNG.
        video: MP4 of the flight.
        tree: Text drawing of the branches.
        words: How it was made, in sentences.

    Returns:
        Path of the page.

    Raises:
        Sr3dError: No levels, sheet or video are missing, or the page cannot be written.
    """
    target = Path(folder) / "index.html"
    levels: list[dict[str, Any]] = metrics.get("levels") or []
    if not levels:
        raise Sr3dError(target, "metrics.levels", "none", "at least one level of a zoom")
    image = f'<div class=scroll><img class=wide alt="level sheet" src="{file_uri(sheet, "image/png")}"></div>'
    plots = "".join(f"<div class=scroll><h3>{name}</h3>{_bars(levels, key)}</div>" for key, name in _PLOTS.items())
    beside = " class=plots" if len(levels) <= _BESIDE else ""
    rest = {key: value for key, value in metrics.items() if key != "levels"}
    sections = [
        f"<header><h1>{html.escape(title)}</h1></header>",
        page.card("At a glance", _headline(metrics, levels)),
        page.card("Video", _video(video, target.parent)) if video is not None else "",
        page.card("Level by level", image + _LEGEND),
        page.card("Cost and scores", f"<div{beside}>{plots}</div>" + page.value_tables({"levels": levels})),
        page.card("Branches", f"<pre>{html.escape(tree)}</pre>") if tree else "",
        page.card("How it was made", "".join(f"<p>{html.escape(w)}</p>" for w in words)) if words else "",
        page.card("All numbers", page.value_tables(rest)) if rest else "",
    ]
    with atomic(target) as temporary:
        temporary.write_text(page.document(title, "\n".join(s for s in sections if s)), encoding="utf-8")
    return target


_LEGEND = (
    "<p class=note>Rendered before: the scene as it was, in the frame of the level. Guidance: what a provider made of "
    "it, and the words. New level: the scene with the level's Gaussians; “reduced” compares it, averaged down, with "
    "what was there. Difference of views: mean absolute difference of colours where another view sees the same "
    "surface; grey where none does.</p>"
)


def _headline(metrics: dict[str, Any], levels: Sequence[dict[str, Any]]) -> str:
    seconds = metrics.get("seconds")
    parts = seconds.values() if isinstance(seconds, dict) else [seconds]
    known = [float(s) for s in parts if isinstance(s, int | float)]
    magnifications = [level["magnification"] for level in levels if level.get("magnification") is not None]
    psnr = (levels[-1].get("scores") or levels[-1]).get("psnr")
    facts = {
        "magnification": f"{max(magnifications):,g}×" if magnifications else "–",
        "levels": page.number(len(levels)),
        "Gaussians": page.number(metrics.get("gaussians")),
        "seconds in all": page.number(sum(known) if known else None),
        "PSNR between views, last level": f"{psnr:.1f} dB" if psnr is not None else "–",
    }
    tiles = "".join(
        f'<div><div style="font-size:30px;font-weight:650;line-height:1.2">{html.escape(value)}</div>'
        f'<div style="color:var(--soft);font-size:14px">{name}</div></div>'
        for name, value in facts.items()
    )
    return f'<div style="display:flex;flex-wrap:wrap;gap:16px 56px">{tiles}</div>'


def _video(video: Path, folder: Path) -> str:
    """The video itself where it is small, else its name."""
    if not video.is_file():
        raise Sr3dError(video, "file", "missing", "the video of the zoom")
    small = video.stat().st_size < _VIDEO_LIMIT
    source = file_uri(video, "video/mp4") if small else quote(Path(os.path.relpath(video, folder)).as_posix())
    return f'<video controls muted loop playsinline src="{source}"></video>'


def _bars(levels: Sequence[dict[str, Any]], key: str) -> str:
    """A bar for each level from zero, its value above and its magnification below, as an inline SVG."""
    values = [level.get(key) for level in levels]
    most = max((float(v) for v in values if v is not None), default=0.0) or 1.0
    width, marks = _PITCH * max(5, len(levels)), []
    for i, (level, value) in enumerate(zip(levels, values)):
        x, tall = _PITCH * (i + 0.5), _TALL * float(value or 0) / most
        at = f"{level.get('level', i)}: {level['magnification']:g}×" if "magnification" in level else str(i)
        marks.append(
            f'<rect x="{x - 24}" y="{20 + _TALL - tall:.1f}" width="48" height="{tall:.1f}" fill="var(--accent)"/>'
            f'<text x="{x}" y="{14 + _TALL - tall:.1f}">{html.escape(page.number(value))}</text>'
            f'<text x="{x}" y="{40 + _TALL}" fill-opacity=".65">{html.escape(at)}</text>'
        )
    line = f'<path d="M0 {20 + _TALL}H{width}" stroke="currentColor" stroke-opacity=".3"/>'
    return (
        f'<svg viewBox="0 0 {width} {_TALL + 50}" font-size="13" text-anchor="middle" '
        f'style="width:100%;min-width:{0.75 * width:.0f}px;max-width:{1.25 * width:.0f}px" '
        f'fill="currentColor" role="img" aria-label="{_PLOTS[key]}">{"".join(marks)}{line}</svg>'
    )
