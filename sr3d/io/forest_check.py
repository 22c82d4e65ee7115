"""Every value of a forest checked, not only what opening it reads."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sr3d.errors import Sr3dError
from sr3d.gaussians import Lod
from sr3d.io.forest import check_tables
from sr3d.lod import BLOCK, Forest
from sr3d.lod.checks import SAME, check_footprints
from sr3d.lod.level import bound_blocks


def check_forest(forest: Forest) -> None:
    """Check every value of a forest, and that links, footprints and block tables agree; reads everything.

    Raises:
        Sr3dError: Links that dangle, go in circles or do not go one level up; footprints, splits or block bounds that
            disagree with the rows; or values that are not finite or out of range. Names the level and the first row.
    """
    if forest.source is not None:
        forest.source.check()
    # All links first: what a level says about earlier rows is used to check these.
    for check in (_check_links, _check_rows):
        for k in range(len(forest.levels)):
            check(forest, k)


def _check_links(forest: Forest, k: int) -> None:
    """Raise unless parents, splits and footprints of a level agree."""
    level, start = forest.levels[k], forest.starts[k]
    parents, split = level.parents, level.split
    fine = (parents >= -1) & (parents < len(forest))
    _require(forest, k, "parents", fine, parents, f"no dangling link: -1 or a row below {len(forest)}")
    _require(forest, k, "parents", parents < start, parents, f"no cyclic link: rows of earlier levels, below {start}")
    linked = parents >= 0
    unique, inverse = torch.unique(parents[linked], return_inverse=True)
    natives = torch.empty(len(unique), device=parents.device)
    for j, above in enumerate(forest.levels[:k]):
        inside = (unique >= forest.starts[j]) & (unique < forest.starts[j + 1])
        natives[inside] = above.lod.native[unique[inside] - forest.starts[j]]
        if inside.any() and above.number != level.number - 1:
            raise Sr3dError(forest.name, f"level {k}: parents", f"of level number {above.number}", level.number - 1)
    off = torch.zeros_like(level.lod.coarser)
    off[linked] = (level.lod.coarser[linked] / natives[inverse] - 1).abs()
    _require(forest, k, "coarser", off <= SAME, level.lod.coarser, "the native footprint of the parent")
    if len(split.parents):
        _check_split(forest, k, unique)
    made = torch.full_like(natives, torch.inf).scatter_reduce_(0, inverse, level.lod.native[linked], "amin")
    says = split.finer[torch.isin(split.parents, unique)] if len(split.parents) else _finer(forest)[unique]
    off[linked] = (says / made - 1).abs()[inverse]
    name = "split_finer" if len(split.parents) else "finer of the parents"
    _require(forest, k, name, off <= SAME, level.lod.native, "the smallest native footprint of the children")


def _check_split(forest: Forest, k: int, parents: Tensor) -> None:
    """Raise unless the densified rows are ascending, hold all parents, and are of the parents' level."""
    rows = forest.levels[k].split.parents
    inside = [j for j in range(k) if forest.levels[j].number == forest.levels[k].number - 1]
    above = torch.zeros_like(rows, dtype=torch.bool)
    for j in inside:
        above |= (rows >= forest.starts[j]) & (rows < forest.starts[j + 1])
    if not ((rows.diff() > 0).all() and above.all() and torch.isin(parents, rows).all()):
        expected = "all parents of the level, and rows beside them that its children stand for, ascending"
        raise Sr3dError(forest.name, f"level {k}: split_parents", "other rows", expected)


def _finer(forest: Forest) -> Tensor:
    """Footprint of the children of every row. [N]"""
    parts = []
    for k, level in enumerate(forest.levels):
        blocks = torch.arange(len(level.blocks.reach), device=level.parents.device)
        parts.append(forest.finer(k, blocks).flatten()[: len(level)])
    return torch.cat(parts)


def _check_rows(forest: Forest, k: int) -> None:
    """Raise unless the Gaussians of a level are possible and inside the bounds of their blocks."""
    level = forest.levels[k]
    g, b, own = level.gaussians, level.blocks, level.lod
    finer = forest.finer(k, torch.arange(len(b.reach), device=level.parents.device))
    for values in (own.finer, finer.flatten()[: len(level)]):
        lod = Lod(native=own.native, coarser=own.coarser, finer=values, level=own.level)
        check_footprints(f"{forest.name}: level {k}", lod)
    for name in ("means", "quats", "scales", "opacities", "sh", "features"):
        values = getattr(g, name)
        if values is not None:
            _require(forest, k, name, torch.isfinite(values).flatten(1 if values.ndim > 1 else 0), values, "finite")
    _require(forest, k, "quats", (g.quats != 0).any(dim=-1), g.quats, "quaternions of norm > 0")
    _require(forest, k, "scales", g.scales >= 0, g.scales, "scales >= 0")
    _require(forest, k, "opacities", (g.opacities >= 0) & (g.opacities <= 1), g.opacities, "opacities in [0, 1]")
    check_tables(Path(forest.name), level, forest.block_starts[k])
    real = bound_blocks(g)
    now = finer.flatten()
    now[len(level) :] = torch.inf
    rules = {
        "block_lower": b.lower <= real.lower,
        "block_upper": b.upper >= real.upper,
        "block_reach": b.reach >= real.reach,
        "block_finest": b.finest <= real.finest,
        "block_coarsest": b.coarsest >= real.coarsest,
        "split_finest": forest.finest[k] <= now.unflatten(0, (-1, BLOCK)).amin(dim=1),
    }
    for name, good in rules.items():
        if not good.all():
            block = int((~good).nonzero()[0, 0])
            raise Sr3dError(forest.name, f"level {k}: {name}", f"too narrow in block {block}", "bounds of all its rows")


def _require(forest: Forest, k: int, name: str, good: Tensor, values: Tensor, expected: str) -> None:
    """Raise for the first row that is not good."""
    if not good.all():
        row = int((~good).nonzero()[0, 0])
        raise Sr3dError(forest.name, f"level {k}: {name}", f"{repr(values[row].tolist())[:80]} in row {row}", expected)
