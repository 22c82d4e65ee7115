"""What training batches are made of as the training goes on: a function of the optimiser step alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from sr3d.datasets.views import ViewConfig
from sr3d.errors import Sr3dError


@dataclass(kw_only=True)
class StageConfig:
    """What holds from one step on, until the next stage. Null keeps what the data module has without a curriculum.

    Attributes:
        start: Optimiser step, counted from 0.
        views: Number of inputs, or the lowest and highest number; drawn for each step.
        factors: How many times smaller the inputs are than the stored views; one is drawn for each step.
        low: Least gap, distance or overlap of the inputs, as in `ViewConfig`.
        high: Greatest one.

    Raises:
        Sr3dError: A value is out of range.
    """

    start: int = 0
    views: int | tuple[int, int] | None = None
    factors: list[int] | None = None
    low: int | float | None = None
    high: int | float | None = None

    def __post_init__(self) -> None:
        if self.start < 0:
            raise Sr3dError("sr3d.datasets.StageConfig", "start", self.start, "0 or more")
        if self.factors is not None and (not self.factors or min(self.factors) < 1):
            raise Sr3dError("sr3d.datasets.StageConfig", "factors", self.factors, "one or more numbers, each 1 or more")


@dataclass(kw_only=True)
class CurriculumConfig:
    """Stages of the training.

    Attributes:
        stages: In order; before the first one the data module's own settings hold.

    Raises:
        Sr3dError: The stages do not start one after the other.
    """

    stages: list[StageConfig] = field(default_factory=list)

    def __post_init__(self) -> None:
        starts = [stage.start for stage in self.stages]
        if any(a >= b for a, b in pairwise(starts)):
            raise Sr3dError("sr3d.datasets.CurriculumConfig", "start of the stages", starts, "rising steps")

    def at(self, step: int, views: ViewConfig, factor: int | float) -> tuple[ViewConfig, Sequence[int | float]]:
        """How views are chosen at an optimiser step, and the factors to draw from.

        Args:
            step: Optimiser step, counted from 0.
            views: Without a curriculum.
            factor: The same.

        Raises:
            Sr3dError: Limits of a stage do not go with those of `views`.
        """
        stage = next((s for s in reversed(self.stages) if s.start <= step), StageConfig())
        chosen = replace(
            views,
            context=views.context if stage.views is None else stage.views,
            low=views.low if stage.low is None else float(stage.low),
            high=views.high if stage.high is None else float(stage.high),
        )
        return chosen, [factor] if stage.factors is None else stage.factors
