"""`coarse`: the scene that all others start from, one Gaussian for each pixel of the inputs."""

from __future__ import annotations

from typing import ClassVar

from sr3d.evaluation.case import Made, Task
from sr3d.evaluation.methods.base import Method


class Coarse(Method):
    """The coarse stage alone."""

    name: ClassVar[str] = "coarse"

    def make(self, task: Task) -> Made:
        """The coarse Gaussians as they are."""
        return Made(gaussians=task.coarse.to(self.options.device))
