"""The converter of DL3DV-10K."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from captures import convert, decode, file_of, picture, poses, to_world, write
from sr3d_data import dl3dv
from sr3d_data.dl3dv import Dl3dv

from sr3d import Sr3dError
from sr3d.datasets.converter import split_of

FULL = (3840, 2160)
FOCAL, CENTRE, LENS = (1735.4, 1733.1), (1921.5, 1078.2), (0.021, -0.033, 0.0011, -0.0007)


def name(seed: int) -> str:
    return hashlib.sha256(str(seed).encode()).hexdigest()


def dl3dv_scene(folder: Path, views: int = 3, factor: int = 16, lens: tuple[float, ...] = LENS) -> np.ndarray:
    """Write a scene as DL3DV's zips hold it; its true OpenCV camera-to-world matrices. Copies lie in images_4."""
    truth = poses(views)
    frames = []
    for i, pose in enumerate(truth):
        copy = picture(FULL[0] // factor, FULL[1] // factor, i)
        write(folder / f"images_4/frame_{i + 1:05d}.png", file_of(copy, "PNG"))
        matrix = (pose @ np.diag([1.0, -1, -1, 1])).tolist()
        frames.append({"file_path": f"images/frame_{i + 1:05d}.png", "transform_matrix": matrix, "colmap_im_id": i + 1})
    document = {
        "w": FULL[0], "h": FULL[1], "fl_x": FOCAL[0], "fl_y": FOCAL[1], "cx": CENTRE[0], "cy": CENTRE[1],
        **dict(zip(("k1", "k2", "p1", "p2"), lens)), "camera_model": "OPENCV", "frames": frames,
        "applied_transform": [[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [-0.0, -0.0, -1.0, -0.0]],
    }  # fmt: skip
    write(folder / "transforms.json", json.dumps(document))
    return truth


def test_benchmark_list() -> None:
    lines = [line for line in Path(dl3dv.__file__).with_name("dl3dv_benchmark.txt").read_text().splitlines()]
    hashes = [line for line in lines if not line.startswith("#")]
    assert len(hashes) == len(set(hashes)) == 140 and hashes == sorted(hashes)
    assert all(re.fullmatch("[0-9a-f]{64}", line) for line in hashes)
    assert Dl3dv().test_scenes() == set(hashes)


@pytest.mark.parametrize("layout", ["1K/{0}", "{0}/nerfstudio", "{0}/{0}", "{0}"])
def test_layouts(tmp_path: Path, layout) -> None:
    truth = dl3dv_scene(tmp_path / layout.format(name(1)), lens=(0.0, 0.0, 0.0, 0.0))
    (clip,), drops = convert(Dl3dv(), tmp_path)
    assert (clip.name, clip.scene, clip.metric) == (name(1), name(1), False)
    np.testing.assert_allclose(to_world(clip), truth, atol=1e-12)
    expected = np.array([[FOCAL[0] / 16, 0, CENTRE[0] / 16], [0, FOCAL[1] / 16, CENTRE[1] / 16], [0, 0, 1]])
    assert all(np.abs(v.K - expected).max() < 1e-12 and v.size == (240, 135) for v in clip.views)
    assert clip.views[1].image == file_of(picture(240, 135, 1), "PNG") and not drops.frames


def test_a_scene_alone(tmp_path: Path) -> None:
    dl3dv_scene(tmp_path / name(1))
    assert [e.name for e in Dl3dv().entries(tmp_path / name(1), "all")] == [name(1)]


def test_distortion_is_undone(tmp_path: Path) -> None:
    dl3dv_scene(tmp_path / name(1), views=1)
    (clip,), _ = convert(Dl3dv(), tmp_path, lossless=True)
    image, K = decode(clip.views[0].image), clip.views[0].K
    source = picture(240, 135, 0)[..., 0].astype(np.float32)
    k1, k2, p1, p2 = LENS
    for u, v in ((120, 67), (15, 10), (222, 120), (30, 110)):
        x, y = (u + 0.5 - K[0, 2]) / K[0, 0], (v + 0.5 - K[1, 2]) / K[1, 1]
        r = x * x + y * y
        radial = 1 + k1 * r + k2 * r * r
        xd = x * radial + 2 * p1 * x * y + p2 * (r + 2 * x * x)
        yd = y * radial + p1 * (r + 2 * y * y) + 2 * p2 * x * y
        column, row = (FOCAL[0] * xd + CENTRE[0]) / 16 - 0.5, (FOCAL[1] * yd + CENTRE[1]) / 16 - 0.5
        assert abs(float(image[v, u, 0]) - cv2.getRectSubPix(source, (1, 1), (column, row))[0, 0]) < 2


def test_splits_keep_the_benchmark_out_of_training(tmp_path: Path) -> None:
    bench = sorted(Dl3dv().test_scenes())[:3]
    others = [name(i) for i in range(40)]
    for i, scene in enumerate([*bench, *others]):
        (tmp_path / f"{1 + i % 2}K" / scene).mkdir(parents=True)
    found = {s: [e.name for e in Dl3dv().entries(tmp_path, s)] for s in ("train", "validation", "test", "all")}
    assert found["test"] == bench
    assert found["validation"] == sorted(n for n in others if split_of(n) == "validation")
    assert sorted(found["train"] + found["validation"]) == sorted(others)
    assert 0 < len(found["validation"]) < 12 and found["all"] == sorted([*bench, *others])
    meta = write(tmp_path / "benchmark-meta.csv", f"hash,label\n{others[0]},indoor\n{others[1]},outdoor\n")
    own = Dl3dv(benchmark=meta)
    assert [e.name for e in own.entries(tmp_path, "test")] == sorted(others[:2])
    assert not {*others[:2]} & {e.name for e in own.entries(tmp_path, "train")}


def test_missing_copies_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / name(1)
    truth = dl3dv_scene(folder)
    (folder / "images_4/frame_00002.png").unlink()
    (clip,), drops = convert(Dl3dv(), tmp_path)
    np.testing.assert_allclose(to_world(clip), truth[[0, 2]], atol=1e-12)
    assert dict(drops.frames) == {"image missing": 1}


def test_copies_of_another_shape_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / name(1)
    dl3dv_scene(folder)
    write(folder / "images_4/frame_00002.png", file_of(picture(240, 160), "PNG"))
    (clip,), drops = convert(Dl3dv(), tmp_path)
    assert len(clip.views) == 2 and dict(drops.frames) == {"damaged": 1}
    assert "found 240x160; expected the aspect ratio of w, h: 3840x2160" in drops.examples[0]


@pytest.mark.parametrize(
    ("converter", "remove", "text"),
    [
        (Dl3dv(images="images_8"), None, "no images_8/; there is images_4"),
        (Dl3dv(), "transforms.json", "transforms.json: file: found FileNotFoundError"),
    ],
)
def test_bad_scene_is_one_error(tmp_path: Path, converter, remove, text) -> None:
    dl3dv_scene(tmp_path / name(1))
    if remove:
        (tmp_path / name(1) / remove).unlink()
    with pytest.raises(Sr3dError, match=re.escape(text)):
        convert(converter, tmp_path)


def test_bad_sources(tmp_path: Path) -> None:
    write(tmp_path / f"zips/1K/{name(1)}.zip", b"PK")
    with pytest.raises(Sr3dError, match="1 zip files: unzip each"):
        Dl3dv().entries(tmp_path / "zips", "train")
    for subset in ("1K", "2K"):
        (tmp_path / "twice" / subset / name(1)).mkdir(parents=True)
    with pytest.raises(Sr3dError, match="two folders"):
        Dl3dv().entries(tmp_path / "twice", "train")
    with pytest.raises(Sr3dError, match="none of 1 scenes in 'test'"):
        Dl3dv().entries(tmp_path / "twice/1K", "test")
    with pytest.raises(Sr3dError, match="benchmark: found no hash"):
        Dl3dv(benchmark=write(tmp_path / "empty.csv", "hash\n")).entries(tmp_path / "twice/1K", "train")
    with pytest.raises(Sr3dError, match="benchmark: found FileNotFoundError"):
        Dl3dv(benchmark=tmp_path / "gone.csv").entries(tmp_path / "twice/1K", "train")
