from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from sr3d import Sr3dError
from sr3d.io.images import image_size, list_images, read_depth, read_image, read_integers, write_image


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def test_colour_png(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "a.png")
    out = read_image(tmp_path / "a.png")
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, rgb / 255, atol=1e-7)
    assert image_size(tmp_path / "a.png") == (7, 5)


def test_grey_and_palette(tmp_path, rgb):
    Image.fromarray(rgb[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_allclose(read_image(tmp_path / "grey.png"), np.repeat(rgb[..., :1], 3, -1) / 255, atol=1e-7)
    palette = Image.fromarray((rgb[..., 0] % 2).astype(np.uint8), mode="P")
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.save(tmp_path / "p.png")
    expected = np.where(rgb[..., :1] % 2 == 0, [1.0, 0, 0], [0, 0, 1.0])
    np.testing.assert_allclose(read_image(tmp_path / "p.png"), expected, atol=1e-7)


def test_alpha_over_black(tmp_path, rgb):
    alpha = np.linspace(0, 255, 35).astype(np.uint8).reshape(5, 7, 1)
    Image.fromarray(np.concatenate([rgb, alpha], -1)).save(tmp_path / "a.png")
    np.testing.assert_allclose(read_image(tmp_path / "a.png"), rgb / 255 * (alpha / 255), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_are_kept(tmp_path, channels):
    values = np.random.default_rng(1).integers(0, 65536, (5, 7, channels), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), values[..., [2, 1, 0, 3][:channels]] if channels > 1 else values)
    expected = values / 65535
    if channels == 1:
        expected = np.repeat(expected, 3, -1)
    if channels == 4:
        expected = expected[..., :3] * expected[..., 3:]
    np.testing.assert_allclose(read_image(tmp_path / "a.png"), expected, atol=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    """The picture is stored turned; upright it always reads the same, stored pixels stay where they are."""
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8] = [255, 0, 0]  # one red corner, top left
    upright[:8, 16:] = [0, 0, 255]  # one blue, top right
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright), 7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    np.testing.assert_allclose(read_image(tmp_path / "a.jpg", upright=True), upright / 255, atol=0.03)
    np.testing.assert_allclose(read_image(tmp_path / "a.jpg"), stored / 255, atol=0.03)
    assert image_size(tmp_path / "a.jpg") == (stored.shape[1], stored.shape[0])


def test_natural_order(tmp_path):
    names = ["frame10.png", "frame2.jpg", "frame1.JPEG", "a.PNG", "b.txt", ".hidden.png", "7.png", "frame2b.png"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    expected = ["7.png", "a.PNG", "frame1.JPEG", "frame2.jpg", "frame2b.png", "frame10.png"]
    assert [p.name for p in list_images(tmp_path)] == expected


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_write_and_read(tmp_path, suffix):
    ramp = torch.linspace(-0.2, 1.2, 64).repeat(32, 1)[..., None].expand(-1, -1, 3)
    write_image(tmp_path / f"a{suffix}", ramp)
    error = np.abs(read_image(tmp_path / f"a{suffix}") - ramp.clamp(0, 1).numpy())
    assert error.max() < (0.502 / 255 if suffix == ".png" else 0.03)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "image", "field"),
    [
        ("a.gif", torch.zeros(2, 2, 3), "extension"),
        ("a", torch.zeros(2, 2, 3), "extension"),
        ("a.png", torch.full((2, 2, 3), torch.nan), "image"),
        ("none/a.png", torch.zeros(2, 2, 3), "folder"),
    ],
)
def test_what_cannot_be_written(tmp_path, name, image, field):
    with pytest.raises(Sr3dError, match=name) as caught:
        write_image(tmp_path / name, image)
    assert caught.value.field == field and not list(tmp_path.iterdir())


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"old")

    def half(self, path, **_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(Sr3dError, match=r"a\.png: file: found No space left"):
        write_image(tmp_path / "a.png", torch.zeros(2, 2, 3))
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"] and (tmp_path / "a.png").read_bytes() == b"old"


def _bomb() -> bytes:
    """A PNG of a few bytes that claims 60000 x 60000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", _bomb()])
def test_damaged_images(tmp_path, data):
    (tmp_path / "a.png").write_bytes(data)
    for read in (read_image, read_integers, image_size):
        with pytest.raises(Sr3dError, match=r"a\.png: image"):
            read(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("bits", [8, 16])
def test_truncated_images(tmp_path, suffix, bits):
    values = np.random.default_rng(0).integers(0, 2**bits, (40, 40, 3)).astype(np.uint8 if bits == 8 else np.uint16)
    if suffix == ".jpg":
        values = values.astype(np.uint8)
    path = tmp_path / f"a{suffix}"
    cv2.imwrite(str(path), values)
    data = path.read_bytes()
    for keep in (30, len(data) // 2, len(data) - 40):
        path.write_bytes(data[:keep])
        with pytest.raises(Sr3dError, match=rf"a\{suffix}"):
            read_image(path)


def test_missing_file(tmp_path):
    for read in (read_image, read_integers, image_size):
        with pytest.raises(Sr3dError, match=r"none\.png"):
            read(tmp_path / "none.png")


def test_integers_keep_palette_indices(tmp_path):
    ids = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    image = Image.fromarray(ids, mode="P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "a.png")
    assert read_integers(tmp_path / "a.png").tolist() == ids.tolist()


@pytest.mark.parametrize(
    "array",
    [np.zeros(4, np.float32), np.zeros((2, 2, 3), np.float32), np.zeros((2, 2), np.int32), np.float32(1)],
)
def test_depth_arrays_of_the_wrong_kind(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(Sr3dError, match=r"a\.npy: depth"):
        read_depth(tmp_path / "a.npy", 1.0)


def test_depth_arrays_that_are_damaged(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((8, 8), np.float32))
    data = (tmp_path / "a.npy").read_bytes()
    for bad in (b"", data[:20], data[:-9], b"PK\x03\x04"):
        (tmp_path / "a.npy").write_bytes(bad)
        with pytest.raises(Sr3dError, match=r"a\.npy: depth"):
            read_depth(tmp_path / "a.npy", 1.0)
