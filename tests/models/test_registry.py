from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_networks import SIZE, sloped_scene

from sr3d import Gaussians, Sr3dError, SuperResolver, render
from sr3d.models import create_model, list_models, model_config
from sr3d.models.decoder import DecoderConfig
from sr3d.models.estimate import Load, _run, estimate
from sr3d.models.scaffold import ScaffoldConfig
from sr3d.training.memory import most_gaussians

PARAMETERS = {"tiny": (0.8e6, 2e6), "small": (25e6, 40e6), "base": (120e6, 200e6), "large": (350e6, 600e6)}
FIELDS = ("means", "quats", "scales", "opacities", "sh")


def perturbed(name: str) -> SuperResolver:
    """Weights that start at zero moved away from it, so that every part is at work."""
    torch.manual_seed(0)
    network = create_model(name)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return network


def finite(gaussians: Gaussians) -> bool:
    return all(bool(torch.isfinite(getattr(gaussians, f)).all()) for f in FIELDS)


def test_sizes_are_listed_smallest_first() -> None:
    counts = []
    for name in list_models():
        with torch.device("meta"):
            counts.append(sum(p.numel() for p in create_model(name).parameters()))
        low, high = PARAMETERS[name]
        assert low < counts[-1] < high, name
    assert list_models() == list(PARAMETERS) and counts == sorted(counts)


@pytest.mark.parametrize("name", list(PARAMETERS))
def test_every_size_has_all_parts_and_trains(name: str) -> None:
    config = model_config(name)
    assert config.refinement and config.points and config.geometry and config.head
    if name in ("base", "large"):
        # Too large to run here: shapes only, no values.
        network = _run(config, Load(width=8, height=8, views=2, batch=1, factor=4), True, "fp32", False).network
        assert all(p.grad is not None and p.grad.shape == p.shape for p in network.parameters())
        return
    network = perturbed(name).train()
    coarse, images, cameras = sloped_scene(1, 2)
    found = network.predict(coarse, images, cameras)
    assert finite(found.gaussians)
    assert (found.gaussians.opacities > 0).sum() <= 0.5 * 16 * len(coarse)
    drawn = render(found.gaussians, cameras.resized(4 * SIZE, 4 * SIZE), lod=False)
    (drawn.rgb.square().mean() + drawn.alpha.mean() + drawn.depth.mean()).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_a_batch_of_two_is_two_batches_of_one(name: str) -> None:
    network, scene = perturbed(name).eval(), sloped_scene(2, 2)
    coarse, images, cameras = scene
    with torch.no_grad():
        both = network.predict(coarse, images, cameras)
        for i in range(2):
            one = network.predict(coarse[i : i + 1], images[i : i + 1], cameras[i : i + 1])
            # Scenes of one batch are padded to the same length.
            kept, n = both.parents[i] >= 0, len(one.gaussians)
            for field in FIELDS:
                pair = getattr(both.gaussians, field)[i][kept], getattr(one.gaussians, field)[0][one.parents[0] >= 0]
                torch.testing.assert_close(*pair, atol=2e-4, rtol=2e-3, msg=lambda m, f=field: f"{f}: {m}")
            assert n == int(kept.sum())


@pytest.mark.parametrize(
    ("factor", "budget"),
    [(2, 0.25), (2, 0.5), (2, 0.9), (4, 0.0625), (4, 0.2), (4, 0.5), (8, 0.02), (8, 0.3), (8, 1.0)],
)
def test_the_budget_holds_at_every_factor(factor: int, budget: float) -> None:
    config = model_config("tiny", factor=factor, scaffold={"budget": budget}, points=None, geometry=None)
    coarse, images, cameras = sloped_scene(1, 1)
    found = SuperResolver(config).scaffold(coarse, images, cameras)
    most = most_gaussians(config.scaffold, len(coarse), factor)
    assert len(coarse) <= len(found) <= most
    # What the budget leaves is used: less is left over than one more split would take.
    assert most - len(found) < factor**2


def test_estimates_count_as_many_as_the_budget_leaves() -> None:
    config = model_config("tiny", factor=2, scaffold={"budget": 0.5}, points=None, geometry=None)
    most = most_gaussians(config.scaffold, SIZE**2, 2)
    assert estimate(config, SIZE, SIZE, 1, training=False).gaussians == most == 2 * SIZE**2


def test_overrides_change_what_they_name() -> None:
    base = model_config("tiny")
    config = model_config("tiny", factor=2, decoder={"width": 64}, points=None, scaffold=ScaffoldConfig(grid=2))
    assert config == replace(
        base, factor=2, decoder=replace(base.decoder, width=64), points=None, scaffold=ScaffoldConfig(grid=2)
    )
    assert isinstance(config.decoder, DecoderConfig) and config.decoder.blocks == base.decoder.blocks
    assert model_config("tiny", recurrence={"steps": 2}).recurrence.steps == 2
    assert model_config("tiny") == base
    assert create_model("tiny", refinement=None).refinement is None


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("huge", {}, "name: found 'huge'; expected one of tiny, small, base, large"),
        ("tiny", {"widht": 3}, "tiny: config key widht: found unknown key"),
        ("tiny", {"decoder": {"width": "64"}}, r"tiny: config key decoder\.width: found '64'"),
        ("tiny", {"head": None}, "tiny: config key points: found without a head"),
        ("tiny", {"factor": 3}, "tiny: config key factor: found 3"),
        ("tiny", {"scaffold": {"budget": 0.05}}, r"scaffold\.budget: found 0\.05; expected 0\.0625 .*factor 4\) to 1"),
        (
            "tiny",
            {"factors": [2], "scaffold": {"budget": 0.2}},
            r"scaffold\.budget: found 0\.2; expected 0\.25 .*factor 2",
        ),
    ],
)
def test_wrong_names_and_overrides_are_named(name: str, overrides: dict, message: str) -> None:
    with pytest.raises(Sr3dError, match=message):
        model_config(name, **overrides)
