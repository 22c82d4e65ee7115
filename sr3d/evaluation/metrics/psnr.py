"""PSNR over the whole image and over covered pixels."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from sr3d.evaluation.metrics.base import Column, Observation, ViewMetric


class Psnr(ViewMetric):
    """Peak signal-to-noise ratio, −10 log10 of the mean squared error; at most 100 dB."""

    columns = (
        Column(name="psnr", title="PSNR", better="higher", digits=2, unit="dB"),
        Column(name="psnr_covered", title="PSNR covered", better="higher", digits=2, unit="dB"),
    )

    def measure(self, seen: Observation) -> dict[str, Float[Tensor, " t"]]:
        """PSNR of every view, and of its covered pixels."""
        from sr3d.training.metrics import psnr

        assert seen.truth is not None
        rgb, truth = seen.rgb, seen.truth.images
        return {"psnr": psnr(rgb, truth), "psnr_covered": psnr(rgb, truth, seen.covered)}
