from __future__ import annotations

from dataclasses import replace

import torch

from sr3d import Cameras, Scene
from sr3d.datasets.batch import Batch
from sr3d.training.augment import AugmentConfig, augment


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
