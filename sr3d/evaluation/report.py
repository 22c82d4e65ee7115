"""An evaluation as one self-contained HTML page."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import interpolate

from sr3d import figures, page
from sr3d.errors import Sr3dError
from sr3d.evaluation.plots import Focus, focus_of, paired_differences, quality_against, quality_by_level, unit_name
from sr3d.evaluation.results import Results, Scored
from sr3d.evaluation.sheets import Cell, Sheet, heading, number, sheets
from sr3d.evaluation.statistics import Summary
from sr3d.io.atomic import atomic
from sr3d.io.images import read_image

_KINDS = {
    "procedural": "Procedural worlds, photographed for this: the truth is known at every magnification.",
    "folder": "Captures: of each, pairs of input views and the photographs between them.",
    "shards": "Clips of shards, by a frozen index of input and target views.",
    "holdout": "Captures of which every nth photograph is tested, and no method is given it.",
    "generated": "Generated Gaussian scenes, seen from around: nobody knows the truth.",
}
_SOURCES = {"sweep": "found in the input views (plane sweep)", "depth": "given with the input views"}
_SHOWN = 4  # cases, where there is no best one
_DETAIL = 5  # a detail crop is this part of the longer side


def write_report(results: Results, summary: Summary, folder: Path) -> Path:
    """Write `report.html` into an existing folder.

    Args:
        results: What was found.
        summary: Its statistics.
        folder: Of the results: `Scored.pictures` are relative to it. Pictures that are missing are left out.

    Returns:
        Path of the page.

    Raises:
        Sr3dError: A picture is damaged or of another size than the others, or the page cannot be written.
    """
    with atomic(folder / "report.html") as temporary:
        temporary.write_text(render_html(results, summary, folder), encoding="utf-8")
    return folder / "report.html"


def render_html(results: Results, summary: Summary, folder: Path) -> str:
    """The page; arguments and errors as for `write_report`."""
    title = str(results.protocol.get("title") or results.protocol.get("name", "Evaluation"))
    found = sheets(results, summary)
    quoted = len(results.protocol.get("published", []))
    own, published = found[: len(found) - quoted], found[len(found) - quoted :]
    focus = focus_of(results, summary)
    sections = [
        _header(results, summary, title),
        page.card("Scores", "".join(_sheet(s) for s in own), "scores"),
        page.card("What papers print", "".join(_sheet(s) for s in published), "published") if published else "",
        "" if focus is None else _plots(results, summary, focus),
        _gallery(results, folder) if focus is None else _scenes(results, summary, focus, folder),
        _protocol(results),
        _provenance(results),
    ]
    return page.document(f"{title}: sr3d evaluation", "\n".join(s for s in sections if s))


def shown_scenes(focus: Focus) -> dict[str, str]:
    """The best, the median and the worst scene (or case) by their difference → which of these it is.

    The median of an even number is the worse one of the middle two. Two scenes are best and worst; one is the only one.
    """
    names = list(focus.differences)
    if len(names) < 2:
        return dict.fromkeys(names, "only")
    ranks = {names[0]: "best", names[len(names) // 2]: "median", names[-1]: "worst"}
    return {name: "worst" if name == names[-1] else rank for name, rank in ranks.items()}


def pictured(results: Results, summary: Summary, name: str, folder: Path) -> tuple[Scored, dict[str, Path]] | None:
    """First case of a scene (or case) that has pictures of methods, and those that are there; None without."""
    for case in results.cases:
        paths = {key: folder / path for key, path in case.pictures.items() if (folder / path).is_file()}
        if unit_name(case, summary) == name and any(method in paths for method in results.methods):
            return case, paths
    return None


def _header(results: Results, summary: Summary, title: str) -> str:
    evaluated, protocol = sum(summary.views.values()), results.protocol
    scenes = len({case.scene for case in results.cases})
    counts = (
        f"{evaluated:,} of {results.expected:,} target views, {len(results.cases):,} cases, {scenes:,} "
        f"scene{'' if scenes == 1 else 's'}"
    )
    covered = [
        f"{100 * share:.1f} % of the pixels{f' at {level}×' if len(summary.levels) > 1 else ''}"
        for level, share in summary.coverage.items()
    ]
    words = [_KINDS.get(protocol.get("kind", ""), "")]
    coarse = protocol.get("kind") != "generated"
    if coarse and protocol.get("factor", 1) > 1:
        words.append(f"Inputs are {protocol['factor']} times smaller than the views that are asked for, per side.")
    if coarse and protocol.get("source") in _SOURCES:
        words.append(f"Depth of the coarse scene is {_SOURCES[protocol['source']]}.")
    if coarse and covered:
        words.append(f"Covered by the coarse scene: {', '.join(covered)}.")
    incomplete = " class=loss" if evaluated < results.expected else ""
    lead = html.escape(" ".join(w for w in words if w))
    return (
        f"<header><h1>{html.escape(title)}</h1><p class=lead>{lead}</p>"
        f"<p class=note><b{incomplete}>{counts}</b></p></header>"
    )


def _sheet(sheet: Sheet) -> str:
    """A table under its title; the one of single scenes is folded up."""
    head = page.row(sheet.head, "th")
    rows = [f"<tr>{''.join(_cell(c, 'td' if i else 'th') for i, c in enumerate(row))}</tr>" for row in sheet.rows]
    notes = "<br>".join(html.escape(note) for note in sheet.notes)
    table = page.table(head, rows) + (f"<p class=note>{notes}</p>" if notes else "")
    if sheet.head[0] == "Scene":
        return f"<details><summary>{html.escape(sheet.title)}</summary>{table}</details>"
    return f"<h3>{html.escape(sheet.title)}</h3>{table}"


def _cell(cell: Cell, kind: str) -> str:
    value = html.escape(cell.value)
    shown = f"<b>{value}</b>" if cell.best else value
    small = "".join(f"<small>{html.escape(text)}</small>" for text in (cell.interval, cell.won) if text)
    classes = f' class="gain {cell.gain}"' if cell.gain else ""
    return f"<{kind}{classes}>{shown}{small}</{kind}>"


def _plots(results: Results, summary: Summary, focus: Focus) -> str:
    drawn = (
        quality_by_level(results, summary, focus),
        quality_against(results, summary, focus, "seconds"),
        quality_against(results, summary, focus, "gaussians"),
        paired_differences(results, summary, focus),
    )
    shown = "".join(f"<div class=curves>{svg.decode()}</div>" for svg in drawn if svg is not None)
    level = f" The last three are at {focus.level}×." if len(summary.levels) > 1 else ""
    note = f"Means over {summary.unit}s with 95 % bootstrap intervals.{level}"
    return page.card("Quality and cost", f"<div class=plots>{shown}</div><p class=note>{note}</p>", "plots")


def _scenes(results: Results, summary: Summary, focus: Focus, folder: Path) -> str:
    """Pictures of the best, the median and the worst scene."""
    about = results.columns[focus.column]
    cards = []
    for name, rank in shown_scenes(focus).items():
        found = pictured(results, summary, name, folder)
        difference = number(focus.differences[name], about, "+")
        text = (
            f"{focus.method} minus {summary.baseline}: {difference} {about['unit']} in {about['title']}"
            f"{f' at {focus.level}×' if len(summary.levels) > 1 else ''}, mean over the views of this {summary.unit}."
        )
        pictures = "" if found is None else _comparison(results, focus, *found)
        missing = "" if pictures else "<p class=note>No pictures were kept.</p>"
        body = f"<p class=note>{html.escape(text)}</p>{pictures}{missing}"
        cards.append(page.card(f"The {rank} {summary.unit}: {name}", body, f"{rank}-scene"))
    return "\n".join(cards)


def _gallery(results: Results, folder: Path) -> str:
    """The first few cases as every method drew them, where nothing says which are best."""
    rows = []
    for case in results.cases[:_SHOWN]:
        paths = {m: folder / case.pictures[m] for m in results.methods if m in case.pictures}
        images: list[Tensor | None] = [torch.from_numpy(read_image(p)) for p in paths.values() if p.is_file()]
        if images:
            heads = "".join(_head(method, "") for method, path in paths.items() if path.is_file())
            pictures = _tiles(images, "image")
            style = f"--columns:{len(images)};max-width:{320 * len(images)}px"
            tiles = f'<div class=grid style="{style}">{heads}{pictures}</div>'
            rows.append(f"<h3>{html.escape(case.case)}</h3><div class=scroll>{tiles}</div>")
    return page.card("Pictures", "".join(rows), "pictures") if rows else ""


def _comparison(results: Results, focus: Focus, case: Scored, paths: dict[str, Path]) -> str:
    """Columns: nearest input view, the methods, truth. Rows: image, detail, error. Then scores of every view."""
    found = {key: torch.from_numpy(read_image(path)) for key, path in paths.items()}
    methods = [m for m in results.methods if m in found]
    truth, about, middle = found.get("truth"), results.columns[focus.column], len(case.frames) // 2
    reference = found[methods[0]] if truth is None else truth
    for key in (*methods, "covered"):
        if key in found and found[key].shape != reference.shape:
            expected = f"that of the others, {tuple(reference.shape[:2])}"
            raise Sr3dError(paths[key], "size of the picture", tuple(found[key].shape[:2]), expected)
    covered = found["covered"].mean(dim=-1) > 0.5 if "covered" in found else torch.ones(reference.shape[:2]).bool()
    shown = [*(found[m] for m in methods), *([] if truth is None else [truth])]
    near = _sized(found["input"], reference) if "input" in found else None
    size = max(16, max(reference.shape[:2]) // _DETAIL)
    top, left = figures.busiest_window(reference, size, covered)
    crops = [image[top : top + size, left : left + size] for image in shown]
    # A zoomed view is another part of the scene than the same window of an input.
    same = near is not None and case.levels[middle] == 1
    near_crop = near[top : top + size, left : left + size] if same and near is not None else None
    heads = [_head("input" if near is not None else "", "nearest view" if near is not None else "")]
    heads += [_head(m, _score(case, m, focus.column, middle, about)) for m in methods]
    heads += [] if truth is None else [_head("ground truth", "not given")]
    rows = [*heads, _tiles([near, *shown], "image"), _tiles([near_crop, *crops], "detail")]
    if truth is not None:
        errors = [_hatched(figures.error_map(found[m], truth), covered) for m in methods]
        text = f"black 0, white {figures.ERROR_RANGE} and more; hatched: no input saw it"
        rows += [f"<div class=legend><b>error</b><br>{text}</div>", _tiles([*errors, None], "error")]
    where = f"{case.case}, view {case.frames[middle]}, {100 * case.coverage[middle]:.0f} % covered"
    zoom = f", magnified {case.levels[middle]}×" if case.levels[middle] != 1 else ""
    grid = f'<div class=grid style="--columns:{len(shown) + 1}">{"".join(rows)}</div>'
    scores = _every_view(results, focus, case)
    return f"<h3>{html.escape(where + zoom)}</h3><div class=scroll>{grid}</div>{scores}"


def _every_view(results: Results, focus: Focus, case: Scored) -> str:
    """Scores of all views of a case."""
    about = results.columns[focus.column]
    head = page.row(["view", "magnification", "covered", *results.methods], "th")
    rows = [
        page.row([
            frame, f"{case.levels[i]}×", f"{100 * case.coverage[i]:.1f} %",
            *(_score(case, m, focus.column, i, about) for m in results.methods),
        ])
        for i, frame in enumerate(case.frames)
    ]  # fmt: skip
    summary = f"{heading(focus.column, about)} of every view"
    return f"<details><summary>{html.escape(summary)}</summary>{page.table(head, rows)}</details>"


def _score(case: Scored, method: str, column: str, view: int, about: dict[str, Any]) -> str:
    values = case.values.get(method, {}).get(column, [])
    value = values[view] if view < len(values) else None
    return "–" if value is None else f"{number(value, about)} {about['unit']}".rstrip()


def _head(name: str, text: str) -> str:
    return f"<div class=head><b>{html.escape(name)}</b><span>{html.escape(text)}</span></div>"


def _tiles(images: list[Tensor | None], label: str) -> str:
    """Pictures of a row; small ones are enlarged by a whole number, an empty cell for None."""
    kind = f'class=pixelated loading=lazy alt="{label}" title="{label}"'
    uris = [None if i is None else figures.image_uri(_enlarged(figures.thumbnail(i))) for i in images]
    return "".join("<div></div>" if uri is None else f'<img {kind} src="{uri}">' for uri in uris)


def _enlarged(image: Tensor) -> Tensor:
    """A picture of about 256 pixels or more."""
    scale = max(1, 256 // max(image.shape[:2]))
    return image.repeat_interleave(scale, 0).repeat_interleave(scale, 1)


def _sized(image: Float[Tensor, "lh lw 3"], like: Float[Tensor, "h w 3"]) -> Float[Tensor, "h w 3"]:
    """Nearest neighbours, at the size of another picture."""
    return interpolate(image.movedim(-1, 0)[None], size=like.shape[:2], mode="nearest")[0].movedim(0, -1)


def _hatched(image: Float[Tensor, "h w 3"], covered: Bool[Tensor, "h w"]) -> Float[Tensor, "h w 3"]:
    """Diagonal grey stripes where nothing is covered."""
    h, w = covered.shape
    stripe = max(2, max(h, w) // 64)
    on = (torch.arange(h)[:, None] + torch.arange(w)) // stripe % 2 == 0
    grey = torch.where(on, 0.42, 0.56)[..., None].expand(h, w, 3)
    return torch.where(covered[..., None], image, grey)


def _protocol(results: Results) -> str:
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in results.protocol.get("notes", []))
    methods = page.facts({name: page.number(identity) for name, identity in results.methods.items()})
    values = html.escape(json.dumps(results.protocol, indent=2, ensure_ascii=False))
    details = f"<details><summary>The whole protocol</summary><pre>{values}</pre></details>"
    words = f"<ul>{notes}</ul>" if notes else ""
    return page.card("How this was measured", f"{words}<h3>Methods</h3>{methods}{details}", "protocol")


def _provenance(results: Results) -> str:
    facts = {k: page.number(v) for k, v in page.flat({**results.provenance, "run": results.timing}).items()}
    versions = {k: v for k, v in facts.items() if "versions" in k.split()}
    shown = page.facts({k: v for k, v in facts.items() if k not in versions})
    packages = f"<details><summary>Versions</summary>{page.facts(versions)}</details>"
    return page.card("Machine, versions", shown + packages, "machine")
