"""The parts of a forest: levels, their blocks, and what they say about earlier ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians, Lod

BLOCK = 1024
_ROUNDING = 2.0**-24  # of float32, relative


@dataclass(kw_only=True, frozen=True, eq=False)
class Blocks:
    """Bounds of the B blocks of a level: what a frame needs to know to skip them.

    Attributes:
        lower: Least coordinates of the means, relative to the level's origin, world units. [B, 3]
        upper: Largest coordinates. [B, 3]
        reach: Largest standard deviation, world units. [B]
        finest: Render footprint at and below which nothing is visible, as of when the level was appended. [B]
        coarsest: Render footprint at and above which nothing is visible, `inf` if something has no parent. [B]
    """

    lower: Float[Tensor, "b 3"]
    upper: Float[Tensor, "b 3"]
    reach: Float[Tensor, " b"]
    finest: Float[Tensor, " b"]
    coarsest: Float[Tensor, " b"]


@dataclass(kw_only=True, frozen=True, eq=False)
class Split:
    """What a level says about earlier ones: which Gaussians it densified. Nothing stored there is rewritten.

    Attributes:
        parents: Rows that have children in this level, ascending. [P]
        finer: Smallest native footprint of their children, world units per pixel. [P]
        blocks: Blocks that hold those rows, ascending. [Q]
        finest: `Blocks.finest` of these blocks from now on. [Q]
    """

    parents: Int[Tensor, " p"]
    finer: Float[Tensor, " p"]
    blocks: Int[Tensor, " q"]
    finest: Float[Tensor, " q"]


@dataclass(kw_only=True, frozen=True, eq=False)
class Level:
    """Gaussians that were appended together.

    Attributes:
        number: 0 for the coarse scene; else one more than that of the parents. Branches share a number.
        origin: Point that the means are relative to, world frame, float64. [3]
        gaussians: [N], in block order; means are offsets from `origin`, `lod.finer` is as of when it was appended.
        parents: Row of each Gaussian's parent in an earlier level, −1 where there is none or it is not known. [N]
        blocks: Bounds of each block.
        split: Parents in earlier levels.
    """

    number: int
    origin: Float[Tensor, 3]
    gaussians: Gaussians
    parents: Int[Tensor, " n"]
    blocks: Blocks
    split: Split

    def __len__(self) -> int:
        return len(self.gaussians)

    @property
    def lod(self) -> Lod:
        """Footprints of the level's own Gaussians."""
        assert self.gaussians.lod is not None
        return self.gaussians.lod


def bound_blocks(gaussians: Gaussians) -> Blocks:
    """Bounds of consecutive blocks of `BLOCK` Gaussians (the last may be shorter). [N] → [B]"""
    assert gaussians.lod is not None
    lod = gaussians.lod

    def reduce(values: Tensor, smallest: bool) -> Tensor:
        pad = -len(values) % BLOCK
        filled = torch.cat([values, values[-1:].expand(pad, *values.shape[1:])])
        blocks = filled.unflatten(0, (-1, BLOCK))
        return blocks.amin(dim=1) if smallest else blocks.amax(dim=1)

    return Blocks(
        lower=reduce(gaussians.means, True),
        upper=reduce(gaussians.means, False),
        reach=reduce(gaussians.scales.amax(dim=-1), False),
        finest=reduce(lod.finer, True),
        coarsest=reduce(lod.coarser, False),
    )


def make_level(number: int, gaussians: Gaussians, parents: Tensor, split: Split) -> Level:
    """A level of Gaussians in block order, world frame."""
    means = gaussians.means.detach().double()
    origin = 0.5 * (means.amin(dim=0) + means.amax(dim=0))
    lod = gaussians.lod
    assert lod is not None
    error, native = float((means - origin).abs().max()) * _ROUNDING, float(lod.native.median())
    if error > native:
        found = f"level {number} spans {error / _ROUNDING:.3g} around its middle, with footprints of {native:.3g}"
        raise Sr3dError("sr3d.lod.Forest", "means", found, "parts close together: append those far apart one by one")
    g = gaussians.detach().to(torch.float32)
    local = Gaussians(
        means=(means - origin).float(),
        quats=g.quats.contiguous(),
        scales=g.scales.contiguous(),
        opacities=g.opacities.contiguous(),
        sh=g.sh.contiguous(),
        features=None if g.features is None else g.features.contiguous(),
    )
    local = with_footprints(local, lod.native, lod.coarser, lod.finer, number)
    return Level(
        number=number, origin=origin, gaussians=local, parents=parents, blocks=bound_blocks(local), split=split
    )


def with_footprints(gaussians: Gaussians, native: Tensor, coarser: Tensor, finer: Tensor, number: int) -> Gaussians:
    """Gaussians with the level-of-detail fields of one level; the footprints are [N], stored as float32."""
    level = torch.full((1,), number, dtype=torch.int32, device=native.device).expand(len(native))
    return replace(gaussians, lod=Lod(native=native.float(), coarser=coarser.float(), finer=finer.float(), level=level))


def copy_level(level: Level, device: torch.device | str) -> Level:
    """A copy, also where the level is on the device already: it must not stay mapped."""

    def moved(part: Blocks | Split) -> dict[str, Tensor]:
        return {name: value.to(device, copy=True) for name, value in vars(part).items()}

    g, lod = level.gaussians, level.lod
    gaussians = Gaussians(
        means=g.means.to(device, copy=True),
        quats=g.quats.to(device, copy=True),
        scales=g.scales.to(device, copy=True),
        opacities=g.opacities.to(device, copy=True),
        sh=g.sh.to(device, copy=True),
        features=None if g.features is None else g.features.to(device, copy=True),
    )
    native, coarser, finer = (t.to(device, copy=True) for t in (lod.native, lod.coarser, lod.finer))
    return Level(
        number=level.number,
        origin=level.origin.to(device),
        gaussians=with_footprints(gaussians, native, coarser, finer, level.number),
        parents=level.parents.to(device, copy=True),
        blocks=Blocks(**moved(level.blocks)),
        split=Split(**moved(level.split)),
    )
