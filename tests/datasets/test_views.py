from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sr3d import Cameras, Sr3dError
from sr3d.datasets.views import ViewConfig, choose_views, view_problem

RULES = ("frames", "distance", "overlap")


def _cameras(positions: npt.NDArray[np.float64], turns: npt.NDArray[np.float64] | None = None) -> Cameras:
    """Cameras at these places, turned about the vertical axis by these angles (radians)."""
    pose = np.tile(np.eye(4), (len(positions), 1, 1))
    angles = np.zeros(len(positions)) if turns is None else turns
    pose[:, 0, 0] = pose[:, 2, 2] = np.cos(angles)
    pose[:, 0, 2], pose[:, 2, 0] = -np.sin(angles), np.sin(angles)
    pose[:, :3, 3] = -np.einsum("vij,vj->vi", pose[:, :3, :3], positions)
    K = torch.eye(3, dtype=torch.float64).repeat(len(positions), 1, 1)
    return Cameras(world_to_cam=torch.from_numpy(pose), K=K, width=8, height=8)


def _line(count: int, step: float = 1.0) -> Cameras:
    return _cameras(np.arange(count)[:, None] * np.array([step, 0, 0]))


class Clip:
    """A random walk, and overlaps that fall with distance, differently in both directions."""

    def __init__(self, count: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.positions = rng.normal(size=(count, 3)).cumsum(0)
        self.turns = rng.normal(size=count).cumsum() * 0.3
        self.cameras = _cameras(self.positions, self.turns)
        distance = np.linalg.norm(self.positions[:, None] - self.positions, axis=-1)
        self.overlap = (255 * np.exp(-distance * rng.uniform(0.2, 0.4, distance.shape))).astype(np.uint8)

    def value(self, by: str, i: int, j: int) -> float:
        if by == "frames":
            return abs(i - j)
        if by == "distance":
            return float(np.linalg.norm(self.positions[i] - self.positions[j]))
        return min(int(self.overlap[i, j]), int(self.overlap[j, i])) / 255

    def angle(self, i: int, j: int) -> float:
        turn = abs(self.turns[i] - self.turns[j]) % (2 * np.pi)
        return float(np.degrees(min(turn, 2 * np.pi - turn)))

    def fits(self, config: ViewConfig, i: int, j: int) -> bool:
        """The rule, view by view, as it is written in `ViewConfig`."""
        high = np.inf if config.high is None else config.high
        ends = config.low <= self.value(config.by, i, j) <= high
        for a, b in itertools.product((i, j), range(min(i, j), max(i, j) + 1)):
            value = self.value(config.by, a, b)
            near = value >= config.low if config.by == "overlap" else value <= high
            if a != b and (not near or self.angle(a, b) > config.max_angle):
                return False
        return ends


@st.composite
def _configs(draw: st.DrawFn) -> ViewConfig:
    by = draw(st.sampled_from(RULES))
    top = {"frames": 12.0, "distance": 8.0, "overlap": 1.0}[by]
    low = draw(st.floats(0, 0.8)) * top
    high = draw(st.one_of(st.none(), st.floats(0, 1).map(lambda share: low + share * (top - low))))
    angle = draw(st.sampled_from([180.0, 60.0, 25.0]))
    extrapolate = draw(st.integers(0, 3))
    target = draw(st.integers(1, 4))
    return ViewConfig(by=by, low=low, high=high, max_angle=angle, target=target, extrapolate=extrapolate)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(_configs(), st.integers(1, 14), st.integers(1, 5), st.integers(0, 99), st.one_of(st.none(), st.integers(0, 99)))
def test_every_choice_obeys_the_rule(config: ViewConfig, count: int, inputs: int, seed: int, draw: int | None) -> None:
    clip = Clip(count, seed)
    outside = config.extrapolate

    def room(i: int, j: int) -> bool:
        there = min(count - 1, j + outside) - max(0, i - outside) + 1
        return j - i >= inputs - 1 and there >= inputs + config.target

    if inputs == 1:
        partners = [sum(clip.fits(config, i, j) for j in range(count) if j != i) for i in range(count)]
        possible = max(partners) >= config.target
    else:
        pairs = itertools.combinations(range(count), 2)
        possible = any(room(i, j) and clip.fits(config, i, j) for i, j in pairs)

    problem = view_problem(config, clip.cameras, clip.overlap, inputs, "walk")
    rng = None if draw is None else np.random.default_rng(draw)
    assert (problem is None) == possible
    if problem is not None:
        with pytest.raises(Sr3dError, match=r"^walk: views") as error:
            choose_views(config, clip.cameras, clip.overlap, inputs, rng, "walk")
        assert str(error.value) == str(problem)
        return
    context, target = choose_views(config, clip.cameras, clip.overlap, inputs, rng, "walk")
    assert len(set(context)) == inputs and len(set(target)) == config.target and not set(context) & set(target)
    assert context == sorted(context) and target == sorted(target)
    assert all(0 <= i < count for i in context + target)
    if inputs == 1:
        assert all(clip.fits(config, context[0], t) for t in target)
    else:
        assert clip.fits(config, context[0], context[-1])
        assert all(context[0] - outside <= t <= context[-1] + outside for t in target)
    again = None if draw is None else np.random.default_rng(draw)
    assert (context, target) == choose_views(config, clip.cameras, clip.overlap, inputs, again)


def test_span_gives_the_numbers_it_always_gave() -> None:
    config, cameras = ViewConfig(target=2), _line(12)
    rng = np.random.default_rng(5)
    drawn = [choose_views(config, cameras, None, 3, rng) for _ in range(4)]
    assert drawn == [([0, 9, 11], [2, 8]), ([0, 5, 7], [3, 4]), ([2, 7, 8], [4, 5]), ([1, 2, 11], [3, 8])]
    assert choose_views(ViewConfig(target=3), cameras, None, 1, rng) == ([3], [0, 1, 9])
    assert choose_views(config, cameras, None, 3, None) == ([0, 6, 11], [3, 8])
    assert choose_views(config, _line(7), None, 1, None) == ([3], [1, 5])
    assert view_problem(config, _line(4), None, 2) is None
    assert "found 4; expected at least 5: 3 inputs and 2 to predict" in str(view_problem(config, _line(4), None, 3))


@pytest.mark.parametrize(
    ("config", "context", "target"),
    [
        # 4 to 8 frames: a gap of 6 in the middle of 0..20.
        (ViewConfig(by="frames", low=4.0, high=8.0), [7, 13], [9, 11]),
        # Without a highest gap the largest that is there counts.
        (ViewConfig(by="frames", low=4.0), [4, 16], [7, 13]),
        # Half a unit apart: 2 to 3 units are 4 to 6 frames.
        (ViewConfig(by="distance", low=2.0, high=3.0), [7, 12], [9, 11]),
        (ViewConfig(by="frames", low=2.0, high=2.0, target=4, extrapolate=2), [9, 11], [7, 8, 12, 13]),
    ],
)
def test_evaluation_takes_the_middle(config: ViewConfig, context: list[int], target: list[int]) -> None:
    assert choose_views(config, _line(21, 0.5), None, 2, None) == (context, target)


def test_more_inputs_are_spread_evenly_in_evaluation() -> None:
    config = ViewConfig(by="frames", low=12.0, high=12.0, target=2)
    assert choose_views(config, _line(13), None, 5, None)[0] == [0, 3, 6, 9, 12]
    assert choose_views(config, _line(13), None, 4, None) == ([0, 4, 8, 12], [3, 9])


def test_in_training_every_fitting_pair_is_drawn_about_equally_often() -> None:
    config = ViewConfig(by="frames", low=3.0, high=5.0, target=1)
    rng = np.random.default_rng(0)
    drawn = [tuple(choose_views(config, _line(9), None, 2, rng)[0]) for _ in range(3000)]
    pairs, counts = np.unique(drawn, axis=0, return_counts=True)
    assert {j - i for i, j in pairs} == {3, 4, 5} and len(pairs) == 6 + 5 + 4
    assert counts.min() > 150 and counts.max() < 250


def test_overlap_counts_in_both_directions_and_in_255ths() -> None:
    overlap = np.full((3, 3), 255, np.uint8)
    overlap[0, 2], overlap[2, 0] = 153, 200
    for low, high, fits in ((0.6, 1.0, True), (0.61, 1.0, False), (0.0, 0.6, True), (0.0, 0.59, False)):
        config = ViewConfig(by="overlap", low=low, high=high, target=1)
        assert (view_problem(config, _line(3), overlap, 2) is None) == fits


def test_a_camera_that_leaves_and_comes_back_gives_no_pair() -> None:
    there_and_back = _cameras(np.array([[0.0, 0, 0], [5, 0, 0], [9, 0, 0], [5, 0, 0], [0.5, 0, 0]]))
    config = ViewConfig(by="distance", low=0.4, high=1.0, target=1)
    problem = view_problem(config, there_and_back, None, 2, "loop")
    assert problem is not None and "all the way between" in str(problem)
    assert view_problem(config, _line(5, 0.25), None, 2) is None


def test_angle_limits_any_rule() -> None:
    cameras = _cameras(np.arange(5)[:, None] * np.array([1.0, 0, 0]), np.radians([0, 20, 40, 60, 80]))
    for angle, gap in ((45.0, 2), (65.0, 3)):
        config = ViewConfig(by="frames", low=2.0, max_angle=angle, target=1)
        rng = np.random.default_rng(1)
        gaps = [np.ptp(choose_views(config, cameras, None, 2, rng)[0]) for _ in range(30)]
        assert max(gaps) == gap


def test_errors_say_what_the_clip_offers() -> None:
    frames = view_problem(ViewConfig(by="frames", low=20.0, high=30.0), _line(12), None, 2, "kitchen")
    assert frames is not None and str(frames).startswith("kitchen: views by frames: found gap in frames of 3 to 11")
    assert "20 to 30" in frames.expected and "2 inputs and 2 to predict" in frames.expected
    distance = view_problem(ViewConfig(by="distance", low=9.0), _line(12, 0.5), None, 2)
    assert distance is not None and "distance in world units of 1.5 to 5.5" in str(distance)
    missing = view_problem(ViewConfig(by="overlap", low=0.5), _line(12), None, 2)
    assert missing is not None and "not measured" in str(missing) and "depth or sparse points" in str(missing)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("context", {"context": 0}),
        ("context", {"context": (3, 2)}),
        ("target", {"target": 0}),
        ("low", {"by": "distance", "low": -1.0}),
        ("low", {"by": "overlap", "low": 60.0}),
        ("high", {"by": "frames", "low": 5.0, "high": 4.0}),
        ("low", {"by": "frames", "low": float("nan")}),
        ("max_angle", {"by": "frames", "max_angle": 0.0}),
        ("extrapolate", {"by": "frames", "extrapolate": -1}),
        ("low, high, max_angle, extrapolate", {"low": 2.0}),
        ("low, high, max_angle, extrapolate", {"extrapolate": 2}),
    ],
)
def test_unusable_settings(field: str, values: dict[str, object]) -> None:
    with pytest.raises(Sr3dError) as error:
        ViewConfig(**values)
    assert error.value.field == field


def test_number_of_inputs() -> None:
    config = ViewConfig(context=(2, 5))
    rng = np.random.default_rng(0)
    assert {config.draw_inputs(rng) for _ in range(60)} == {2, 3, 4, 5}
    assert config.draw_inputs(None) == 2 and ViewConfig(context=3).draw_inputs(rng) == 3
