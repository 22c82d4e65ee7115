"""LPIPS, the distance of images as a classifier sees them; its weights are downloaded once."""

from __future__ import annotations

import pickle
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Literal

import torch
import torchvision
from jaxtyping import Float
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

from sr3d.errors import Sr3dError

Net = Literal["vgg", "alex", "squeeze"]
_BACKBONES = {"vgg": "vgg16", "alex": "alexnet", "squeeze": "squeezenet1_1"}
_LEAST = {"vgg": 16, "alex": 31, "squeeze": 17}  # pixels per side that survive all poolings


class Perceptual(nn.Module):
    """Learned perceptual image patch similarity (Zhang et al. 2018), frozen.

    Args:
        net: Classifier: VGG-16 (the usual one for losses), AlexNet (for metrics) or SqueezeNet.

    Raises:
        OSError: Its weights are not in torch's cache, and cannot be downloaded.
        Sr3dError: The file in the cache holds something else.
    """

    def __init__(self, net: Net = "vgg") -> None:
        super().__init__()
        _check_weights(net)
        self.least = _LEAST[net]
        self.net = LearnedPerceptualImagePatchSimilarity(net_type=net).net

    def forward(
        self, rgb: Float[Tensor, "*views h w 3"], truth: Float[Tensor, "*views h w 3"]
    ) -> Float[Tensor, "*views"]:
        """Distance of each view, 0 for equal ones; images in [0, 1], brighter ones are clamped.

        Raises:
            Sr3dError: The images are too small for the classifier.
        """
        height, width = rgb.shape[-3:-1]
        if min(height, width) < self.least:
            least = f"{self.least}x{self.least} or more, or a weight of 0 (model.loss.lpips)"
            raise Sr3dError("sr3d.training.Perceptual", "image size", f"{width}x{height}", least)
        a, b = (x.float().clamp(0, 1).reshape(-1, height, width, 3).movedim(-1, 1) for x in (rgb, truth))
        distance: Tensor = self.net(a, b, normalize=True)
        return distance.reshape(rgb.shape[:-3])


def load_perceptual(net: Net = "vgg", timeout: float = 5.0) -> Perceptual | None:
    """LPIPS; None, with one warning, where its weights are not here and cannot be had.

    Args:
        net: Classifier.
        timeout: Seconds to wait for the server. There is no second try.

    Raises:
        Sr3dError: The file of weights is there but holds something else.
    """
    path, url = weights_file(net)
    try:
        if not path.exists():
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout).close()
        return Perceptual(net)
    except (OSError, HTTPException) as error:
        rank_zero_warn(f"LPIPS is left out: its weights cannot be had ({error}); put {url} at {path}")
        return None


def weights_file(net: Net) -> tuple[Path, str]:
    """Where torch keeps the classifier's weights, and the address that it takes them from."""
    url: str = torchvision.models.get_model_weights(_BACKBONES[net]).DEFAULT.url
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2], url


def _check_weights(net: Net) -> None:
    """Download the weights if they are missing, and refuse a file that would execute code when it is loaded."""
    path, url = weights_file(net)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = path.stem.rpartition("-")[2]
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix, progress=False)
        except RuntimeError as error:
            raise OSError(f"damaged on the way: {error}") from None
    with torch.device("meta"):
        expected = torchvision.models.get_model(_BACKBONES[net], weights=None)
    try:
        expected.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), assign=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        found = str(error).splitlines()[0]
        raise Sr3dError(path, "weights", found, f"those of {_BACKBONES[net]} ({url})") from None
