"""What every metric has: a name, a direction, and one function of what a method drew."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.scene import Scene


@dataclass(kw_only=True)
class Observation:
    """The target views of one case as one method drew them, all on one device.

    Attributes:
        case: Name of the case, for errors.
        method: Label of the method, for errors.
        frames: Name of every view. [T]
        cameras: Target views. [T]
        rgb: In [0, 1] (clamped). [T]
        covered: Pixels that count as covered: one mask for all methods. [T]
        truth: What the views show, where known. [T]
        alpha: None for methods in two dimensions. [T]
        depth: z-depth, world units, 0 where nothing is drawn; None for methods in two dimensions. [T]
        logits: Drawn features as scores of the classes of `truth.labels`, ids 1 to L; None without. [T]
        text: Description of the scene, "" without.
        estimated: Poses of the input views as the method estimates them. [V]
        given: True poses of the input views. [V]
    """

    case: str
    method: str
    frames: list[str]
    cameras: Cameras
    rgb: Float[Tensor, "t h w 3"]
    covered: Bool[Tensor, "t h w"]
    truth: Scene | None
    alpha: Float[Tensor, "t h w"] | None = None
    depth: Float[Tensor, "t h w"] | None = None
    logits: Float[Tensor, "t h w l"] | None = None
    text: str = ""
    estimated: Cameras | None = None
    given: Cameras | None = None


@dataclass(frozen=True, kw_only=True)
class Column:
    """One number of the tables.

    Attributes:
        name: Key in files, e.g. "psnr_covered".
        title: Head of a table, e.g. "PSNR covered".
        better: Direction.
        digits: Decimals in tables.
        unit: "" for none.
    """

    name: str
    title: str
    better: str  # "higher" or "lower"
    digits: int = 3
    unit: str = ""


class MetricUnavailable(Exception):
    """A metric cannot be measured here (weights or a package are missing); says why, for the table."""


class ViewMetric(ABC):
    """A metric of single views.

    Attributes:
        columns: What `measure` returns, in order.
        needs: Parts of an observation without which the metric has no value: "truth", "depth" (drawn), "depths" (true
            and drawn), "labels" (and scores of classes), "text", "estimated" (and given poses). Where one is missing,
            the metric is not asked, and the reason is reported.
    """

    columns: ClassVar[tuple[Column, ...]]
    needs: ClassVar[tuple[str, ...]] = ("truth",)

    def __init__(self, device: str = "cpu") -> None:
        """Load what is needed.

        Raises:
            MetricUnavailable: Weights or a package are missing.
            Sr3dError: A file of weights is there but holds something else.
        """
        self.device = device

    @abstractmethod
    def measure(self, seen: Observation) -> dict[str, Float[Tensor, " t"]]:
        """Values of every column for every view; NaN for a view without one (never for a bad picture)."""


class SetMetric(ABC):
    """A metric of all views of a protocol together (FID, mIoU): every case leaves a state, the end combines them.

    Attributes:
        columns: What `finish` returns.
        needs: As for `ViewMetric`.
    """

    columns: ClassVar[tuple[Column, ...]]
    needs: ClassVar[tuple[str, ...]] = ("truth",)

    def __init__(self, device: str = "cpu") -> None:
        """Load what is needed; raises as `ViewMetric` does."""
        self.device = device

    @abstractmethod
    def state(self, seen: Observation) -> dict[str, Tensor]:
        """What one case contributes; small tensors, on the CPU."""

    @abstractmethod
    def finish(self, states: list[dict[str, Tensor]]) -> dict[str, float]:
        """Values of every column from the states of all cases, in the order of the protocol; NaN for one without."""
