"""Cases of shards by a frozen index: which views, from which clip, with what is known about it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small import small_capture
from stored import H, W, clip

from sr3d import Scene, Sr3dError
from sr3d.datasets import write_shards
from sr3d.datasets.clip import Clip, encode_ids, scene_clip
from sr3d.datasets.degrade import DegradeConfig, degrade
from sr3d.evaluation.cases import Sources, open_cases
from sr3d.evaluation.cases.base import CaseSet
from sr3d.evaluation.protocol import Protocol

PACK, WHERE = "sr3d pack toy Toys shards/toys", "an index of toys: ask their owner"
INDEX = {
    "hall": {"context": [0, 3], "target": [1, 2]},
    "attic": {"context": [2, 0], "target": [1]},
    "hall_01": {"context": [0, 3], "target": [2]},
    "cellar": None,
}
HEAD = {"format": "sr3d-evaluation", "version": 1, "data": {}, "rule": {}, "left_out": []}


def long_clip(number: int, name: str) -> Scene:
    """Five views: three of one random clip and two of another."""
    a, b = clip(number), clip(number + 2)
    assert a.depths is not None and b.depths is not None
    return Scene(
        images=torch.cat([a.images, b.images[:2]]),
        cameras=a.posed().cat([a.posed(), b.posed().index([0, 1])]),
        depths=torch.cat([a.depths, b.depths[:2]]),
        name=name,
    )


def described(scene: Scene, text: str | None) -> Clip:
    """With names of frames, classes and a text; a pixel's class is its column's number modulo 4."""
    out = scene_clip(scene)
    ids = (torch.arange(W) % 4).expand(H, W).numpy()
    for i, view in enumerate(out.views):
        view.frame, view.semantics = f"frame-{10 * i:04d}", encode_ids(ids, scene.name)
    return replace(out, classes=["wall", "floor", "chair"], text=text)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "toys"
    write_shards(
        [described(long_clip(0, "hall"), "a hall with a chair"), described(long_clip(4, "attic"), None)], folder
    )
    return folder


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("index") / "toys.json"
    path.write_text(json.dumps(INDEX))
    return path


def opened(paths: list[Path], index: Path | None = None, **data: Any) -> CaseSet:
    values = {"pack": PACK, "where": WHERE} | data
    protocol = Protocol(name="toys", title="Toys", kind="shards", data=values, factor=2, metrics=[])
    return open_cases(protocol, Sources(paths=paths, index=index))


def test_every_item_of_an_index_is_a_case_of_its_own(shards: Path, index: Path) -> None:
    cases = opened([shards], index, items=3)
    assert cases.names == ["hall/0+3", "attic/2+0", "hall_01/0+3"] and cases.views == 4
    assert cases.scenes == ["hall", "attic", "hall_01"]
    assert cases.index["items"][1] == {"clip": "attic", "context": [2, 0], "target": [1], "overlap": None}
    assert len(cases.index["shards"]) == 64
    first, again = cases.load(0), cases.load(2)
    assert first.context is not None and again.context is not None and again.truth is not None
    assert torch.equal(first.context.images, again.context.images) and first.truth is not None
    assert torch.equal(first.truth.images[1:], again.truth.images)


def test_two_items_of_one_clip_and_inputs_have_different_names(shards: Path, tmp_path: Path) -> None:
    items = [{"clip": "hall", "context": [0, 3], "target": [t]} for t in (1, 2)]
    items += [{"clip": "attic", "context": [0, 2], "target": [1]}, {"clip": "hall", "context": [0, 3], "target": [1]}]
    path = tmp_path / "twice.json"
    path.write_text(json.dumps({**HEAD, "items": items}))
    cases = opened([shards], path)
    assert cases.names == ["hall/0+3", "hall/0+3 (2)", "attic/0+2", "hall/0+3 (3)"]
    assert [cases.load(i).name for i in range(4)] == cases.names
    assert [cases.load(i).frames for i in (0, 1, 3)] == [["frame-0010"], ["frame-0020"], ["frame-0010"]]
    assert cases.digest != opened([shards], rewritten(path, list(reversed(items)))).digest


def test_so_have_two_items_of_a_capture(tmp_path: Path) -> None:
    capture, path = small_capture(tmp_path / "table"), tmp_path / "twice.json"
    items = [{"clip": "table", "context": [0, 4], "target": [t]} for t in (1, 2)]
    path.write_text(json.dumps({**HEAD, "items": items}))
    protocol = Protocol(name="own", title="Own", kind="folder", data={"max_pixels": 400}, factor=4, metrics=[])
    cases = open_cases(protocol, Sources(paths=[capture], index=path))
    assert cases.names == ["table/0+4", "table/0+4 (2)"] == [cases.load(i).name for i in range(2)]
    assert [cases.load(i).frames for i in range(2)] == [["1.png"], ["2.png"]]


def rewritten(path: Path, items: list[dict[str, Any]]) -> Path:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "items": items}))
    return path


def test_views_are_those_of_the_clip_with_all_that_is_known(shards: Path, index: Path) -> None:
    cases, scene = opened([shards], index), long_clip(0, "hall")
    case, other = cases.load(0), cases.load(1)
    assert case.truth is not None and case.context is not None and case.reduced is not None
    torch.testing.assert_close(case.truth.images, scene.images[[1, 2]], atol=1e-6, rtol=0)
    blocks = scene.images.unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).mean(dim=(2, 4))
    torch.testing.assert_close(case.context.images, blocks[[0, 3]], atol=1e-6, rtol=0)
    torch.testing.assert_close(case.reduced.images, blocks[[1, 2]], atol=1e-6, rtol=0)
    assert scene.depths is not None and case.truth.depths is not None and case.truth.labels is not None
    torch.testing.assert_close(case.truth.depths, scene.depths[[1, 2]], atol=1e-4, rtol=0)
    assert torch.equal(case.truth.labels, (torch.arange(W) % 4).expand(2, H, W).to(case.truth.labels))
    torch.testing.assert_close(case.cameras.K, scene.posed().K[[1, 2]])
    torch.testing.assert_close(case.cameras.world_to_cam, scene.posed().world_to_cam[[1, 2]])
    torch.testing.assert_close(case.context.posed().K, scene.posed().resized(W // 2, H // 2).K[[0, 3]])
    assert case.frames == ["frame-0010", "frame-0020"] and other.frames == ["frame-0010"]
    assert (case.text, other.text) == ("a hall with a chair", "")
    assert case.classes == other.classes == ["wall", "floor", "chair"] and case.center is None


def test_inputs_are_reduced_as_the_protocol_says(shards: Path, index: Path) -> None:
    case = opened([shards], index, degrade="lanczos").load(0)
    assert case.context is not None
    expected = degrade(long_clip(0, "hall").images[[0, 3]], (W // 2, H // 2), DegradeConfig(method="lanczos"), 0)
    torch.testing.assert_close(case.context.images, expected, atol=1e-5, rtol=0)
    area = opened([shards], index).load(0).context
    assert area is not None and float((area.images - expected).abs().mean()) > 0.01


def test_views_are_resized_first(shards: Path, index: Path) -> None:
    """Of 16 x 12 pixels the middle 12 x 12, at 8 x 8."""
    case = opened([shards], index, image_size=[8, 8]).load(0)
    assert case.context is not None and (case.cameras.width, case.cameras.height) == (8, 8)
    K = long_clip(0, "hall").posed().cropped(2, 0, 12, 12).resized(8, 8).K[[1, 2]]
    torch.testing.assert_close(case.cameras.K, K)
    assert tuple(case.context.images.shape) == (2, 4, 4, 3)


def test_without_an_index_the_ends_of_every_clip_are_the_inputs(shards: Path) -> None:
    cases = opened([shards], where="")
    assert cases.names == ["hall/0+4", "attic/0+4"] and cases.views == 6
    assert [cases.load(i).frames for i in range(2)] == [["frame-0010", "frame-0020", "frame-0030"]] * 2


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"items": 4}, "toys.json: items: found 3; expected 4, as the protocol says"),
        ({"index": None}, f"--index: found none; expected {WHERE}"),
        ({"paths": []}, f"--scenes: found 0 paths; expected one folder of shards, e.g. of `{PACK}`"),
        ({"paths": ["a", "b"]}, "--scenes: found 2 paths"),
        ({"paths": ["nowhere"]}, "nowhere"),
        ({"image_size": [9, 9]}, "data.image_size: found [9, 9]; expected multiples of the factor 2"),
    ],
)
def test_what_does_not_fit_is_refused(shards: Path, index: Path, change: dict[str, Any], expected: str) -> None:
    paths = [Path(p) for p in change.pop("paths", [shards])]
    with pytest.raises(Sr3dError) as error:
        opened(paths, change.pop("index", index), **change).load(0)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"barn": {"context": [0, 1], "target": [2]}}, "1 of 1 items without their clip: barn"),
        ({"hall": {"context": [0, 5], "target": [2]}}, "hall: views: found 5; expected view 5 of the evaluation index"),
        ({"hall": {"context": [0, 0], "target": [2]}}, "'hall'.context"),
    ],
)
def test_an_index_that_means_other_data_is_refused(
    shards: Path, tmp_path: Path, item: dict[str, Any], expected: str
) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps(item))
    with pytest.raises(Sr3dError) as error:
        opened([shards], path).load(0)
    assert expected in str(error.value)


def test_clips_that_are_too_short_are_not_dropped_silently(tmp_path: Path) -> None:
    write_shards([long_clip(0, "hall"), clip(4)], tmp_path / "short")
    protocol = replace(PLAIN, data={"pack": PACK, "where": ""})
    with pytest.raises(Sr3dError, match=r"clips: found 1 of fewer than 5 views, such as .*--index"):
        open_cases(protocol, Sources(paths=[tmp_path / "short"]))
    write_shards([long_clip(0, "hall")], tmp_path / "long")
    assert open_cases(protocol, Sources(paths=[tmp_path / "long"])).names == ["hall/0+4"]


PLAIN = Protocol(name="plain", title="", kind="shards", data={}, factor=2, metrics=[])
