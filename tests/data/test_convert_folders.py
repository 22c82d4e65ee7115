"""The converter of folders of images, depth maps and poses: 7-Scenes, TUM RGB-D, exported ScanNet, plain."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from captures import convert, decode, file_of, picture, poses, to_world, write
from sr3d_data.folders import Folders

from sr3d import Sr3dError

WIDTH, HEIGHT = 640, 480


def text(matrix: np.ndarray) -> str:
    return "\n".join("\t ".join(f"{v: .16e}" for v in row) for row in matrix) + "\n"


def matrix(fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def ramp() -> np.ndarray:
    """Depth in counts that differs in every row and column; unknown (65535) on the left. [480, 640]"""
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    counts = (1000 + u + 2 * v).astype(np.uint16)
    counts[:, :100] = 65535
    return counts


def seven(folder: Path, views: int = 3, seed: int = 3) -> np.ndarray:
    """A sequence as 7-Scenes has it."""
    truth = poses(views, seed)
    for i, pose in enumerate(truth):
        write(folder / f"frame-{i:06d}.color.png", file_of(picture(WIDTH, HEIGHT, i), "PNG"))
        write(folder / f"frame-{i:06d}.depth.png", ramp())
        write(folder / f"frame-{i:06d}.pose.txt", text(pose))
    return truth


def tum(folder: Path) -> np.ndarray:
    """A sequence as TUM RGB-D has it: three recordings with clocks of their own; the third image has no depth map."""
    truth = poses(4)
    stamps = [1305031102.1753 + 0.0334 * i for i in range(4)]
    rgb, depth, trajectory = (["# color images", f"# file: {folder.name}.bag", f"# {c}"] for c in ("a", "b", "c"))
    for i, (time, pose) in enumerate(zip(stamps, truth)):
        write(folder / f"rgb/{time:.6f}.png", file_of(picture(WIDTH, HEIGHT, i), "PNG"))
        rgb.append(f"{time:.6f} rgb/{time:.6f}.png")
        if i != 2:
            write(folder / f"depth/{time - 0.015:.6f}.png", np.full((HEIGHT, WIDTH), 5000 + 100 * i, np.uint16))
            depth.append(f"{time - 0.015:.6f} depth/{time - 0.015:.6f}.png")
        # From its axis and angle, in another way than the converter goes back.
        axis, _ = cv2.Rodrigues(pose[:3, :3])
        angle = np.linalg.norm(axis)
        xyz = (axis[:, 0] / angle * np.sin(angle / 2)).tolist()
        for shift, offset in ((-0.006, 0.1), (0.002, 0.0), (0.011, 0.2)):
            row = [*(pose[:3, 3] + offset).tolist(), *xyz, float(np.cos(angle / 2))]
            trajectory.append(f"{time + shift:.4f} " + " ".join(f"{value:.15f}" for value in row))
    for name, lines in (("rgb", rgb), ("depth", depth), ("groundtruth", trajectory)):
        write(folder / f"{name}.txt", "\n".join(lines) + "\n")
    return truth


def scannet(folder: Path) -> np.ndarray:
    """An exported scene: colour 1296x968 and depth 640x480 of two cameras."""
    truth = poses(3)
    for i, pose in enumerate(truth):
        write(folder / f"color/{i}.jpg", file_of(picture(1296, 968, i), "JPEG"))
        write(folder / f"depth/{i}.png", np.full((HEIGHT, WIDTH), 2000 + i, np.uint16))
        write(folder / f"pose/{i}.txt", text(pose))
    for name, k in (("color", matrix(1170, 1171, 647.5, 483.5)), ("depth", matrix(577, 578, 319.5, 239.5))):
        square = np.eye(4)
        square[:3, :3] = k
        write(folder / f"intrinsic/intrinsic_{name}.txt", text(square))
    return truth


def plain(folder: Path) -> np.ndarray:
    """images/ poses/ depth/ labels/ intrinsics.txt."""
    truth = poses(3)
    for i, pose in enumerate(truth):
        write(folder / f"images/{i}.png", file_of(picture(40, 30, i), "PNG"))
        write(folder / f"depth/{i}.png", np.full((30, 40), 1500, np.uint16))
        write(folder / f"labels/{i}.png", np.full((30, 40), 7 + i, np.uint16))
        write(folder / f"poses/{i}.txt", text(pose))
    write(folder / "intrinsics.txt", text(matrix(44, 43, 19.2, 15.7)))
    return truth


def test_seven_scenes(tmp_path: Path) -> None:
    truth = seven(tmp_path / "chess/seq-01")
    (clip,), drops = convert(Folders(), tmp_path / "chess")
    assert (clip.name, clip.scene, clip.metric) == ("chess-seq-01", "chess", True)
    np.testing.assert_allclose(to_world(clip), truth, atol=1e-12)
    view = clip.views[0]
    assert np.array_equal(view.K, matrix(525, 525, 320, 240)) and view.depth_unit == 0.001
    depth, stored = decode(view.depth), ramp()
    # The ray of colour pixel (u, v) meets the depth camera at 320 + 585 / 525 (u + ½ − 320).
    for u, v in ((150, 200), (400, 300), (500, 60)):
        column, row = (int(np.floor(c + 585 / 525 * (p + 0.5 - c))) for p, c in ((u, 320), (v, 240)))
        assert depth[v, u] == stored[row, column]
    assert not depth[:, :121].any() and depth[240, 123] > 0, "65535 is unknown"
    assert not depth[:, 610:].any(), "the colour camera sees further to the sides"
    assert not drops.frames


def test_sequences_of_a_place_stay_together(tmp_path: Path) -> None:
    for place in ("chess", "fire"):
        for number in (1, 2):
            seven(tmp_path / place / f"seq-{number:02d}", views=1, seed=number)
    clips, _ = convert(Folders(), tmp_path)
    assert [(c.name, c.scene) for c in clips] == [(f"{p}-seq-0{n}", p) for p in ("chess", "fire") for n in (1, 2)]
    assert not np.allclose(to_world(clips[0]), to_world(clips[1]))


def test_3dmatch_intrinsics(tmp_path: Path) -> None:
    seven(tmp_path / "kitchen/seq-01", views=1)
    write(tmp_path / "kitchen/camera-intrinsics.txt", text(matrix(580, 581, 319, 241)))
    (clip,), _ = convert(Folders(), tmp_path / "kitchen/seq-01")
    assert np.array_equal(clip.views[0].K, matrix(580, 581, 319, 241)) and clip.name == "kitchen-seq-01"
    expected = ramp()
    expected[:, :100] = 0
    np.testing.assert_array_equal(decode(clip.views[0].depth), expected)


@pytest.mark.parametrize("lens", ["freiburg3", "own"])
def test_tum(tmp_path: Path, lens) -> None:
    truth = tum(tmp_path / f"rgbd_dataset_{lens}_desk")
    (clip,), drops = convert(Folders(), tmp_path / f"rgbd_dataset_{lens}_desk")
    np.testing.assert_allclose(to_world(clip), truth[[0, 1, 3]], atol=1e-9)
    expected = matrix(535.4, 539.2, 320.6, 248.1) if lens == "freiburg3" else matrix(525, 525, 320, 240)
    np.testing.assert_allclose(clip.views[0].K, expected, rtol=0, atol=1e-12)
    assert [int(decode(v.depth).max()) for v in clip.views] == [5000, 5100, 5300]
    assert [v.depth_unit for v in clip.views] == [1 / 5000] * 3
    assert dict(drops.frames) == {"depth missing": 1} and clip.metric


def test_tum_lens_is_undone(tmp_path: Path) -> None:
    tum(tmp_path / "rgbd_dataset_freiburg1_desk")
    (clip,), _ = convert(Folders(), tmp_path / "rgbd_dataset_freiburg1_desk", lossless=True)
    k1, k2, p1, p2, k3 = 0.2624, -0.9531, -0.0054, 0.0026, 1.1633
    source = picture(WIDTH, HEIGHT, 0).astype(float)
    image, K = decode(clip.views[0].image), clip.views[0].K
    for u, v in ((320, 240), (100, 90), (560, 400)):
        x, y = (u + 0.5 - K[0, 2]) / K[0, 0], (v + 0.5 - K[1, 2]) / K[1, 1]
        r = x * x + y * y
        radial = 1 + k1 * r + k2 * r**2 + k3 * r**3
        xd = x * radial + 2 * p1 * x * y + p2 * (r + 2 * x * x)
        yd = y * radial + p1 * (r + 2 * y * y) + 2 * p2 * x * y
        column, row = 517.3 * xd + 318.6, 516.5 * yd + 255.3
        expected = cv2.getRectSubPix(source.astype(np.float32)[..., 0], (1, 1), (column, row))[0, 0]
        assert abs(float(image[v, u, 0]) - expected) < 1.5


def test_exported_scannet(tmp_path: Path) -> None:
    truth = scannet(tmp_path / "scene0000_00")
    (clip,), drops = convert(Folders(), tmp_path / "scene0000_00")
    np.testing.assert_allclose(to_world(clip), truth, atol=1e-12)
    assert clip.views[0].size == (1296, 968) and np.array_equal(clip.views[0].K, matrix(1170, 1171, 647.5, 483.5))
    assert clip.views[1].image == (tmp_path / "scene0000_00/color/1.jpg").read_bytes()
    depth = decode(clip.views[1].depth)
    assert depth.shape == (968, 1296) and set(np.unique(depth)) <= {0, 2001} and depth[484, 648] == 2001
    assert not drops.frames


def test_plain(tmp_path: Path) -> None:
    truth = plain(tmp_path / "scan")
    (clip,), _ = convert(Folders(), tmp_path / "scan")
    np.testing.assert_allclose(to_world(clip), truth, atol=1e-12)
    assert np.array_equal(clip.views[0].K, matrix(44, 43, 19.2, 15.7))
    assert [int(decode(v.labels).max()) for v in clip.views] == [7, 8, 9] and decode(clip.views[0].depth).max() == 1500
    (own,), _ = convert(Folders(intrinsics=(50.0, 51.0, 20.0, 15.0), depth_unit=0.0002), tmp_path / "scan")
    assert np.array_equal(own.views[0].K, matrix(50, 51, 20, 15))
    assert own.views[0].depth_unit == 0.0002 and decode(own.views[0].depth).max() == 1500


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("poses/1.txt", None, "pose missing"),
        ("poses/1.txt", "-inf -inf -inf -inf\n" * 4, "pose not finite"),
        ("poses/1.txt", "2 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", "pose not a rotation"),
        ("poses/1.txt", "1 0 0\n0 1 0\n0 0 1\n", "damaged"),
        ("poses/1.txt", "a b c d\n", "damaged"),
        ("images/1.png", b"\x89PNG\r\n\x1a\nnothing", "damaged"),
        ("depth/1.png", None, "depth missing"),
        ("depth/1.png", b"nothing", "damaged"),
        ("labels/1.png", None, "labels missing"),
        ("images/1.png", np.zeros((60, 80, 3), np.uint8), "damaged"),
    ],
)
def test_bad_frames_are_counted(tmp_path: Path, file, content, reason) -> None:
    truth = plain(tmp_path / "scan")
    (tmp_path / "scan" / file).unlink()
    if content is not None:
        write(tmp_path / "scan" / file, content)
    (clip,), drops = convert(Folders(), tmp_path / "scan")
    np.testing.assert_allclose(to_world(clip), truth[[0, 2]], atol=1e-12)
    assert dict(drops.frames) == {reason: 1} and not drops.scenes
    assert "1.png" in drops.examples[0]


def test_seven_scenes_of_another_size_needs_intrinsics(tmp_path: Path) -> None:
    seven(tmp_path / "a", views=2)
    for i in range(2):
        write(tmp_path / f"a/frame-{i:06d}.color.png", file_of(picture(320, 240), "PNG"))
    clips, drops = convert(Folders(), tmp_path / "a")
    assert not clips and dict(drops.frames) == {"damaged": 2} and sum(drops.scenes.values()) == 1
    assert "found 320x240; expected 640x480" in drops.examples[0]
    ((clip,), _) = convert(Folders(intrinsics=(262.5, 262.5, 160.0, 120.0)), tmp_path / "a")
    assert len(clip.views) == 2 and clip.views[0].size == (320, 240)


@pytest.mark.parametrize(
    ("layout", "file", "content"),
    [
        (plain, "intrinsics.txt", "1 2\n"),
        (plain, "intrinsics.txt", "a 0 0\n0 1 0\n0 0 1\n"),
        (tum, "groundtruth.txt", "# nothing\n"),
        (tum, "groundtruth.txt", "1305031102.17 1 2 3 0 0 x 1\n"),
        (tum, "rgb.txt", "1305031102.17\n"),
        (tum, "depth.txt", b"\xff\xfe\x00"),
    ],
)
def test_bad_file_of_a_scene_is_one_error(tmp_path: Path, layout, file, content) -> None:
    layout(tmp_path / "scan")
    write(tmp_path / "scan" / file, content)
    with pytest.raises(Sr3dError) as caught:
        convert(Folders(), tmp_path / "scan")
    assert caught.value.source == str(tmp_path / "scan" / file)


def test_unknown_layout_says_what_was_looked_for(tmp_path: Path) -> None:
    write(tmp_path / "pictures/1.png", file_of(picture(4, 3), "PNG"))
    with pytest.raises(Sr3dError) as caught:
        Folders().entries(tmp_path, "all")
    for part in ("the folder holds pictures", "intrinsic/intrinsic_color.txt", "frame-000000.color.png", "rgb.txt"):
        assert part in str(caught.value)


def test_real_scannet_frames(scenes: Path) -> None:
    (clip,), drops = convert(Folders(), scenes / "scannet4", split="train")
    assert [v.frame for v in clip.views] == ["48.jpg", "54.jpg", "60.jpg", "66.jpg"] and not drops.frames
    for view in clip.views:
        stored = np.loadtxt(scenes / f"scannet4/pose/{Path(view.frame).stem}.txt")
        np.testing.assert_allclose(np.linalg.inv(view.world_to_cam), stored, atol=1e-6)
        assert view.image == (scenes / "scannet4/color" / view.frame).read_bytes()
