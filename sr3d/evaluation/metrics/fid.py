"""FID: Fréchet distance of the Inception features of drawn and true views."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sr3d.errors import Sr3dError
from sr3d.evaluation.metrics.base import Column, Observation, SetMetric
from sr3d.evaluation.metrics.frechet import frechet_distance
from sr3d.evaluation.metrics.weights import fetched, optional_package, tensors

_URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"


class Fid(SetMetric):
    """Fréchet inception distance (Heusel et al. 2017) of all views together.

    Features are the 2048 pooled ones of the original Inception v3, by torchmetrics and torch-fidelity (extra
    `metrics`). Fewer views than 2049 fit a singular covariance, and the distance is biased upwards, the more the
    fewer they are: it then compares methods on the same views, and nothing else. `fid_views` says how many there were.
    """

    columns = (
        Column(name="fid", title="FID", better="lower", digits=2),
        Column(name="fid_views", title="views of FID", better="higher", digits=0),
    )

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device)
        self.network = load_inception().to(device)

    @torch.no_grad()
    def state(self, seen: Observation) -> dict[str, Tensor]:
        """Features "drawn" and "true" of every view. [T, 2048]"""
        assert seen.truth is not None
        pictures = {"drawn": seen.rgb, "true": seen.truth.images}
        return {name: torch.cat([self._features(x) for x in images]) for name, images in pictures.items()}

    def finish(self, states: list[dict[str, Tensor]]) -> dict[str, float]:
        """FID of all views of all cases, NaN for fewer than two; and their number."""
        drawn, true = (torch.cat([state[name] for state in states]) for name in ("drawn", "true"))
        return {"fid": frechet_distance(drawn, true), "fid_views": float(len(drawn))}

    def _features(self, image: Tensor) -> Tensor:
        """Of one view, which Inception takes as bytes. [1, 2048]"""
        features: Tensor = self.network((image.movedim(-1, 0)[None] * 255).round().to(torch.uint8))
        return features.float().cpu()


def load_inception() -> Any:
    """The network that FID is defined by: images [N, 3, H, W] uint8 → features [N, 2048].

    Raises:
        MetricUnavailable: torch-fidelity or the weights cannot be had.
        Sr3dError: The file of weights holds something else.
    """
    optional_package("torch_fidelity")
    from torchmetrics.image.fid import NoTrainInceptionV3

    path = fetched(_URL, Path(torch.hub.get_dir()) / "checkpoints" / _URL.rpartition("/")[2], "6726825d")
    # Before torch-fidelity reads it, which would execute what a file asks for.
    tensors(path, _URL)
    try:
        return NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path))
    except (RuntimeError, KeyError) as error:
        raise Sr3dError(path, "weights", str(error).splitlines()[0], f"those of Inception v3 ({_URL})") from None
