"""Converters of single captures: nerfstudio and instant-ngp, COLMAP."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from captures import convert, decode, file_of, picture, poses, to_world, write
from sr3d_data.colmap import Colmap
from sr3d_data.nerfstudio import Nerfstudio

from sr3d import Sr3dError
from sr3d.datasets.converter import ClipOptions, Converter, Drops, split_of

WIDTH, HEIGHT = 40, 30
K = np.array([[44.0, 0, 19.2], [0, 43.0, 15.7], [0, 0, 1]])


def nerfstudio(folder: Path, views: int = 4, depth: bool = False) -> tuple[np.ndarray, dict]:
    """Write a capture as ns-process-data does; its true OpenCV camera-to-world matrices and the JSON document."""
    truth = poses(views)
    frames = []
    for i, pose in enumerate(truth):
        write(folder / f"images/frame_{i + 1:05d}.png", file_of(picture(WIDTH, HEIGHT, i), "PNG"))
        frame: dict[str, Any] = {"file_path": f"images/frame_{i + 1:05d}.png", "colmap_im_id": i + 1}
        frame["transform_matrix"] = (pose @ np.diag([1.0, -1, -1, 1])).tolist()
        if depth:
            frame["depth_file_path"] = f"depth/{i}.png"
            write(folder / f"depth/{i}.png", np.full((HEIGHT, WIDTH), 1000 + i, np.uint16))
        frames.append(frame)
    head = {"w": WIDTH, "h": HEIGHT, "fl_x": K[0, 0], "fl_y": K[1, 1], "cx": K[0, 2], "cy": K[1, 2]}
    lens = {"k1": 0.0, "k2": 0.0, "p1": 0.0, "p2": 0.0, "camera_model": "OPENCV"}
    document = {**head, **lens, "frames": frames}
    save(folder, document)
    return truth, document


def save(folder: Path, document: dict) -> None:
    write(folder / "transforms.json", json.dumps(document))


def colmap_text(folder: Path, views: int = 4) -> np.ndarray:
    """Write a model as `colmap model_converter --output_type TXT` does; its true camera-to-world matrices."""
    truth = poses(views)
    lines = [
        "# Image list with two lines of data per image:",
        "#   IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME",
    ]
    for i, pose in enumerate(np.linalg.inv(truth)):
        w, x, y, z = quaternion(pose[:3, :3])
        tx, ty, tz = pose[:3, 3]
        lines += [f"{i + 1} {w} {x} {y} {z} {tx} {ty} {tz} 1 p{i}.png", "1.5 2.5 -1 3.25 4.0 7"]
        write(folder / f"images/p{i}.png", file_of(picture(WIDTH, HEIGHT, i), "PNG"))
    write(folder / "sparse/0/images.txt", "\n".join(lines) + "\n")
    camera = f"1 PINHOLE {WIDTH} {HEIGHT} {K[0, 0]} {K[1, 1]} {K[0, 2]} {K[1, 2]}"
    write(folder / "sparse/0/cameras.txt", f"# Camera list with one line of data per camera:\n{camera}\n")
    write(folder / "sparse/0/points3D.txt", "# 3D point list\n7 0.25 -0.5 1.5 10 20 30 0.7 1 1\n9 0 0 0 1 2 3 0.1\n")
    return truth


def colmap_binary(folder: Path) -> np.ndarray:
    """The same model as COLMAP's own .bin files."""
    truth = colmap_text(folder)
    model = folder / "sparse/0"
    for name in ("cameras", "images", "points3D"):
        (model / f"{name}.txt").unlink()
    camera = struct.pack("<QIiQQ4d", 1, 1, 1, WIDTH, HEIGHT, K[0, 0], K[1, 1], K[0, 2], K[1, 2])
    images = struct.pack("<Q", len(truth))
    for i, pose in enumerate(np.linalg.inv(truth)):
        images += struct.pack("<I7dI", i + 1, *quaternion(pose[:3, :3]), *pose[:3, 3], 1) + f"p{i}.png\0".encode()
        images += struct.pack("<Q2dq", 1, 1.5, 2.5, -1)
    points = struct.pack("<QQ3d3BdQ2I", 1, 7, 0.25, -0.5, 1.5, 10, 20, 30, 0.7, 1, 1, 1)
    write(model / "cameras.bin", camera)
    write(model / "images.bin", images)
    write(model / "points3D.bin", points)
    return truth


def quaternion(R: np.ndarray) -> np.ndarray:
    """wxyz of a rotation: the eigenvector of the matrix whose quadratic form is the trace with R."""
    (a, b, c), (d, e, f), (g, h, i) = R
    N = [
        [a + e + i, h - f, c - g, d - b],
        [h - f, a - e - i, b + d, c + g],
        [c - g, b + d, e - a - i, f + h],
        [d - b, c + g, f + h, i - a - e],
    ]
    return np.linalg.eigh(np.array(N))[1][:, -1]


@pytest.mark.parametrize("layout", [colmap_text, colmap_binary])
def test_colmap(tmp_path: Path, layout) -> None:
    truth = layout(tmp_path / "room")
    (clip,), drops = convert(Colmap(metric=True), tmp_path / "room")
    assert (clip.name, clip.scene, clip.metric) == ("room", "room", True)
    np.testing.assert_allclose(to_world(clip), truth, atol=1e-12)
    assert [v.frame for v in clip.views] == [f"p{i}.png" for i in range(4)]
    assert all(np.array_equal(v.K, K) for v in clip.views)
    assert clip.views[2].image == (tmp_path / "room/images/p2.png").read_bytes()
    assert clip.points is not None and clip.points[0].tolist() == [0.25, -0.5, 1.5]
    assert not drops.frames and not drops.scenes


def test_nerfstudio(tmp_path: Path) -> None:
    truth, _ = nerfstudio(tmp_path / "room", depth=True)
    (clip,), drops = convert(Nerfstudio(), tmp_path / "room")
    np.testing.assert_allclose(to_world(clip), truth, atol=1e-12)
    assert all(np.array_equal(v.K, K) and v.size == (WIDTH, HEIGHT) for v in clip.views)
    assert clip.metric, "depth in counts is millimetres"
    assert [int(decode(v.depth).max()) for v in clip.views] == [1000, 1001, 1002, 1003]
    assert all(v.depth_unit == 0.001 for v in clip.views)
    assert not drops.frames
    assert convert(Nerfstudio(metric=False), tmp_path / "room/transforms.json")[0][0].metric is False


def test_images_folder_takes_reduced_copies(tmp_path: Path) -> None:
    nerfstudio(tmp_path / "room")
    for i in range(3):
        write(tmp_path / f"room/images_2/frame_{i + 1:05d}.png", file_of(picture(20, 15, i), "PNG"))
    (clip,), drops = convert(Nerfstudio(images="images_2"), tmp_path / "room")
    assert len(clip.views) == 3 and clip.views[0].size == (20, 15)
    np.testing.assert_array_equal(clip.views[0].K, np.diag([0.5, 0.5, 1]) @ K)
    assert clip.views[0].image == (tmp_path / "room/images_2/frame_00001.png").read_bytes()
    assert drops.frames == {"image missing": 1}


def test_folder_of_scenes_is_split_by_name(tmp_path: Path) -> None:
    names = [f"room{i}" for i in range(30)]
    for name in names:
        nerfstudio(tmp_path / name, views=1)
    (tmp_path / "notes").mkdir()
    found = {split: [e.name for e in Nerfstudio().entries(tmp_path, split)] for split in ("train", "test", "all")}
    assert found["all"] == names, "natural order"
    assert found["train"] == [n for n in names if split_of(n) == "train"] and 18 < len(found["train"]) < 30
    assert found["test"] == [n for n in names if split_of(n) == "test"]
    single = [Nerfstudio().entries(tmp_path / "room3", split)[0].name for split in ("train", "validation", "test")]
    assert single == ["room3"] * 3, "a single scene is in every split"


def _nan(document: dict) -> None:
    document["frames"][1]["transform_matrix"][0][3] = float("nan")


def _skewed(document: dict) -> None:
    document["frames"][1]["transform_matrix"][0][0] += 0.01


def _mirrored(document: dict) -> None:
    for row in document["frames"][1]["transform_matrix"]:
        row[0] *= -1


def _no_file(document: dict) -> None:
    document["frames"][1]["file_path"] = "images/frame_09999.png"


def _no_depth(document: dict) -> None:
    document["frames"][1]["depth_file_path"] = "depth/x.png"


def _other_K(document: dict) -> None:
    document["frames"][1] |= {"fl_x": 440.0, "fl_y": 430.0, "cx": 192.0, "cy": 157.0}


def _other_size(document: dict) -> None:
    document["frames"][1] |= {"w": 80, "h": 60}


@pytest.mark.parametrize(
    ("change", "reason", "text"),
    [
        (_nan, "pose not finite", "frame_00002.png"),
        (_skewed, "pose not a rotation", "frame_00002.png"),
        (_mirrored, "pose not a rotation", "frame_00002.png"),
        (_no_file, "image missing", "frame_09999.png"),
        (_no_depth, "depth missing", "frame_00002.png"),
        (_other_K, "damaged", "principal point of frame_00002.png: found 192.0, 157.0"),
        (_other_size, "damaged", "size of frame_00002.png: found 40x30"),
    ],
)
def test_bad_frames_are_counted(tmp_path: Path, change, reason, text) -> None:
    truth, document = nerfstudio(tmp_path / "room", depth=True)
    change(document)
    save(tmp_path / "room", document)
    (clip,), drops = convert(Nerfstudio(), tmp_path / "room")
    np.testing.assert_allclose(to_world(clip), truth[[0, 2, 3]], atol=1e-12)
    assert dict(drops.frames) == {reason: 1} and not drops.scenes
    assert text in drops.examples[0]


@pytest.mark.parametrize(("kind", "keep"), [("PNG", 0), ("PNG", 60), ("PNG", -60), ("JPEG", 300), ("JPEG", -60)])
def test_damaged_image_is_counted(tmp_path: Path, kind, keep) -> None:
    nerfstudio(tmp_path / "room")
    write(tmp_path / "room/images/frame_00003.png", file_of(picture(WIDTH, HEIGHT), kind)[:keep])
    (clip,), drops = convert(Nerfstudio(), tmp_path / "room")
    assert len(clip.views) == 3 and dict(drops.frames) == {"damaged": 1}


def test_scene_without_usable_frames(tmp_path: Path) -> None:
    _, document = nerfstudio(tmp_path / "room")
    for frame in document["frames"]:
        frame["transform_matrix"][1][1] = float("inf")
    save(tmp_path / "room", document)
    clips, drops = convert(Nerfstudio(), tmp_path / "room", min_views=3)
    assert not clips and dict(drops.frames) == {"pose not finite": 4}
    assert dict(drops.scenes) == {"fewer than 3 usable frames": 1}


@pytest.mark.parametrize(
    ("converter", "files", "field"),
    [
        (Nerfstudio(), None, "folder"),
        (Nerfstudio(), {}, "scenes"),
        (Nerfstudio(), {"a/images/1.png": "x"}, "scenes"),
        (Colmap(), {"sparse/0/cameras.bin": "x"}, "scenes"),
    ],
)
def test_source_that_is_something_else(tmp_path: Path, converter: Converter, files, field) -> None:
    src = tmp_path / "src"
    for name, text in (files or {}).items():
        write(src / name, text)
    if files is not None:
        src.mkdir(exist_ok=True)
    with pytest.raises(Sr3dError) as caught:
        converter.entries(src, "train")
    assert caught.value.field == field and caught.value.source == str(src)


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
def test_cut_off_colmap_model_is_one_error(tmp_path: Path, name) -> None:
    colmap_binary(tmp_path / "room")
    path = tmp_path / f"room/sparse/0/{name}.bin"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(Sr3dError) as caught:
        convert(Colmap(), tmp_path / "room")
    assert caught.value.source == str(path) and "cut off" in str(caught.value)


def test_bad_json_is_one_error(tmp_path: Path) -> None:
    nerfstudio(tmp_path / "room")
    write(tmp_path / "room/transforms.json", '{"frames": [')
    entry = Nerfstudio().entries(tmp_path / "room", "train")[0]
    with pytest.raises(Sr3dError, match="expected a JSON file"):
        list(Nerfstudio().clips(entry, ClipOptions(), Drops()))


@pytest.mark.parametrize(
    ("name", "views", "metric", "missing"),
    [
        ("redkitchen", 40, True, 0),
        ("redkitchen-clip", 50, True, 0),
        ("shelf", 15, True, 0),
        ("fox", 50, False, 17),
        ("apple", 20, False, 0),
        ("castle4", 4, False, 0),
    ],
)
def test_real_captures(scenes: Path, name, views, metric, missing) -> None:
    """Cameras against the independent truth."""
    (clip,), drops = convert(Nerfstudio(), scenes / name, split="train")
    truth = {Path(f["file"]).name: f for f in json.loads((scenes / name / "cameras.json").read_text())["frames"]}
    assert (len(clip.views), clip.metric) == (views, metric)
    assert dict(drops.frames) == ({"image missing": missing} if missing else {})
    for view in clip.views:
        true = truth[view.frame]
        c2w = np.array(true["camera_to_world"])
        np.testing.assert_allclose(np.linalg.inv(view.world_to_cam), c2w, atol=1e-6)
        if name == "fox":
            assert view.size == (540, 960) and np.abs(view.K - np.array(true["K"])).max() < 10, "undistorted"
        else:
            np.testing.assert_allclose(view.K, np.array(true["K"]), atol=1e-9)
            assert view.image == (scenes / name / "images" / view.frame).read_bytes(), "byte for byte"
    assert (name == "apple") == (len({v.K[0, 0] for v in clip.views}) > 1), "apple: a different K per frame"
    assert (clip.views[0].depth is not None) == metric and (clip.views[0].labels is not None) == (name == "shelf")
