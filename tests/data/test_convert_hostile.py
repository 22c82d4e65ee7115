"""What must be one dropped scene or frame, and never the end of a run."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from captures import convert, file_of, picture, poses, write
from sr3d_data.folders import Folders
from sr3d_data.nerfstudio import Nerfstudio
from sr3d_data.re10k import RealEstate10K
from test_convert_re10k import chunk, scene

from sr3d.datasets.assemble import check_K, pose_problem, whole_image
from sr3d.datasets.pack import PackConfig, pack
from sr3d.datasets.shards import list_shards, read_clips
from sr3d.errors import Sr3dError


@pytest.mark.parametrize(
    "change",
    [
        lambda s: {"cameras": s["cameras"].requires_grad_()},
        lambda s: {"cameras": torch.nn.Parameter(s["cameras"])},
        lambda s: {"cameras": s["cameras"].to_sparse()},
        lambda s: {"images": [i.to("meta") for i in s["images"]]},
        lambda s: {"timestamps": s["timestamps"].to("meta")},
        lambda s: {"key": "a"},
    ],
)
def test_tensors_without_plain_numbers_and_keys_twice_drop_their_scene(tmp_path: Path, change) -> None:
    odd = scene("b", seed=2)
    chunk(tmp_path / "test", 0, [scene("a", seed=1), odd | change(odd)])
    clips, drops = convert(RealEstate10K(), tmp_path, split="test")
    assert [c.name for c in clips] == ["a"] and dict(drops.scenes) == {"damaged": 1}


def test_scenes_that_share_their_tensors_do_not_multiply(tmp_path: Path) -> None:
    one = scene("a")
    path = chunk(tmp_path / "test", 0, [one | {"key": f"k{i}"} for i in range(200)])
    clips, drops = convert(RealEstate10K(), tmp_path, split="test")
    assert sum(len(v.image) for c in clips for v in c.views) <= path.stat().st_size
    assert len(clips) + drops.scenes["damaged"] == 200


def _capture(folder: Path) -> Path:
    frames = []
    for i, pose in enumerate(poses(3)):
        write(folder / f"images/{i}.png", file_of(picture(40, 30, i), "PNG"))
        frames.append(f'{{"file_path": "images/{i}.png", "transform_matrix": {pose.tolist()}}}')
    head = '"fl_x": 40, "fl_y": 40, "cx": 20, "cy": 15, "w": 40, "h": 30'
    write(folder / "transforms.json", f'{{{head}, "frames": [{", ".join(frames)}]}}')
    return folder


def test_folders_whose_names_are_no_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    _capture(tmp_path / "src" / name)
    _capture(tmp_path / "src" / "other")
    pack(Nerfstudio(), tmp_path / "src", tmp_path / "out", config=PackConfig(workers=1), progress=False)
    clips = [clip for shard in list_shards(tmp_path / "out") for clip in read_clips(shard)]
    assert sorted(c.name for c in clips) == sorted([name, "other"])


def test_a_png_that_is_damaged_inside_is_not_stored(tmp_path: Path) -> None:
    data = bytearray(file_of(picture(40, 30), "PNG"))
    assert whole_image(bytes(data)) == (40, 30)
    data[len(data) // 2] ^= 1
    assert whole_image(bytes(data)) is None
    write(_capture(tmp_path / "a") / "images/1.png", bytes(data))
    (clip,), drops = convert(Nerfstudio(), tmp_path / "a")
    assert len(clip.views) == 2 and dict(drops.frames) == {"damaged": 1}


@pytest.mark.parametrize(
    "K",
    [
        [[20, 0, 10], [0, 20, 7.5], [0, 0, 1]],  # of half the size
        [[40, 20, 20], [0, 40, 15], [0, 0, 1]],  # skew
        [[40, 0, 20], [0, 40, 15], [0.3, 0, 1]],
        [[1e300, 0, 20], [0, 40, 15], [0, 0, 1]],
        [[0, 0, 20], [0, 40, 15], [0, 0, 1]],
        [[np.nan, 0, 20], [0, 40, 15], [0, 0, 1]],
    ],
)
def test_impossible_intrinsics(K: list[list[float]]) -> None:
    check_K(np.array([[40.0, 0, 20], [0, 40, 15], [0, 0, 1]]), (40, 30), "test", "view")
    with pytest.raises(Sr3dError, match="view"):
        check_K(np.array(K, np.float64), (40, 30), "test", "view")


def test_poses_that_readers_would_refuse() -> None:
    pose = poses(1)[0]
    assert pose_problem(pose) is None
    for row, column, value, reason in ((3, 3, 2.0, "not a rotation"), (0, 3, 1e7, "too far"), (1, 1, np.inf, "finite")):
        changed = pose.copy()
        changed[row, column] = value
        assert reason in str(pose_problem(changed))


def test_intrinsics_that_cannot_be_inverted_are_an_error_not_a_crash(tmp_path: Path) -> None:
    for i, pose in enumerate(poses(3)):
        write(tmp_path / f"color/{i}.jpg", file_of(picture(40, 30, i), "JPEG"))
        write(tmp_path / f"depth/{i}.png", np.full((30, 40), 2000, np.uint16))
        write(tmp_path / f"pose/{i}.txt", "\n".join(" ".join(map(str, row)) for row in pose))
    for name in ("color", "depth"):
        write(tmp_path / f"intrinsic/intrinsic_{name}.txt", "0 0 20 0\n0 40 15 0\n0 0 1 0\n0 0 0 1")
    clips, drops = convert(Folders(), tmp_path)
    assert not clips and dict(drops.frames) == {"damaged": 3}
