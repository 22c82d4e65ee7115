"""AUC of pose errors up to 5°, 10° and 20°."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.evaluation.metrics.base import Column, Observation, SetMetric

_DEGREES = (5, 10, 20)


class PoseAuc(SetMetric):
    """Area under the recall curve of the error of relative poses, of all pairs of input views (ScanNet-1500 protocol).

    The error of a pair is the larger of two angles: between its rotations, and between the directions of its
    translations. As in SuperGlue, LoFTR and what follows them, a translation and its opposite count as one direction.
    Recall at e is the share of pairs with an error up to e, linear in between; its area from 0° to the threshold is
    divided by the threshold.
    """

    columns = tuple(
        Column(name=f"pose_auc_{degrees}", title=f"AUC@{degrees}°", better="higher") for degrees in _DEGREES
    )
    needs = ("estimated",)

    def state(self, seen: Observation) -> dict[str, Tensor]:
        """Error of every pair of input views, degrees. [V (V − 1) / 2]"""
        assert seen.estimated is not None and seen.given is not None
        return {"errors": pose_errors(seen.estimated, seen.given)}

    def finish(self, states: list[dict[str, Tensor]]) -> dict[str, float]:
        """AUC of all pairs of all cases, 0 to 1; NaN without a pair."""
        errors = torch.cat([state["errors"] for state in states])
        return {column.name: auc(errors, degrees) for column, degrees in zip(self.columns, _DEGREES)}


def pose_errors(estimated: Cameras, given: Cameras) -> Float[Tensor, " p"]:
    """Error of every pair (i, j), i < j, of V cameras, degrees, float64; NaN poses are 180° off.

    Without a true translation only the rotation counts; an estimate without one where there is one is 90° off.
    """
    first, second = torch.triu_indices(len(given), len(given), offset=1)
    found, true = (_relative(cameras, first, second) for cameras in (estimated, given))
    turn = found[:, :3, :3].transpose(1, 2) @ true[:, :3, :3]
    trace = turn.diagonal(dim1=1, dim2=2).sum(dim=1)
    rotation = ((trace - 1) / 2).clamp(-1, 1).arccos().rad2deg()
    a, b = found[:, :3, 3], true[:, :3, 3]
    length = a.norm(dim=1) * b.norm(dim=1)
    cosine = torch.where(length > 0, (a * b).sum(dim=1) / length, 0.0)
    # The sign is lost on purpose: a translation and its opposite count as one direction.
    translation = torch.where(b.norm(dim=1) > 0, cosine.abs().clamp(max=1).arccos().rad2deg(), 0.0)
    return torch.maximum(rotation, translation).nan_to_num(180.0)


def auc(errors: Float[Tensor, " p"], threshold: int | float) -> float:
    """Area under recall over error from 0 to `threshold`, divided by it; NaN without errors."""
    if not len(errors):
        return torch.nan
    ordered = errors.double().sort().values
    below = int((ordered < threshold).sum())
    recall = torch.arange(below + 1, dtype=torch.float64) / len(ordered)
    x = torch.cat([ordered.new_zeros(1), ordered[:below], ordered.new_tensor([threshold])])
    return float(torch.trapezoid(torch.cat([recall, recall[-1:]]), x) / threshold)


def _relative(cameras: Cameras, first: Tensor, second: Tensor) -> Float[Tensor, "p 4 4"]:
    """From the frames of the first cameras to those of the second ones."""
    poses = cameras.to(torch.float64).to("cpu")
    return poses.world_to_cam[second] @ poses.cam_to_world[first]
