from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sr3d import Cameras, Scene, Sr3dError
from sr3d.datasets.clip import scene_clip
from sr3d.datasets.degrade import DegradeConfig
from sr3d.datasets.evaluation import (
    EvaluationIndex,
    EvaluationItem,
    freeze,
    indexed_batches,
    read_evaluation,
    write_evaluation,
)
from sr3d.datasets.sample import StoredClip, encode_sample
from sr3d.datasets.views import ViewConfig

SIZE = 16


def _stored(name: str, views: int) -> StoredClip:
    """View i of a clip has the value i / 255 in its red channel."""
    pose = torch.eye(4, dtype=torch.float64).repeat(views, 1, 1)
    pose[:, 0, 3] = -0.1 * torch.arange(views)
    K = torch.tensor([[20.0, 0, 8], [0, 20, 8], [0, 0, 1]], dtype=torch.float64).repeat(views, 1, 1)
    images = torch.rand(views, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(views))
    images[..., 0] = torch.arange(views)[:, None, None] / 255
    cameras = Cameras(world_to_cam=pose, K=K, width=SIZE, height=SIZE)
    scene = Scene(images=images, cameras=cameras, depths=torch.full((views, SIZE, SIZE), 2.0), name=name)
    return StoredClip(encode_sample(scene_clip(scene)), "memory", name)


CLIPS = {name: _stored(name, views) for name, views in (("a", 12), ("b", 4), ("c", 9), ("scan1_train", 7))}


def _views(images: torch.Tensor) -> list[int]:
    return (images[..., 0, 0, 0] * 255).round().int().flatten().tolist()


def test_frozen_views_are_those_of_validation_and_survive_the_file(tmp_path: Path) -> None:
    config = ViewConfig(by="frames", low=6.0, high=8.0, target=2)
    index = freeze(CLIPS.values(), config, source="test set", sha256="0" * 64)
    assert [(i.clip, i.context, i.target) for i in index.items] == [
        ("a", [2, 9], [4, 7]),
        ("c", [0, 7], [2, 5]),
        ("scan1_train", [0, 6], [2, 4]),
    ]
    assert index.left_out == ["b"] and index.rule["by"] == "frames" and index.rule["low"] == 6
    path = tmp_path / "index.json"
    write_evaluation(path, index)
    first = path.read_bytes()
    assert read_evaluation(path) == index
    write_evaluation(path, index)
    assert path.read_bytes() == first and [p.name for p in tmp_path.iterdir()] == ["index.json"]
    assert json.loads(first)["data"] == {"source": "test set", "sha256": "0" * 64}


def test_freeze_by_overlap_reads_it_from_the_clips() -> None:
    # At depth 2 a step of 0.1 moves the image by one of 16 pixels: an overlap of 0.5 are 8 frames.
    index = freeze(CLIPS.values(), ViewConfig(by="overlap", low=0.4, high=0.6), source="test set")
    assert index.left_out == ["b", "scan1_train"]
    assert all(7 <= i.context[1] - i.context[0] <= 9 for i in index.items)
    with pytest.raises(Sr3dError, match=r"test set: clips: found 4 without such views, the first: a: .*11"):
        freeze(CLIPS.values(), ViewConfig(by="frames", low=30.0), source="test set")
    with pytest.raises(Sr3dError, match="test set: clips: found none"):
        freeze([], ViewConfig(), source="test set")


# As published: pixelSplat (null entries, targets among the inputs), MVSplat on DTU (several items per scene, unordered
# inputs, targets outside), NoPoSplat (overlap), DepthSplat (many inputs).
PUBLISHED = {
    "debc3490ba0bd84b": {"context": [34, 81], "target": [53, 66, 81]},
    "e74ceac9043aa1b8": None,
    "scan1_train_00": {"context": [33, 31], "target": [32]},
    "scan1_train_01": {"context": [33, 31], "target": [24]},
    "818f878fa36ae7bd": {"context": [0, 116], "target": [19, 37, 109], "overlap": 0.58415},
    "word": {"context": [0, 1, 2, 3, 4, 5], "target": [0, 6], "overlap": "large"},
    "7c": None,
}


def test_published_indices(tmp_path: Path) -> None:
    path = tmp_path / "evaluation_index_re10k.json"
    path.write_text(json.dumps(PUBLISHED))
    index = read_evaluation(path)
    assert index.left_out == ["e74ceac9043aa1b8", "7c"]
    assert {i.clip: i.context for i in index.items} == {k: v["context"] for k, v in PUBLISHED.items() if v}
    assert [i.target for i in index.items[:3]] == [[53, 66, 81], [32], [24]]
    assert [i.overlap for i in index.items] == [None, None, None, 0.58415, "large"]
    assert index.sha256 is None and index.source is None
    write_evaluation(tmp_path / "own.json", index)
    assert read_evaluation(tmp_path / "own.json") == index


def _own(change: Callable[[dict[str, object]], object]) -> str:
    item = {"clip": "a", "context": [0, 2], "target": [1]}
    data = {"source": "x", "sha256": None}
    content: dict[str, object] = {"format": "sr3d-evaluation", "version": 1, "data": data, "rule": {}, "left_out": []}
    content["items"] = [item]
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "content: found JSONDecodeError"),
        ("[" * 100_000, "content: found RecursionError"),
        ("[]", "content: found list"),
        ("{}", r"items: found none \(0 left out\)"),
        ('{"a": null}', r"items: found none \(1 left out\)"),
        ('{"a": [1, 2]}', r"'a': found \[1, 2\]; expected null, or"),
        ('{"a": {"context": [0, 1]}}', "'a'.target: found None"),
        ('{"a": {"context": [], "target": [1]}}', r"'a'.context: found \[\]"),
        ('{"a": {"context": [0, 0], "target": [1]}}', "'a'.context"),
        ('{"a": {"context": [0, -1], "target": [1]}}', "'a'.context"),
        ('{"a": {"context": [0, true], "target": [1]}}', "'a'.context"),
        ('{"a": {"context": [0, 1e300], "target": [1]}}', "'a'.context"),
        ('{"a": {"context": [0, 1], "target": ["2"]}}', "'a'.target"),
        ('{"a": {"context": [0, 1], "target": [2], "overlap": []}}', "'a'.overlap"),
        (_own(lambda c: c.update(format="other")), "format: found 'other'; expected sr3d-evaluation"),
        (_own(lambda c: c.update(version=2)), "version: found 2; expected 1"),
        (_own(lambda c: c.pop("rule")), "data, rule"),
        (_own(lambda c: c.update(data={"source": 3})), "data.source: found 3"),
        (_own(lambda c: c.update(left_out=[None])), "left_out"),
        (_own(lambda c: c.update(items={})), "items: found {}"),
        (_own(lambda c: c.update(items=[])), "items: found none"),
        (_own(lambda c: c.update(items=[{"context": [0], "target": [1]}])), r"items\[0\]: found"),
        (_own(lambda c: c.update(items=[{"clip": "a", "context": "01", "target": [1]}])), r"items\[0\].context"),
    ],
)
def test_broken_indices(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "index.json"
    path.write_text(text)
    with pytest.raises(Sr3dError, match=message) as error:
        read_evaluation(path)
    assert str(error.value).startswith(str(path)) and len(str(error.value)) < 400


def _index(*items: tuple[str, list[int], list[int]], sha256: str | None = None) -> EvaluationIndex:
    return EvaluationIndex(items=[EvaluationItem(clip=c, context=i, target=t) for c, i, t in items], sha256=sha256)


def test_batches_in_the_order_of_the_index() -> None:
    index = _index(("c", [0, 8], [4, 5]), ("a", [3, 1], [2]), ("scan1_train_01", [2, 4], [2, 6]), ("a", [7], [0, 11]))
    read: list[str] = []

    def lookup(name: str) -> StoredClip:
        read.append(name)
        return CLIPS[name]

    batches = list(indexed_batches(index, CLIPS, lookup, 4))
    assert read == ["c", "a", "scan1_train", "a"]
    assert [_views(b.high.images) for b in batches] == [i.context for i in index.items]
    assert [_views(b.target.images) for b in batches] == [i.target for i in index.items]
    assert batches[0].context.images.shape == (1, 2, 4, 4, 3) and batches[3].context.images.shape == (1, 1, 4, 4, 3)
    stored = CLIPS["a"].cameras.index([3, 1])
    torch.testing.assert_close(batches[1].high.posed().world_to_cam[0].double(), stored.world_to_cam)
    small = next(indexed_batches(index, CLIPS, CLIPS.__getitem__, 2, image_size=(12, 8)))
    assert small.target.images.shape == (1, 2, 8, 12, 3) and small.context.images.shape == (1, 2, 4, 6, 3)
    index.check_complete(len(batches))
    for wrong in (3, 5):
        with pytest.raises(Sr3dError, match=f"items evaluated: found {wrong}; expected 4"):
            index.check_complete(wrong)


def test_an_item_is_degraded_alike_wherever_it_stands() -> None:
    first, second = ("a", [0, 8], [4]), ("c", [0, 8], [4])
    config = DegradeConfig(method="realistic")
    whole, part, other = (
        [b.context.images for b in indexed_batches(_index(*items), CLIPS, CLIPS.__getitem__, 2, config, seed)]
        for items, seed in (((first, second), 1), ((second,), 1), ((second,), 2))
    )
    assert torch.equal(whole[1], part[0]) and not torch.equal(part[0], other[0])


def test_nothing_is_left_out_silently() -> None:
    names = [f"m{i}" for i in range(7)]
    index = _index(("a", [0, 2], [1]), *[(name, [0, 2], [1]) for name in names])
    with pytest.raises(Sr3dError, match=r"7 of 8 items without their clip: m0, m1, m2, m3, m4, \.\.\.;"):
        indexed_batches(index, CLIPS, CLIPS.__getitem__, 4)
    short = _index(("a", [0, 2], [1]), ("b", [0, 8], [4]))
    with pytest.raises(Sr3dError, match="b: views: found 4; expected view 8 of the evaluation index"):
        list(indexed_batches(short, CLIPS, CLIPS.__getitem__, 4))


def test_an_index_knows_its_shards() -> None:
    index = _index(("a", [0, 2], [1]), sha256="1" * 64)
    for same in (None, "1" * 64):
        assert len(list(indexed_batches(index, CLIPS, CLIPS.__getitem__, 4, sha256=same))) == 1
    with pytest.raises(Sr3dError, match=r"shards: found index.json with SHA-256 2222.*expected 1111"):
        indexed_batches(index, CLIPS, CLIPS.__getitem__, 4, sha256="2" * 64)


def test_only_the_views_of_an_item_are_decoded() -> None:
    members = dict(CLIPS["a"]._members)
    for view in set(range(12)) - {0, 4, 8}:
        members[f"{view:03d}.png"] = b"no image"
    damaged = StoredClip(members, "memory", "a")
    (batch,) = indexed_batches(_index(("a", [0, 8], [4])), ["a"], lambda name: damaged, 4)
    np.testing.assert_allclose(batch.target.images[0, 0, ..., 0].numpy(), 4 / 255)
