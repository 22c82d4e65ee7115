"""Scaffold: every coarse Gaussian becomes a fixed number of smaller ones that together look like it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians, quat_to_matrix
from sr3d.lod import Lod


@dataclass(kw_only=True)
class ScaffoldConfig:
    """How parents are split.

    Attributes:
        split: "shuffle" is Gaussian Shuffle Split (SR3R Eq. 2-3): six children on the principal axes. "inplane" is a
            grid of children in the parent's tangent plane: on surfaces none is wasted on the thin axis.
        beta: Shuffle: distance of a child from its parent along the axis, in parent scales.
        axis_shrink: Shuffle: the child's scale along its own axis is the parent's divided by this.
        grid: In-plane: children per side; `grid`² children for each parent. They fill the pixel that made the parent,
            whatever the parent's own scales are.
        shrink: In-plane: child scale in units of the parent's / `grid`. At 1 the children are the parents' lattice made
            `grid` times finer, so opacity needs no compensation; a little less is sharper, because the renderer's
            low-pass widens what is a pixel or smaller.
        max_stretch: In-plane: largest stretch of the grid down a slope seen at a grazing angle.
        recolor: Take the children's colour from the upsampled views that they are visible in, instead of the parent's.
    """

    split: Literal["shuffle", "inplane"] = "inplane"
    beta: float = 0.5
    axis_shrink: float = 4.0
    grid: int = 4
    shrink: float = 0.7
    max_stretch: float = 3.0
    recolor: bool = True

    @property
    def children(self) -> int:
        """Children per parent."""
        return 6 if self.split == "shuffle" else self.grid**2


def split_gaussians(parents: Gaussians, config: ScaffoldConfig, factor: int, cameras: Cameras) -> Gaussians:
    """Split every Gaussian; child i of parent j is at index j · children + i.

    Rotation, colour and features are the parent's; opacity is such that the children composite to about the parent's.
    `lod` of a child: native = parent's / factor, coarser = parent's native, no finer, level + 1.

    Args:
        parents: M Gaussians with level-of-detail fields. [B, M]
        config: Kind of split.
        factor: Ratio of the resolutions of the two levels, ≥ 1.
        cameras: Views at the parents' resolution; an in-plane grid follows the pixels of the view whose footprint fits
            best. [B, V]

    Returns:
        [B, M · children]

    Raises:
        Sr3dError: The parents carry no level of detail, or a setting is out of range.
    """
    if parents.lod is None:
        raise Sr3dError("sr3d scaffold", "lod", "Gaussians without native footprints", "Gaussians with lod")
    if config.grid < 1 or config.axis_shrink <= 0:
        raise Sr3dError("sr3d scaffold", "grid, axis_shrink", (config.grid, config.axis_shrink), "grid ≥ 1, shrink > 0")
    if config.split == "shuffle":
        offsets, scales, opacities = _shuffle(parents, config)
    else:
        offsets, scales, opacities = _inplane(parents, config, parents.lod.native, cameras)
    n = config.children

    def repeat(t: Tensor, dims: int) -> Tensor:
        return t.repeat_interleave(n, dim=t.ndim - dims - 1)

    lod = parents.lod.map(lambda t: repeat(t, 0))
    return Gaussians(
        means=(parents.means[..., None, :] + offsets).flatten(-3, -2),
        quats=repeat(parents.quats, 1),
        scales=scales.flatten(-3, -2),
        opacities=opacities.flatten(-2, -1),
        sh=repeat(parents.sh, 2),
        features=None if parents.features is None else repeat(parents.features, 1),
        lod=Lod(
            native=lod.native / factor,
            coarser=lod.native,
            finer=torch.zeros_like(lod.native),
            level=lod.level + 1,
        ),
    )


def child_slots(parents: int, children: int, device: torch.device) -> Int[Tensor, " n"]:
    """Which of its siblings each child is: 0 to children − 1, in the order of `split_gaussians`. [M · children]"""
    return torch.arange(children, device=device).repeat(parents)


@lru_cache(maxsize=8)
def _shuffle_opacities(beta: float, axis_shrink: float) -> tuple[Tensor, Tensor]:
    """Child opacities 0..1, rising, and the parent opacities that they stand for.

    Six overlapping copies of a parent's opacity would be too thick. Seen along a principal axis (whichever: the picture
    is the same up to an affine map), parent and children have to hide the same total of what is behind them.
    """
    child = torch.linspace(0, 1, 257, dtype=torch.float64) ** 2
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    wide = torch.exp(-0.5 * x**2)
    narrow = torch.exp(-0.5 * ((x - beta) * axis_shrink) ** 2)
    kernels = [narrow[:, None] * wide, narrow.flip(0)[:, None] * wide, wide[:, None] * narrow]
    kernels += [wide[:, None] * narrow.flip(0), wide[:, None] * wide, wide[:, None] * wide]
    through = torch.stack([1 - child[:, None, None] * kernel for kernel in kernels]).prod(dim=0)
    parent = (1 - through).sum(dim=(1, 2)) / (wide[:, None] * wide).sum()
    return child, parent


def _compensated(opacities: Tensor, config: ScaffoldConfig) -> Tensor:
    """Opacity of each of six children, by linear interpolation in the table."""
    child, parent = (t.to(opacities) for t in _shuffle_opacities(config.beta, config.axis_shrink))
    right = torch.searchsorted(parent, opacities.contiguous()).clamp(1, len(parent) - 1)
    t = (opacities - parent[right - 1]) / (parent[right] - parent[right - 1])
    return child[right - 1] + t.clamp(0, 1) * (child[right] - child[right - 1])


def _shuffle(parents: Gaussians, config: ScaffoldConfig) -> tuple[Tensor, Tensor, Tensor]:
    """World offsets [B, M, 6, 3], scales [B, M, 6, 3], opacities [B, M, 6]."""
    axes = torch.eye(3, dtype=parents.means.dtype, device=parents.means.device)
    unit = torch.stack([axes, -axes], dim=1).reshape(6, 3)
    local = config.beta * unit * parents.scales[..., None, :]
    offsets = torch.einsum("...ij,...cj->...ci", quat_to_matrix(parents.quats), local)
    shrink = torch.where(unit != 0, 1 / config.axis_shrink, 1.0)
    scales = parents.scales[..., None, :] * shrink
    opacities = _compensated(parents.opacities, config)[..., None].expand(*parents.opacities.shape, 6)
    return offsets, scales, opacities


def _inplane(
    parents: Gaussians, config: ScaffoldConfig, native: Tensor, cameras: Cameras
) -> tuple[Tensor, Tensor, Tensor]:
    """World offsets [B, M, k², 3], scales [B, M, k², 3], opacities [B, M, k²]."""
    k = config.grid
    steps = ((torch.arange(k, device=native.device) + 0.5) / k - 0.5).to(native)
    v, u = torch.meshgrid(steps, steps, indexing="ij")
    along_u, along_v = _pixel_tangents(parents, native, cameras, config.max_stretch)
    offsets = u.reshape(-1, 1) * along_u[..., None, :] + v.reshape(-1, 1) * along_v[..., None, :]
    scales = (parents.scales * config.shrink / k)[..., None, :].expand(*native.shape, k * k, 3)
    return offsets, scales, parents.opacities[..., None].expand(*native.shape, k * k)


def _pixel_tangents(parents: Gaussians, native: Tensor, cameras: Cameras, max_stretch: float) -> tuple[Tensor, Tensor]:
    """World vectors in each parent's tangent plane that span one pixel of the view that made it. [B, M, 3] each."""
    _, depth = cameras.project(parents.means)
    misfit = torch.log(cameras.footprint(depth.clamp_min(1e-9)) / native[:, None]).abs()
    best = misfit.argmin(dim=1)  # [B, M]; the view that made a pixel-aligned Gaussian fits exactly

    def of_best(values: Tensor) -> Tensor:
        index = best.reshape(*best.shape, *[1] * (values.ndim - 2)).expand(*best.shape, *values.shape[2:])
        return values.gather(1, index)

    axes = of_best(cameras.world_to_cam[..., :3, :3])
    ray = parents.means - of_best(cameras.positions)
    ray = ray / (ray * axes[..., 2, :]).sum(-1, keepdim=True).abs().clamp_min(1e-9)
    thin = parents.scales.argmin(dim=-1)
    frame = quat_to_matrix(parents.quats)
    normal = frame.gather(-1, thin[..., None, None].expand(*thin.shape, 3, 1))[..., 0]
    facing = (normal * ray).sum(-1, keepdim=True)
    least = ray.norm(dim=-1, keepdim=True) / max_stretch
    facing = torch.where(facing < 0, facing.clamp(max=-least), facing.clamp(min=least))
    aspect = (of_best(cameras.K[..., 1, 1]) / of_best(cameras.K[..., 0, 0])).sqrt()[..., None]
    tangents = []
    for axis, size in ((0, aspect), (1, 1 / aspect)):
        direction = axes[..., axis, :]
        slope = (normal * direction).sum(-1, keepdim=True) / facing
        tangents.append(native[..., None] * size * (direction - slope * ray))
    return tangents[0], tangents[1]
