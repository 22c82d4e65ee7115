from __future__ import annotations

import stat
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from sr3d import Sr3dError
from sr3d.io.archive import ZipMembers


def archive(path: Path, members: dict[str, bytes], **attributes: int) -> Path:
    """A zip file; `attributes` are set on every member."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            for key, value in attributes.items():
                setattr(info, key, value)
            out.writestr(info, data)
    return path


def test_members_are_read(tmp_path):
    path = archive(tmp_path / "a.zip", {"label/": b"", "label/0.png": b"zero", "label/1.png": b"one" * 1000})
    with ZipMembers(path) as members:
        assert members.names() == ["label/0.png", "label/1.png"]
        assert "label/1.png" in members and "label/2.png" not in members and "label/" not in members
        assert members.read("label/1.png", 3000) == b"one" * 1000
        with pytest.raises(Sr3dError, match=r"a\.zip: member: found none; expected label/2\.png"):
            members.read("label/2.png", 10)
        with pytest.raises(Sr3dError, match=r"size of label/1\.png: found 3000 bytes; expected at most 2999"):
            members.read("label/1.png", 2999)


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../0.png", "a/../../0.png", "..\\0.png", "C:\\0.png", "c:0.png", "\\\\server\\share\\0.png"],
)
def test_names_that_leave_the_folder(tmp_path, name):
    """One such member makes the archive unusable, even if nobody asks for it."""
    path = archive(tmp_path / "a.zip", {"0.png": b"", name: b""})
    with pytest.raises(Sr3dError, match=r"a\.zip: name of a member"):
        ZipMembers(path)


def test_names_with_a_zero_byte(tmp_path):
    path = archive(tmp_path / "a.zip", {"0.pngX../x": b""})
    path.write_bytes(path.read_bytes().replace(b"0.pngX../x", b"0.png\0../x"))
    with pytest.raises(Sr3dError, match=r"a\.zip: name of a member"):
        ZipMembers(path)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices(tmp_path, kind):
    path = archive(tmp_path / "a.zip", {"0.png": b"/etc/passwd"}, external_attr=(kind | 0o777) << 16)
    with pytest.raises(Sr3dError, match=r"type of 0\.png: found a link or device"):
        ZipMembers(path)


def test_encrypted_members(tmp_path):
    path = archive(tmp_path / "a.zip", {"0.png": b"x"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(Sr3dError, match=r"0\.png: found encrypted"):
        ZipMembers(path)


@pytest.mark.parametrize("limit", [1000, 10**9])
def test_what_unpacks_to_more_than_it_says(tmp_path, limit):
    """A member of 100 MB that is listed with 100 bytes: neither number of bytes comes out, and memory stays small."""
    path = archive(tmp_path / "a.zip", {"0.png": bytes(100_000_000)})
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<I", 100_000_000), struct.pack("<I", 100)))
    tracemalloc.start()
    with ZipMembers(path) as members, pytest.raises(Sr3dError, match=r"0\.png"):
        members.read("0.png", limit)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_every_cut_and_every_flipped_byte(tmp_path):
    """A damaged archive gives the right bytes or one error, whatever is damaged."""
    path = archive(tmp_path / "a.zip", {"0.png": b"zero" * 50, "1.png": b"one" * 50})
    data = path.read_bytes()
    damaged = [data[:cut] for cut in range(len(data))]
    damaged += [data[:i] + bytes([data[i] ^ 0xFF]) + data[i + 1 :] for i in range(len(data))]
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            with ZipMembers(path) as members:
                assert members.read("0.png", 1000) == b"zero" * 50
        except Sr3dError:
            refused += 1
    assert refused > len(data)


def test_no_zip(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"")
    for name in ("a.zip", "b.zip"):
        with pytest.raises(Sr3dError, match=rf"{name}: archive"):
            ZipMembers(tmp_path / name)
