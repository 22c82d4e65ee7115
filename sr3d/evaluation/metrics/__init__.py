"""Metrics of evaluation, by name. Libraries and weights are loaded when a metric is made, not when this is imported."""

from __future__ import annotations

from collections.abc import Sequence

from sr3d.errors import Sr3dError
from sr3d.evaluation.metrics.base import MetricUnavailable, SetMetric, ViewMetric
from sr3d.evaluation.metrics.clip import ClipIqa, ClipScore
from sr3d.evaluation.metrics.depth import DepthError
from sr3d.evaluation.metrics.fid import Fid
from sr3d.evaluation.metrics.fvd import Fvd
from sr3d.evaluation.metrics.lpips import Lpips
from sr3d.evaluation.metrics.no_reference import Musiq, Niqe, QAlign
from sr3d.evaluation.metrics.pose import PoseAuc
from sr3d.evaluation.metrics.psnr import Psnr
from sr3d.evaluation.metrics.semantics import Semantics
from sr3d.evaluation.metrics.ssim import MsSsim, Ssim
from sr3d.evaluation.metrics.warp import WarpError

METRICS: dict[str, type[ViewMetric] | type[SetMetric]] = {
    "psnr": Psnr,
    "ssim": Ssim,
    "ms_ssim": MsSsim,
    "lpips": Lpips,
    "fid": Fid,
    "clip_score": ClipScore,
    "clip_iqa": ClipIqa,
    "niqe": Niqe,
    "musiq": Musiq,
    "q_align": QAlign,
    "semantics": Semantics,
    "depth": DepthError,
    "pose_auc": PoseAuc,
    "warp_error": WarpError,
    "fvd": Fvd,
}


def create_metrics(
    names: Sequence[str], device: str = "cpu"
) -> tuple[dict[str, ViewMetric | SetMetric], dict[str, str]]:
    """Metrics that can be measured here, and why the others cannot.

    Args:
        names: Keys of `METRICS`.
        device: Where their networks run, and where observations will be.

    Returns:
        Name → metric, and name → reason, both in the order of `names`.

    Raises:
        Sr3dError: There is no metric of a name, or a file of weights holds something else.
    """
    made: dict[str, ViewMetric | SetMetric] = {}
    unavailable: dict[str, str] = {}
    for name in names:
        if name not in METRICS:
            raise Sr3dError("protocol", "metrics", name, f"one of {', '.join(METRICS)}")
        try:
            made[name] = METRICS[name](device)
        except MetricUnavailable as reason:
            unavailable[name] = str(reason)
    return made, unavailable
