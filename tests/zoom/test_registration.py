from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from sr3d.errors import Sr3dError
from sr3d.zoom.fine_tune import FineTuneConfig, fine_tune
from sr3d.zoom.providers import DepthGuess
from sr3d.zoom.registration import RegistrationConfig, register

H, W = 48, 64
ROWS, COLUMNS = torch.meshgrid(torch.linspace(0, 1, H), torch.linspace(0, 1, W), indexing="ij")
FLOOR = 3 - 1.5 * ROWS + 0.2 * torch.sin(5 * COLUMNS)  # nearer at the bottom
EVERYWHERE = torch.ones(H, W, dtype=torch.bool)
HOLE = (COLUMNS > 0.35) & (COLUMNS < 0.6) & (ROWS > 0.3) & (ROWS < 0.7)
GLOBAL = RegistrationConfig(last="scale-shift")


def spoiled(depth: Tensor, share: float) -> Tensor:
    """Depth of which a share is anything from a third to three times of what it should be."""
    draw = torch.Generator().manual_seed(0)
    outlier = torch.rand(H, W, generator=draw) < share
    return torch.where(outlier, depth * 3 ** (2 * torch.rand(H, W, generator=draw) - 1), depth)


def relative_error(found: Tensor, truth: Tensor, where: Tensor = EVERYWHERE) -> float:
    return float(((found - truth).abs() / truth)[where].mean())


@pytest.mark.parametrize(
    ("guess", "scale", "shift"),
    [
        (DepthGuess(depth=FLOOR / 2.5, kind="metric"), 2.5, 0.0),
        (DepthGuess(depth=(FLOOR + 0.7) / 2.5, kind="relative"), 2.5, -0.7),
        (DepthGuess(depth=(1 / FLOOR - 0.1) / 0.04, kind="inverse"), 0.04, 0.1),
    ],
    ids=["metric", "relative", "inverse"],
)
def test_scale_and_shift_are_found_exactly_among_outliers(guess: DepthGuess, scale: float, shift: float) -> None:
    found = register(guess, spoiled(FLOOR, 0.3), ~HOLE, config=GLOBAL)
    assert found.scale == pytest.approx(scale, rel=1e-4)
    assert found.shift == pytest.approx(shift, abs=1e-4)
    assert relative_error(found.depth, FLOOR) < 1e-4
    assert not found.used[HOLE].any() and 0.69 < float(found.used[~HOLE].float().mean()) < 0.75
    assert list(found.steps) == ["scale-shift"]


def test_the_fit_does_not_depend_on_the_unit_of_the_world() -> None:
    guess = DepthGuess(depth=1 / FLOOR**1.3, kind="inverse")
    small, large = (register(guess, spoiled(FLOOR, 0.1) * unit, ~HOLE) for unit in (1.0, 1e4))
    assert torch.allclose(large.depth, 1e4 * small.depth, rtol=1e-4)
    assert large.steps == pytest.approx(small.steps, rel=1e-3)


@pytest.mark.parametrize("kind", ["inverse", "relative"])
def test_each_segment_has_its_own_scale(kind: Literal["relative", "inverse"]) -> None:
    segments = torch.zeros(H, W, dtype=torch.long)
    segments[10:30, 5:25], segments[15:40, 35:60] = 1, 2
    wrong = torch.tensor([1.0, 1.2, 0.85])[segments]
    value = FLOOR if kind == "relative" else 1 / FLOOR
    guess = DepthGuess(depth=value * wrong, kind=kind)
    config = RegistrationConfig(last="segments")
    found = register(guess, spoiled(FLOOR, 0.2), EVERYWHERE, segments=segments, config=config)
    whole = register(guess, spoiled(FLOOR, 0.2), EVERYWHERE, config=GLOBAL)
    for number in (1, 2):
        # Neighbours and the global fit pull a little.
        assert relative_error(whole.depth, FLOOR, segments == number) > 0.08
        assert relative_error(found.depth, FLOOR, segments == number) < 0.02
    assert found.steps["segments"] < found.steps["scale-shift"]


def test_a_segment_without_depth_follows_its_neighbours() -> None:
    segments = (4 * ROWS).long().clamp(max=3)  # four bands
    wrong = torch.tensor([1.0, 1.0, 1.3, 1.3])[segments]
    config = RegistrationConfig(last="segments", edge=0.5)
    valid = segments != 3
    found = register(DepthGuess(depth=FLOOR * wrong, kind="metric"), FLOOR, valid, segments=segments, config=config)
    unhelped = register(DepthGuess(depth=FLOOR * wrong, kind="metric"), FLOOR, valid, config=GLOBAL)
    assert relative_error(unhelped.depth, FLOOR, ~valid) > 0.25
    assert relative_error(found.depth, FLOOR, ~valid) < 0.12


def test_the_residual_reaches_into_holes_and_leaves_noise_behind() -> None:
    bent = FLOOR * (0.3 * torch.sin(3 * COLUMNS + 2 * ROWS)).exp()
    noise = 1 + 0.02 * torch.randn(H, W, generator=torch.Generator().manual_seed(1))
    guess = DepthGuess(depth=bent, kind="relative")
    line = register(guess, FLOOR * noise, ~HOLE, config=GLOBAL)
    full = register(guess, FLOOR * noise, ~HOLE)
    assert relative_error(full.depth, FLOOR, HOLE) < 0.4 * relative_error(line.depth, FLOOR, HOLE)
    # The target is 1.6 % off; what is registered to it less than half of that.
    assert relative_error(full.depth, FLOOR, ~HOLE) < 0.5 * relative_error(FLOOR * noise, FLOOR, ~HOLE)


def test_nothing_is_handed_across_a_jump_of_the_guess() -> None:
    front = COLUMNS > 0.5
    truth = torch.where(front, 1.0, 3.0) + 0.1 * ROWS
    valid = ~(front & (ROWS > 0.3))
    guess = DepthGuess(depth=truth * torch.where(front, 1.0, 1.2), kind="metric")
    found = register(guess, truth, valid)
    assert relative_error(found.depth, truth) < 0.01


@pytest.mark.parametrize("kind", ["metric", "relative", "inverse"])
def test_depth_stays_positive_whatever_the_guess(kind: Literal["metric", "relative", "inverse"]) -> None:
    draw = torch.Generator().manual_seed(2)
    wild = (4 * torch.randn(H, W, generator=draw)).exp()
    guess = DepthGuess(depth=wild, kind=kind)
    segments = torch.randint(0, 9, (H, W), generator=draw)
    few = torch.rand(H, W, generator=draw) < 0.01
    found = register(guess, FLOOR, few, segments=segments)
    assert bool(torch.isfinite(found.depth).all()) and float(found.depth.min()) > 0


def inserted_scene() -> tuple[DepthGuess, Tensor, Tensor, Tensor]:
    """Two boxes stand on the floor, as a network sees them: too near, and in another unit."""
    left = (ROWS > 0.4) & (ROWS < 0.7) & (COLUMNS > 0.1) & (COLUMNS < 0.3)
    right = (ROWS > 0.5) & (ROWS < 0.9) & (COLUMNS > 0.6) & (COLUMNS < 0.8)
    boxes = 0.5 * torch.where(left, 1.2 + COLUMNS, 0.9 + 0.3 * COLUMNS)
    guess = DepthGuess(depth=torch.where(left | right, boxes, 0.5 * FLOOR), kind="metric")
    return guess, left, right, left | right


@pytest.mark.parametrize("known_below", [True, False])
def test_new_objects_keep_their_shape_and_stand_on_the_floor(known_below: bool) -> None:
    guess, left, right, inserted = inserted_scene()
    found = register(guess, FLOOR, EVERYWHERE if known_below else ~inserted, inserted=inserted)
    assert relative_error(found.depth, FLOOR, ~inserted) < 1e-3
    factors = []
    for own in (left, right):
        ratio = found.depth[own] / guess.depth[own]
        assert float(ratio.max() / ratio.min()) == pytest.approx(1, abs=1e-5)
        factors.append(float(ratio.mean()))
        foot = int(own.any(dim=1).nonzero().max())
        columns = own[foot]
        gap = (FLOOR[foot, columns] - found.depth[foot, columns]) / FLOOR[foot, columns]
        # One row of the floor is 1-2 % of its depth.
        assert float(gap.abs().min()) < 0.02
        if known_below:
            assert bool((found.depth[own] <= FLOOR[own] * (1 + 1e-6)).all())
    assert abs(factors[0] / factors[1] - 1) > 0.1  # each on its own


def test_new_objects_do_not_move_the_rest() -> None:
    guess, _, _, inserted = inserted_scene()
    plain = register(guess, FLOOR, ~inserted)
    found = register(guess, FLOOR, EVERYWHERE, inserted=inserted)
    assert torch.equal(found.depth[~inserted], plain.depth[~inserted])
    assert not bool(found.used[inserted].any())


class Tilted(nn.Module):
    """Inverse depth from the place in the frame, by three numbers, and a normalisation that remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.3, 0.2, 0.1]))
        self.normalise = nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        grey = self.normalise(images).mean(dim=1, keepdim=True)
        wave = self.weights[2] * torch.sin(5 * COLUMNS)
        return self.weights[0] + self.weights[1] * ROWS.square() + wave + 0.01 * grey


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_fine_tuning_lowers_the_loss_and_leaves_the_network_as_it_was(guard: Callable) -> None:
    network = Tilted()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with guard():
        image = torch.stack([ROWS, COLUMNS, ROWS], dim=-1)
        guess, losses = fine_tune(network, image, FLOOR, ~HOLE, config=FineTuneConfig(steps=20, rate=0.02))
    assert len(losses) == 21 and losses[-1] < 0.8 * losses[0]
    assert guess.kind == "metric"
    assert float((guess.depth - FLOOR).abs()[~HOLE].mean()) == pytest.approx(losses[-1], rel=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training and network.weights.grad is None


def test_fine_tuning_refuses_an_answer_of_another_size() -> None:
    image = torch.zeros(H, W, 3)
    with pytest.raises(Sr3dError, match="answer of the network: found \\(1, 3, 48, 64\\)"):
        fine_tune(nn.Identity(), image, FLOOR, EVERYWHERE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"valid": ~EVERYWHERE}, "rendered depth: found no pixel of 3072 .0 valid"),
        ({"target": torch.zeros(H, W)}, "at least one valid pixel"),
        ({"inserted": EVERYWHERE}, "3072 of inserted objects"),
        ({"target": torch.ones(3, 4), "valid": torch.ones(3, 4) > 0}, "size of target: found \\(3, 4\\)"),
        ({"segments": torch.full((H, W), -1)}, "segments: found -1"),
        ({"guess": DepthGuess(depth=torch.ones(H, W), kind="inverse")}, "found 1 everywhere; expected inverse depth"),
        ({"guess": DepthGuess(depth=FLOOR - 2, kind="metric")}, "finite numbers above 0"),
        ({"guess": DepthGuess(depth=FLOOR * torch.nan, kind="metric")}, "finite numbers above 0"),
    ],
)
def test_bad_input_is_one_clear_error(change: dict, message: str) -> None:
    arguments = {"guess": DepthGuess(depth=FLOOR, kind="relative"), "target": FLOOR, "valid": EVERYWHERE, **change}
    guess, target, valid = arguments.pop("guess"), arguments.pop("target"), arguments.pop("valid")
    with pytest.raises(Sr3dError, match=message):
        register(guess, target, valid, **arguments)


def test_an_unknown_step_is_refused() -> None:
    with pytest.raises((Sr3dError, TypeError), match="last"):
        config = replace(GLOBAL, last="all")
        register(DepthGuess(depth=FLOOR, kind="metric"), FLOOR, EVERYWHERE, config=config)


def test_one_valid_pixel_is_enough() -> None:
    one = torch.zeros(H, W, dtype=torch.bool)
    one[20, 30] = True
    found = register(DepthGuess(depth=FLOOR / 4, kind="relative"), FLOOR, one)
    assert relative_error(found.depth, FLOOR) < 1e-5
