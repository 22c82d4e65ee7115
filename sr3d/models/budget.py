"""Which parents are split, and how finely: none twice where views overlap, few children where nothing is to be seen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.gaussians import Gaussians
from sr3d.models.gather import sample

# Views whose footprints differ by less than about this factor share a surface along a seam between their centres.
_SHARP = 0.05
# A Gaussian counts as lying on the surface that a view shows within this fraction of the depth.
_ON_SURFACE = 0.05
_EDGE = 0.05  # relative change of depth between neighbouring pixels that makes an edge


@dataclass(kw_only=True)
class Plan:
    """Indices of parents, padded with −1 where the scenes of a batch differ.

    Attributes:
        fine: Parents that get the full grid of children. [B, A]
        flat: Parents that get few children. [B, C]
    """

    fine: Int[Tensor, "b a"]
    flat: Int[Tensor, "b c"]


def home_views(parents: Gaussians, cameras: Cameras) -> Int[Tensor, "b m"]:
    """The view that made each Gaussian, or the one that fits its footprint best.

    A pixel-aligned Gaussian has exactly the footprint of its pixel and projects to the pixel's centre. [B, M]

    Args:
        parents: With level-of-detail fields. [B, M]
        cameras: At the parents' resolution. [B, V]
    """
    assert parents.lod is not None
    pixels, depth = cameras.project(parents.means)
    misfit = torch.log(cameras.footprint(depth.clamp_min(1e-9)) / parents.lod.native[:, None]).abs()
    # Views side by side fit equally well; only in one of them does the Gaussian sit on a pixel's centre.
    off = (pixels - pixels.floor() - 0.5).abs().amax(dim=-1)
    return (misfit + 0.02 * off + 1e3 * (depth <= 0)).argmin(dim=1)


def plan_split(
    parents: Gaussians,
    home: Int[Tensor, "b m"],
    cameras: Cameras,
    images: Float[Tensor, "b v 3 h w"],
    surface: Float[Tensor, "b v h w"],
    most: int,
    grid: int,
    flat_grid: int,
) -> Plan:
    """Drop parents that another view's parents stand for, and rank the others by the detail around them.

    Where several views see one surface, it belongs to the view with the smallest footprint there, or, where these are
    about equal, to the one that sees it closest to the centre of its frame. Parents of other views are dropped where
    the owner has parents of its own. As many of the rest as `most` allows get `grid`² children, those with the most
    contrast or depth edges around them first; the others get `flat_grid`².

    Args:
        parents: [B, M]
        home: View of each parent.
        cameras: At the parents' resolution. [B, V]
        images: Views at that resolution.
        surface: z-depth of the coarse scene in them, 0 where it has none.
        most: Largest number of children per scene; at least `flat_grid`² of each kept parent.
        grid: Children per side of a detailed parent.
        flat_grid: Children per side of any other.
    """
    pixels, depth = cameras.project(parents.means)
    size = torch.tensor([cameras.width, cameras.height], dtype=pixels.dtype, device=pixels.device)
    uv = pixels / size
    inside = (depth > 0) & (uv > 0).all(dim=-1) & (uv < 1).all(dim=-1)
    uv = torch.where(inside[..., None], uv, torch.full_like(uv, 0.5))
    front = sample(surface[:, :, None], uv, mode="nearest")[:, :, 0]
    shown = inside & (front > 0) & ((depth / front.clamp_min(1e-9) - 1).abs() < _ON_SURFACE)
    kept = (parents.opacities > 0) & ~_redundant(uv, depth, shown, home, cameras)
    detail = _at_home(sample(_detail(images, surface)[:, :, None], uv, mode="nearest")[:, :, 0], home)
    rank = torch.where(kept, detail, -torch.inf).argsort(dim=1, descending=True, stable=True)
    counts = kept.sum(dim=1)
    spare = (most - counts * flat_grid**2) // (grid**2 - flat_grid**2) if grid > flat_grid else counts
    fine = torch.minimum(spare.clamp_min(0), counts)
    return Plan(fine=_slice(rank, torch.zeros_like(fine), fine), flat=_slice(rank, fine, counts - fine))


def _redundant(
    uv: Float[Tensor, "b v m 2"],
    depth: Float[Tensor, "b v m"],
    shown: Bool[Tensor, "b v m"],
    home: Int[Tensor, "b m"],
    cameras: Cameras,
) -> Bool[Tensor, "b m"]:
    """Whether a parent of another view stands for the same piece of a surface.

    Where depth is noisy, views do not agree on the owner. Parents are taken in the order of their claims: one whose
    view owns its surface stays; others there are redundant; of the rest those stay over whom no better claim is open.
    """
    v, area = depth.shape[1], cameras.width * cameras.height
    cost = torch.log(cameras.footprint(depth.clamp_min(1e-9))) / _SHARP + (uv - 0.5).square().sum(dim=-1)
    at_home = torch.nn.functional.one_hot(home, v).mT.bool()
    better = shown & ~at_home & (cost < _at_home(cost, home)[:, None])
    column = (uv[..., 0] * cameras.width).long().clamp(0, cameras.width - 1)
    row = (uv[..., 1] * cameras.height).long().clamp(0, cameras.height - 1)
    there = (torch.arange(v, device=uv.device)[:, None] * area + row * cameras.width + column).flatten(1)
    mine = home * area + _at_home(row * cameras.width + column, home)

    def at_pixel(parents: Bool[Tensor, "b m"]) -> Bool[Tensor, "b v m"]:
        """Views with such a parent of their own at the pixel where they show a parent."""
        taken = torch.zeros(len(parents), v * area, dtype=torch.uint8, device=uv.device)
        taken.scatter_reduce_(1, mine, parents.to(torch.uint8), "amax")
        return taken.gather(1, there).unflatten(1, (v, -1)).bool()

    undecided = better.any(dim=1)
    stays = ~undecided & shown.any(dim=1)
    redundant = torch.zeros_like(undecided)
    for _ in range(v):
        redundant |= undecided & (at_pixel(stays) & shown & ~at_home).any(dim=1)
        undecided &= ~redundant
        stays |= undecided & ~(at_pixel(undecided) & better).any(dim=1)
        undecided &= ~stays
    return redundant


def _at_home(values: Tensor, view: Int[Tensor, "b m"]) -> Tensor:
    """Of values [B, V, M] those of one view per parent. [B, M]"""
    return values.gather(1, view[:, None])[:, 0]


def _detail(images: Float[Tensor, "b v 3 h w"], surface: Float[Tensor, "b v h w"]) -> Float[Tensor, "b v h w"]:
    """Largest contrast of a channel within 3×3 pixels, 0 to 1; beyond 1 at depth edges."""
    flat = images.flatten(0, 1)
    contrast = _spread(flat).amax(dim=1)
    log_depth = torch.log(surface.flatten(0, 1).clamp_min(1e-9))[:, None]
    jump = _spread(log_depth)[:, 0]
    return (contrast + (jump > _EDGE)).unflatten(0, images.shape[:2])


def _spread(maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    pool = torch.nn.functional.max_pool2d
    return pool(maps, 3, stride=1, padding=1) + pool(-maps, 3, stride=1, padding=1)


def _slice(rank: Int[Tensor, "b m"], start: Int[Tensor, " b"], count: Int[Tensor, " b"]) -> Int[Tensor, "b k"]:
    """rank[start : start + count] of every scene, padded with −1."""
    steps = torch.arange(int(count.max()), device=rank.device)
    chosen = rank.gather(1, (start[:, None] + steps).clamp_max(rank.shape[1] - 1))
    return torch.where(steps < count[:, None], chosen, -1)
