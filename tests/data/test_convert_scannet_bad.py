"""ScanNet: damaged and hostile scans give one clear error or a counted drop."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from captures import convert, file_of, picture, to_world, write
from scannet_rooms import (
    DEPTH_K,
    DEPTH_SIZE,
    SIZE,
    TABLE,
    K,
    Room,
    make_room,
    text,
    write_frames,
    write_labels,
    write_recording,
)
from sens_files import color_bytes, depth_bytes, frame_bytes, header_bytes, intrinsics, sens_bytes
from sr3d_data.scannet import ScanNet

from sr3d import Sr3dError
from sr3d.datasets.converter import ClipOptions, Drops


@pytest.fixture(scope="module")
def room() -> Room:
    return make_room()


@pytest.fixture
def scan(tmp_path) -> Path:
    return tmp_path / "scans/scene0012_01"


def frames_of(room: Room) -> list[tuple[np.ndarray, bytes, bytes]]:
    """Pose, colour and depth of every frame of a recording."""
    return [
        (pose, color_bytes(image, "jpeg"), depth_bytes(counts, "zlib"))
        for pose, image, counts in zip(room.to_world, room.images, room.counts)
    ]


def write_changed(scan: Path, room: Room, number: int, **change: object) -> None:
    """A recording one frame of which has another pose, colour or depth."""
    frames = frames_of(room)
    pose, color, depth = frames[number]
    frames[number] = (change.get("pose", pose), change.get("color", color), change.get("depth", depth))
    head = header_bytes(K, DEPTH_K, SIZE, DEPTH_SIZE, len(frames))
    write(scan / f"{scan.name}.sens", head + b"".join(frame_bytes(*frame) for frame in frames))


def scaled(pose: np.ndarray) -> np.ndarray:
    return pose @ np.diag([1.1, 1.1, 1.1, 1])


DROPPED: dict[str, tuple[str, Callable[[Room], dict]]] = {
    "lost tracking": ("pose not finite", lambda room: {"pose": np.full((4, 4), -np.inf)}),
    "one NaN": ("pose not finite", lambda room: {"pose": room.to_world[2] + np.pad([[np.nan]], ((0, 3), (3, 0)))}),
    "scaled": ("pose not a rotation", lambda room: {"pose": scaled(room.to_world[2])}),
    "mirrored": ("pose not a rotation", lambda room: {"pose": room.to_world[2] @ np.diag([-1.0, 1, 1, 1])}),
    "truncated JPEG": ("damaged", lambda room: {"color": color_bytes(room.images[2], "jpeg")[:-200]}),
    "empty JPEG": ("damaged", lambda room: {"color": b""}),
    "grey JPEG": ("damaged", lambda room: {"color": file_of(room.images[2, ..., 0], "JPEG")}),
    "JPEG of another size": ("other image size", lambda room: {"color": file_of(picture(48, 36), "JPEG")}),
    "no depth": ("depth missing", lambda room: {"depth": b""}),
    "truncated depth": ("damaged", lambda room: {"depth": depth_bytes(room.counts[2], "zlib")[:-99]}),
}


@pytest.mark.parametrize("case", DROPPED)
def test_bad_frames_of_a_recording_are_counted(tmp_path, scan, room, case):
    reason, change = DROPPED[case]
    write_changed(scan, room, 2, **change(room))
    (clip,), drops = convert(ScanNet(), tmp_path)
    assert drops.frames == {reason: 1} and not drops.scenes
    assert drops.examples[0].startswith("frame scene0012_01/2") and reason in drops.examples[0]
    assert [view.frame for view in clip.views] == ["0", "1", "3"]
    np.testing.assert_allclose(to_world(clip), room.to_world[[0, 1, 3]], atol=1e-6)


def _other_size(scan: Path) -> None:
    write(scan / "color/2.jpg", file_of(picture(48, 36), "JPEG"))


EXPORTED: dict[str, tuple[str, Callable[[Path], object]]] = {
    "pose of words": ("pose missing or damaged", lambda scan: write(scan / "pose/2.txt", "left right")),
    "pose of three rows": ("pose missing or damaged", lambda scan: write(scan / "pose/2.txt", "1 0 0 0\n" * 3)),
    "no pose": ("pose missing or damaged", lambda scan: (scan / "pose/2.txt").unlink()),
    "lost tracking": ("pose not finite", lambda scan: write(scan / "pose/2.txt", "-inf -inf -inf -inf\n" * 4)),
    "scaled pose": ("pose not a rotation", lambda scan: write(scan / "pose/2.txt", text(2 * np.eye(4)))),
    "no depth": ("depth missing", lambda scan: (scan / "depth/2.png").unlink()),
    "depth of another size": ("other image size", lambda scan: write(scan / "depth/2.png", np.ones((9, 9), np.uint16))),
    "damaged depth": ("damaged", lambda scan: write(scan / "depth/2.png", b"\x89PNG\r\n\x1a\n")),
    "truncated JPEG": ("damaged", lambda scan: write(scan / "color/2.jpg", (scan / "color/1.jpg").read_bytes()[:-9])),
    "other image size": ("other image size", _other_size),
}


@pytest.mark.parametrize("case", EXPORTED)
def test_bad_frames_of_a_folder_are_counted(tmp_path, scan, room, case):
    reason, change = EXPORTED[case]
    write_frames(scan, room)
    change(scan)
    (clip,), drops = convert(ScanNet(), tmp_path)
    assert drops.frames == {reason: 1} and not drops.scenes
    assert [view.frame for view in clip.views] == ["0", "1", "3"]


@pytest.mark.parametrize("number", range(4))
def test_first_image_and_first_depth_may_be_the_damaged_ones(tmp_path, scan, room, number):
    write_frames(scan, room)
    write(scan / f"color/{number}.jpg", b"")
    write(scan / f"depth/{3 - number}.png", b"")
    _, drops = convert(ScanNet(), tmp_path)
    assert drops.frames == {"damaged": 2}


def test_no_usable_frame_drops_the_scan(tmp_path, scan, room):
    lost = Room(np.full_like(room.to_world, -np.inf), room.images, room.depths, room.counts, room.labels)
    write_recording(scan, lost)
    clips, drops = convert(ScanNet(), tmp_path)
    assert clips == [] and drops.frames == {"pose not finite": 4}
    assert drops.scenes == {"fewer than 1 usable frames": 1}
    write(scan / f"{scan.name}.sens", header_bytes(K, DEPTH_K, SIZE, DEPTH_SIZE, 0))
    clips, drops = convert(ScanNet(), tmp_path)
    assert clips == [] and drops.scenes == {"fewer than 1 usable frames": 1}


def _write(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def _recording(scan: Path, room: Room, color_K: np.ndarray, depth_K: np.ndarray, **options: object) -> None:
    data = sens_bytes(room.to_world, room.images, room.counts, color_K, depth_K, **options)
    write(scan / f"{scan.name}.sens", data)


def _intrinsics(name: str, matrix: np.ndarray) -> Callable[[Path, Room], object]:
    def change(scan: Path, room: Room) -> None:
        write_frames(scan, room)
        write(scan / f"intrinsic/intrinsic_{name}.txt", text(intrinsics(matrix)))

    return change


def _frames_without(*names: str) -> Callable[[Path, Room], object]:
    def change(scan: Path, room: Room) -> None:
        write_frames(scan, room)
        for name in names:
            for path in scan.glob(name):
                path.unlink()

    return change


def _truncated(scan: Path, room: Room) -> None:
    write_recording(scan, room)
    _write(scan / f"{scan.name}.sens", lambda data: data[: len(data) * 2 // 3])


def _depth_of_another_shape(scan: Path, room: Room) -> None:
    _frames_without("intrinsic/intrinsic_depth.txt")(scan, room)
    for i in range(4):
        write(scan / f"depth/{i}.png", np.ones((48, 48), np.uint16))


HALF, TWICE = np.diag([0.5, 0.5, 1.0]), np.diag([2.0, 2.0, 1.0])
DAMAGED: dict[str, tuple[str, str, Callable[[Path, Room], object]]] = {
    "cut off": (".sens", "size", _truncated),
    "OpenNI depth": (".sens", "depth compression", lambda s, r: write(s / f"{s.name}.sens", _occi(r))),
    "K of half the size": (".sens", "principal point", lambda s, r: _recording(s, r, HALF @ K, DEPTH_K)),
    "K of twice the size": (".sens", "principal point", lambda s, r: _recording(s, r, TWICE @ K, DEPTH_K)),
    "one K for both": (".sens", "principal point", lambda s, r: _recording(s, r, K, K)),
    "NaN K": (".sens", "principal point", lambda s, r: _recording(s, r, np.nan * K, DEPTH_K)),
    "no focal length": (
        ".sens",
        "K of the colour camera",
        lambda s, r: _recording(s, r, np.diag([0.0, 1, 1]) @ K + [[0, 0, 47.25], [0] * 3, [0] * 3], DEPTH_K),
    ),
    "cameras apart": (
        ".sens",
        "extrinsics of the depth camera",
        lambda s, r: _recording(s, r, K, DEPTH_K, extrinsics=np.eye(4) + 0.04 * np.eye(4, k=3)),
    ),
    "exported K of half the size": ("color.txt", "principal point", _intrinsics("color", HALF @ K)),
    "exported K of depth for colour": ("depth.txt", "principal point", _intrinsics("depth", K)),
    "normalised K": ("color.txt", "principal point", _intrinsics("color", np.diag([1 / 96, 1 / 72, 1]) @ K)),
    "no K": ("scene0012_01", "scan", _frames_without("intrinsic/intrinsic_color.txt")),
    "no images": ("color", "images", _frames_without("color/*.jpg")),
    "no poses": ("pose", "poses", _frames_without("pose/*.txt")),
    "depth of another shape": ("depth", "size", _depth_of_another_shape),
}


def _occi(room: Room) -> bytes:
    return header_bytes(K, DEPTH_K, SIZE, DEPTH_SIZE, 0, depth="occi")


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_scans_give_one_error(tmp_path, scan, room, case):
    source, field, change = DAMAGED[case]
    change(scan, room)
    (entry,) = ScanNet().entries(tmp_path, "all")
    with pytest.raises(Sr3dError) as caught:
        list(ScanNet().clips(entry, ClipOptions(min_views=1), Drops()))
    assert caught.value.source.endswith(source) and caught.value.field == field
    assert len(str(caught.value)) < 500


def _members(names: dict[str, bytes], kind: int = 0) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with zipfile.ZipFile(path, "a") as archive:
            for name, data in names.items():
                info = zipfile.ZipInfo(name)
                info.external_attr = kind << 16
                archive.writestr(info, data)

    return change


HOSTILE: dict[str, Callable[[Path], object]] = {
    "absolute": _members({"/label-filt/0.png": b""}),
    "outside": _members({"label-filt/../../0.png": b""}),
    "link": _members({"label-filt/9.png": b"/etc/passwd"}, 0o120777),
    "truncated": lambda path: _write(path, lambda data: data[:-30]),
    "no zip": lambda path: write(path, b"label-filt/0.png"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_of_labels(tmp_path, scan, room, case):
    write_recording(scan, room)
    path = write_labels(scan, room.labels)
    HOSTILE[case](path)
    (entry,) = ScanNet().entries(tmp_path, "all")
    with pytest.raises(Sr3dError, match=r"scene0012_01_2d-label-filt\.zip"):
        list(ScanNet().clips(entry, ClipOptions(min_views=1), Drops()))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", width, height, 16, 0, 0, 0, 0) + bytes(4)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "labels missing"),
        (b"", "damaged"),
        (file_of(picture(96, 72), "PNG"), "damaged"),
        (file_of(picture(72, 72)[..., 0], "PNG"), "damaged"),
        (file_of(picture(96, 72)[..., 0], "JPEG"), "damaged"),
        (png_header(96, 72), "damaged"),
        (png_header(960_000, 720_000), "damaged"),
    ],
)
def test_bad_label_images_are_counted(tmp_path, scan, room, content, reason):
    write_recording(scan, room)
    write(scan.parent / "scannetv2-labels.combined.tsv", TABLE)
    for i, ids in enumerate(room.labels):
        write(scan / f"label-filt/{i}.png", ids.astype(np.uint16))
    (scan / "label-filt/1.png").unlink()
    if content is not None:
        write(scan / "label-filt/1.png", content)
    (clip,), drops = convert(ScanNet(), tmp_path)
    assert drops.frames == {reason: 1} and [view.frame for view in clip.views] == ["0", "2", "3"]
