"""What the frames of a level see of a forest, in coordinates of its own: the cost follows what is visible."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.gaussians import Gaussians
from sr3d.lod import BLOCK, Forest
from sr3d.lod.level import with_footprints
from sr3d.rendering import Rendering, render
from sr3d.rendering.cull import Frustum, visible_blocks

_REACH = 3.0  # standard deviations to which a Gaussian is drawn
_NEAR = 0.01  # of the renderer, world units at magnification 1
_SAMPLES = 2  # per side of a pixel, of the drawings that a level is made from


@dataclass(kw_only=True)
class Visible:
    """Part of a forest.

    Attributes:
        rows: Where they are in the forest, ascending. [M]
        gaussians: Relative to `origin`, float32; `lod.finer` with all levels taken into account. [M]
        origin: World frame, float64. [3]
        near: z-depth below which nothing is drawn, world units.
    """

    rows: Int[Tensor, " m"]
    gaussians: Gaussians
    origin: Float[Tensor, 3]
    near: float

    def draw(self, cameras: Cameras, features: bool = False) -> Rendering:
        """Render into cameras of the world frame, levels faded by footprint."""
        return render(self.gaussians, around(cameras, self.origin), features=features, near=self.near)


def around(cameras: Cameras, origin: Float[Tensor, 3]) -> Cameras:
    """The cameras in a frame whose origin is a point of the world, float64."""
    double = cameras.to(torch.float64)
    poses = double.world_to_cam.clone()
    poses[..., :3, 3] += poses[..., :3, :3] @ origin.to(poses)
    return replace(double, world_to_cam=poses)


def visible(forest: Forest, cameras: Cameras, origin: Float[Tensor, 3]) -> Visible:
    """The Gaussians in all blocks that leave a mark on a frame.

    Args:
        forest: In CPU memory.
        cameras: [C]
        origin: Of the result's coordinates: near what the cameras look at.
    """
    rows, parts = [], []
    near = _NEAR / forest.magnification
    for k, stored in enumerate(forest.levels):
        frusta = [
            Frustum.of(p, K, cameras.width, cameras.height, near) for p, K in zip(cameras.world_to_cam, cameras.K)
        ]
        blocks = torch.unique(torch.cat([visible_blocks(forest, k, frustum) for frustum in frusta]))
        if len(blocks) == 0:
            continue
        inside = (blocks[:, None] * BLOCK + torch.arange(BLOCK)).flatten()
        there = inside < len(stored)
        inside, finer = inside[there], forest.finer(k, blocks).flatten()[there]
        own = stored.gaussians.index(inside)
        assert own.lod is not None
        placed = replace(own, means=(own.means.double() + (stored.origin - origin)).float())
        parts.append(with_footprints(placed, own.lod.native, own.lod.coarser, finer, stored.number))
        rows.append(inside + forest.starts[k])
    if not parts:
        none = forest.levels[0].gaussians.index(slice(0, 0))
        return Visible(rows=torch.empty(0, dtype=torch.int64), gaussians=none, origin=origin, near=near)
    return Visible(rows=torch.cat(rows), gaussians=Gaussians.cat(parts), origin=origin, near=near)


def in_frames(seen: Visible, cameras: Cameras) -> Bool[Tensor, " m"]:
    """Whether a Gaussian that is drawn at all, to `_REACH` standard deviations, touches any frame."""
    local, gaussians = around(cameras, seen.origin), seen.gaussians
    pixels, depth = local.project(gaussians.means.double())
    reach = _REACH * gaussians.scales.amax(dim=-1) / local.footprint(depth.clamp_min(_NEAR)) + 1
    size = torch.tensor([cameras.width, cameras.height], dtype=pixels.dtype)
    near = ((pixels > -reach[..., None]) & (pixels < size + reach[..., None])).all(dim=-1)
    return (near & (depth > _NEAR)).any(dim=0) & (gaussians.opacities > 0)


def photograph_forest(seen: Visible, cameras: Cameras) -> Float[Tensor, "c h w 3"]:
    """Images of a forest as a sensor would see it.

    A network must not take what shines through thin coverage for a darker surface, hence the division by alpha. Mean
    over a pixel of a larger drawing: the renderer's low-pass alone would blur the input of every level a little more.
    """
    drawn = seen.draw(cameras.resized(_SAMPLES * cameras.width, _SAMPLES * cameras.height))
    rgb = (drawn.rgb / drawn.alpha.clamp_min(1e-3)[..., None]).clamp(0, 1)
    return torch.nn.functional.avg_pool2d(rgb.movedim(-1, 1), _SAMPLES).movedim(1, -1)
