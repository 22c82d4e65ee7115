"""What the network is given: upsampled views, and the coarse scene drawn into them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad, pixel_unshuffle

from sr3d.cameras import Cameras
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.lod import Lod
from sr3d.models.gather import sample
from sr3d.models.upsampler import Upsampler
from sr3d.rendering import render

COARSE_CHANNELS = 5  # rgb, log-depth, alpha
SHOWN_CHANNELS = 3 + COARSE_CHANNELS + 4  # and what the other views show: difference, share that sees the surface
_SAME_SURFACE = 0.03  # relative distance from the surface within which a view sees a point


@dataclass(kw_only=True)
class Views:
    """What the network knows of V views at high resolution H × W.

    Attributes:
        factor: Ratio of the resolutions.
        images: Upsampled, in [0, 1].
        cameras: At high resolution. [B, V]
        surface: z-depth of the coarse scene, 0 where it is not solid.
        coarse: The coarse scene drawn: rgb, logarithm of depth / `unit` (0 where empty), alpha.
        low: The views as they were given.
        unit: Mean depth of the coarse scene, world units.
    """

    factor: int
    images: Float[Tensor, "b v 3 h w"]
    cameras: Cameras
    surface: Float[Tensor, "b v h w"]
    coarse: Float[Tensor, "b v 5 h w"]
    low: Float[Tensor, "b v 3 hl wl"]
    unit: Float[Tensor, " b"]

    @property
    def small(self) -> Cameras:
        """Cameras at low resolution."""
        return self.cameras.resized(self.cameras.width // self.factor, self.cameras.height // self.factor)

    def shown(self) -> Float[Tensor, "b v 12 h w"]:
        """Per-pixel evidence: upsampled view, coarse scene, what other views show at the same surface point."""
        return torch.cat([self.images, self.coarse, _other_views(self)], dim=2)


def prepare(
    coarse: Gaussians,
    images: Float[Tensor, "b v h w 3"],
    cameras: Cameras,
    factor: int,
    upsampler: Upsampler,
    enlarged: Float[Tensor, "b v H W 3"] | None = None,
) -> Views:
    """Upsample the views and draw the coarse scene into them.

    Args:
        coarse: [B, M]
        images: Low-resolution views in [0, 1].
        cameras: At low resolution. [B, V]
        factor: Ratio of the resolutions.
        upsampler: Enlarges images.
        enlarged: Takes the place of what it would make.

    Raises:
        Sr3dError: Shapes disagree, the coarse scene has no level of detail, it lies outside every view, or
            the views of a scene have nothing in common.
    """
    _check(coarse, images, cameras)
    large = cameras.resized(cameras.width * factor, cameras.height * factor)
    low = images.movedim(-1, 2)
    if enlarged is None:
        upsampled = upsampler(low.flatten(0, 1), factor)
    elif enlarged.shape[:4] == (*images.shape[:2], large.height, large.width):
        upsampled = enlarged.movedim(-1, 2).flatten(0, 1)
    else:
        expected = (*images.shape[:2], large.height, large.width, 3)
        raise Sr3dError("SuperResolver", "enlarged views", tuple(enlarged.shape), expected)
    with torch.no_grad(), exact(images):
        drawn = render(coarse.detach(), large, lod=False)
    unit = (drawn.depth.flatten(1).sum(1) / (drawn.depth > 0).flatten(1).sum(1).clamp_min(1)).clamp_min(1e-9)
    relative = torch.log(drawn.depth.clamp_min(1e-9) / unit[:, None, None, None]).clamp(-3, 3)
    relative = torch.where(drawn.depth > 0, relative, torch.zeros_like(relative))
    return Views(
        factor=factor,
        images=upsampled.float().unflatten(0, images.shape[:2]),
        cameras=large,
        surface=torch.where(drawn.alpha > 0.5, drawn.depth, 0.0),
        coarse=torch.cat([drawn.rgb, relative[..., None], drawn.alpha[..., None]], dim=-1).movedim(-1, 2),
        low=low,
        unit=unit,
    )


def exact(like: Tensor) -> torch.autocast:
    """Context in which nothing is rounded to 16 bits: positions and pixels need more digits."""
    return torch.autocast(like.device.type, enabled=False)


def padded(maps: Float[Tensor, "b v c h w"], cell: int) -> Float[Tensor, "b v c h2 w2"]:
    """Height and width enlarged to multiples of `cell` by repeating the last row and column."""
    height, width = maps.shape[-2:]
    short = (0, -width % cell, 0, -height % cell)
    return pad(maps.flatten(0, 1), short, mode="replicate").unflatten(0, maps.shape[:2]) if any(short) else maps


def cells(views: Views, cell: int) -> tuple[Cameras, Float[Tensor, "b v hc wc"]]:
    """Cameras of a grid of `cell` × `cell` pixels, and the depth at the centres of its cells.

    The grid may reach beyond the image by less than a cell. A centre lies between four pixels: its depth is that of the
    nearest surface among them, never a mean over two.
    """
    surface = padded(views.surface[:, :, None], cell)
    known = torch.where(surface > 0, surface, torch.inf)
    blocks = pixel_unshuffle(known.flatten(0, 1), cell).unflatten(0, surface.shape[:2])
    half = cell // 2
    middle = [row * cell + column for row in (half - 1, half) for column in (half - 1, half)]
    depth = blocks[:, :, middle].amin(dim=2)
    K = views.cameras.K / torch.tensor([cell, cell, 1.0], dtype=views.cameras.K.dtype, device=depth.device)[:, None]
    cameras = replace(views.cameras, K=K, height=depth.shape[-2], width=depth.shape[-1])
    return cameras, torch.where(depth < torch.inf, depth, torch.zeros_like(depth))


def with_lod(gaussians: Gaussians, cameras: Cameras) -> Gaussians:
    """Gaussians as they are where they have `lod`, else as roots made for the sharpest of `cameras` that sees them.

    Args:
        gaussians: [N]
        cameras: [C]
    """
    if gaussians.lod is not None:
        return gaussians
    _, depth = cameras.project(gaussians.means)
    # A Gaussian behind every camera still needs a finite footprint.
    footprint = cameras.footprint(torch.where(depth > 0, depth, torch.inf)).amin(dim=-2)
    fallback = cameras.footprint(depth.abs().clamp_min(1e-6)).amin(dim=-2)
    return replace(gaussians, lod=Lod.roots(torch.where(torch.isfinite(footprint), footprint, fallback)))


def _other_views(views: Views) -> Float[Tensor, "b v 4 h w"]:
    """Mean of what the other views show at each pixel's surface point, minus the pixel; and the share that sees it."""
    _, v, _, h, w = views.images.shape
    points = views.cameras.unproject(views.surface).flatten(1, 3)
    pixels, depth = views.cameras.project(points)
    uv = pixels / torch.tensor([w, h], dtype=points.dtype, device=points.device)
    inside = (depth > 0) & (uv > 0).all(dim=-1) & (uv < 1).all(dim=-1)
    uv = torch.where(inside[..., None], uv, torch.full_like(uv, 0.5))
    front = sample(views.surface[:, :, None], uv, mode="nearest")[:, :, 0]
    seen = inside & (front > 0) & ((depth / front.clamp_min(1e-9) - 1).abs() < _SAME_SURFACE)
    seen = seen.unflatten(-1, (v, h * w)) & ~torch.eye(v, dtype=torch.bool, device=uv.device)[None, :, :, None]
    seen = (seen & (views.surface.flatten(2) > 0)[:, None]).to(points.dtype)  # [b, from, to, h·w]
    colors = sample(views.images, uv).unflatten(-1, (v, h * w)).movedim(3, 2)  # [b, from, to, 3, h·w]
    count = seen.sum(dim=1)[:, :, None]
    mean = (colors * seen[:, :, :, None]).sum(dim=1) / count.clamp_min(1)
    # Where depth is wrong the views show different things: beyond a point, how different does not matter.
    difference = 0.2 * torch.tanh((mean - views.images.flatten(3)) / 0.2) * (count > 0)
    return torch.cat([difference, count / max(v - 1, 1)], dim=2).unflatten(-1, (h, w))


def _check(coarse: Gaussians, images: Tensor, cameras: Cameras) -> None:
    where = "SuperResolver"
    if coarse.lod is None:
        raise Sr3dError(where, "coarse.lod", "none", "Gaussians with native footprints (sr3d.lod.Lod.roots)")
    if tuple(images.shape[2:4]) != (cameras.height, cameras.width):
        found = f"images {tuple(images.shape[2:4])}, cameras {(cameras.height, cameras.width)}"
        raise Sr3dError(where, "images", found, "one height and width")
    if images.shape[:2] != cameras.K.shape[:2] or len(coarse.means) != len(images):
        found = f"images {tuple(images.shape[:2])}, cameras {tuple(cameras.K.shape[:2])}, scenes {len(coarse.means)}"
        raise Sr3dError(where, "views", found, "equal batch and view counts")
    for i, problem in sight_problems(coarse, cameras):
        number = f"scene {i} of the batch: " if len(images) > 1 else ""
        raise Sr3dError(
            where, "views", number + problem, "views of one place that see the coarse scene (units, poses?)"
        )


def sight_problems(coarse: Gaussians, cameras: Cameras) -> list[tuple[int, str]]:
    """Scenes of a batch that cannot be worked on, by what lies in the frustums of their views.

    Args:
        coarse: [B, M]
        cameras: Input views, which have to share something if there are several. [B, V]

    Returns:
        Number in the batch, and what is wrong.
    """
    uv, depth = cameras.project(coarse.means)
    size = torch.tensor([cameras.width, cameras.height], dtype=uv.dtype, device=uv.device)
    solid = (coarse.opacities > 0)[:, None]
    seen = solid & (depth > 0) & (uv >= 0).all(dim=-1) & (uv <= size).all(dim=-1)  # [B, V, M]
    nothing = ~seen.flatten(1).any(dim=1)
    alone = (seen.sum(dim=1) < 2).all(dim=1) if len(cameras) > 1 else torch.zeros_like(nothing)
    out = []
    for i, (none, apart) in enumerate(torch.stack([nothing, alone], dim=1).tolist()):
        if none:
            out.append((i, "the coarse scene lies outside the frustum of every input view"))
        elif apart:
            out.append((i, "no input view sees anything of another one"))
    return out
