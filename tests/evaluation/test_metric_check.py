from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from observed import looking, noisy, observed

from sr3d import Sr3dError
from sr3d.evaluation.metrics.base import Observation
from sr3d.evaluation.metrics.check import check_observation


def _seen() -> Observation:
    """Three good views with everything."""
    rgb, truth = noisy(3, 6, 8)
    depths = torch.ones(3, 6, 8)
    depths[0, 0, 0] = math.inf  # unknown, in a truth
    labels = torch.zeros(3, 6, 8, dtype=torch.int64)
    rgb[0, 0, 0] = 1 + 1e-6  # as resizing leaves it
    parts = {"alpha": depths.clamp(max=1), "depth": depths.clamp(max=1), "logits": torch.zeros(3, 6, 8, 4)}
    return observed(rgb, truth, depths=depths, labels=labels, **parts)


def test_a_good_observation() -> None:
    check_observation(_seen())
    rgb, _ = noisy(2, 6, 8)
    check_observation(observed(rgb))


def _put(seen: Observation, name: str, value: Any, *index: int) -> None:
    """One value of view "b"."""
    owner: Any = seen
    for part in name.split("."):
        owner = getattr(owner, part)
    owner[(1, *index)] = value


@pytest.mark.parametrize("name", ["rgb", "alpha", "depth", "logits", "truth.images"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_pictures_that_are_broken(name: str, value: float) -> None:
    seen = _seen()
    _put(seen, name, value, 2, 3)
    channels = {"rgb": 3, "truth.images": 3, "logits": 4}.get(name, 1)
    found = rf"NaN or inf \({channels} of {48 * channels} values\)"
    with pytest.raises(
        Sr3dError, match=rf"^case hall/0\+1, method mine, view b: {name}: found {found}; expected finite"
    ):
        check_observation(seen)


@pytest.mark.parametrize("value", [-0.01, 1.01])
@pytest.mark.parametrize("name", ["rgb", "truth.images"])
def test_colours_out_of_range(name: str, value: float) -> None:
    seen = _seen()
    _put(seen, name, value, 5, 0)
    with pytest.raises(Sr3dError, match=rf"view b: {name}: found colours outside \[0, 1\] \(3 of 144 values\)"):
        check_observation(seen)


def test_empty_mask() -> None:
    seen = _seen()
    _put(seen, "covered", False)
    with pytest.raises(Sr3dError, match=r"case hall/0\+1, method mine, view b: covered: found an empty mask"):
        check_observation(seen)


@pytest.mark.parametrize(
    "name", ["rgb", "covered", "alpha", "depth", "logits", "truth.images", "truth.depths", "truth.labels"]
)
def test_another_size(name: str) -> None:
    seen = _seen()
    *owners, field = name.split(".")
    owner = seen.truth if owners else seen
    setattr(owner, field, getattr(owner, field)[:, :, :7])
    message = rf"method mine, view a: {name}: found 3 views of 7x6; expected 3 views of 8x6, as the target views"
    with pytest.raises(Sr3dError, match=message):
        check_observation(seen)


def test_another_number_of_views() -> None:
    seen = _seen()
    seen.cameras = looking(torch.zeros(2, 3), 6, 8)
    with pytest.raises(Sr3dError, match="frames: found 3 names; expected 2, one for each target view"):
        check_observation(seen)
    seen.frames = ["a", "b"]
    with pytest.raises(Sr3dError, match="mine: rgb: found 3 views of 8x6; expected 2 views of 8x6"):
        check_observation(seen)
