"""Depth from a single image: a prior that needs no network, Depth Anything, and Depth Pro."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from skimage.measure import regionprops
from torch import Tensor
from torch.nn.functional import interpolate

from sr3d.errors import Sr3dError
from sr3d.zoom.providers.base import (
    DepthGuess,
    MonocularDepth,
    eight_bit,
    network,
    pretrained,
    refuse_argument,
)
from sr3d.zoom.providers.segmentation import like_colours

_HORIZON = 0.5  # of `GroundPrior`: how far above the image, in its heights: its top is three times as far as its bottom
_LIKENESS, _SMALLEST = 2000.0, 1 / 100  # of its regions, see `like_colours`: larger than those of `Regions`
_FLOOR = 1e-3  # least inverse depth of Depth Anything, as a share of the image's largest: its last layer is a ReLU
_PRO_LIMITS = 1e-4, 1e4  # of Depth Pro's inverse depth, 1 / metres, as published


class GroundPrior(MonocularDepth):
    """No measurement: a guess from the layout of usual photographs, for where there is no network; the default.

    A camera that looks down a little stands above a flat ground: inverse depth grows linearly from row to row. Large
    regions of like colour (`like_colours`) that reach the lower edge are ground and follow that plane; all others stand
    upright where their lowest pixel meets it and have that one depth, or that of a nearer upright region whose bounding
    box holds theirs (a window in a wall). Regions that reach the upper edge (sky, walls of a room) are behind other
    things: they have the depth of the plane at their middle row. Slopes, ceilings, relief and whatever hangs or has
    several colours are wrong.
    """

    name: ClassVar[str] = "prior"

    def __init__(self, argument: str = "", device: str = "cpu") -> None:
        super().__init__(argument, device)
        refuse_argument(self)

    def guess(self, image: Float[Tensor, "h w 3"], focal: float) -> DepthGuess:
        """Inverse depth in 1 / height of the camera above the ground, three times as much at the bottom as at the top.

        Args:
            image: In [0, 1].
            focal: Focal length, pixels.
        """
        height = image.shape[0]
        ground = (torch.arange(height) + 0.5 + _HORIZON * height) / focal
        upright = _upright(like_colours(image, _LIKENESS, _SMALLEST), ground)
        return DepthGuess(depth=torch.where(upright > 0, upright, ground[:, None]), kind="inverse")


class DepthAnything(MonocularDepth):
    """Depth Anything, versions 1 and 2 (Yang et al. 2024): inverse depth up to scale and shift, or metric depth.

    The image goes through the model's own image processor; the answer is enlarged bilinearly.

    Args:
        argument: Model of the Hugging Face hub, or a folder; default "depth-anything/Depth-Anything-V2-Small-hf".
        device: Where the network runs.

    Raises:
        Sr3dError: The weights cannot be had, or are of another kind of network.
    """

    name: ClassVar[str] = "depth-anything"

    def __init__(self, argument: str = "", device: str = "cpu") -> None:
        super().__init__(argument, device)
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation

        model = argument or "depth-anything/Depth-Anything-V2-Small-hf"
        self._network: Any = network(self, AutoModelForDepthEstimation, model, trust_remote_code=False)
        found = self._network.config.model_type
        if found != "depth_anything":
            raise Sr3dError(f"depth provider {self.name}", model, f"a model of type {found}", "depth_anything")
        self._processor: Any = pretrained(self, AutoImageProcessor, model, trust_remote_code=False)

    def guess(self, image: Float[Tensor, "h w 3"], focal: float) -> DepthGuess:
        """Inverse depth, at least 1/1000 of its largest value; metres of metric models.

        Args:
            image: In [0, 1].
            focal: Focal length, pixels; not used.
        """
        answer = _answer(self._network, self._processor, image)
        if self._network.config.depth_estimation_type == "metric":
            return DepthGuess(depth=answer.clamp_min(1 / _PRO_LIMITS[1]), kind="metric")
        largest = float(answer.max())
        return DepthGuess(depth=answer.clamp_min(_FLOOR * largest if largest > 0 else 1.0), kind="inverse")


class DepthPro(MonocularDepth):
    """Depth Pro (Bochkovskii et al. 2024): metric depth under the known focal length.

    The network answers with the inverse depth that the image would have under a focal length of its width; times width
    over focal length it is 1 / metres. The published network's own guess of the field of view is not needed, so that
    part is not loaded.

    Args:
        argument: Model of the Hugging Face hub, or a folder; default "apple/DepthPro-hf".
        device: Where the network runs.

    Raises:
        Sr3dError: The weights cannot be had.
    """

    name: ClassVar[str] = "depth-pro"

    def __init__(self, argument: str = "", device: str = "cpu") -> None:
        super().__init__(argument, device)
        from transformers import AutoImageProcessor, DepthProForDepthEstimation

        model = argument or "apple/DepthPro-hf"
        self._network: Any = network(self, DepthProForDepthEstimation, model, use_fov_model=False)
        self._processor: Any = pretrained(self, AutoImageProcessor, model, trust_remote_code=False)

    def guess(self, image: Float[Tensor, "h w 3"], focal: float) -> DepthGuess:
        """Metres, from 0.1 mm to 10 km.

        Args:
            image: In [0, 1].
            focal: Focal length, pixels.
        """
        inverse = _answer(self._network, self._processor, image) * (image.shape[1] / focal)
        return DepthGuess(depth=1 / inverse.clamp(*_PRO_LIMITS), kind="metric")


@torch.no_grad()
def _answer(model: Any, processor: Any, image: Float[Tensor, "h w 3"]) -> Float[Tensor, "h w"]:
    """What the network says, at the size of the image."""
    inputs = processor(images=eight_bit(image), return_tensors="pt")["pixel_values"]
    said = model(pixel_values=inputs.to(model.device)).predicted_depth
    return interpolate(said[:, None], tuple(image.shape[:2]), mode="bilinear", align_corners=False)[0, 0].cpu()


def _upright(regions: Int[Tensor, "h w"], ground: Float[Tensor, " h"]) -> Float[Tensor, "h w"]:
    """Inverse depth of the regions that stand upright, 0 for those that reach the lower edge."""
    top, left, bottom, right = np.array([region.bbox for region in regionprops(regions.numpy() + 1)]).T
    standing, plane = bottom < len(ground), ground.numpy()
    feet = np.where(top > 0, plane[bottom - 1], (plane[top] + plane[bottom - 1]) / 2)
    holds = standing & (top <= top[:, None]) & (bottom >= bottom[:, None])
    holds &= (left <= left[:, None]) & (right >= right[:, None])
    nearest = np.where(holds, feet, 0).max(axis=1)
    return torch.from_numpy(np.where(standing, nearest, 0).astype(np.float32))[regions]
