"""Captures of which every nth image is tested: which views are inputs, at which resolution, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import small_capture
from torch import Tensor

from sr3d import Sr3dError, load_scene
from sr3d.evaluation.case import Case
from sr3d.evaluation.cases import Sources, open_cases
from sr3d.evaluation.cases.base import CaseSet
from sr3d.evaluation.protocol import Protocol

COUNT, EVERY, INPUTS = 9, 4, 3
TESTS = [0, 4, 8]
DATA: dict[str, Any] = {
    "scenes": {"table": COUNT}, "every": EVERY, "input_divisor": 8, "target_divisor": 2, "inputs": INPUTS
}  # fmt: skip


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine photographs of 80 x 60 pixels on a path."""
    return small_capture(tmp_path_factory.mktemp("holdout") / "table", views=COUNT)


def opened(capture: Path, factor: int = 4, paths: list[Path] | None = None, **data: Any) -> CaseSet:
    protocol = Protocol(name="held", title="Held out", kind="holdout", data=DATA | data, factor=factor, metrics=[])
    return open_cases(protocol, Sources(paths=[capture] if paths is None else paths))


@pytest.fixture(scope="module")
def case(capture: Path) -> Case:
    return opened(capture).load(1)


def brute_force(folder: Path, test: int, count: int) -> list[int]:
    """Training views by the distance of their centres, from the file alone (OpenGL camera to world)."""
    frames = json.loads((folder / "transforms.json").read_text())["frames"]
    poses = [np.array(frame["transform_matrix"]) for frame in frames]
    found = []
    for k, pose in enumerate(poses):
        if k % EVERY != 0 and float(pose[:3, 2] @ poses[test][:3, 2]) > 0:
            found.append((math.dist(pose[:3, 3], poses[test][:3, 3]), k))
    return [k for _, k in sorted(found)][:count]


def used(cases: CaseSet) -> list[list[int]]:
    return [item["inputs"] for item in cases.index["items"]]


def test_every_nth_image_is_tested_and_its_nearest_neighbours_are_inputs(capture: Path) -> None:
    cases = opened(capture)
    assert cases.names == ["table/0.png", "table/4.png", "table/8.png"] and cases.views == 3
    assert cases.scenes == ["table"] * 3
    assert [item["test"] for item in cases.index["items"]] == [[0], [4], [8]]
    for test, inputs in zip(TESTS, used(cases)):
        assert inputs == brute_force(capture, test, INPUTS) and not set(inputs) & set(TESTS)
    # Six of nine are there to choose from, however many are asked for.
    for test, inputs in zip(TESTS, used(opened(capture, inputs=8))):
        assert inputs == brute_force(capture, test, 8) and sorted(inputs) == [1, 2, 3, 5, 6, 7]
    assert opened(capture).digest == cases.digest != opened(capture, inputs=2).digest


def test_a_view_that_looks_the_other_way_is_no_input(capture: Path, tmp_path: Path) -> None:
    folder = turned(capture, tmp_path / "table", [3, 5])
    assert used(opened(folder))[1] == brute_force(folder, 4, INPUTS) and not {3, 5} & set(used(opened(folder))[1])
    assert {3, 5} <= set(used(opened(capture))[1])
    lonely = turned(capture, tmp_path / "lonely" / "table", [k for k in range(COUNT) if k % EVERY])
    with pytest.raises(Sr3dError, match=r"0\.png: inputs: found no training view looks the same way"):
        opened(lonely)


def turned(capture: Path, folder: Path, views: list[int]) -> Path:
    """The capture with some cameras looking backwards from where they are."""
    content = json.loads((capture / "transforms.json").read_text())
    for k in views:
        matrix = np.array(content["frames"][k]["transform_matrix"])
        content["frames"][k]["transform_matrix"] = (matrix @ np.diag([-1.0, 1, -1, 1])).tolist()
    folder.mkdir(parents=True)
    for name in ("images", "depth"):
        (folder / name).symlink_to(capture / name)
    (folder / "transforms.json").write_text(json.dumps(content))
    return folder


def test_test_views_of_a_group_share_their_inputs(capture: Path) -> None:
    cases = opened(capture, views=2, inputs=2)
    assert cases.names == ["table/0.png+4.png", "table/8.png"] and cases.views == 3
    for tests, inputs in zip(([0, 4], [8]), used(cases)):
        separate = [brute_force(capture, test, 2) for test in tests]
        assert len(inputs) == len(set(inputs)) and set(inputs) == {k for ks in separate for k in ks}
    found, shown = cases.load(0), load_scene(capture)
    assert found.frames == ["0.png", "4.png"] and found.truth is not None and found.context is not None
    assert len(found.context) == len(used(cases)[0])
    for k, view in enumerate((0, 4)):
        centre = shown.posed().positions[view]
        torch.testing.assert_close(found.cameras.positions[k], centre, atol=1e-5, rtol=0)


def reduced(images: Tensor, side: int) -> Tensor:
    return images.unflatten(1, (-1, side)).unflatten(3, (-1, side)).mean(dim=(2, 4))


def test_resolutions_are_those_of_the_divisors(case: Case, capture: Path) -> None:
    """60 rows: the central 56 are whole multiples of 8."""
    assert case.context is not None and case.truth is not None and case.reduced is not None
    whole = load_scene(capture)
    kept = whole.images[:, 2:58]
    inputs = brute_force(capture, 4, INPUTS)
    torch.testing.assert_close(case.truth.images, reduced(kept[[4]], 2))
    torch.testing.assert_close(case.context.images, reduced(kept[inputs], 8))
    torch.testing.assert_close(case.reduced.images, reduced(kept[[4]], 8))
    assert [path.name for path in case.context.paths] == [f"{k}.png" for k in inputs]
    assert case.frames == ["4.png"] and case.levels == [1] and case.folder == str(capture) and case.center is None


def test_a_point_is_seen_at_the_same_place_by_every_resolution(case: Case, capture: Path) -> None:
    assert case.context is not None and case.reduced is not None
    whole = load_scene(capture)
    assert whole.depths is not None
    point = whole.posed().index([4]).unproject(whole.depths[[4]])[0, 31, 42]
    inputs = brute_force(capture, 4, INPUTS)
    original, _ = whole.posed().project(point[None])
    shift = torch.tensor([0.0, 2.0])
    high, depth = case.cameras.project(point[None])
    low, _ = case.context.posed().project(point[None])
    small, _ = case.reduced.posed().project(point[None])
    torch.testing.assert_close(high[0, 0], torch.tensor([42.5, 29.5]) / 2, atol=1e-3, rtol=0)
    torch.testing.assert_close(high, 4 * small, atol=1e-3, rtol=0)
    torch.testing.assert_close(low[:, 0], (original[inputs, 0] - shift) / 8, atol=1e-3, rtol=0)
    assert float(depth[0, 0]) == pytest.approx(float(whole.depths[4, 31, 42]), rel=1e-4)


def test_a_zoom_has_no_truth(capture: Path) -> None:
    cases = opened(capture, levels=[2, 8])
    assert cases.views == 6
    found = cases.load(1)
    assert found.truth is None and found.context is not None and found.reduced is not None
    assert found.levels == [2, 8] and found.frames == ["2x", "8x"] and found.center == (5.0, 3.5)
    first = found.context.posed().index([0])
    assert (found.cameras.width, found.cameras.height) == (10, 7)
    torch.testing.assert_close(found.cameras.focal, first.focal * torch.tensor([2.0, 8.0]))
    assert torch.equal(found.reduced.images, found.context.images[[0, 0]])
    # The view that is zoomed into is the nearest training view, not the test view.
    assert found.context.paths[0].name == f"{brute_force(capture, 4, 1)[0]}.png"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"scenes": {"table": 8}}, "table: images: found 9; expected 8, as the protocol says"),
        ({"scenes": {"table": 9, "bicycle": 194}}, "--scenes: found no folder bicycle; expected all of table, bicycle"),
        ({"input_divisor": 4}, "data.input_divisor: found 4; expected target_divisor times the factor: 2 x 4"),
        ({"factor": 2}, "data.input_divisor: found 8; expected target_divisor times the factor: 2 x 2"),
        ({"paths": []}, "--scenes: found none"),
        ({"every": 1}, "every: found 1; expected 2 or more"),
        ({"inputs": 9}, "more images than the 9 inputs"),
    ],
)
def test_what_does_not_fit_is_refused(capture: Path, change: dict[str, Any], expected: str) -> None:
    with pytest.raises(Sr3dError) as error:
        opened(capture, **change)
    assert expected in str(error.value)


def test_scenes_that_the_protocol_does_not_know_are_refused(capture: Path, tmp_path: Path) -> None:
    (tmp_path / "attic").mkdir()
    protocol = Protocol(name="held", title="", kind="holdout", data=DATA, factor=4, metrics=[])
    with pytest.raises(Sr3dError, match="--scenes: found attic; expected scenes of the protocol: table"):
        open_cases(protocol, Sources(paths=[capture, tmp_path / "attic"]))


def test_an_index_has_no_place_here(capture: Path) -> None:
    protocol = Protocol(name="held", title="", kind="holdout", data=DATA, factor=4, metrics=[])
    with pytest.raises(Sr3dError, match=r"--index: found a\.json; expected none: the protocol says which views"):
        open_cases(protocol, Sources(paths=[capture], index=Path("a.json")))


def test_images_of_one_name_in_two_folders_are_refused(capture: Path, tmp_path: Path) -> None:
    """Results of one would take the place of the other's."""
    content = json.loads((capture / "transforms.json").read_text())
    (tmp_path / "table").mkdir()
    for k, frame in enumerate(content["frames"]):
        image = tmp_path / "table" / f"camera {k % 3}" / f"{k // 3}.png"
        image.parent.mkdir(exist_ok=True)
        image.symlink_to(capture / frame["file_path"])
        frame["file_path"] = str(image)
        del frame["depth_file_path"]
    (tmp_path / "table" / "transforms.json").write_text(json.dumps(content))
    with pytest.raises(Sr3dError, match=r"cases: found table/\d\.png twice; expected a name of its own"):
        opened(tmp_path / "table", every=2, inputs=1)
    assert opened(tmp_path / "table", every=3, inputs=1).names == [f"table/{k}.png" for k in range(3)]


def test_a_folder_without_poses_is_refused(capture: Path, tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "images").symlink_to(capture / "images")
    with pytest.raises(Sr3dError, match=r"table: scene: found no poses; expected transforms\.json, a COLMAP model"):
        opened(tmp_path / "table")
