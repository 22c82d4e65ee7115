"""Where the error comes from: the texture of a scene, or its geometry."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sr3d.coarse import CoarseConfig, pixel_gaussians
from sr3d.datasets.batch import Batch
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.rendering import render
from sr3d.scene import Scene
from sr3d.training.evaluate import Drawn
from sr3d.training.metrics import psnr

KINDS = ("true colours", "true geometry", "both")


@torch.no_grad()
def split_error(drawn: Drawn, config: CoarseConfig) -> dict[str, dict[str, Float[Tensor, "b t"]]]:
    """PSNR on covered pixels of every method with half of it replaced by the truth.

    A scene is drawn into its input views at full resolution: colour and depth. Then one Gaussian per pixel is placed,
    as `upsampled` places them: with true colours on the depth that was drawn ("true colours"), with the colours that
    were drawn on true depth ("true geometry"), and with the truth for both, the most that this placement can give.

    Args:
        drawn: A batch drawn by every method; its `high` views have depth.
        config: Sizes of the placed Gaussians.

    Returns:
        Method → one of `KINDS` → dB for every target view.

    Raises:
        Sr3dError: The batch has no true depth.
    """
    batch = drawn.batch
    truth = batch.high.depths
    if truth is None:
        raise Sr3dError(batch.high.name, "depths", "none", "true depth of the input views at full resolution")
    both = _score(drawn, _placed(batch.high, batch.high.images, truth, config))
    out = {}
    for method, gaussians in drawn.gaussians.items():
        seen = render(gaussians, batch.high.posed(), lod=False)
        depth = torch.where(seen.alpha > 0.5, seen.depth, torch.zeros_like(seen.depth))
        out[method] = {
            "true colours": _score(drawn, _placed(batch.high, batch.high.images, depth, config)),
            "true geometry": _score(drawn, _placed(batch.high, seen.rgb.clamp(0, 1), truth, config)),
            "both": both,
        }
    return out


def _placed(high: Scene, images: Tensor, depths: Tensor, config: CoarseConfig) -> list[Gaussians]:
    """One Gaussian per pixel, for each scene."""
    cameras = high.posed()
    return [
        pixel_gaussians(image, cameras[i], depth, config.upsampled_sigma, config.upsampled_opacity, config)
        for i, (image, depth) in enumerate(zip(images, depths))
    ]


def _score(drawn: Drawn, scenes: list[Gaussians]) -> Float[Tensor, "b t"]:
    batch: Batch = drawn.batch
    cameras = batch.target.posed()
    images = [render(scene, cameras[i], lod=False).rgb for i, scene in enumerate(scenes)]
    return psnr(torch.stack(images), batch.target.images, drawn.covered)
