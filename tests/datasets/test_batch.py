from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from sr3d import Cameras, Scene, Sr3dError
from sr3d.datasets import CLASSES, Batch, World, make_batch, reduce_scene, write_shards
from sr3d.datasets.datamodule import ClipDataModule
from sr3d.datasets.views import ViewConfig

SIZE, VIEWS = 16, 7


def _clip(number: int) -> Scene:
    """Every pixel of view i of clip n is (n, i, random) / 255, so that a batch tells where it came from."""
    g = torch.Generator().manual_seed(number)
    images = torch.randint(0, 256, (VIEWS, SIZE, SIZE, 3), generator=g).float()
    images[..., 0] = number
    images[..., 1] = torch.arange(VIEWS)[:, None, None]
    pose = torch.eye(4).repeat(VIEWS, 1, 1)
    pose[:, 0, 3] = torch.arange(VIEWS) * 0.1
    K = torch.tensor([[20.0, 0, 8], [0, 20, 8], [0, 0, 1]]).repeat(VIEWS, 1, 1)
    return Scene(
        images=images / 255,
        cameras=Cameras(world_to_cam=pose, K=K, width=SIZE, height=SIZE),
        depths=1 + torch.rand(VIEWS, SIZE, SIZE, generator=g),
        labels=torch.randint(0, 5, (VIEWS, SIZE, SIZE), generator=g),
        name=f"clip{number}",
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clips")
    write_shards((_clip(i) for i in range(6)), out)
    return out


def _views(scene: Scene) -> list[list[int]]:
    """View numbers of every clip of a batch, read from the pixels."""
    return (scene.unpacked().images[..., 0, 0, 1] * 255).round().int().tolist()


def test_make_batch_shapes_and_content() -> None:
    clip = _clip(0)
    batch = make_batch(clip, [0, 6], [2, 3, 5], 4)
    assert batch.context.images.shape == (2, 4, 4, 3) and batch.high.images.shape == (2, 16, 16, 3)
    assert batch.target.images.shape == (3, 16, 16, 3)
    assert torch.equal(batch.high.images, clip.images[[0, 6]]) and torch.equal(
        batch.target.images, clip.images[[2, 3, 5]]
    )
    torch.testing.assert_close(batch.context.images[1, 0, 0], clip.images[6, :4, :4].mean(dim=(0, 1)))
    low = batch.context.posed()
    assert (low.width, low.height) == (4, 4) and low.K[0, 0].tolist() == [5, 0, 2]
    two = Batch.stack([batch, make_batch(_clip(1), [0, 6], [2, 3, 5], 4)])
    assert two.context.images.shape == (2, 2, 4, 4, 3) and two.target.posed().K.shape == (2, 3, 3, 3)
    assert two.context.depths is not None and two.context.depths.shape == (2, 2, 4, 4)
    assert two.to("cpu").high.labels is not None


@pytest.mark.parametrize(
    ("context", "target"), [([0, 3], [3]), ([1, 3], [0]), ([1, 3], [5]), ([0, -1], [6]), ([0], [0]), ([], [1])]
)
def test_targets_are_between_the_inputs_and_not_inputs(context: list[int], target: list[int]) -> None:
    with pytest.raises(Sr3dError, match="clip0"):
        make_batch(_clip(0), context, target, 4)


def test_one_input_takes_targets_anywhere() -> None:
    assert len(make_batch(_clip(0), [3], [0, 6], 2).target) == 2


def test_reduced_depth_is_exact_on_a_plane_and_never_a_mixture() -> None:
    world = World.generate(2, "room")
    cameras = world.sample_cameras(2, 96, 96)
    large = world.render(cameras, samples=1)
    for factor in (2, 3, 4):
        small = reduce_scene(large, factor)
        truth = world.render(cameras.resized(96 // factor, 96 // factor), samples=1)
        assert small.depths is not None and truth.depths is not None and large.depths is not None
        ratio = small.depths / truth.depths - 1
        # Exact on one flat surface, close on a curved one; at edges it is one of the two surfaces.
        assert truth.labels is not None
        flat = truth.labels < CLASSES.index("sphere")
        assert (ratio[flat].abs() < 1e-4).float().mean() > 0.9
        assert (ratio.abs() < 1e-2).float().mean() > 0.9
        blocks = large.depths.unflatten(-1, (-1, factor)).unflatten(-3, (-1, factor))
        low, high = blocks.amin(dim=(-3, -1)), blocks.amax(dim=(-3, -1))
        assert (small.depths > 0.999 * low).all() and (small.depths < 1.001 * high).all()
        edge = high > 1.3 * low
        near = torch.minimum(small.depths / low, high / small.depths)
        assert edge.any() and near[edge].median() < 1.05
        assert small.labels is not None
        assert (small.labels == truth.labels).float().mean() > 0.95


def test_reduced_depth_where_some_is_unknown() -> None:
    depths = torch.full((1, 4, 4), 2.0)
    depths[0, 1, 1] = 0
    depths[0, :2, 2:] = 0
    scene = Scene(images=torch.zeros(1, 4, 4, 3), depths=depths)
    small = reduce_scene(scene, 2)
    assert small.depths is not None and small.depths.tolist() == [[[2, 0], [2, 2]]]
    assert small.cameras is None


@pytest.mark.parametrize("factor", [0, 3, 32])
def test_sizes_that_cannot_be_reduced(factor: int) -> None:
    with pytest.raises(Sr3dError, match=f"16x16 with factor {factor}.*crop or resize"):
        reduce_scene(_clip(0), factor)


def _module(folder: Path, *, seed: int = 1, batch_size: int = 2, workers: int = 0, **views: Any) -> ClipDataModule:
    config = ViewConfig(**views)
    paths = str(folder), str(folder)
    return ClipDataModule(*paths, factor=4, views=config, global_batch_size=batch_size, workers=workers, seed=seed)


def _signature(batches: Iterable[Batch]) -> list[tuple[str, list[list[int]], list[list[int]]]]:
    return [(b.target.name, _views(b.high), _views(b.target)) for b in batches]


def test_training_batches(folder: Path) -> None:
    loader = _module(folder).train_dataloader()
    gaps = set()
    for _ in range(8):
        batches = list(loader)
        assert sorted(", ".join(b.target.name for b in batches).split(", ")) == [f"clip{i}" for i in range(6)]
        for batch in batches:
            assert batch.context.images.shape == (2, 2, 4, 4, 3) and batch.target.images.shape == (2, 2, 16, 16, 3)
            for inputs, targets in zip(_views(batch.high), _views(batch.target)):
                assert len(set(inputs)) == 2 and len(set(targets)) == 2
                assert all(inputs[0] < t < inputs[1] for t in targets)
                gaps.add((inputs[0], inputs[1]))
    assert (0, 6) in gaps and len(gaps) > 4


def test_same_seed_same_batches(folder: Path) -> None:
    first, again, other = (_module(folder, seed=s).train_dataloader() for s in (1, 1, 2))
    epochs = [_signature(first), _signature(first)]
    assert epochs == [_signature(again), _signature(again)]
    assert epochs[0] != epochs[1] and epochs[0] != _signature(other)


def test_two_workers_read_every_clip_once_and_go_on_to_another_order(folder: Path) -> None:
    loader = _module(folder, workers=2, batch_size=1).train_dataloader()
    epochs = [_signature(loader), _signature(loader)]
    for epoch in epochs:
        assert sorted(name for name, _, _ in epoch) == [f"clip{i}" for i in range(6)]
    assert epochs[0] != epochs[1]
    assert epochs == [
        _signature(again := _module(folder, workers=2, batch_size=1).train_dataloader()),
        _signature(again),
    ]


def test_validation_is_the_same_every_time(folder: Path) -> None:
    loader = _module(folder, context=(2, 4)).val_dataloader()[0]
    epochs = [_signature(loader), _signature(loader)]
    assert epochs[0] == epochs[1]
    assert epochs[0][0] == ("clip0, clip1", [[0, 6], [0, 6]], [[2, 4], [2, 4]])


def test_number_of_inputs_varies_from_batch_to_batch(folder: Path) -> None:
    loader = _module(folder, context=(1, 4)).train_dataloader()
    counts = set()
    for batch in [b for _ in range(6) for b in loader]:
        counts.add(batch.context.images.shape[1])
        for inputs, targets in zip(_views(batch.high), _views(batch.target)):
            assert not set(inputs) & set(targets) and inputs == sorted(set(inputs))
            assert len(inputs) == 1 or all(inputs[0] < t < inputs[-1] for t in targets)
    assert counts == {1, 2, 3, 4}


def test_clips_without_enough_views_are_counted_and_fail_only_where_all_are_needed(folder: Path) -> None:
    assert _module(folder, target=5).train_dataloader().batches.unfit == 0
    for loader in (_module(folder, target=6).train_dataloader(), *_module(folder, target=6).val_dataloader()):
        with pytest.raises(Sr3dError, match=r"clip\d: views: found 7; expected at least 8"):
            list(loader)
        assert loader.batches.unfit > 0


@pytest.mark.parametrize(
    ("name", "values"),
    [("context", {"context": 0}), ("target", {"target": 0}), ("global_batch_size", {"batch_size": 0})],
)
def test_unusable_settings(folder: Path, name: str, values: dict[str, Any]) -> None:
    with pytest.raises(Sr3dError, match=name):
        _module(folder, **values)


def test_a_global_batch_that_does_not_divide_is_named_before_data_is_read(folder: Path) -> None:
    trainer = lightning.Trainer(
        accelerator="cpu", accumulate_grad_batches=4, logger=False, enable_progress_bar=False, max_steps=1
    )
    for size in (2, 6):
        module = ClipDataModule("no such folder", "nor this", global_batch_size=size)
        module.trainer = trainer
        with pytest.raises(Sr3dError, match=f"global_batch_size: found {size}; expected a multiple of 4"):
            module.setup("fit")
    module = ClipDataModule(str(folder), str(folder), global_batch_size=4)
    module.trainer = trainer
    batches = module.train_dataloader().batches
    assert (batches.config.batch_size, batches.global_batch, len(batches)) == (1, 4, 4)
