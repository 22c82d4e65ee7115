"""LPIPS over the whole image and over covered pixels."""

from __future__ import annotations

from http.client import HTTPException

import torch
from jaxtyping import Float
from torch import Tensor

from sr3d.evaluation.metrics.base import Column, MetricUnavailable, Observation, ViewMetric
from sr3d.evaluation.metrics.ssim import covered_only
from sr3d.evaluation.metrics.weights import require_reachable


class Lpips(ViewMetric):
    """Learned perceptual image patch similarity (Zhang et al. 2018) by AlexNet, the choice of its authors for metrics.

    `lpips_covered` is that of images whose uncovered pixels are replaced by the truth: receptive fields know no mask.
    Views under 31 pixels a side have no value: they do not survive AlexNet's poolings.
    """

    columns = (
        Column(name="lpips", title="LPIPS", better="lower"),
        Column(name="lpips_covered", title="LPIPS covered", better="lower"),
    )

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device)
        from sr3d.training.perceptual import Perceptual, weights_file

        path, url = weights_file("alex")
        if not path.exists():
            require_reachable(url)
        try:
            self.distance = Perceptual("alex").to(device)
        except (OSError, HTTPException) as error:
            raise MetricUnavailable(f"weights cannot be had ({error}): {url}") from None

    @torch.no_grad()
    def measure(self, seen: Observation) -> dict[str, Float[Tensor, " t"]]:
        """LPIPS of every view, and of the view with the truth where it is not covered."""
        assert seen.truth is not None
        values = {}
        for name, rgb in (("lpips", seen.rgb), ("lpips_covered", covered_only(seen))):
            values[name] = rgb.new_full((len(rgb),), torch.nan)
            if min(rgb.shape[1:3]) >= self.distance.least:
                values[name] = torch.stack([self.distance(a, b) for a, b in zip(rgb, seen.truth.images)])
        return values
