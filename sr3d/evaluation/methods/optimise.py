"""Method `optimise`: per-scene super-resolution from wider Gaussians of `upsampled`; zooms go level by level."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any, ClassVar

import torch

from sr3d.errors import Sr3dError
from sr3d.evaluation.case import Made, Task
from sr3d.evaluation.methods.base import Method, MethodOptions
from sr3d.models import SuperResolver, SuperResolverConfig
from sr3d.zoom import Optimiser, ZoomLevel, zoom_into
from sr3d.zoom.optimise import START_SIGMA, OptimiseConfig, optimise, wide_start


class Optimise(Method):
    """See `sr3d.zoom.optimise`: `optimise:300` takes 300 steps, `optimise:30s` the tuned number or what time allows.

    A budget of time makes results depend on the machine's speed: two runs need not agree.

    Attributes:
        config: The tuned settings, with the budget asked for.
    """

    name: ClassVar[str] = "optimise"
    uses_coarse: ClassVar[bool] = False

    def __init__(self, options: MethodOptions) -> None:
        """Read the budget.

        Raises:
            Sr3dError: The argument is neither a whole number of 0 or more nor a number of seconds.
        """
        super().__init__(options)
        self.config = OptimiseConfig()
        if options.argument is not None:
            budget = re.fullmatch(r"([0-9]+)|([0-9]+(?:\.[0-9]+)?)s", options.argument)
            if budget is None:
                expected = "a number of steps, 0 or more, as in optimise:100, or of seconds, as in optimise:30s"
                raise Sr3dError("method optimise", "argument", repr(options.argument), expected)
            steps, seconds = budget.groups()
            self.config = OptimiseConfig(steps=int(steps)) if steps else OptimiseConfig(seconds=float(seconds))

    def identity(self) -> dict[str, Any]:
        """Name and all settings."""
        return {**super().identity(), "start_sigma": START_SIGMA, **asdict(self.config)}

    def make(self, task: Task) -> Made:
        """Optimised Gaussians, one for each pixel of the enlarged inputs; of a zoom all levels.

        Raises:
            Sr3dError: No poses or no depth, or the inputs are too small (see `sr3d.zoom.optimise.optimise`).
        """
        if task.zoom is not None:
            return self._zoomed(task, *task.zoom)
        start = wide_start(task.context, task.factor, task.config).to(self.options.device)
        with torch.enable_grad():
            done = optimise(start, task.context.to(self.options.device), task.factor, self.config)
        first, last = (float(done.losses[i]) if done.steps else None for i in (0, -1))
        notes: dict[str, object] = {
            "steps": done.steps,
            "stopped": done.stopped,
            "loss_first": first,
            "loss_last": last,
        }
        return Made(gaussians=done.gaussians, notes=notes)

    def _zoomed(self, task: Task, center: tuple[float, float], magnification: int) -> Made:
        """Every level optimised from children of the one before."""
        levels: list[ZoomLevel] = []
        network = SuperResolver(SuperResolverConfig(factor=task.factor)).to(self.options.device)
        maker = Optimiser(network, self.config)
        made = zoom_into(task.context, center, magnification, maker=maker, coarse=task.coarse, on_level=levels.append)
        return Made(gaussians=made, notes={"seconds per level": [round(level.seconds, 2) for level in levels[1:]]})
