"""Scaffold: every coarse Gaussian becomes a fixed number of smaller ones that together look like it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians, quat_to_matrix
from sr3d.lod import Lod


@dataclass(kw_only=True)
class ScaffoldConfig:
    """How parents are split.

    Attributes:
        split: "shuffle" is Gaussian Shuffle Split (SR3R Eq. 2-3): six children on the principal axes. "inplane" is a
            grid of children in the plane of the two larger axes: on surfaces none is wasted on the thin axis.
        beta: Shuffle: distance of a child from its parent along the axis, in parent scales.
        axis_shrink: Shuffle: the child's scale along its own axis is the parent's divided by this.
        grid: In-plane: children per side; `grid`² children for each parent.
        pitch: In-plane: side of the cell that the grid fills, in parent scales (1 / σ for pixel-aligned Gaussians
            whose standard deviation is σ pixels).
        shrink: In-plane: child scale in units of the parent's / `grid`. At 1 the children are the parents' lattice made
            `grid` times finer, so opacity needs no compensation.
        recolor: Take the children's colour from the upsampled views that they are visible in, instead of the parent's.
    """

    split: Literal["shuffle", "inplane"] = "inplane"
    beta: float = 0.5
    axis_shrink: float = 4.0
    grid: int = 4
    pitch: float = 2.0
    shrink: float = 1.0
    recolor: bool = True

    @property
    def children(self) -> int:
        """Children per parent."""
        return 6 if self.split == "shuffle" else self.grid**2


# Seen along any principal axis, one pair of children covers the parent's area fully and two pairs a quarter each: the
# six together are three times as thick as the parent, whatever its shape.
_SHUFFLE_OVERLAP = 3.0


def split_gaussians(parents: Gaussians, config: ScaffoldConfig, factor: int) -> Gaussians:
    """Split every Gaussian; child i of parent j is at index j · children + i.

    Rotation, colour and features are the parent's; opacity is such that the children composite to about the parent's.
    `lod` of a child: native = parent's / factor, coarser = parent's native, no finer, level + 1.

    Args:
        parents: M Gaussians with level-of-detail fields. [..., M]
        config: Kind of split.
        factor: Ratio of the resolutions of the two levels, ≥ 1.

    Returns:
        [..., M · children]

    Raises:
        Sr3dError: The parents carry no level of detail, or a setting is out of range.
    """
    if parents.lod is None:
        raise Sr3dError("sr3d scaffold", "lod", "Gaussians without native footprints", "Gaussians with lod")
    if config.grid < 1 or config.axis_shrink <= 0:
        raise Sr3dError("sr3d scaffold", "grid, axis_shrink", (config.grid, config.axis_shrink), "grid ≥ 1, shrink > 0")
    build = _shuffle if config.split == "shuffle" else _inplane
    offsets, scales, opacities = build(parents, config)
    n = config.children

    def repeat(t: Tensor, dims: int) -> Tensor:
        return t.repeat_interleave(n, dim=t.ndim - dims - 1)

    means = parents.means[..., None, :] + torch.einsum("...ij,...cj->...ci", quat_to_matrix(parents.quats), offsets)
    lod = parents.lod.map(lambda t: repeat(t, 0))
    return Gaussians(
        means=means.flatten(-3, -2),
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


def _thinner(opacities: Tensor, overlap: float) -> Tensor:
    """Opacity of one of `overlap` layers that composite to `opacities`."""
    return -torch.expm1(torch.log1p(-opacities.clamp_max(0.9999)) / overlap)


def _shuffle(parents: Gaussians, config: ScaffoldConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Offsets in the parent's frame [..., M, 6, 3], scales [..., M, 6, 3], opacities [..., M, 6]."""
    axes = torch.eye(3, dtype=parents.means.dtype, device=parents.means.device)
    unit = torch.stack([axes, -axes], dim=1).reshape(6, 3)
    offsets = config.beta * unit * parents.scales[..., None, :]
    shrink = torch.where(unit != 0, 1 / config.axis_shrink, 1.0)
    scales = parents.scales[..., None, :] * shrink
    opacities = _thinner(parents.opacities, _SHUFFLE_OVERLAP)[..., None].expand(*parents.opacities.shape, 6)
    return offsets, scales, opacities


def _inplane(parents: Gaussians, config: ScaffoldConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Offsets in the parent's frame [..., M, k², 3], scales [..., M, k², 3], opacities [..., M, k²]."""
    k = config.grid
    steps: Float[Tensor, " k"] = (torch.arange(k, device=parents.means.device) + 0.5) / k - 0.5
    v, u = torch.meshgrid(steps, steps, indexing="ij")
    grid = torch.stack([u, v], dim=-1).reshape(k * k, 2).to(parents.means) * config.pitch
    # The thinnest axis is the normal: the grid lies in the other two, in their own order.
    thin = parents.scales.argmin(dim=-1)
    plane = torch.tensor([[1, 2], [0, 2], [0, 1]], device=thin.device)[thin]
    in_plane = parents.scales.gather(-1, plane)
    shape = (*parents.scales.shape[:-1], k * k)
    index = plane[..., None, :].expand(*shape, 2)
    offsets = parents.means.new_zeros(*shape, 3).scatter(-1, index, grid * in_plane[..., None, :])
    child = (in_plane * config.shrink / k)[..., None, :].expand(*shape, 2)
    scales = (parents.scales / k)[..., None, :].expand(*shape, 3).scatter(-1, index, child)
    return offsets, scales, parents.opacities[..., None].expand(shape)
