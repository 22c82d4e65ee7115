"""Scaffold: coarse Gaussians become several smaller ones that together look like them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.coarse.config import CoarseConfig
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians, quat_to_matrix
from sr3d.lod import Lod
from sr3d.rendering.sh import sh_basis

# A Gaussian that is wider than this, in units of one that a pixel made, or longer for its width than a slope makes it,
# covers more than its pixel. What one round of super-resolution widens stays below.
_WIDER = 1.35


@dataclass(kw_only=True)
class ScaffoldConfig:
    """How parents are split.

    Attributes:
        split: "shuffle" is Gaussian Shuffle Split (SR3R Eq. 2-3): children on the principal axes. "inplane" is a grid
            of children in the parent's tangent plane: on surfaces none is wasted on the thin axis.
        k: Shuffle: 6 children; 4 or 2 are on the two largest axes or the largest one alone, one on either side.
        beta: Shuffle: distance of a child from its parent along the axis, in parent scales.
        axis_shrink: Shuffle: the child's scale along its own axis is the parent's divided by this.
        lateral_shrink: Shuffle: its scales along the other two axes likewise (S2Gaussian: 1.9; SR3R does not say).
        grid: In-plane: children per side; `grid`² children for each parent. They fill the pixel that made the parent,
            or what a parent covers that is larger than that. None: as many as the factor.
        shrink: In-plane: child scale in units of the parent's / `grid`. At 1 the children are the parents' lattice made
            `grid` times finer, so opacity needs no compensation; a little less is sharper, because the renderer's
            low-pass widens what is a pixel or smaller. Children of parents larger than a pixel get at least 1.
        max_stretch: In-plane: largest stretch of a pixel's grid down a slope seen at a grazing angle.
        recolor: Take the children's colour from the upsampled views that they are visible in, instead of the parent's.
        budget: In-plane: most children per scene, as a share of `grid`² children for every parent; at least one child
            for each. Parents that another view's parents stand for get none; where there is little detail, parents get
            `flat_grid`² (see `sr3d.models.budget.plan_split`). None: all parents get `grid`².
        flat_grid: In-plane: children per side of parents without detail, under a budget; fewer where it has no room.
        flat_shrink: In-plane: their `shrink`. They are wider than a pixel: the low-pass closes no gaps between them.
    """

    split: Literal["shuffle", "inplane"] = "inplane"
    k: int = 6
    beta: float = 0.5
    axis_shrink: float = 4.0
    lateral_shrink: float = 1.0
    grid: int | None = None
    shrink: float = 0.7
    max_stretch: float = 3.0
    recolor: bool = True
    budget: float | None = None
    flat_grid: int = 2
    flat_shrink: float = 1.2

    def __post_init__(self) -> None:
        checks: tuple[tuple[str, bool, str], ...] = (
            ("grid", self.grid is None or self.grid >= 1, "1 or more, or null"),
            ("k", self.k in (2, 4, 6), "2, 4 or 6"),
            ("axis_shrink", 0 < self.axis_shrink < math.inf, "more than 0"),
            ("lateral_shrink", 0 < self.lateral_shrink < math.inf, "more than 0"),
            ("beta", 0 <= self.beta < math.inf, "0 or more"),
            ("shrink", 0 < self.shrink < math.inf, "more than 0"),
            ("flat_shrink", 0 < self.flat_shrink < math.inf, "more than 0"),
            ("max_stretch", 1 <= self.max_stretch < math.inf, "1 or more"),
            ("flat_grid", self.flat_grid >= 1, "1 or more"),
            ("budget", self.budget is None or self.split == "inplane", "null with split 'shuffle'"),
            ("budget", self.budget is None or 0 < self.budget <= 1, "more than 0, at most 1, or null"),
        )
        for name, fine, expected in checks:
            if not fine:
                raise Sr3dError("model.network.scaffold", name, getattr(self, name), expected)

    def children(self, factor: int) -> int:
        """Most children of a parent."""
        return self.k if self.split == "shuffle" else (self.grid or factor) ** 2

    def least_budget(self, factor: int) -> float:
        """Budget that leaves one child of each parent."""
        return 1 / self.children(factor)

    def flat(self, factor: int) -> int:
        """Children per side of a parent without detail, such that the budget suffices for all parents."""
        share = 1.0 if self.budget is None else self.budget
        return max(1, min(self.flat_grid, math.isqrt(int(share * self.children(factor)))))


@dataclass(kw_only=True)
class Children:
    """Children of a scaffold before colours are looked up.

    Attributes:
        gaussians: Padding has opacity 0. [B, N]
        parents: Index of the parent of each, −1 for padding. [B, N]
        home: The view whose pixels the parent follows. [B, N]
        slots: Where a child sits in its parent: position in units of the parent (in-plane: of its pixel), and share of
            the parent's side that it stands for. [B, N, 4]
    """

    gaussians: Gaussians
    parents: Int[Tensor, "b n"]
    home: Int[Tensor, "b n"]
    slots: Float[Tensor, "b n 4"]


def split_all(
    parents: Gaussians, home: Int[Tensor, "b m"], config: ScaffoldConfig, factor: int, cameras: Cameras
) -> Children:
    """Split every Gaussian; child i of parent j is at index j · children + i. Arguments as for `split_some`."""
    every = torch.arange(len(parents), device=home.device).expand(home.shape)
    return split_some(parents, every, home, config, config.grid or factor, config.shrink, factor, cameras)


def split_some(
    parents: Gaussians,
    chosen: Int[Tensor, "b a"],
    home: Int[Tensor, "b m"],
    config: ScaffoldConfig,
    grid: int,
    shrink: float,
    factor: int,
    cameras: Cameras,
) -> Children:
    """Split chosen Gaussians; child i of the j-th chosen one is at index j · children + i.

    Rotation, colour and features are the parent's; opacity is such that the children composite to about the parent's.
    `lod` of a child: native = parent's / factor (of a smaller grid / `grid`), coarser = parent's native, no finer,
    level + 1.

    Args:
        parents: M Gaussians with level-of-detail fields. [B, M]
        chosen: Indices of parents, −1 for padding, whose children have opacity 0.
        home: View of each parent; an in-plane grid follows its pixels.
        config: Kind of split.
        grid: In-plane: children per side.
        shrink: In-plane: scale of the children (see `ScaffoldConfig`).
        factor: Ratio of the resolutions of the two levels, ≥ 1.
        cameras: Views at the parents' resolution. [B, V]

    Raises:
        Sr3dError: The parents carry no level of detail.
    """
    if parents.lod is None:
        raise Sr3dError("sr3d scaffold", "lod", "Gaussians without native footprints", "Gaussians with lod")
    padding = chosen < 0
    index = chosen.clamp_min(0)
    parents, home = _pick(parents, index), home.gather(1, index)
    parents = replace(parents, opacities=torch.where(padding, torch.zeros_like(parents.opacities), parents.opacities))
    if config.split == "shuffle":
        offsets, scales, opacities, slots = _shuffle(parents, config)
    else:
        offsets, scales, opacities, slots = _inplane(parents, config, grid, shrink, home, cameras)
    n = slots.shape[-2]

    def repeat(t: Tensor) -> Tensor:
        return t.repeat_interleave(n, dim=1)

    assert parents.lod is not None
    lod = parents.lod.map(repeat)
    gaussians = Gaussians(
        means=(parents.means[..., None, :] + offsets).flatten(-3, -2),
        quats=repeat(parents.quats),
        scales=scales.flatten(-3, -2),
        opacities=opacities.flatten(-2, -1),
        sh=repeat(parents.sh),
        features=None if parents.features is None else repeat(parents.features),
        lod=Lod(
            native=lod.native / (factor if config.split == "shuffle" else min(grid, factor)),
            coarser=lod.native,
            finer=torch.zeros_like(lod.native),
            level=lod.level + 1,
        ),
    )
    return Children(
        gaussians=gaussians,
        parents=repeat(chosen),
        home=repeat(home),
        slots=slots.expand(*chosen.shape, n, 4).flatten(1, 2),
    )


def join(parts: list[Children]) -> Children:
    """Several groups of children of the same parents as one."""
    return Children(
        gaussians=Gaussians.cat([p.gaussians for p in parts]),
        parents=torch.cat([p.parents for p in parts], dim=1),
        home=torch.cat([p.home for p in parts], dim=1),
        slots=torch.cat([p.slots for p in parts], dim=1),
    )


def upper_bands(gaussians: Gaussians, home: Int[Tensor, "b n"], cameras: Cameras) -> Float[Tensor, "b n 3"]:
    """What the colour's bands above 0 add to it, seen from the home view.

    Args:
        gaussians: [B, N]
        home: View of each.
        cameras: [B, V]
    """
    if gaussians.sh_degree == 0:
        return torch.zeros_like(gaussians.means)
    positions = cameras.positions.gather(1, home[..., None].expand(*home.shape, 3))
    directions = torch.nn.functional.normalize(gaussians.means - positions, dim=-1)
    basis = sh_basis(directions, gaussians.sh_degree)
    return torch.einsum("bnk,bnkc->bnc", basis[..., 1:], gaussians.sh[..., 1:, :])


def _pick(gaussians: Gaussians, index: Int[Tensor, "b a"]) -> Gaussians:
    """Other Gaussians of each scene. [B, A]"""

    def take(t: Tensor) -> Tensor:
        where = index.reshape(*index.shape, *[1] * (t.ndim - 2)).expand(*index.shape, *t.shape[2:])
        return t.gather(1, where)

    assert gaussians.lod is not None
    return Gaussians(
        means=take(gaussians.means),
        quats=take(gaussians.quats),
        scales=take(gaussians.scales),
        opacities=take(gaussians.opacities),
        sh=take(gaussians.sh),
        features=None if gaussians.features is None else take(gaussians.features),
        lod=gaussians.lod.map(take),
    )


@lru_cache(maxsize=8)
def _shuffle_opacities(k: int, beta: float, axis_shrink: float, lateral_shrink: float) -> tuple[np.ndarray, np.ndarray]:
    """Child opacities 0..1, rising, and the parent opacities that they stand for.

    Overlapping copies of a parent's opacity would be too thick. Seen along its smallest axis, as surfaces are (of six
    children along whichever: the picture is the same up to an affine map), parent and children have to hide the same
    total of what is behind them. Few or slim children cannot hide as much as an opaque parent; they get opacity 1.
    """
    child = np.linspace(0, 1, 257) ** 2
    x = np.linspace(-5, 5, 101)
    parent = np.exp(-0.5 * x**2)
    wide = np.exp(-0.5 * (x * lateral_shrink) ** 2)
    narrow = np.exp(-0.5 * ((x - beta) * axis_shrink) ** 2)
    through = np.ones((257, 101, 101))
    children = (
        (narrow, wide),
        (narrow[::-1], wide),
        (wide, narrow),
        (wide, narrow[::-1]),
        *[(wide, wide)] * 2,
    )
    for across, along in children[:k]:
        through *= 1 - child[:, None, None] * across[:, None] * along
    return child, (1 - through).sum(axis=(1, 2)) / (parent[:, None] * parent).sum()


def _compensated(opacities: Tensor, config: ScaffoldConfig) -> Tensor:
    """Opacity of each child, by linear interpolation in the table."""
    table = _shuffle_opacities(config.k, config.beta, config.axis_shrink, config.lateral_shrink)
    child, parent = (torch.from_numpy(t).to(opacities) for t in table)
    right = torch.searchsorted(parent, opacities.contiguous()).clamp(1, len(parent) - 1)
    t = (opacities - parent[right - 1]) / (parent[right] - parent[right - 1])
    return child[right - 1] + t.clamp(0, 1) * (child[right] - child[right - 1])


def _shuffle(parents: Gaussians, config: ScaffoldConfig) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """World offsets [B, M, k, 3], scales [B, M, k, 3], opacities [B, M, k], slots [B, M, k, 4] (SR3R Eq. 2-3)."""
    axes = parents.scales.topk(config.k // 2, dim=-1).indices.sort(dim=-1).values
    axes = torch.nn.functional.one_hot(axes, 3).to(parents.means)
    unit = torch.stack([axes, -axes], dim=-2).flatten(-3, -2)
    local = config.beta * unit * parents.scales[..., None, :]
    offsets = torch.einsum("...ij,...cj->...ci", quat_to_matrix(parents.quats), local)
    shrink = torch.where(unit != 0, 1 / config.axis_shrink, 1 / config.lateral_shrink).to(unit)
    scales = parents.scales[..., None, :] * shrink
    opacities = _compensated(parents.opacities, config)[..., None].expand(*parents.opacities.shape, config.k)
    return offsets, scales, opacities, torch.cat([config.beta * unit, torch.ones_like(unit[..., :1])], dim=-1)


def _inplane(
    parents: Gaussians, config: ScaffoldConfig, grid: int, shrink: float, home: Int[Tensor, "b m"], cameras: Cameras
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """World offsets [B, M, k², 3], scales [B, M, k², 3], opacities [B, M, k²], slots [k², 4]."""
    k, opacities = grid, parents.opacities
    steps = ((torch.arange(k, device=opacities.device) + 0.5) / k - 0.5).to(opacities)
    v, u = (t.reshape(-1, 1) for t in torch.meshgrid(steps, steps, indexing="ij"))
    along_u, along_v, larger = _tangents(parents, home, cameras, config.max_stretch)
    offsets = u * along_u[..., None, :] + v * along_v[..., None, :]
    # The low-pass closes no gaps between children that are wider than a pixel.
    size = torch.where(larger, max(shrink, 1.0), shrink).to(opacities)
    scales = (parents.scales * size / k)[..., None, :].expand(*opacities.shape, k * k, 3)
    slots = torch.cat([u, v, torch.zeros_like(u), torch.full_like(u, 1 / k)], dim=1)
    return offsets, scales, opacities[..., None].expand(*opacities.shape, k * k), slots


def _tangents(
    parents: Gaussians, home: Int[Tensor, "b m"], cameras: Cameras, max_stretch: float
) -> tuple[Tensor, Tensor, Tensor]:
    """World vectors in each parent's tangent plane that span what its children stand for. [B, M, 3] each.

    This is one pixel of the home view, or, of a parent that covers more, as much as if a pixel that large had made it.
    The third result says of which. [B, M, 1]
    """
    assert parents.lod is not None
    native = parents.lod.native

    def of_home(values: Tensor) -> Tensor:
        index = home.reshape(*home.shape, *[1] * (values.ndim - 2)).expand(*home.shape, *values.shape[2:])
        return values.gather(1, index)

    axes = of_home(cameras.world_to_cam[..., :3, :3])
    ray = parents.means - of_home(cameras.positions)
    ray = ray / (ray * axes[..., 2, :]).sum(-1, keepdim=True).abs().clamp_min(1e-9)
    thin = parents.scales.argmin(dim=-1)
    frame = quat_to_matrix(parents.quats)
    normal = frame.gather(-1, thin[..., None, None].expand(*thin.shape, 3, 1))[..., 0]
    facing = (normal * ray).sum(-1, keepdim=True)
    least = ray.norm(dim=-1, keepdim=True) / max_stretch
    facing = torch.where(facing < 0, facing.clamp(max=-least), facing.clamp(min=least))
    aspect = (of_home(cameras.K[..., 1, 1]) / of_home(cameras.K[..., 0, 0])).sqrt()[..., None]
    own, larger = _own_tangents(parents, frame, ray, max_stretch)
    tangents = []
    for i, (axis, size) in enumerate(((0, aspect), (1, 1 / aspect))):
        direction = axes[..., axis, :]
        slope = (normal * direction).sum(-1, keepdim=True) / facing
        pixel = native[..., None] * size * (direction - slope * ray)
        tangents.append(torch.where(larger, own[..., i], pixel))
    return tangents[0], tangents[1], larger


def _own_tangents(
    parents: Gaussians, frame: Float[Tensor, "b m 3 3"], ray: Float[Tensor, "b m 3"], max_stretch: float
) -> tuple[Float[Tensor, "b m 3 2"], Bool[Tensor, "b m 1"]]:
    """What each parent covers along two of its axes, and whether that is more than its pixel."""
    assert parents.lod is not None
    middle, longest = parents.scales.sort(dim=-1).values[..., 1:].unbind(-1)
    larger = (middle > _WIDER * CoarseConfig.sigma * parents.lod.native) | (longest > _WIDER * max_stretch * middle)
    # The third axis is the thinnest; where none is thin, the one along which the parent is seen.
    facing = (frame * ray[..., :, None]).sum(dim=-2).abs()
    third = (parents.scales / facing.clamp_min(1e-9)).argmin(dim=-1, keepdim=True)
    others = torch.cat([(third + 1) % 3, (third + 2) % 3], dim=-1)
    spans = (frame * parents.scales[..., None, :] / CoarseConfig.sigma).gather(
        -1, others[..., None, :].expand(*others.shape[:-1], 3, 2)
    )
    return spans, larger[..., None]
