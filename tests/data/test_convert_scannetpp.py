"""ScanNet++: DSLR images (nerfstudio JSON, fisheye or undistorted; COLMAP) and iPhone frames, on numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from captures import convert, decode, file_of, picture, poses, to_world, write
from sr3d_data.scannetpp import ScanNetPP

from sr3d import Sr3dError
from sr3d.datasets.clip import Clip
from sr3d.datasets.converter import ClipOptions, Converter, Drops

SIZE = (88, 58)
LENS = {"k1": 0.031, "k2": -0.012, "k3": 0.004, "k4": -0.0007}
FX, FY, CX, CY = 39.5, 39.25, 44.4, 28.8
IPHONE_SIZE, LIDAR_SIZE = (64, 48), (32, 24)
OPENGL = np.diag([1.0, -1, -1, 1])
VIEWS = 5


def smooth(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A colour of every viewing ray. [..., 3]"""
    scale = np.arctan(np.hypot(x, y)) / np.maximum(np.hypot(x, y), 1e-12)
    a, b = x * scale, y * scale
    return np.stack([0.5 + 0.4 * np.sin(2 * a), 0.5 + 0.4 * np.sin(2 * b), 0.5 + 0.4 * np.cos(2 * (a + b))], -1)


def fisheye() -> np.ndarray:
    """What the DSLR's lens makes of `smooth`. [H, W, 3] uint8"""
    v, u = np.meshgrid(np.arange(SIZE[1]) + 0.5, np.arange(SIZE[0]) + 0.5, indexing="ij")
    x, y = (u - CX) / FX, (v - CY) / FY
    angles = np.linspace(0, 1.5, 100_001)
    bent = angles * (1 + sum(k * angles ** (2 * i) for i, k in enumerate(LENS.values(), start=1)))
    stretch = np.tan(np.interp(np.hypot(x, y), bent, angles)) / np.maximum(np.hypot(x, y), 1e-12)
    return (smooth(x * stretch, y * stretch) * 255).round().astype(np.uint8)


def entry(number: int, pose: np.ndarray, **more: Any) -> dict[str, Any]:
    """A frame of `transforms.json`."""
    name = f"DSC{number:05d}"
    return {
        "file_path": f"{name}.JPG",
        "mask_path": f"{name}.png",
        "transform_matrix": (pose @ OPENGL).tolist(),
        "is_bad": False,
        **more,
    }


@pytest.fixture
def truth() -> np.ndarray:
    return poses(VIEWS)


@pytest.fixture
def scene(tmp_path) -> Path:
    """Folder of one scene; SRC is `tmp_path`."""
    return tmp_path / "data/036bce3393"


def write_dslr(scene: Path, truth: np.ndarray, undistorted: bool = False, **more: Any) -> dict[str, Any]:
    """All but the last two images are for training, as `transforms.json` and train_test_lists.json say."""
    folder = scene / "dslr"
    image = file_of(picture(*SIZE) if undistorted else fisheye(), "PNG")
    for i in range(len(truth)):
        write(folder / ("resized_undistorted_images" if undistorted else "resized_images") / f"DSC{i:05d}.JPG", image)
    lens = dict.fromkeys(LENS, 0.0) if undistorted else LENS
    document = {
        "fl_x": FX,
        "fl_y": FY,
        "cx": CX,
        "cy": CY,
        "w": SIZE[0],
        "h": SIZE[1],
        **lens,
        "camera_model": "PINHOLE" if undistorted else "OPENCV_FISHEYE",
        "frames": [entry(i, pose) for i, pose in enumerate(truth[:-2])],
        "test_frames": [entry(i, truth[i]) for i in range(len(truth) - 2, len(truth))],
        **more,
    }
    name = "transforms_undistorted.json" if undistorted else "transforms.json"
    write(folder / "nerfstudio" / name, json.dumps(document))
    names = [f"DSC{i:05d}.JPG" for i in range(len(truth))]
    lists = {"train": names[:-2], "test": names[-2:], "has_masks": True}
    write(folder / "train_test_lists.json", json.dumps(lists))
    return document


def write_colmap(scene: Path, truth: np.ndarray) -> None:
    """`dslr/colmap` in text, as released: one OPENCV_FISHEYE camera."""
    lens = " ".join(str(k) for k in LENS.values())
    write(scene / "dslr/colmap/cameras.txt", f"1 OPENCV_FISHEYE {SIZE[0]} {SIZE[1]} {FX} {FY} {CX} {CY} {lens}\n")
    lines = []
    for i, pose in enumerate(truth):
        w2c = np.linalg.inv(pose)
        w, x, y, z = quaternion(w2c[:3, :3])
        lines += [f"{i + 1} {w} {x} {y} {z} {' '.join(map(str, w2c[:3, 3]))} 1 DSC{i:05d}.JPG", ""]
    write(scene / "dslr/colmap/images.txt", "\n".join(lines) + "\n")
    write(scene / "dslr/colmap/points3D.txt", "1 0.1 0.2 0.3 9 9 9 0.5\n2 1 2 3 9 9 9 0.5\n")


def quaternion(R: np.ndarray) -> tuple[float, float, float, float]:
    """wxyz, from the eigenvector of Bar-Itzhack's matrix."""
    (a, b, c), (d, e, f), (g, h, i) = R
    matrix = np.array(
        [[a - e - i, d + b, g + c, h - f], [d + b, e - a - i, h + f, c - g], [g + c, h + f, i - a - e, d - b],
         [h - f, c - g, d - b, a + e + i]]
    )  # fmt: skip
    x, y, z, w = np.linalg.eigh(matrix)[1][:, -1]
    return w, x, y, z


def write_iphone(scene: Path, truth: np.ndarray) -> dict[str, Any]:
    """Frames as the toolbox extracts them; intrinsics of every frame differ a little. ARKit's own pose is another."""
    document = {}
    for i, pose in enumerate(truth):
        name = f"frame_{i * 10:06d}"
        write(scene / f"iphone/rgb/{name}.jpg", file_of(picture(*IPHONE_SIZE, seed=i), "JPEG"))
        counts = np.arange(LIDAR_SIZE[0] * LIDAR_SIZE[1], dtype=np.uint16).reshape(LIDAR_SIZE[::-1]) + 1000 * i
        write(scene / f"iphone/depth/{name}.png", counts)
        document[name] = {
            "timestamp": 0.1 * i,
            "pose": np.eye(4).tolist(),
            "aligned_pose": pose.tolist(),
            "intrinsic": [[50.0 + i, 0, 32.5], [0, 50.5 + i, 23.75], [0, 0, 1]],
            "imu": {"acceleration": [0, 0, 0]},
        }
    write(scene / "iphone/pose_intrinsic_imu.json", json.dumps(document))
    return document


def save(scene: Path, document: dict[str, Any]) -> None:
    write(scene / "dslr/nerfstudio/transforms.json", json.dumps(document))


def only(src: Path, converter: Converter | None = None, **options: Any) -> tuple[Clip, dict[str, int]]:
    """The one clip of a data set, and the frames that were left out."""
    clips, drops = convert(converter or ScanNetPP(), src, **options)
    assert not drops.scenes and len(clips) == 1, drops
    return clips[0], dict(drops.frames)


def difference(view: Any) -> float:
    """Largest error of an image of `smooth` under its own pinhole camera, 4 pixels from the border on."""
    v, u = np.meshgrid(np.arange(view.size[1]) + 0.5, np.arange(view.size[0]) + 0.5, indexing="ij")
    image = decode(view.image) / 255
    error = np.abs(image - smooth((u - view.K[0, 2]) / view.K[0, 0], (v - view.K[1, 2]) / view.K[1, 1]))
    return float(error[4:-4, 4:-4].max())


@pytest.mark.parametrize("cameras", ["nerfstudio", "colmap"])
def test_fisheye_images_are_undone(tmp_path, scene, truth, cameras):
    """OpenGL cameras of the JSON, OpenCV cameras of COLMAP: the same poses, and pinhole images."""
    write_dslr(scene, truth)
    write_colmap(scene, truth)
    if cameras == "colmap":
        (scene / "dslr/nerfstudio/transforms.json").unlink()
    clip, drops = only(tmp_path, lossless=True)
    assert (clip.name, clip.scene, clip.metric) == ("036bce3393", "036bce3393", True)
    assert drops == {"held out for test": 2} and len(clip.views) == VIEWS - 2
    np.testing.assert_allclose(to_world(clip), truth[:-2], atol=1e-6)
    assert clip.views[0].frame == "DSC00000.JPG" and clip.views[0].size == SIZE
    for view in clip.views:
        assert difference(view) < 0.006  # 8 bits are 0.002
    assert (clip.points is None) == (cameras == "nerfstudio")
    if clip.points is not None:
        assert len(clip.points) == 2


@pytest.mark.parametrize("cameras", ["nerfstudio", "colmap"])
def test_test_frames(tmp_path, scene, truth, cameras):
    write_dslr(scene, truth)
    write_colmap(scene, truth)
    if cameras == "colmap":
        (scene / "dslr/nerfstudio/transforms.json").unlink()
    clip, drops = only(tmp_path, ScanNetPP(test_frames=True))
    assert drops == {} and [view.frame for view in clip.views] == [f"DSC{i:05d}.JPG" for i in range(VIEWS)]
    np.testing.assert_allclose(to_world(clip), truth, atol=1e-6)


def test_undistorted_images_are_preferred_and_kept_as_they_are(tmp_path, scene, truth):
    write_dslr(scene, truth)
    write_dslr(scene, truth, undistorted=True)
    clip, _ = only(tmp_path)
    assert clip.views[1].image == file_of(picture(*SIZE), "PNG")
    np.testing.assert_allclose(clip.views[1].K, [[FX, 0, CX], [0, FY, CY], [0, 0, 1]])
    np.testing.assert_allclose(to_world(clip), truth[:-2], atol=1e-6)
    images = scene / "dslr/resized_undistorted_images"
    images.rename(scene / "dslr/undistorted_images")  # the name in an older configuration of the toolbox
    assert only(tmp_path)[0].views[1].image == file_of(picture(*SIZE), "PNG")
    for path in (scene / "dslr/undistorted_images").iterdir():
        path.unlink()
    (scene / "dslr/undistorted_images").rmdir()
    assert difference(only(tmp_path, lossless=True)[0].views[1]) < 0.006


def test_a_point_lands_on_its_pixel(tmp_path, scene, truth):
    """OpenGL's axes by their definition: a point up and to the right of the middle, in front."""
    document = write_dslr(scene, truth, undistorted=True)
    view = only(tmp_path)[0].views[0]
    point = np.array(document["frames"][0]["transform_matrix"]) @ [0.2, 0.1, -2.0, 1]
    u, v, depth = view.K @ (view.world_to_cam @ point)[:3]
    assert (u / depth, v / depth, depth) == pytest.approx((CX + FX * 0.1, CY - FY * 0.05, 2.0), abs=1e-6)


def _change(number: int, **change: Any) -> Callable[[Path, dict], None]:
    return lambda scene, document: document["frames"][number].update(change)


def _drop_image(scene: Path, document: dict) -> None:
    (scene / "dslr/resized_images/DSC00001.JPG").unlink()


def _cut_image(scene: Path, document: dict) -> None:
    path = scene / "dslr/resized_images/DSC00001.JPG"
    path.write_bytes(path.read_bytes()[:-100])


DROPPED: dict[str, tuple[str, Callable[[Path, dict], None]]] = {
    "marked": ("marked bad", _change(1, is_bad=True)),
    "NaN": ("pose not finite", _change(1, transform_matrix=[[float("nan")] * 4] * 4)),
    "scaled": ("pose not a rotation", _change(1, transform_matrix=np.diag([2.0, 2, 2, 1]).tolist())),
    "pose of words": ("damaged", _change(1, transform_matrix="here")),
    "no image": ("image missing", _drop_image),
    "truncated": ("damaged", _cut_image),
    "K of half the size": ("damaged", _change(1, cx=CX / 5, cy=CY / 5)),
    "held out by the list only": ("held out for test", _change(1, file_path="DSC00004.JPG")),
}


@pytest.mark.parametrize("case", DROPPED)
def test_bad_frames_are_counted(tmp_path, scene, truth, case):
    reason, change = DROPPED[case]
    document = write_dslr(scene, truth)
    change(scene, document)
    save(scene, document)
    clip, drops = only(tmp_path)
    assert [view.frame for view in clip.views] == ["DSC00000.JPG", "DSC00002.JPG"]
    expected = {"held out for test": 2}
    expected[reason] = expected.get(reason, 0) + 1
    assert drops == expected


def test_no_usable_frame(tmp_path, scene, truth):
    document = write_dslr(scene, truth)
    for frame in document["frames"]:
        frame["is_bad"] = True
    save(scene, document)
    clips, drops = convert(ScanNetPP(), tmp_path)
    assert clips == [] and drops.scenes == {"fewer than 1 usable frames": 1} and drops.frames["marked bad"] == 3


def test_iphone(tmp_path, scene, truth):
    document = write_iphone(scene, truth)
    clip, drops = only(tmp_path, ScanNetPP(device="iphone"))
    assert drops == {} and clip.metric and clip.scene == "036bce3393"
    np.testing.assert_allclose(to_world(clip), truth, atol=1e-6)
    for i, view in enumerate(clip.views):
        name = f"frame_{i * 10:06d}"
        assert view.frame == f"{name}.jpg" and view.image == (scene / f"iphone/rgb/{name}.jpg").read_bytes()
        np.testing.assert_allclose(view.K, document[name]["intrinsic"])
        lidar = np.arange(32 * 24).reshape(24, 32) + 1000 * i
        expected = lidar.repeat(2, 0).repeat(2, 1) / 1000
        np.testing.assert_allclose(decode(view.depth) * view.depth_unit, expected, atol=1e-6)
    clip, _ = only(tmp_path, ScanNetPP(device="iphone", depth=False))
    assert clip.views[0].depth is None


def test_bad_iphone_frames_are_counted(tmp_path, scene, truth):
    truth = poses(12)
    document = write_iphone(scene, truth)
    document["frame_000000"]["aligned_pose"][0][0] = float("nan")
    document["frame_000010"]["aligned_pose"] = [[1, 0], [0, 1]]
    del document["frame_000020"]["aligned_pose"]
    del document["frame_000030"]
    document["frame_000040"]["intrinsic"] = [[100, 0, 65], [0, 100, 47.5], [0, 0, 1]]
    document["frame_000050"]["aligned_pose"] = (2 * np.eye(4)).tolist()
    document["frame_000060"] = None
    document |= {f"frame_{i:06d}": document["frame_000070"] for i in (1, 2, 3)}
    (scene / "iphone/depth/frame_000070.png").unlink()
    write(scene / "iphone/depth/frame_000080.png", b"\x89PNG\r\n\x1a\n")
    write(scene / "iphone/pose_intrinsic_imu.json", json.dumps(document))
    clip, drops = only(tmp_path, ScanNetPP(device="iphone"))
    assert [view.frame for view in clip.views] == ["frame_000090.jpg", "frame_000100.jpg", "frame_000110.jpg"]
    assert drops == {
        "image missing": 3,
        "pose not finite": 1,
        "pose missing": 3,
        "damaged": 3,
        "pose not a rotation": 1,
        "depth missing": 1,
    }


def _bare_video(scene: Path) -> None:
    for path in (scene / "iphone/rgb").iterdir():
        path.unlink()
    write(scene / "iphone/rgb.mkv", b"video")


def _packed_depth(scene: Path) -> None:
    (scene / "iphone/depth").rename(scene / "iphone/elsewhere")
    write(scene / "iphone/depth.bin", b"depth")


IPHONE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "bare video": (_bare_video, r"rgb: found a video, rgb\.mkv; .*ffmpeg -i .*rgb\.mkv .*frame_%06d\.jpg"),
    "packed depth": (_packed_depth, r"depth: found depth\.bin; .*prepare_iphone_data.*or depth false"),
    "no JSON": (lambda s: (s / "iphone/pose_intrinsic_imu.json").unlink(), "pose_intrinsic_imu.json: file"),
    "half a JSON": (lambda s: write(s / "iphone/pose_intrinsic_imu.json", "{"), "pose_intrinsic_imu.json: file"),
    "a list": (lambda s: write(s / "iphone/pose_intrinsic_imu.json", "[]"), "pose_intrinsic_imu.json: file"),
    "no iphone": (lambda s: (s / "iphone").rename(s / "dslr"), "device: found dslr; expected iphone/"),
}


@pytest.mark.parametrize("case", IPHONE)
def test_damaged_iphone_scenes_give_one_error(tmp_path, scene, truth, case):
    change, message = IPHONE[case]
    write_iphone(scene, truth)
    change(scene)
    raises_once(tmp_path, ScanNetPP(device="iphone"), message)


def raises_once(src: Path, converter: Converter, message: str) -> None:
    (entry,) = converter.entries(src, "all")
    with pytest.raises(Sr3dError, match=message):
        list(converter.clips(entry, ClipOptions(min_views=1), Drops()))


def _no_json(scene: Path) -> None:
    (scene / "dslr/nerfstudio/transforms.json").unlink()


def _no_list(scene: Path) -> None:
    _no_json(scene)
    (scene / "dslr/train_test_lists.json").unlink()


DSLR: dict[str, tuple[Callable[[Path], Any], str]] = {
    "half a JSON": (lambda s: write(s / "dslr/nerfstudio/transforms.json", '{"frames"'), "transforms.json: file"),
    "frames of numbers": (lambda s: save(s, {"frames": [3]}), "transforms.json: frames"),
    "no frames": (lambda s: save(s, {"test_frames": []}), "transforms.json: frames"),
    "test frames of words": (lambda s: save(s, {"frames": [], "test_frames": "a"}), "transforms.json: test_frames"),
    "list of numbers": (
        lambda s: write(s / "dslr/train_test_lists.json", '{"test": 3}'),
        "train_test_lists.json: test",
    ),
    "no images": (lambda s: (s / "dslr/resized_images").rename(s / "dslr/other"), "dslr: cameras and images"),
    "colmap without list": (_no_list, "list of test frames: found none"),
    "no colmap": (lambda s: (_no_json(s), (s / "dslr/colmap/cameras.txt").unlink()), "COLMAP model"),
}


@pytest.mark.parametrize("case", DSLR)
def test_damaged_dslr_scenes_give_one_error(tmp_path, scene, truth, case):
    change, message = DSLR[case]
    write_dslr(scene, truth)
    write_colmap(scene, truth)
    change(scene)
    raises_once(tmp_path, ScanNetPP(), message)


def test_splits(tmp_path, truth):
    for name in ("aaaa", "bbbb", "cccc", "dddd"):
        write_dslr(tmp_path / "data" / name, truth)
    with pytest.raises(Sr3dError, match=r"list of the split train: found none; expected nvs_sem_train\.txt"):
        ScanNetPP().entries(tmp_path, "train")
    lists = {"nvs_sem_train": "bbbb\naaaa\nzzzz", "nvs_sem_val": "yyyy", "nvs_test": "cccc\n", "sem_test": "dddd\n"}
    for name, text in lists.items():
        write(tmp_path / f"splits/{name}.txt", text)

    def names(split: str) -> list[str]:
        return [e.name for e in ScanNetPP().entries(tmp_path, split)]

    assert names("train") == ["aaaa", "bbbb"] and names("test") == ["cccc", "dddd"] and len(names("all")) == 4
    with pytest.raises(Sr3dError, match="scenes of validation: found none on disk"):
        names("validation")
    write(tmp_path / "mine/nvs_sem_val.txt", "dddd")
    own = ScanNetPP(split_files=tmp_path / "mine")
    assert [e.name for e in own.entries(tmp_path, "validation")] == ["dddd"]
    (first, *_) = ScanNetPP().entries(tmp_path / "data", "all")
    images = list((tmp_path / "data/aaaa/dslr/resized_images").iterdir())
    assert first.bytes == sum(path.stat().st_size for path in images)
    for src in (tmp_path / "splits", tmp_path / "nowhere"):
        with pytest.raises(Sr3dError, match="scenes: found none"):
            ScanNetPP().entries(src, "all")
