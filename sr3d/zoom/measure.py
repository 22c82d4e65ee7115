"""What a zoomed scene shows at a series of magnifications, and how good that is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.gaussians import Gaussians
from sr3d.rendering import render
from sr3d.scene import Scene
from sr3d.training.losses import ssim
from sr3d.training.metrics import COVERED_ALPHA, psnr

Truth = Callable[[Cameras], Tensor | None]
"""Images [C, H, W, 3] of what the cameras see, or None where that is not known."""


@dataclass(kw_only=True)
class Magnified:
    """One magnification m: the first view's frame at m, with as many pixels as the low-resolution input.

    So one pixel covers 1 / m of an input pixel, and level log_f(m) is drawn at its native footprint.

    Attributes:
        magnification: 1 for the input's own frame.
        images: Any of "truth", "bicubic" (the input view enlarged), "coarse" (level 0 alone), "sr3d". [H, W, 3]
        depth: Of "sr3d"; world units, 0 where alpha is 0. [H, W]
        alpha: Of "coarse" and "sr3d". [H, W]
    """

    magnification: float
    images: dict[str, Float[Tensor, "h w 3"]]
    depth: Float[Tensor, "h w"]
    alpha: dict[str, Float[Tensor, "h w"]]

    def scores(self) -> dict[str, dict[str, float]]:
        """Per method `coverage` (share of pixels with alpha > 0.8), and `psnr` (dB) and `ssim` where truth is known."""
        out: dict[str, dict[str, float]] = {}
        for method, image in self.images.items():
            if method == "truth":
                continue
            out[method] = {}
            if "truth" in self.images:
                truth = self.images["truth"]
                out[method]["psnr"] = float(psnr(image, truth))
                out[method]["ssim"] = float(ssim(image[None].clamp(0, 1), truth[None])[0])
            if method in self.alpha:
                out[method]["coverage"] = float((self.alpha[method] > COVERED_ALPHA).float().mean())
        return out


@torch.no_grad()
def magnify(
    forest: Gaussians,
    views: Scene,
    center: tuple[float, float],
    magnifications: Sequence[float],
    truth: Truth | None = None,
) -> list[Magnified]:
    """Draw the first view at every magnification.

    Args:
        forest: Result of `zoom_into`.
        views: Its low-resolution input.
        center: Pixel of the first view that stays in place.
        magnifications: ≥ 1.
        truth: Asked for every magnification.

    Raises:
        Sr3dError: The views have no poses.
    """
    first = views.posed().index([0])
    coarse = level_zero(forest)
    out = []
    for m in magnifications:
        camera = first.zoomed(m, center)
        fine, base = render(forest, camera), render(coarse, camera)
        images = {"bicubic": resample(views.images[0], first, camera)}
        images |= {"coarse": base.rgb[0].cpu(), "sr3d": fine.rgb[0].cpu()}
        known = truth(camera) if truth is not None else None
        if known is not None:
            images = {"truth": known[0], **images}
        alpha = {"coarse": base.alpha[0].cpu(), "sr3d": fine.alpha[0].cpu()}
        out.append(Magnified(magnification=m, images=images, depth=fine.depth[0].cpu(), alpha=alpha))
    return out


def level_zero(forest: Gaussians) -> Gaussians:
    """The coarse scene of a forest, which does not fade."""
    assert forest.lod is not None
    return replace(forest.index(forest.lod.level == 0), lod=None)


def photograph(image: Float[Tensor, "h w 3"], camera: Cameras) -> Truth:
    """Truth from a photograph, for cameras at its place that need no more detail than it has.

    Args:
        image: At full resolution.
        camera: Its one camera.
    """

    def truth(cameras: Cameras) -> Tensor | None:
        if float(cameras.focal.max()) > 1.001 * float(camera.focal[0]):
            return None
        return torch.stack([resample(image, camera, cameras.index([i])) for i in range(len(cameras))])

    return truth


def resample(image: Float[Tensor, "h w 3"], camera: Cameras, other: Cameras) -> Float[Tensor, "h2 w2 3"]:
    """An image as another camera at the same place sees it: bicubic where enlarged, averaged where reduced.

    Args:
        image: In [0, 1].
        camera: Its one camera.
        other: One camera of the same pose; K and image size may differ.
    """
    samples = max(1, math.ceil(float(camera.focal[0] / other.focal[0]) - 1e-3))
    fine = other.resized(other.width * samples, other.height * samples)
    pixels = torch.einsum("ij,hwj->hwi", camera.K[0], fine.pixel_rays()[0])[..., :2]
    grid = 2 * pixels / torch.tensor([camera.width, camera.height], dtype=pixels.dtype) - 1
    mode = "bicubic" if samples == 1 else "bilinear"
    source = image.movedim(-1, 0)[None]
    out = F.grid_sample(source, grid[None].to(image), mode=mode, padding_mode="border", align_corners=False)
    return F.avg_pool2d(out, samples)[0].movedim(0, -1).clamp(0, 1)


@torch.no_grad()
def consistency(forest: Gaussians, views: Scene, factor: int) -> dict[str, float]:
    """PSNR (dB) of the scene against the low-resolution inputs, mean over views.

    Returns:
        "coarse": what the input cameras draw (level 0, by its footprint); "sr3d": level 1, drawn `factor` times larger
        and averaged down.
    """
    cameras = views.posed()
    large = cameras.resized(cameras.width * factor, cameras.height * factor)
    fine = render(forest, large).rgb.movedim(-1, 1)
    small = F.avg_pool2d(fine, factor).movedim(1, -1)
    base = render(forest, cameras).rgb
    small, base = small.to(views.images), base.to(views.images)
    return {
        "coarse": float(psnr(base, views.images).mean()),
        "sr3d": float(psnr(small, views.images).mean()),
    }


def frame_changes(frames: UInt8[Tensor, "f h w 3"], path: Cameras, center: tuple[float, float]) -> Float[Tensor, " g"]:
    """Popping detector: mean absolute difference of each frame and its predecessor warped by the zoom. [F - 1]

    A perfect zoom leaves what bilinear warping and newly resolved detail cost; a level that pops stands out as a peak.

    Args:
        frames: Pictures of a `zoom_path`.
        path: Its cameras, of the frames' size.
        center: Fixed pixel, in the pixels of `path`.
    """
    v, u = torch.meshgrid(torch.arange(path.height) + 0.5, torch.arange(path.width) + 0.5, indexing="ij")
    fixed = torch.tensor(center)
    size = torch.tensor([path.width, path.height])
    away = torch.stack([u, v], dim=-1) - fixed
    out = []
    for i in range(len(frames) - 1):
        pixels = fixed + away * float(path.focal[i] / path.focal[i + 1])
        before = frames[i].movedim(-1, 0)[None].float() / 255
        warped = F.grid_sample(before, (2 * pixels / size - 1)[None], padding_mode="border", align_corners=False)
        after = frames[i + 1].float() / 255
        out.append((warped[0].movedim(0, -1) - after).abs().mean())
    return torch.stack(out)
