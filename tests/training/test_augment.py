from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from sr3d import Cameras, Scene, Sr3dError
from sr3d.datasets.batch import Batch
from sr3d.training.augment import AugmentConfig, augment
from sr3d.training.samples import split_batch


def batch() -> Batch:
    def scene(views: int, size: int) -> Scene:
        poses, K = torch.eye(4).repeat(1, views, 1, 1), torch.eye(3).repeat(1, views, 1, 1)
        cameras = Cameras(world_to_cam=poses, K=K, width=size, height=size)
        images = torch.full((1, views, size, size, 3), 0.25)
        return Scene(images=images, cameras=cameras, depths=torch.full((1, views, size, size), 2.0))

    return Batch(context=scene(2, 24), high=scene(2, 48), target=scene(3, 48))


def run(seed: int = 0, **strengths: float) -> Batch:
    return augment(batch(), AugmentConfig(**strengths), torch.Generator().manual_seed(seed))


def test_strength_zero_changes_nothing() -> None:
    before, after = batch(), run()
    for part in ("context", "high", "target"):
        assert torch.equal(getattr(before, part).images, getattr(after, part).images)
    assert torch.equal(before.context.depths, after.context.depths)


def test_brightness_is_that_of_the_clip_and_of_input_and_truth_alike() -> None:
    after = run(gain=1.0, tint=0.2)
    colors = [getattr(after, part).images.flatten(0, 3).unique(dim=0) for part in ("context", "high", "target")]
    assert all(len(c) == 1 for c in colors) and torch.equal(colors[0], colors[1]) and torch.equal(colors[0], colors[2])
    assert not torch.allclose(colors[0], torch.tensor(0.25)) and 0.25 / 2.4 < colors[0].min() <= colors[0].max() < 0.6


def test_exposure_differs_between_inputs_within_its_bound() -> None:
    after = run(exposure=0.4)
    first, second = after.context.images[0, :, 0, 0, 0]
    assert first != second and abs(torch.log2(first / second)) <= 0.4
    assert torch.equal(after.high.images[0, :, 0, 0, 0], after.context.images[0, :, 0, 0, 0])
    assert (after.target.images == 0.25).all()


def test_depth_error_has_its_size_and_spares_truth() -> None:
    errors = torch.stack([run(seed, depth_noise=0.01).context.depths / 2 - 1 for seed in range(20)])
    assert 0.006 < errors.std() < 0.014
    assert torch.equal(run(depth_noise=0.01).high.depths, batch().high.depths)
    unknown = replace(batch().context, depths=torch.zeros_like(batch().context.depths))
    again = augment(replace(batch(), context=unknown), AugmentConfig(depth_noise=0.01), torch.Generator())
    assert (again.context.depths == 0).all()


def test_noise_is_in_the_inputs_only_and_follows_the_seed() -> None:
    a, b, c = run(1, noise=0.02), run(1, noise=0.02), run(2, noise=0.02)
    assert torch.equal(a.context.images, b.context.images) and not torch.equal(a.context.images, c.context.images)
    assert 0.015 < a.context.images.std() < 0.025
    assert a.high.images.std() == 0


def test_misaligned_depth_grows_the_foreground_and_knows_no_new_depths() -> None:
    before = batch()
    depths = torch.full((1, 2, 24, 24), 4.0)
    depths[..., 8:14, 8:14] = 1.0
    depths[..., :3, :3] = 0.0
    before = replace(before, context=replace(before.context, depths=depths))
    after = augment(before, AugmentConfig(depth_edges=1.0), torch.Generator().manual_seed(1)).context.depths
    assert set(after.unique().tolist()) <= {0.0, 1.0, 4.0}
    assert (after == 1).sum() == 2 * 8 * 8
    assert torch.equal(augment(before, AugmentConfig(depth_edges=0.0), torch.Generator()).context.depths, depths)


def test_blur_is_a_gaussian_of_the_whole_clip_and_keeps_brightness() -> None:
    before = batch()
    for part in (before.context, before.high, before.target):
        middle = part.images.shape[2] // 2
        part.images[:, :, middle:] = 0.75
    after = augment(before, AugmentConfig(blur=2.0), torch.Generator().manual_seed(3))
    profile = (after.high.images[0, 0, :, 7, 1] - 0.25) / 0.5
    edges = torch.arange(1, 48) - 24.0
    sigma = float((profile.diff() * edges.square()).sum().sqrt())
    assert 0.3 < sigma < 2
    expected = torch.exp(-0.5 * (edges / sigma).square()) / (sigma * math.sqrt(2 * math.pi))
    assert torch.allclose(profile.diff(), expected, atol=0.01)
    assert torch.equal(after.high.images[:, :1], after.target.images[:, :1]), "all views of a clip alike"
    reduced = after.high.images.reshape(1, 2, 24, 2, 24, 2, 3).mean(dim=(3, 5))
    assert torch.allclose(after.context.images, reduced, atol=1e-6), "inputs are the reduced full-resolution views"
    assert torch.equal(after.context.depths, before.context.depths)


def test_softness_blurs_the_inputs_alone() -> None:
    before = batch()
    spot = before.context.images.clone()
    spot[:, :, 12, 12] = 1.0
    before = replace(before, context=replace(before.context, images=spot))
    after = augment(before, AugmentConfig(softness=2.0), torch.Generator().manual_seed(3))
    for part in ("high", "target"):
        assert torch.equal(getattr(after, part).images, getattr(before, part).images)
    soft = after.context.images[0, 0, :, :, 0] - 0.25
    assert torch.allclose(soft.sum(), torch.tensor(0.75), atol=1e-4) and 0.01 < soft[12, 12] < 0.6
    assert torch.allclose(soft[12, 9:16], soft[9:16, 12], atol=1e-6) and soft[12, 13] > soft[12, 14] > 0


def test_clips_of_a_batch_are_blurred_differently() -> None:
    one = batch()
    one.high.images[:, :, 24:] = 0.75
    both = Batch.stack([*split_batch(one), *split_batch(one)])
    high = augment(both, AugmentConfig(blur=2.0), torch.Generator().manual_seed(0)).high.images
    alone = [augment(one, AugmentConfig(blur=1e-3), torch.Generator()).high.images, one.high.images]
    assert torch.equal(*alone), "hardly any blur changes nothing"
    assert not torch.equal(high[0], high[1])
    assert torch.allclose(high.mean(), one.high.images.mean(), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "value"), [("blur", -1.0), ("depth_edges", 1.5), ("noise", math.nan), ("gain", math.inf)]
)
def test_impossible_strengths_are_named(name: str, value: float) -> None:
    with pytest.raises(Sr3dError, match=f"model.augmentation: {name}"):
        AugmentConfig(**{name: value})
