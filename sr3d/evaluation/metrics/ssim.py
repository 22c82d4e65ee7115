"""SSIM and MS-SSIM over the whole image and over covered pixels."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sr3d.evaluation.metrics.base import Column, Observation, ViewMetric

_WINDOW = 11  # pixels per side
_LEAST = 16 * _WINDOW  # pixels per side that torchmetrics asks for with the five scales of MS-SSIM


class Ssim(ViewMetric):
    """Structural similarity (Wang et al. 2004): 11 × 11 Gaussian window of σ 1.5, borders mirrored.

    `ssim_covered` is the mean of the map of similarities over covered pixels. Views smaller than the window have no
    value.
    """

    columns = (
        Column(name="ssim", title="SSIM", better="higher"),
        Column(name="ssim_covered", title="SSIM covered", better="higher"),
    )

    def measure(self, seen: Observation) -> dict[str, Float[Tensor, " t"]]:
        """SSIM of every view, and of its covered pixels."""
        from torchmetrics.functional.image import structural_similarity_index_measure

        assert seen.truth is not None
        whole, part = (seen.rgb.new_full((len(seen.rgb),), torch.nan) for _ in range(2))
        for i, (rgb, truth) in enumerate(zip(*channels_first(seen.rgb, seen.truth.images))):
            if min(rgb.shape[-2:]) >= _WINDOW:
                whole[i], pixels = structural_similarity_index_measure(
                    rgb, truth, data_range=1.0, return_full_image=True
                )
                part[i] = pixels[0].mean(dim=0)[seen.covered[i]].mean()
        return {"ssim": whole, "ssim_covered": part}


class MsSsim(ViewMetric):
    """Multi-scale structural similarity (Wang et al. 2003), five scales.

    Views under 176 pixels a side have no value: the coarsest scale would be smaller than the window. `ms_ssim_covered`
    is that of images whose uncovered pixels are replaced by the truth: a scale has no mask of its own.
    """

    columns = (
        Column(name="ms_ssim", title="MS-SSIM", better="higher"),
        Column(name="ms_ssim_covered", title="MS-SSIM covered", better="higher"),
    )

    def measure(self, seen: Observation) -> dict[str, Float[Tensor, " t"]]:
        """MS-SSIM of every view, and of the view with the truth where it is not covered."""
        from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

        assert seen.truth is not None
        truth = seen.truth.images
        values = {}
        for name, rgb in (("ms_ssim", seen.rgb), ("ms_ssim_covered", covered_only(seen))):
            values[name] = rgb.new_full((len(rgb),), torch.nan)
            if min(rgb.shape[1:3]) >= _LEAST:
                for i, (a, b) in enumerate(zip(*channels_first(rgb, truth))):
                    values[name][i] = multiscale_structural_similarity_index_measure(a, b, data_range=1.0)
        return values


def covered_only(seen: Observation) -> Float[Tensor, "t h w 3"]:
    """The drawn views with the truth where they are not covered: what differs is on covered pixels."""
    assert seen.truth is not None
    return torch.where(seen.covered[..., None], seen.rgb, seen.truth.images)


def channels_first(*images: Float[Tensor, "t h w 3"]) -> list[Float[Tensor, "t 1 3 h w"]]:
    """Images as batches of one, float32: on CPUs torch's filters take fifty times longer in float64."""
    return [x.float().movedim(-1, 1)[:, None] for x in images]
