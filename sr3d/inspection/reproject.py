"""Do the depth maps and colours of posed views agree? The points of one view are looked for in the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from sr3d.scene import Scene

SAME = 0.05  # relative difference of depth up to which two views see one surface
_SHARP, _COLOR = 0.02, 0.1  # widths of the score: relative depth, intensity
_LEAST_POINTS, _LEAST_OVERLAP = 12, 0.2


@dataclass(kw_only=True)
class Agreement:
    """What pairs of views (from, to) say of each other; one row per pair. NaN where too little is seen by both.

    Attributes:
        pairs: View that the points come from, view that they are looked for in. [P, 2]
        overlap: Share of the points with a depth that fall into the other frame.
        same: Share of those not hidden by something nearer whose depth is the other view's, within 5 %.
        error: Median relative difference of depth of those not hidden.
        color: Correlation of the intensities of those not hidden.
        chance: The same with a frame that does not belong to the pair.
        score: Mean over all points with a depth of exp(-relative depth / 2 %) · exp(-intensity / 0.1): sharper than
            `same`, for comparing readings of the same data.
    """

    pairs: Int[Tensor, "p 2"]
    overlap: Float64[Tensor, " p"]
    same: Float64[Tensor, " p"]
    error: Float64[Tensor, " p"]
    color: Float64[Tensor, " p"]
    chance: Float64[Tensor, " p"]
    score: Float64[Tensor, " p"]

    @property
    def seen(self) -> Bool[Tensor, " p"]:
        """Pairs that share enough to be judged."""
        return ~self.same.isnan()

    def typical(self) -> tuple[float, float, float, float]:
        """Medians of same, error, color and chance over the pairs that share enough; zeros (error inf) if none does."""
        if not self.seen.any():
            return 0.0, float("inf"), 0.0, 0.0
        same, error, color, chance = (
            v[self.seen].nanmedian() for v in (self.same, self.error, self.color, self.chance)
        )
        return float(same), float(error), float(color), float(chance)


def all_pairs(views: int) -> Int[Tensor, "p 2"]:
    """Every ordered pair of different views."""
    index = torch.arange(views)
    pairs = torch.cartesian_prod(index, index).reshape(-1, 2)
    return pairs[pairs[:, 0] != pairs[:, 1]]


def near_pairs(views: int, most: int) -> Int[Tensor, "p 2"]:
    """A sample of ordered pairs, the same every time: half of them at most four views apart."""
    pairs = all_pairs(views)
    if len(pairs) <= most:
        return pairs
    generator = torch.Generator().manual_seed(0)
    pairs = pairs[torch.randperm(len(pairs), generator=generator)]
    close = (pairs[:, 0] - pairs[:, 1]).abs() <= 4
    half = pairs[close][: most // 2]
    return torch.cat([half, pairs[~close][: most - len(half)]])


def compare(scene: Scene, pairs: Int[Tensor, "p 2"], columns: int = 40) -> Agreement:
    """Put the depth points of one view of every pair into the other one, and compare depth and intensity there.

    Args:
        scene: V posed views with depths; small images (about 160 pixels) do.
        pairs: Views (from, to). [P, 2]
        columns: Points along the longer side of the grid that is looked at.
    """
    m = _meet(scene, pairs, columns)
    visible = m.both & (m.off < SAME)
    total = m.known.sum(-1).clamp_min(1)
    enough = (visible.sum(-1) >= _LEAST_POINTS) & (m.inside.sum(-1) >= _LEAST_OVERLAP * total)
    others = torch.stack([m.to[:, 0] + len(scene) // 2, m.to[:, 1], m.to[:, 2]], dim=1)
    others[:, 0] %= len(scene)

    def judged(values: Tensor) -> Tensor:
        return torch.where(enough, values, torch.nan)

    mine, theirs, strange = (_intensity(scene, places) for places in (m.origin, m.to, others))
    return Agreement(
        pairs=pairs,
        overlap=m.inside.sum(-1) / total.double(),
        same=judged((visible & (m.off > -SAME)).sum(-1) / visible.sum(-1).clamp_min(1).double()),
        error=judged(torch.where(visible, m.off.abs(), torch.nan).nanmedian(-1).values),
        color=judged(_correlation(mine, theirs, visible)),
        chance=judged(_correlation(mine, strange, visible)),
        score=_score(m, mine - theirs),
    )


def score(scene: Scene, pairs: Int[Tensor, "p 2"], columns: int) -> Float64[Tensor, " p"]:
    """Only `Agreement.score` of pairs of views; arguments as for `compare`."""
    m = _meet(scene, pairs, columns)
    return _score(m, _intensity(scene, m.origin) - _intensity(scene, m.to))


@dataclass(kw_only=True)
class _Meeting:
    """Points of the first views of P pairs, seen in the second ones.

    Attributes:
        origin, to: View, row and column of every point in its own view, and in the other one. [P, 3, N]
        known: Points with a depth. [P, N]
        inside: Those that fall into the other frame. [P, N]
        both: Those that meet a depth there. [P, N]
        off: Their depth relative to that one, minus 1; NaN for others. [P, N]
    """

    origin: Int[Tensor, "p 3 n"]
    to: Int[Tensor, "p 3 n"]
    known: Bool[Tensor, "p n"]
    inside: Bool[Tensor, "p n"]
    both: Bool[Tensor, "p n"]
    off: Float64[Tensor, "p n"]


def _meet(scene: Scene, pairs: Int[Tensor, "p 2"], columns: int) -> _Meeting:
    cameras, depths = scene.posed(), scene.depths
    assert depths is not None
    height, width = cameras.height, cameras.width
    poses, K = cameras.world_to_cam.double(), cameras.K.double()
    rows, cols = _grid(height, width, columns)
    pixels = torch.stack([cols + 0.5, rows + 0.5, torch.ones_like(rows)], dim=-1).double()
    depth = depths[:, rows, cols].double()
    rays = torch.einsum("vij,nj->vni", torch.linalg.inv(K), pixels)
    to_world = torch.linalg.inv(poses)
    world = torch.einsum("vij,vnj->vni", to_world[:, :3, :3], rays * depth[..., None]) + to_world[:, None, :3, 3]

    a, b = pairs.T
    there = torch.einsum("pij,pnj->pni", poses[b][:, :3, :3], world[a]) + poses[b][:, None, :3, 3]
    z = there[..., 2]
    uv = torch.einsum("pij,pnj->pni", K[b], there)[..., :2] / z.clamp_min(1e-12)[..., None]
    known = depth[a] > 0
    inside = known & (z > 1e-9) & (uv >= 0).all(-1) & (uv[..., 0] < width) & (uv[..., 1] < height)
    u, v = (torch.where(inside, uv[..., i], 0).long() for i in (0, 1))
    to = torch.stack([b[:, None].expand_as(u), v, u], dim=1)
    origin = torch.stack([a[:, None].expand_as(u), rows.expand_as(u), cols.expand_as(u)], dim=1)
    target = depths[to.unbind(1)].double()
    both = inside & (target > 0)
    off = torch.where(both, (z - target) / target.clamp_min(1e-12), torch.nan)
    return _Meeting(origin=origin, to=to, known=known, inside=inside, both=both, off=off)


def _intensity(scene: Scene, places: Int[Tensor, "p 3 n"]) -> Float64[Tensor, "p n"]:
    """Mean of the colour channels at (view, row, column)."""
    return scene.images[places.unbind(1)].double().mean(-1)


def _grid(height: int, width: int, columns: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Rows and columns of an even grid of pixels."""
    step = max(1, round(max(height, width) / columns))
    v, u = torch.meshgrid(torch.arange(step // 2, height, step), torch.arange(step // 2, width, step), indexing="ij")
    return v.reshape(-1), u.reshape(-1)


def _score(m: _Meeting, change: Float64[Tensor, "p n"]) -> Float64[Tensor, " p"]:
    """See `Agreement.score`; a common change of brightness is taken out first."""
    agree = m.both & (m.off.abs() < SAME)
    common = torch.where(agree, change, torch.nan).nanmedian(-1, keepdim=True).values.nan_to_num(0)
    points = torch.exp(-m.off.abs() / _SHARP) * torch.exp(-(change - common).abs() / _COLOR)
    return torch.where(m.both, points, 0).sum(-1) / m.known.sum(-1).clamp_min(1)


def _correlation(
    a: Float64[Tensor, "p n"], b: Float64[Tensor, "p n"], mask: Bool[Tensor, "p n"]
) -> Float64[Tensor, " p"]:
    """Pearson correlation over the points of a mask; 0 where nothing varies."""
    count = mask.sum(-1, keepdim=True).clamp_min(1)
    da, db = (torch.where(mask, x - torch.where(mask, x, 0).sum(-1, keepdim=True) / count, 0) for x in (a, b))
    return (da * db).sum(-1) / ((da**2).sum(-1) * (db**2).sum(-1)).sqrt().clamp_min(1e-12)
