"""Which views of a clip are inputs, and which are to be predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float64, UInt8

from sr3d.cameras import Cameras
from sr3d.errors import Sr3dError

_MEASURES = {"frames": "gap in frames", "distance": "distance in world units", "overlap": "overlap"}


@dataclass(kw_only=True)
class ViewConfig:
    """How inputs and targets are chosen.

    Under "frames", "distance" and "overlap" the rule holds for the outermost two inputs. The other inputs lie between
    them; so do the targets, which are never inputs. No view between may be farther from either of the two than `high`
    (see less of it than `low`): a camera that leaves and comes back gives no pair. With one input, the rule holds for
    it and each target.

    Attributes:
        by: "span": half of the time the ends of the clip are the outermost inputs, else a shorter stretch of any
            length. "frames": by their gap in frames of the clip. "distance": by the distance of their camera centres,
            world units. "overlap": by the share (0 to 1) of the one that the other sees, the lower of both directions.
        low: Least gap, distance or overlap.
        high: Greatest gap, distance or overlap; None: any.
        max_angle: Greatest angle between the viewing directions, degrees.
        context: Number of inputs, or the lowest and highest number.
        target: Number of targets.
        extrapolate: Targets may also lie up to this many frames outside the outermost inputs.

    Raises:
        Sr3dError: A value is out of range, or a limit is given that "span" does not have.
    """

    by: Literal["span", "frames", "distance", "overlap"] = "span"
    low: float = 0.0
    high: float | None = None
    max_angle: float = 180.0
    context: int | tuple[int, int] = 2
    target: int = 2
    extrapolate: int = 0

    def __post_init__(self) -> None:
        least, most = self.context_range
        greatest = 1 if self.by == "overlap" else np.inf
        checks: tuple[tuple[str, bool, str], ...] = (
            ("context", 1 <= least <= most, "1 or more, lowest first"),
            ("target", self.target >= 1, "1 or more"),
            ("low", 0 <= self.low <= greatest, "0 to 1, a share" if self.by == "overlap" else "0 or more"),
            ("high", self.high is None or self.low <= self.high, f"low ({self.low:g}) or more, or null"),
            ("max_angle", 0 < self.max_angle <= 180, "0 to 180 degrees"),
            ("extrapolate", self.extrapolate >= 0, "0 or more"),
        )
        for name, right, expected in checks:
            if not right:
                raise Sr3dError("sr3d.datasets.ViewConfig", name, getattr(self, name), expected)
        if self.by == "span" and (self.low, self.high, self.max_angle, self.extrapolate) != (0, None, 180, 0):
            expected = "by 'frames', 'distance' or 'overlap': 'span' has no limits"
            raise Sr3dError("sr3d.datasets.ViewConfig", "low, high, max_angle, extrapolate", "with by 'span'", expected)

    @property
    def context_range(self) -> tuple[int, int]:
        """Lowest and highest number of inputs."""
        return (self.context, self.context) if isinstance(self.context, int) else (self.context[0], self.context[1])

    def draw_inputs(self, rng: np.random.Generator | None) -> int:
        """A number of inputs; the lowest if `rng` is None."""
        least, most = self.context_range
        return least if rng is None else int(rng.integers(least, most + 1))


def choose_views(
    config: ViewConfig,
    cameras: Cameras,
    overlap: UInt8[np.ndarray, "v v"] | None,
    inputs: int,
    rng: np.random.Generator | None,
    name: str = "clip",
) -> tuple[list[int], list[int]]:
    """Inputs and targets of a clip, both in path order.

    In training every pair of outermost inputs that fits is equally likely, as is every choice of views between them.
    In evaluation the pair closest to the middle of what is allowed and there is taken, of equal ones that closest to
    the middle of the clip, and views are spread evenly between.

    Args:
        config: The rule.
        cameras: V cameras in path order.
        overlap: Share of each view (row) that each other one (column) sees, in 255ths. Needed by "overlap" only.
        inputs: Number of inputs, at least one.
        rng: Of the draw; None in evaluation.
        name: Clip named in errors.

    Raises:
        Sr3dError: The clip has no such views; says what it has.
    """
    count, targets = len(cameras), config.target
    if config.by == "span":
        _check_count(count, inputs, targets, name)
        return _spread_views(count, inputs, targets) if rng is None else _random_views(count, inputs, targets, rng)
    values, fits = _fitting(config, cameras, overlap, inputs, name)
    if inputs == 1:
        return _around_one(fits, targets, rng)
    pairs = np.argwhere(fits)
    pair = _middle(pairs, values[fits], config, count) if rng is None else pairs[int(rng.integers(len(pairs)))]
    first, last = int(pair[0]), int(pair[1])
    if rng is None:
        context = _even(first, last, inputs)
    else:
        between = rng.permutation(np.arange(first + 1, last))[: inputs - 2].tolist()
        context = sorted([first, last, *between])
    outside = config.extrapolate
    rest = [i for i in range(max(0, first - outside), min(count, last + 1 + outside)) if i not in context]
    return context, _some(rest, targets, rng)


def view_problem(
    config: ViewConfig,
    cameras: Cameras,
    overlap: UInt8[np.ndarray, "v v"] | None,
    inputs: int,
    name: str = "clip",
) -> Sr3dError | None:
    """The error that `choose_views` would raise for a clip, or None if it has the views; arguments as there."""
    try:
        if config.by == "span":
            _check_count(len(cameras), inputs, config.target, name)
        else:
            _fitting(config, cameras, overlap, inputs, name)
    except Sr3dError as error:
        return error
    return None


def _check_count(count: int, inputs: int, targets: int, name: str) -> None:
    need = inputs + targets
    if count < need:
        raise Sr3dError(name, "views", count, f"at least {need}: {inputs} inputs and {targets} to predict")


def _fitting(
    config: ViewConfig, cameras: Cameras, overlap: UInt8[np.ndarray, "v v"] | None, inputs: int, name: str
) -> tuple[Float64[np.ndarray, "v v"], Bool[np.ndarray, "v v"]]:
    """Measure of all pairs, and which of them (first, last) fit and leave room for all views; at least one does."""
    count, targets = len(cameras), config.target
    _check_count(count, inputs, targets, name)
    values = _measure(config, cameras, overlap, name)
    first, last = np.indices((count, count))
    room = (last > first) & (last - first >= inputs - 1)
    if inputs > 1:
        outside = config.extrapolate
        most = np.minimum(last + outside, count - 1) - np.maximum(first - outside, 0) + 1
        room &= most >= inputs + targets
    within, near = _allowed(config, cameras, values)
    fits = room & within & _stays(near)
    if inputs == 1:
        fits = fits | fits.T
        fits &= (fits.sum(axis=1) >= targets)[:, None]
    if not fits.any():
        found = f"{_MEASURES[config.by]} of {_range(values[room])}" if room.any() else f"no room in {count} views"
        allowed = f"{config.low:g} to {'any' if config.high is None else format(config.high, 'g')}"
        angle = f", turned by at most {config.max_angle:g} degrees" if config.max_angle < 180 else ""
        rule = f"a pair of {allowed}{angle}, as near all the way between, with room for {inputs} inputs"
        raise Sr3dError(name, f"views by {config.by}", found, f"{rule} and {targets} to predict")
    return values, fits


def _measure(
    config: ViewConfig, cameras: Cameras, overlap: UInt8[np.ndarray, "v v"] | None, name: str
) -> Float64[np.ndarray, "v v"]:
    """Gap, distance or overlap of all pairs; symmetric."""
    if config.by == "frames":
        order = np.arange(len(cameras), dtype=np.float64)
        return np.abs(order[:, None] - order)
    if config.by == "distance":
        centers = cameras.positions.double().cpu().numpy()
        return np.linalg.norm(centers[:, None] - centers, axis=-1)
    if overlap is None:
        expected = "a clip with depth or sparse points, or views by 'frames' or 'distance'"
        raise Sr3dError(name, "overlap", "not measured", expected)
    return np.minimum(overlap, overlap.T).astype(np.float64) / 255


def _allowed(
    config: ViewConfig, cameras: Cameras, values: Float64[np.ndarray, "v v"]
) -> tuple[Bool[np.ndarray, "v v"], Bool[np.ndarray, "v v"]]:
    """Which pairs lie within the limits, and which are at least that near."""
    above = values >= config.low
    below = values <= (np.inf if config.high is None else config.high)
    forward = cameras.world_to_cam[:, 2, :3].double().cpu().numpy()
    angle = np.degrees(np.arccos(np.clip(forward @ forward.T, -1, 1)))
    turned = angle > config.max_angle
    return above & below & ~turned, (above if config.by == "overlap" else below) & ~turned


def _stays(near: Bool[np.ndarray, "v v"]) -> Bool[np.ndarray, "v v"]:
    """Pairs (first, last) of which both are near all the views between. [V, V], the upper triangle counts"""
    relaxed = near | np.tri(len(near), dtype=bool)
    from_first = np.logical_and.accumulate(relaxed, axis=1)
    from_last = np.logical_and.accumulate(relaxed[::-1], axis=0)[::-1]
    return from_first & from_last


def _range(values: Float64[np.ndarray, " n"]) -> str:
    return f"{values.min():.4g} to {values.max():.4g}"


def _middle(
    pairs: npt.NDArray[np.int64], values: Float64[np.ndarray, " n"], config: ViewConfig, count: int
) -> npt.NDArray[np.int64]:
    """The pair whose value is closest to the middle of what is allowed and there."""
    low = max(config.low, values.min())
    high = values.max() if config.high is None else min(config.high, values.max())
    # Rounded, so that equal distances stay equal on every machine.
    off = np.round(np.abs(values - (low + high) / 2) / max(high, 1e-12), 9)
    return pairs[np.lexsort((pairs[:, 0], np.abs(pairs.sum(axis=1) - (count - 1)), off))[0]]


def _around_one(
    fits: Bool[np.ndarray, "v v"], targets: int, rng: np.random.Generator | None
) -> tuple[list[int], list[int]]:
    """One input, and targets that each form a fitting pair with it."""
    usable = np.flatnonzero(fits.any(axis=1))
    if rng is None:
        view = int(usable[np.argmin(np.abs(usable - len(fits) // 2))])
    else:
        view = int(usable[int(rng.integers(len(usable)))])
    return [view], _some(np.flatnonzero(fits[view]).tolist(), targets, rng)


def _some(views: Sequence[int], number: int, rng: np.random.Generator | None) -> list[int]:
    """A random choice in path order, or one that is spread evenly."""
    if rng is not None:
        return sorted(rng.permutation(np.asarray(views))[:number].tolist())
    steps = (np.arange(number) + 0.5) * len(views) / number
    return [views[int(i)] for i in steps]


def _even(first: int, last: int, number: int) -> list[int]:
    return np.linspace(first, last, number).round().astype(int).tolist()


def _random_views(count: int, inputs: int, targets: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Inputs and targets anywhere in a clip of `count` views."""
    if inputs == 1:
        order = rng.permutation(count).tolist()
        return order[:1], sorted(order[1 : 1 + targets])
    first, last = 0, count - 1
    if rng.random() < 0.5:
        span = int(rng.integers(inputs + targets - 1, count))
        first = int(rng.integers(0, count - span))
        last = first + span
    between = rng.permutation(np.arange(first + 1, last)).tolist()
    extra = inputs - 2
    return sorted([first, last, *between[:extra]]), sorted(between[extra : extra + targets])


def _spread_views(count: int, inputs: int, targets: int) -> tuple[list[int], list[int]]:
    """Inputs and targets spread evenly over a clip of `count` views."""
    context = [count // 2] if inputs == 1 else _even(0, count - 1, inputs)
    return context, _some([i for i in range(count) if i not in context], targets, None)
