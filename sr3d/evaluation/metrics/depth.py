"""Relative error and inlier ratio of drawn depth (LSM, Table 1)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sr3d.evaluation.metrics.base import Column, Observation, ViewMetric

_INLIER = 1.03  # ratio of depths up to which a pixel counts as right


class DepthError(ViewMetric):
    """`rel`: mean |d − d*| / d*; `tau`: share of pixels with max(d/d*, d*/d) < 1.03; both in percent, of z-depths.

    Drawn depth d and truth d* are divided by their medians first, over pixels that have both. Pixels whose truth is
    known but where nothing is drawn count with d = 0: an error of 100 %, and no inlier. Over all pixels of known
    depth, and over those that are covered.
    """

    columns = (
        Column(name="rel", title="rel", better="lower", digits=2, unit="%"),
        Column(name="tau", title="τ", better="higher", digits=2, unit="%"),
        Column(name="rel_covered", title="rel covered", better="lower", digits=2, unit="%"),
        Column(name="tau_covered", title="τ covered", better="higher", digits=2, unit="%"),
    )
    needs = ("truth", "depths")

    def measure(self, seen: Observation) -> dict[str, Float[Tensor, " t"]]:
        """rel and τ of every view; NaN where no pixel has both depths."""
        assert seen.truth is not None and seen.truth.depths is not None and seen.depth is not None
        rows = []
        for depth, truth, covered in zip(seen.depth.double(), seen.truth.depths.double(), seen.covered):
            known = (truth > 0) & torch.isfinite(truth)
            rows.append([*_errors(depth, truth, known), *_errors(depth, truth, known & covered)])
        values = torch.tensor(rows, dtype=torch.float64).unbind(dim=1)
        return dict(zip((column.name for column in self.columns), values))


def _errors(
    depth: Float[Tensor, "h w"], truth: Float[Tensor, "h w"], known: Bool[Tensor, "h w"]
) -> tuple[float, float]:
    """rel and τ over the known pixels, percent."""
    drawn = depth[known].cpu().numpy()
    true = truth[known].cpu().numpy()
    both = drawn > 0
    if not both.any():
        return np.nan, np.nan
    ratio = (drawn / np.median(drawn[both])) / (true / np.median(true[both]))
    inlier = np.maximum(ratio[both], 1 / ratio[both]) < _INLIER
    return 100 * float(np.abs(ratio - 1).mean()), 100 * float(inlier.sum() / len(ratio))
