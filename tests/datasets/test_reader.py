from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stored import H, W, clip, write_eleven

from sr3d import Sr3dError
from sr3d.datasets import ShardDataset, write_shards
from sr3d.datasets.clip import scene_clip
from sr3d.datasets.datamodule import ClipDataModule, check_disjoint
from sr3d.datasets.degrade import DegradeConfig
from sr3d.datasets.order import epoch_order, global_order, shares
from sr3d.datasets.reader import BatchConfig, ClipBatches, ClipLoader
from sr3d.datasets.views import ViewConfig
from sr3d.io.remote import RemoteConfig

ONE = ViewConfig(context=1, target=1)
SMALL = BatchConfig(factor=2, batch_size=2, views=ONE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven clips."""
    out = tmp_path_factory.mktemp("shards")
    write_eleven(out)
    return out


def _names(batches: object) -> list[str]:
    return [b.context.name for b in batches]


def _clips(batches: object) -> list[str]:
    return [name for b in _names(batches) for name in b.split(", ")]


ALL = sorted(f"clip {i}/a.b" for i in range(11))


@pytest.mark.parametrize("workers", [0, 3])
def test_stored_order(folder: Path, workers: int) -> None:
    loader = torch.utils.data.DataLoader(ShardDataset(folder), batch_size=None, num_workers=workers)
    assert [c.name for c in loader] == [f"clip {i}/a.b" for i in range(11)]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_get_disjoint_clips_and_equally_many_batches(folder: Path, world: int) -> None:
    ranks = [ClipBatches(folder, SMALL, shuffle=True, rank=r, world=world) for r in range(world)]
    for epoch in (0, 1):
        for batches in ranks:
            batches.seek(epoch, 0)
        seen = [list(b) for b in ranks]
        assert {len(s) for s in seen} == {len(ranks[0])}
        names = [n for s in seen for n in _clips(s)]
        assert len(set(names)) == len(names) == 11 - 11 % (2 * world)
        assert ranks[0].left_out == 11 % (2 * world)


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)])
def test_what_a_step_reads_depends_on_the_global_batch_alone(folder: Path, world: int, accumulate: int) -> None:
    views = ViewConfig(context=(1, 2), target=1)

    def steps(world: int, accumulate: int) -> list[list[tuple[str, int, float]]]:
        config = BatchConfig(factor=2, batch_size=4 // world // accumulate, views=views, seed=3)
        ranks = [
            ClipBatches(folder, config, shuffle=True, rank=r, world=world, accumulate=accumulate) for r in range(world)
        ]
        out: list[list[tuple[str, int, float]]] = []
        for epoch in range(4):
            for batches in ranks:
                batches.seek(epoch, 0)
            for parts in zip(*(list(b) for b in ranks)):
                rows = [
                    (name, len(images), float(images.double().sum()))
                    for b in parts
                    for name, images in zip(b.context.name.split(", "), b.context.images)
                ]
                out.append(rows)
        return [sorted(chain(*out[i : i + accumulate])) for i in range(0, len(out), accumulate)]

    expected = steps(1, 1)
    assert len(expected) == 8 and {len(step) for step in expected} == {4}
    assert {n for step in expected for _, n, _ in step} == {1, 2}
    assert steps(world, accumulate) == expected


def test_resumed_on_another_number_of_processes_a_run_goes_on(folder: Path) -> None:
    one = ClipLoader(ClipBatches(folder, replace(SMALL, batch_size=4), shuffle=True), 0)
    whole = [sorted(n.split(", ")) for n in _names(one)]
    stopped = ClipLoader(ClipBatches(folder, replace(SMALL, batch_size=4), shuffle=True), 0)
    next(iter(stopped))
    rest = []
    for rank in range(2):
        batches = ClipBatches(folder, replace(SMALL, batch_size=1), shuffle=True, rank=rank, world=2, accumulate=2)
        resumed = ClipLoader(batches, 0)
        resumed.load_state_dict(stopped.state_dict())
        rest += _clips(resumed)
    assert [sorted(rest)] == whole[1:] and len(rest) == 4


def test_evaluation_reads_every_clip_in_any_number_of_processes(folder: Path) -> None:
    for world in (1, 2, 4, 20):
        ranks = [ClipBatches(folder, SMALL, shuffle=False, rank=r, world=world) for r in range(world)]
        seen = Counter(n for b in ranks for n in _clips(b))
        assert sorted(seen) == ALL and seen.total() == -(-11 // world) * world
        assert len({len(list(b)) for b in ranks} | {len(b) for b in ranks}) == 1


def test_number_of_workers_and_start_do_not_matter(folder: Path) -> None:
    def loader(workers: int, threads: int = 0) -> ClipLoader:
        return ClipLoader(ClipBatches(folder, replace(SMALL, seed=4), shuffle=True), workers, threads=threads)

    plain, busy, threaded = loader(0), loader(3), loader(0, 2)
    epochs = [[list(x) for _ in range(3)] for x in (plain, busy, threaded)]
    for one, other in [*zip(epochs[0], epochs[1]), *zip(epochs[0], epochs[2])]:
        assert _names(one) == _names(other)
        assert all(torch.equal(a.context.images, b.context.images) for a, b in zip(one, other))
        assert all(torch.equal(a.target.images, b.target.images) for a, b in zip(one, other))
    assert len({tuple(_clips(e)) for e in epochs[0]}) == 3
    # What a stopped run has not delivered yet is what a resumed one delivers.
    for workers in ((0,), (2,), (0, 2)):
        stopped = loader(*workers)
        stream = iter(stopped)
        first = [next(stream) for _ in range(2)]
        resumed = loader(*workers)
        resumed.load_state_dict(stopped.state_dict())
        assert _names(first) + _names(resumed) == _names(epochs[0][0])
        assert _names(resumed) == _names(epochs[0][1])
    ended = loader(0)
    list(ended)
    again = loader(0)
    again.load_state_dict(ended.state_dict())
    assert _names(again) == _names(epochs[0][1])
    other = ClipLoader(ClipBatches(folder, replace(SMALL, seed=5), shuffle=True), 0)
    with pytest.warns(UserWarning, match="epoch 0 starts anew, its batches are others: seed 4, now 5"):
        other.load_state_dict(stopped.state_dict())
    assert len(list(other)) == len(other)
    with pytest.raises(Sr3dError, match="position in the data"):
        other.load_state_dict({"epoch": 0})


@settings(deadline=None, max_examples=60)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=9),
    batch=st.integers(1, 33),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 3),
)
def test_order_is_a_partition(counts: list[int], batch: int, seed: int, epoch: int) -> None:
    assert sorted(epoch_order(counts, seed, epoch)) == list(range(sum(counts)))
    if sum(counts) < batch:
        return
    rows = global_order([counts], [1.0], seed=seed, epoch=epoch, batch=batch, source="test")
    assert len(np.unique(rows[:, 2])) == len(rows) == sum(counts) - sum(counts) % batch
    assert (rows[:, 1] == epoch).all()


@pytest.mark.parametrize("weights", [[1.0], [3.0, 1.0]])
def test_a_process_reads_few_shards(weights: list[float]) -> None:
    counts = [[5000] * (16 // len(weights))] * len(weights)
    batch, world = 64, 4
    rows = global_order(counts, weights, seed=0, epoch=0, batch=batch, source="test")
    if len(weights) > 1:
        assert abs((rows[:, 0] == 0).mean() - 0.75) < 1e-3
    own = rows[:, 0] * 100 + rows[:, 2] // 5000
    parts = own.reshape(-1, world, batch // world)
    for rank in range(world):
        shards = parts[:, rank].reshape(-1)
        assert len(np.unique(shards)) <= 16 // world + 2, "its part of sixteen, and those that are shared"
        # And few at a time: two stretches, each in one or two shards of every set.
        for start in range(0, len(shards), 1000):
            assert len(np.unique(shards[start : start + 1000])) <= 4 * len(weights)


def test_shares_are_whole_global_batches() -> None:
    assert shares([11, 8], [11.0, 8.0], 4, "test") == [9, 7]
    assert shares([10], [2.0], 10, "test") == [10]
    assert shares([100, 100, 100], [1.0, 1.0, 1.0], 7, "test") == [98] * 3
    # Sets that are read once start each epoch anew: no clip comes twice, whatever did not fit.
    for epoch in range(3):
        rows = global_order([[11], [8]], [11.0, 8.0], seed=1, epoch=epoch, batch=4, source="test")
        assert len(np.unique(rows, axis=0)) == len(rows) == 16 and (rows[:, 1] == epoch).all()


def test_weights_set_the_shares(tmp_path: Path) -> None:
    for name, first in (("a", 0), ("b", 100)):
        write_shards((clip(first + i) for i in range(6)), tmp_path / name)
    source = {str(tmp_path / "a"): 3.0, str(tmp_path / "b"): 1.0}
    batches = ClipBatches(source, SMALL, shuffle=True)
    seen: Counter[str] = Counter()
    for epoch in range(4):
        batches.seek(epoch, 0)
        names = _clips(batches)
        assert len(names) == 12
        assert sum(n.startswith("clip 10") for n in names) == 3
        seen.update(names)
    # 9 of 6 clips per epoch: after four epochs each was read six times; 3 of 6: two times.
    assert seen == {f"clip {i}/a.b": 6 for i in range(6)} | {f"clip {100 + i}/a.b": 2 for i in range(6)}
    listed = ClipBatches([tmp_path / "a", tmp_path / "b"], SMALL, shuffle=True)
    assert sorted(_clips(listed)) == sorted(seen)


@pytest.mark.parametrize(
    ("sizes", "weights", "batch", "message"),
    [
        ([5], [0.0], 1, "weights"),
        ([5, 5], [1.0], 1, "weights"),
        ([5], [float("nan")], 1, "weights"),
        ([5], [1.0], 6, "clips: found 5 clips for a global batch of 6; expected at least one"),
        ([100, 100], [1.0, 1e-3], 1, "a larger weight"),
    ],
)
def test_shares_refuse(sizes: list[int], weights: list[float], batch: int, message: str) -> None:
    with pytest.raises(Sr3dError, match=message):
        shares(sizes, weights, batch, "test")


def test_clips_without_fitting_views_are_replaced_and_counted(tmp_path: Path) -> None:
    def still(number: int):
        scene = clip(number)
        cameras = scene.posed()
        cameras.world_to_cam[:, :3, 3] = torch.tensor([[0.0, 0, 0], [0.5, 0, 0], [1, 0, 0]]) * (number != 2)
        return scene

    write_shards((still(i) for i in range(4)), tmp_path)
    config = BatchConfig(factor=2, views=ViewConfig(by="distance", low=0.9, high=1.1, target=1))
    batches = ClipBatches(tmp_path, config, shuffle=True)
    names = _clips(ClipLoader(batches, 2))
    assert sorted(set(names)) == [f"clip {i}/a.b" for i in (0, 1, 3)] and len(names) == 4
    assert batches.unfit == 1
    with pytest.raises(Sr3dError, match="clip 2"):
        list(ClipBatches(tmp_path, config, shuffle=False, strict=True))
    assert len(list(ClipBatches(tmp_path, config, shuffle=False))) == 4
    with pytest.raises(Sr3dError, match="distance"):
        list(ClipBatches(tmp_path, replace(config, views=ViewConfig(by="distance", low=5.0, target=1)), shuffle=True))


def test_sizes_and_degradation(folder: Path) -> None:
    config = BatchConfig(factor=2.5, views=ONE, image_size=(10, 10), degrade=DegradeConfig(method="realistic"))
    first, again = (next(iter(ClipBatches(folder, config, shuffle=True))) for _ in range(2))
    assert first.target.images.shape == (1, 1, 10, 10, 3) and first.context.images.shape == (1, 1, 4, 4, 3)
    assert torch.equal(first.context.images, again.context.images)
    small, large = first.context.posed(), first.high.posed()
    assert torch.allclose(small.K[..., 0, 0] * 2.5, large.K[..., 0, 0])
    with pytest.raises(Sr3dError, match=rf"image size: found {W}x{H} with factor 5"):
        next(iter(ClipBatches(folder, BatchConfig(factor=5, views=ONE), shuffle=True)))


def test_clips_of_different_sizes_need_an_image_size(tmp_path: Path) -> None:
    wide = clip(1)
    cut = replace(
        wide, images=wide.images[:, :, 2:], depths=None, labels=None, cameras=replace(wide.posed(), width=W - 2)
    )
    write_shards([clip(0), cut], tmp_path)
    with pytest.raises(Sr3dError, match=rf"image sizes in one batch: found {W - 2}x{H}, {W}x{H}.*image_size"):
        list(ClipBatches(tmp_path, SMALL, shuffle=False))
    (batch,) = ClipBatches(tmp_path, replace(SMALL, image_size=(8, 8)), shuffle=False)
    assert batch.target.images.shape[-3:] == (8, 8, 3)


def test_training_and_validation_must_not_share_a_scene(folder: Path, tmp_path: Path) -> None:
    write_shards([clip(50)], tmp_path / "other")
    remote = RemoteConfig()
    check_disjoint(str(folder), str(tmp_path / "other"), remote)
    with pytest.raises(Sr3dError, match=r"scenes: found 11 that are trained on as well: clip 0/a.b \(python\)"):
        check_disjoint([str(tmp_path / "other"), str(folder)], str(folder), remote)
    with pytest.raises(Sr3dError, match="trained on as well"):
        ClipDataModule(str(folder), str(folder)).setup("fit")


def test_eight_bits_on_the_way_are_the_same_picture(folder: Path) -> None:
    plain, packed = (ClipBatches(folder, SMALL, shuffle=True, packed=p) for p in (False, True))
    for one, other in zip(plain, packed):
        assert other.high.images.dtype == other.target.images.dtype == torch.uint8
        for a, b in zip(
            (one.context, one.high, one.target), (lambda u: (u.context, u.high, u.target))(other.unpacked())
        ):
            assert torch.equal(a.images, b.images)


@pytest.mark.parametrize("source", [[], {}])
def test_no_data_is_an_error(source: object) -> None:
    with pytest.raises(Sr3dError, match="source: found nothing"):
        ClipBatches(source, SMALL, shuffle=False)


@pytest.mark.parametrize("fields", [{"factor": 0.5}, {"batch_size": 0}, {"factor": float("nan")}])
def test_wrong_numbers(fields: dict[str, float]) -> None:
    with pytest.raises(Sr3dError, match=next(iter(fields))):
        BatchConfig(**fields)


@pytest.mark.parametrize("shuffle", [False, True])
def test_texts_follow_their_clips(shuffle: bool, tmp_path: Path) -> None:
    clips = [scene_clip(clip(i)) for i in range(6)]
    for i, stored in enumerate(clips):
        stored.text = None if i % 3 == 0 else f"a façade, number {i}"
    write_shards(clips, tmp_path)
    texts = {stored.name: stored.text or "" for stored in clips}
    batches = [b.unpacked().to("cpu") for b in ClipBatches(tmp_path, SMALL, shuffle=shuffle, packed=True)]
    assert [t for b in batches for t in b.texts] == [texts[name] for name in _clips(batches)]
    assert sorted(_clips(batches)) == sorted(texts)
