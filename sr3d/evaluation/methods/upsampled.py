"""`upsampled`: one Gaussian for each pixel of bicubically enlarged inputs, the baseline without learning."""

from __future__ import annotations

from typing import ClassVar

from sr3d.coarse import upsampled_gaussians
from sr3d.evaluation.case import Made, Task
from sr3d.evaluation.methods.base import Method


class Upsampled(Method):
    """The coarse stage on enlarged views (SR3R's "Up-" rows)."""

    name: ClassVar[str] = "upsampled"
    uses_coarse: ClassVar[bool] = False

    def make(self, task: Task) -> Made:
        """factor² as many Gaussians as `coarse`."""
        return Made(gaussians=upsampled_gaussians(task.context, task.factor, task.config).to(self.options.device))
