from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sr3d import Gaussians, Scene, Sr3dError, render
from sr3d.coarse import CoarseConfig, upsampled_gaussians
from sr3d.datasets import World
from sr3d.datasets.batch import Batch, crop_scene, make_batch
from sr3d.models.upsampler import Upsampler, UpsamplerConfig
from sr3d.training.losses import low_resolution_error
from sr3d.training.metrics import psnr
from sr3d.zoom.optimise import OptimiseConfig, Optimised, optimise

FIELDS = ("means", "quats", "scales", "opacities", "sh")


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Inputs of 24 x 24 pixels with exact depth, truth of 48 x 48 and a view between them."""
    world = World.generate(3, "table")
    return make_batch(world.render(world.sample_cameras(3, 48, 48)), [0, 2], [1], 2)


@pytest.fixture(scope="module")
def start(batch: Batch) -> Gaussians:
    return upsampled_gaussians(batch.context, 2, CoarseConfig())


@pytest.fixture(scope="module")
def done(batch: Batch, start: Gaussians) -> Optimised:
    return optimise(start, batch.context, 2, OptimiseConfig(steps=25))


def between(gaussians: Gaussians, batch: Batch) -> float:
    """PSNR of the held-out view in dB."""
    return psnr(render(gaussians, batch.target.posed(), lod=False).rgb, batch.target.images).item()


def inconsistency(gaussians: Gaussians, batch: Batch) -> float:
    """Error of the drawn inputs, reduced."""
    rgb = render(gaussians, batch.high.posed(), lod=False).rgb
    return low_resolution_error(rgb[None], batch.context.images[None]).item()


def same(a: Gaussians, b: Gaussians, fields: tuple[str, ...] = FIELDS) -> list[str]:
    """Fields that are equal bit by bit."""
    return [field for field in fields if torch.equal(getattr(a, field), getattr(b, field))]


def test_loss_falls_and_the_inputs_are_met_better(batch: Batch, start: Gaussians, done: Optimised) -> None:
    assert done.steps == 25 and done.stopped == "steps" and done.losses.shape == (25,)
    assert done.seconds > 0
    assert done.losses[-1] < 0.7 * done.losses[0]
    assert inconsistency(done.gaussians, batch) < 0.5 * inconsistency(start, batch)
    assert same(done.gaussians, start) == []
    assert not any(getattr(done.gaussians, field).requires_grad for field in FIELDS)


def test_held_out_view_gets_better(batch: Batch, start: Gaussians, done: Optimised) -> None:
    assert between(done.gaussians, batch) > between(start, batch) + 0.2


def test_perturbed_start_recovers_at_a_held_out_view(batch: Batch, start: Gaussians) -> None:
    noise = torch.Generator().manual_seed(0)

    def off(t: Tensor, size: float) -> Tensor:
        return t + size * torch.randn(t.shape, generator=noise)

    worse = replace(start, sh=off(start.sh, 0.4), scales=start.scales * off(torch.zeros_like(start.scales), 0.3).exp())
    after = optimise(worse, batch.context, 2, OptimiseConfig(steps=25)).gaussians
    assert between(worse, batch) < between(start, batch) - 0.5
    assert between(after, batch) > between(worse, batch) + 1


def test_first_loss_is_the_formula(batch: Batch, start: Gaussians) -> None:
    from skimage.metrics import structural_similarity

    config = OptimiseConfig(steps=1, high=0.3, low=0.9, dssim=0.25, views=None)
    images = batch.context.images
    up = torch.nn.functional.interpolate(images.movedim(-1, 1), scale_factor=2, mode="bicubic").clamp(0, 1)
    drawn = render(start, batch.high.posed(), lod=False).rgb

    def part(a: Tensor, b: Tensor) -> float:
        # Mirrored at the border; scikit-image leaves as much out of its mean.
        pairs = [[np.pad(x.numpy(), [(5, 5), (5, 5), (0, 0)], mode="reflect") for x in pair] for pair in zip(a, b)]
        options = {"data_range": 1.0, "channel_axis": -1, "gaussian_weights": True, "use_sample_covariance": False}
        similar = [structural_similarity(x, y, **options) for x, y in pairs]
        return 0.75 * float((a - b).abs().mean()) + 0.25 * (1 - sum(similar) / len(similar))

    small = drawn.reshape(2, 24, 2, 24, 2, 3).mean(dim=(2, 4))
    expected = 0.3 * part(drawn, up.movedim(1, -1)) + 0.9 * part(small, images)
    assert optimise(start, batch.context, 2, config).losses[0].item() == pytest.approx(expected, rel=1e-4)


def test_no_steps_return_the_start(batch: Batch, start: Gaussians) -> None:
    done = optimise(start, batch.context, 2, OptimiseConfig(steps=0))
    assert same(done.gaussians, start) == list(FIELDS)
    assert (done.steps, done.losses.shape, done.stopped) == (0, (0,), "steps")


@pytest.mark.parametrize(
    ("group", "fields"),
    [("means", "means"), ("scales", "scales"), ("quats", "quats"), ("opacities", "opacities"), ("colors", "sh")],
)
def test_group_of_rate_0_stays(batch: Batch, start: Gaussians, group: str, fields: str) -> None:
    rates: dict[str, Any] = {
        "means": 0.02,
        "scales": 0.01,
        "quats": 0.01,
        "opacities": 0.02,
        "colors": 0.01,
        group: 0.0,
    }
    done = optimise(start, batch.context, 2, OptimiseConfig(steps=2, **rates))
    assert same(done.gaussians, start) == [fields]


def test_nothing_to_optimise(batch: Batch, start: Gaussians) -> None:
    rates: dict[str, Any] = dict.fromkeys(("means", "scales", "quats", "opacities", "colors"), 0.0)
    assert same(optimise(start, batch.context, 2, OptimiseConfig(**rates)).gaussians, start) == list(FIELDS)
    clear = replace(start, opacities=torch.zeros_like(start.opacities))
    assert same(optimise(clear, batch.context, 2, OptimiseConfig(steps=2)).gaussians, clear) == list(FIELDS)


def test_invisible_and_opaque_gaussians(batch: Batch, start: Gaussians) -> None:
    opacities, scales, means = start.opacities.clone(), start.scales.clone(), start.means.clone()
    opacities[:500], opacities[500:1000] = 0, 1
    scales[600:700] = 0
    means[700:710] = 1e6
    odd = replace(start, opacities=opacities, scales=scales, means=means)
    after = optimise(odd, batch.context, 2, OptimiseConfig(steps=3)).gaussians
    assert all(torch.isfinite(getattr(after, field)).all() for field in FIELDS)
    assert same(after.index(slice(0, 500)), odd.index(slice(0, 500))) == list(FIELDS)
    assert same(after.index(slice(500, None)), odd.index(slice(500, None))) == []
    assert (after.opacities[500:1000] > 0.99).all()


def test_two_runs_agree_bit_by_bit(batch: Batch, start: Gaussians) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, second = (optimise(start, batch.context, 2, OptimiseConfig(steps=4)) for _ in range(2))
    finally:
        torch.set_num_threads(threads)
    assert same(first.gaussians, second.gaussians) == list(FIELDS)
    assert torch.equal(first.losses, second.losses)


def test_one_view_at_a_time_takes_turns(batch: Batch, start: Gaussians) -> None:
    config = OptimiseConfig(steps=2, views=1)
    only = [optimise(start, batch.context.views([i]), 2, replace(config, steps=1)).losses[0] for i in (0, 1)]
    losses = optimise(start, batch.context, 2, config).losses
    assert losses[0] == only[0]
    assert losses[1].item() == pytest.approx(only[1].item(), rel=0.2) and losses[1] != only[1]


@pytest.mark.parametrize(
    "upsampler",
    [
        UpsamplerConfig(method="bilinear"),
        UpsamplerConfig(
            method="swin2sr",
            options={"upscale": 2, "embed_dim": 12, "depths": [1], "num_heads": [2], "window_size": 8},
        ),
    ],
    ids=lambda config: config.method,
)
def test_pseudo_views_are_the_upsampler_s(batch: Batch, start: Gaussians, upsampler: UpsamplerConfig) -> None:
    config = OptimiseConfig(steps=1, high=1.0, low=0.0, dssim=0.0, views=None, upsampler=upsampler)
    drawn = render(start, batch.high.posed(), lod=False).rgb
    torch.manual_seed(0)
    expected = (drawn - Upsampler(upsampler)(batch.context.images.movedim(-1, 1), 2).movedim(1, -1)).abs().mean()
    torch.manual_seed(0)
    assert optimise(start, batch.context, 2, config).losses[0].item() == pytest.approx(expected.item(), rel=1e-4)


def test_higher_bands_stay(batch: Batch, start: Gaussians) -> None:
    bands = torch.randn(len(start), 3, 3, generator=torch.Generator().manual_seed(0)) * 0.1
    tinted = replace(start, sh=torch.cat([start.sh, bands], dim=1))
    after = optimise(tinted, batch.context, 2, OptimiseConfig(steps=2)).gaussians
    assert torch.equal(after.sh[:, 1:], bands) and not torch.equal(after.sh[:, :1], start.sh)


def test_time_stops_it(batch: Batch, start: Gaussians) -> None:
    done = optimise(start, batch.context, 2, OptimiseConfig(steps=10_000, seconds=0.5))
    assert done.stopped == "seconds" and 0 < done.steps < 10_000
    assert 0.5 <= done.seconds < 5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", -1),
        ("seconds", 0.0),
        ("dssim", 1.5),
        ("decay", 0.0),
        ("views", 0),
        ("means", -0.1),
        ("colors", float("nan")),
        ("high", float("inf")),
    ],
)
def test_bad_values_name_the_field(field: str, value: Any) -> None:
    with pytest.raises(Sr3dError) as caught:
        OptimiseConfig(**{field: value})
    assert (caught.value.source, caught.value.field, caught.value.found) == ("optimise", field, str(value))


def test_no_loss_at_all() -> None:
    with pytest.raises(Sr3dError, match="high, low"):
        OptimiseConfig(high=0.0, low=0.0)


@pytest.mark.parametrize(
    ("change", "factor", "config", "field"),
    [
        (lambda s: replace(s, cameras=None), 2, OptimiseConfig(), "cameras"),
        (lambda s: s, 0, OptimiseConfig(), "factor"),
        (lambda s: Scene.stack([s, s]), 2, OptimiseConfig(), "images"),
        (lambda s: crop_scene(s, 0, 0, 5, 24), 2, OptimiseConfig(), "image size"),
        (lambda s: replace(s, images=s.images * torch.nan), 2, OptimiseConfig(steps=1), "loss"),
        (
            lambda s: s,
            2,
            OptimiseConfig(
                upsampler=UpsamplerConfig(
                    method="swin2sr",
                    options={"upscale": 4, "embed_dim": 12, "depths": [1], "num_heads": [2], "window_size": 8},
                )
            ),
            "model.network.upsampler.method",
        ),
    ],
)
def test_bad_input(
    batch: Batch, start: Gaussians, change: Callable[[Scene], Scene], factor: int, config: OptimiseConfig, field: str
) -> None:
    with pytest.raises(Sr3dError) as caught:
        optimise(start, change(batch.context), factor, config)
    assert caught.value.field == field
