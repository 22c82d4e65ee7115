from __future__ import annotations

import tracemalloc
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from sens_files import color_bytes, frame_bytes, header_bytes, imu_bytes, sens_bytes

from sr3d import Sr3dError
from sr3d.io.sens import read_sens

COLOR_K = np.array([[60.0, 0, 31.5], [0, 61.0, 25.25], [0, 0, 1]])
DEPTH_K = np.array([[30.0, 0, 15.5], [0, 29.0, 12.5], [0, 0, 1]])
SIZES = (64, 48), (32, 24)


def recording(count: int = 3) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Poses, images and depth counts of a few random frames."""
    rng = np.random.default_rng(2)
    poses = [np.eye(4) + np.pad(rng.normal(size=(3, 1)), ((0, 1), (3, 0))) for _ in range(count)]
    images = [cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), SIZES[0]) for _ in range(count)]
    return poses, images, [rng.integers(0, 65536, SIZES[1][::-1]).astype(np.uint16) for _ in range(count)]


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("color", ["jpeg", "png", "raw"])
@pytest.mark.parametrize("depth", ["zlib", "raw"])
def test_what_was_written_is_read(tmp_path, color, depth):
    poses, images, counts = recording()
    data = sens_bytes(poses, images, counts, COLOR_K, DEPTH_K, color=color, depth=depth, shift=2000.0)
    sens = read_sens(write(tmp_path / "a.sens", data))
    assert (sens.color_size, sens.depth_size, len(sens.frames)) == (*SIZES, 3)
    np.testing.assert_allclose(sens.color_K, COLOR_K, atol=1e-6)
    np.testing.assert_allclose(sens.depth_K, DEPTH_K, atol=1e-6)
    for i in (2, 0, 1):  # in any order
        np.testing.assert_allclose(sens.frames[i].camera_to_world, poses[i], atol=1e-6)
        found = sens.color(i)
        assert np.array_equal(found, images[i]) if color == "raw" else found == color_bytes(images[i], color)
        np.testing.assert_allclose(sens.depth(i), counts[i] / 2000, rtol=1e-6)


def test_lost_frames_and_missing_depth_are_kept_for_the_caller(tmp_path):
    poses, images, counts = recording(2)
    data = header_bytes(COLOR_K, DEPTH_K, *SIZES, 2)
    data += frame_bytes(np.full((4, 4), -np.inf), color_bytes(images[0], "jpeg"), zlib.compress(counts[0].tobytes()))
    data += frame_bytes(poses[1], color_bytes(images[1], "jpeg") + b"\0\0\0", b"")
    sens = read_sens(write(tmp_path / "a.sens", data))
    assert np.isinf(sens.frames[0].camera_to_world).all() and sens.frames[1].depth_bytes == 0
    assert sens.color(1) == color_bytes(images[1], "jpeg")


def test_every_cut_is_noticed(tmp_path):
    """The file is refused wherever it ends before its last frame does, without the records that follow it is whole."""
    data = sens_bytes(*recording(2), COLOR_K, DEPTH_K)
    whole = len(data) - len(imu_bytes(2))
    head = len(header_bytes(COLOR_K, DEPTH_K, *SIZES, 2))
    for cut in [*range(0, head + 96, 7), *range(head + 96, whole, 97), whole - 1]:
        with pytest.raises(Sr3dError, match=r"a\.sens: size: found \d+ bytes; .*cut off"):
            read_sens(write(tmp_path / "a.sens", data[:cut]))
    assert len(read_sens(write(tmp_path / "a.sens", data[:whole])).frames) == 2


BAD_HEADER = {
    "version": {"version": 3},
    "length of the sensor's name": {"name_length": 2**62},
    "depth shift": {"shift": float("nan")},
    "colour compression": {"color": 7},
    "depth compression": {"depth": "occi"},
    "extrinsics of the depth camera": {"extrinsics": np.eye(4) + 0.01 * np.eye(4, k=3)},
}


@pytest.mark.parametrize("field", BAD_HEADER)
def test_impossible_headers(tmp_path, field):
    head = header_bytes(COLOR_K, DEPTH_K, *SIZES, 0, **BAD_HEADER[field])
    with pytest.raises(Sr3dError, match=r"a\.sens") as caught:
        read_sens(write(tmp_path / "a.sens", head))
    assert caught.value.field == field


@pytest.mark.parametrize("sizes", [((0, 48), (32, 24)), ((64, 48), (2**31, 2**31))])
def test_impossible_image_sizes(tmp_path, sizes):
    with pytest.raises(Sr3dError, match="image sizes"):
        read_sens(write(tmp_path / "a.sens", header_bytes(COLOR_K, DEPTH_K, *sizes, 0)))


@pytest.mark.parametrize("sizes", [(2**63, 0), (0, 2**64 - 1), (2**40, 2**40)])
@pytest.mark.parametrize("count", [1, 2**63])
def test_numbers_that_the_file_cannot_hold_cost_no_memory(tmp_path, sizes, count):
    head = header_bytes(COLOR_K, DEPTH_K, *SIZES, count)
    path = write(tmp_path / "a.sens", head + frame_bytes(np.eye(4), b"", b"", sizes))
    tracemalloc.start()
    with pytest.raises(Sr3dError, match=r"(size: .*cut off|at most 1,000,000)"):
        read_sens(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("depth", "found"),
    [
        (zlib.compress(bytes(50_000_000), 9), "found 1537 bytes or more; expected 1536 bytes"),
        (zlib.compress(bytes(100)), "found 100 bytes or more; expected 1536 bytes"),
        (zlib.compress(bytes(range(256)) * 6, 0)[:-200], "found 13.. bytes or more; expected 1536 bytes"),
        (b"no zlib", "expected zlib data"),
    ],
)
def test_damaged_depth(tmp_path, depth, found):
    """A map that unpacks to too much is not unpacked."""
    data = header_bytes(COLOR_K, DEPTH_K, *SIZES, 1) + frame_bytes(np.eye(4), b"", depth)
    sens = read_sens(write(tmp_path / "a.sens", data))
    tracemalloc.start()
    with pytest.raises(Sr3dError, match=f"depth of frame 0: .*{found}"):
        sens.depth(0)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_raw_colour_of_another_size(tmp_path):
    data = header_bytes(COLOR_K, DEPTH_K, *SIZES, 1, color="raw") + frame_bytes(np.eye(4), bytes(100), b"")
    with pytest.raises(Sr3dError, match="colour of frame 0: found 100 bytes or more; expected 9216"):
        read_sens(write(tmp_path / "a.sens", data)).color(0)


def test_file_that_shrinks_while_it_is_read(tmp_path):
    path = write(tmp_path / "a.sens", sens_bytes(*recording(1), COLOR_K, DEPTH_K))
    sens = read_sens(path)
    path.write_bytes(path.read_bytes()[: sens.frames[0].depth_at + 3])
    with pytest.raises(Sr3dError, match="cut off"):
        sens.depth(0)
    path.unlink()
    with pytest.raises(Sr3dError, match="readable"):
        sens.color(0)
    with pytest.raises(Sr3dError, match="readable"):
        read_sens(path)
