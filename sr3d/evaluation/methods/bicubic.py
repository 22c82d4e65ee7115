"""`bicubic`: every target view by itself, reduced and enlarged again. A yardstick: it sees what the others must not."""

from __future__ import annotations

from typing import ClassVar

import torch

from sr3d.errors import Sr3dError
from sr3d.evaluation.case import Made, Task
from sr3d.evaluation.methods.base import Method
from sr3d.zoom.measure import resample


class Bicubic(Method):
    """Bicubic enlargement in two dimensions; of a zoom, of the input view that is zoomed into."""

    name: ClassVar[str] = "bicubic"
    two_dimensional: ClassVar[bool] = True
    uses_coarse: ClassVar[bool] = False

    def make(self, task: Task) -> Made:
        """Images of the target views."""
        if task.reduced is None:
            raise Sr3dError(task.name, "input views", "none", "views that can be enlarged: leave bicubic out")
        small, views = task.reduced, task.reduced.posed()
        images = [resample(small.images[i], views.index([i]), task.cameras.index([i])) for i in range(len(small))]
        return Made(images=torch.stack(images).to(self.options.device))
