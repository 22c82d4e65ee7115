"""What a forest is not made of: one clear error for each."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians, Lod

SAME = 1e-4  # relative difference of footprints that counts as rounding


def check_gaussians(where: str, gaussians: Gaussians) -> Lod:
    """The footprints of Gaussians that can go into a forest: one scene in CPU memory, every value possible.

    Raises:
        Sr3dError: Names the field and the first bad row.
    """
    if gaussians.means.ndim != 2:
        raise Sr3dError(where, "batch axes", f"means {tuple(gaussians.means.shape)}", "one scene, means [N, 3]")
    if len(gaussians) == 0:
        raise Sr3dError(where, "gaussians", "none", "at least one")
    if gaussians.lod is None:
        raise Sr3dError(where, "lod", "none", "Gaussians with native footprints (sr3d.lod.Lod.roots)")
    if gaussians.means.device.type != "cpu":
        raise Sr3dError(where, "device", gaussians.means.device, "CPU memory; move the forest when it is done")
    if gaussians.lod.native.shape != gaussians.opacities.shape:
        raise Sr3dError(where, "lod", f"{len(gaussians.lod.native)} footprints", f"{len(gaussians)}, one per Gaussian")
    if gaussians.sh.shape[-2] not in (1, 4, 9, 16):
        raise Sr3dError(where, "sh", f"{gaussians.sh.shape[-2]} coefficients", "1, 4, 9 or 16 (degree 0 to 3)")
    check_footprints(where, gaussians.lod)
    g = gaussians
    rules = {
        "means": (torch.isfinite(g.means).all(dim=-1), "finite positions"),
        "quats": (torch.isfinite(g.quats).all(dim=-1) & (g.quats != 0).any(dim=-1), "finite, of norm > 0"),
        "scales": (((g.scales >= 0) & torch.isfinite(g.scales)).all(dim=-1), "finite, >= 0"),
        "opacities": ((g.opacities >= 0) & (g.opacities <= 1), "0 to 1"),
        "sh": (torch.isfinite(g.sh).flatten(1).all(dim=-1), "finite"),
    }
    if g.features is not None:
        rules["features"] = (torch.isfinite(g.features).all(dim=-1), "finite")
    for name, (good, expected) in rules.items():
        if not good.all():
            row = int((~good).nonzero()[0, 0])
            raise Sr3dError(where, name, f"{getattr(g, name)[row].tolist()} in row {row}"[:120], expected)
    return gaussians.lod


def check_footprints(where: str | Path, lod: Lod) -> None:
    """Raise unless 0 ≤ finer ≤ native ≤ coarser and native > 0, all numbers but `coarser` finite.

    Raises:
        Sr3dError: Names the field and the first bad row.
    """
    rules = {
        "lod.native": (~((lod.native > 0) & torch.isfinite(lod.native)), lod.native, "finite footprints > 0"),
        "lod.coarser": (~(lod.coarser >= lod.native), lod.coarser, "footprints >= native, inf for a root"),
        "lod.finer": (~((lod.finer >= 0) & (lod.finer <= lod.native)), lod.finer, "footprints from 0 to native"),
        "lod.level": (lod.level < 0, lod.level, "levels >= 0"),
    }
    for name, (bad, values, expected) in rules.items():
        if bad.any():
            row = int(bad.nonzero()[0, 0])
            raise Sr3dError(where, name, f"{values[row].item():g} in row {row}", expected)


def check_links(where: str, parents: Int[Tensor, " n"], lod: Lod) -> None:
    """Raise unless every parent exists, is one level up, and has the footprints that its children say.

    Raises:
        Sr3dError: Names the field and the first bad row.
    """
    count = len(lod.level)
    if parents.shape != lod.level.shape:
        raise Sr3dError(where, "parents", tuple(parents.shape), tuple(lod.level.shape))
    bad = (parents < -1) | (parents >= count)
    if bad.any():
        raise Sr3dError(where, "parents", f"dangling link to {parents[bad][0].item()}", f"-1 or an index below {count}")
    child = (parents >= 0).nonzero()[:, 0]
    above = parents[child]
    if (lod.level[above] != lod.level[child] - 1).any():
        raise Sr3dError(where, "parents", "links that do not go one level up (or in circles)", "level - 1 of the child")
    smallest = torch.full_like(lod.native, torch.inf).scatter_reduce_(0, above, lod.native[child], "amin")
    rules = {
        "lod.coarser": (lod.coarser[child], lod.native[above], "the native footprint of the parent"),
        "lod.finer": (lod.finer[above], smallest[above], "the smallest native footprint of the children"),
    }
    for name, (found, right, expected) in rules.items():
        off = ~((found / right - 1).abs() <= SAME)
        if off.any():
            row = int(off.nonzero()[0, 0])
            raise Sr3dError(where, name, f"{found[row].item():g} for the link of row {child[row]}", expected)


def check_layout(where: str, new: Gaussians, old: Gaussians) -> None:
    """Raise unless Gaussians have the SH degree and the feature width of others.

    Raises:
        Sr3dError: Names the field.
    """
    widths = [None if g.features is None else g.features.shape[-1] for g in (new, old)]
    if widths[0] != widths[1]:
        raise Sr3dError(where, "features", f"width {widths[0]}", f"the forest's, {widths[1]}")
    if new.sh.shape[-2] != old.sh.shape[-2]:
        raise Sr3dError(where, "sh", f"{new.sh.shape[-2]} coefficients", f"the forest's, {old.sh.shape[-2]}")
