from __future__ import annotations

import math
import os
import struct

import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement

from sr3d import Gaussians, Sr3dError
from sr3d.io import read_ply, write_ply
from sr3d.io.ply import read_points
from sr3d.lod import Lod

ORDER = (
    ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    + [f"f_rest_{i}" for i in range(45)]
    + ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
)


def make(n: int = 6, k: int = 16, features: int = 0, lod: bool = False) -> Gaussians:
    g = torch.Generator().manual_seed(n + k)
    native = torch.rand(n, generator=g) + 0.1
    return Gaussians(
        means=torch.randn(n, 3, generator=g),
        quats=3 * torch.randn(n, 4, generator=g),
        scales=torch.rand(n, 3, generator=g) * 0.1,
        opacities=torch.rand(n, generator=g),
        sh=torch.randn(n, k, 3, generator=g),
        features=torch.randn(n, features, generator=g) if features else None,
        lod=Lod(
            native=native,
            coarser=torch.where(torch.arange(n) % 2 == 0, torch.inf, 2 * native),
            finer=torch.where(torch.arange(n) % 3 == 0, 0.0, native / 2),
            level=torch.arange(n, dtype=torch.int32),
        )
        if lod
        else None,
    )


@pytest.mark.parametrize("k", [1, 4, 9, 16])
@pytest.mark.parametrize("n", [0, 1, 6])
def test_round_trip(tmp_path, n, k):
    g = make(n, k)
    g.save(tmp_path / "a.ply")
    back = Gaussians.load(tmp_path / "a.ply")
    for name in ("means", "quats", "sh"):
        assert torch.equal(getattr(back, name), getattr(g, name)), name
    torch.testing.assert_close(back.scales, g.scales, rtol=1e-6, atol=0)
    torch.testing.assert_close(back.opacities, g.opacities, rtol=0, atol=1e-7)
    assert back.features is None and back.lod is None


def test_features_and_lod_survive(tmp_path):
    g = make(features=5, lod=True)
    g.save(tmp_path / "a.ply")
    back = Gaussians.load(tmp_path / "a.ply")
    assert torch.equal(back.features, g.features)
    for name in ("native", "coarser", "finer", "level"):
        assert torch.equal(getattr(back.lod, name), getattr(g.lod, name)), name
    assert back.lod.level.dtype == torch.int32 and torch.isinf(back.lod.coarser).sum() == 3


def test_extreme_opacities_and_scales_survive(tmp_path):
    g = make()
    g.opacities[:3] = torch.tensor([0.0, 1.0, 1e-6])
    g.scales[0] = torch.tensor([0.0, 1e-12, 1e6])
    g.save(tmp_path / "a.ply")
    rows = PlyData.read(tmp_path / "a.ply")["vertex"].data
    assert all(np.isfinite(rows[name]).all() for name in rows.dtype.names)
    back = Gaussians.load(tmp_path / "a.ply")
    torch.testing.assert_close(back.opacities[:3], torch.tensor([0.0, 1.0, 1e-6]), rtol=1e-5, atol=3e-9)
    torch.testing.assert_close(back.scales[0], torch.tensor([0.0, 1e-12, 1e6]), rtol=5e-6, atol=2e-20)


def test_bytes_are_those_of_the_original_format(tmp_path):
    """Read with nothing but the format's description."""
    g = make(n=4)
    g.save(tmp_path / "a.ply")
    header, _, body = (tmp_path / "a.ply").read_bytes().partition(b"end_header\n")
    lines = header.decode().splitlines()
    assert lines == ["ply", "format binary_little_endian 1.0", "element vertex 4"] + [
        f"property float {name}" for name in ORDER
    ]
    assert len(body) == 4 * len(ORDER) * 4
    for i in range(4):
        row = dict(zip(ORDER, struct.unpack_from(f"<{len(ORDER)}f", body, i * len(ORDER) * 4)))
        assert [row["x"], row["y"], row["z"]] == g.means[i].tolist() and row["nx"] == row["ny"] == row["nz"] == 0
        assert [row[f"rot_{j}"] for j in range(4)] == g.quats[i].tolist()
        assert 1 / (1 + math.exp(-row["opacity"])) == pytest.approx(g.opacities[i].item(), abs=1e-6)
        assert [math.exp(row[f"scale_{j}"]) for j in range(3)] == pytest.approx(g.scales[i].tolist(), rel=1e-5)
        for channel in range(3):
            assert row[f"f_dc_{channel}"] == g.sh[i, 0, channel]
            for j in range(15):  # channel-major: all of red first
                assert row[f"f_rest_{15 * channel + j}"] == g.sh[i, 1 + j, channel]


def test_extra_properties_come_last(tmp_path):
    make(k=1, features=2, lod=True).save(tmp_path / "a.ply")
    names = PlyData.read(tmp_path / "a.ply")["vertex"].data.dtype.names
    plain = [name for name in ORDER if not name.startswith("f_rest")]
    lod = ["lod_native", "lod_coarser", "lod_finer", "lod_level"]
    assert list(names) == plain + lod + ["feature_0", "feature_1"]


def test_file_of_gsplat(tmp_path):
    """gsplat's own exporter, which takes logits and logarithms."""
    exporter = pytest.importorskip("gsplat.exporter")
    g = make(n=5)
    path = tmp_path / "gsplat.ply"
    logits = torch.logit(g.opacities)
    exporter.export_splats(g.means, g.scales.log(), g.quats, logits, g.sh[:, :1], g.sh[:, 1:], "ply", str(path))
    back = read_ply(path)
    for name in ("means", "quats", "scales", "opacities", "sh"):
        torch.testing.assert_close(getattr(back, name), getattr(g, name), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("text", "byte_order"), [(False, ">"), (True, "=")])
def test_big_endian_and_text_files(tmp_path, text, byte_order):
    g = make()
    g.save(tmp_path / "a.ply")
    rows = np.array(PlyData.read(tmp_path / "a.ply")["vertex"].data)
    PlyData([PlyElement.describe(rows, "vertex")], text=text, byte_order=byte_order).write(str(tmp_path / "b.ply"))
    a, b = read_ply(tmp_path / "a.ply"), read_ply(tmp_path / "b.ply")
    for name in ("means", "quats", "scales", "opacities", "sh"):
        torch.testing.assert_close(getattr(b, name), getattr(a, name), rtol=1e-5, atol=1e-6)


def test_doubles_and_unknown_properties_are_read(tmp_path):
    g = make(k=1)
    g.save(tmp_path / "a.ply")
    rows = PlyData.read(tmp_path / "a.ply")["vertex"].data
    wide = np.empty(len(rows), dtype=[("quality", "u1")] + [(name, "f8") for name in rows.dtype.names])
    wide["quality"] = 3
    for name in rows.dtype.names:
        wide[name] = rows[name]
    PlyData([PlyElement.describe(wide, "vertex")]).write(str(tmp_path / "b.ply"))
    assert torch.equal(read_ply(tmp_path / "b.ply").means, g.means)


def _replace(old: bytes, new: bytes):
    return lambda data: data.replace(old, new)


def _value(name: str, value: float, row: int = 2):
    """Overwrite one property of one row."""

    def change(data: bytes) -> bytes:
        header, end, body = data.partition(b"end_header\n")
        at = (row * len(ORDER) + ORDER.index(name)) * 4
        return header + end + body[:at] + struct.pack("<f", value) + body[at + 4 :]

    return change


def _zero_quaternion(data: bytes) -> bytes:
    for i in range(4):
        data = _value(f"rot_{i}", 0.0)(data)
    return data


BAD = {
    "empty": (lambda data: b"", "header"),
    "not a ply": (lambda data: b"\x89PNG" + data, "header"),
    "no end of header": (_replace(b"end_header", b"end_footer"), "header"),
    "a million million rows": (_replace(b"vertex 6", b"vertex 1000000000000"), "element vertex"),
    "more rows than data": (_replace(b"vertex 6", b"vertex 60"), "data"),
    "cut off": (lambda data: data[:-5], "data"),
    "nothing after the header": (lambda data: data.partition(b"end_header\n")[0] + b"end_header\n", "data"),
    "negative rows": (_replace(b"vertex 6", b"vertex -6"), "elements"),
    "no vertices": (_replace(b"element vertex", b"element potato"), "elements"),
    "unknown type": (_replace(b"float opacity", b"quart opacity"), "data"),
    "unknown format": (_replace(b"binary_little", b"binary_middle"), "data"),
    "property twice": (_replace(b"float ny", b"float nx"), "data"),
    "list": (_replace(b"property float nx", b"property list uchar float nx"), "property nx"),
    "no opacity": (_replace(b"float opacity", b"float density"), "vertex"),
    "no colour": (_replace(b"f_dc_1", b"g_dc_1"), "vertex"),
    "gap in f_rest": (_replace(b"f_rest_7\n", b"f_rest_99\n"), "f_rest"),
    "44 f_rest": (_replace(b"f_rest_44\n", b"other\n"), "f_rest"),
    "NaN position": (_value("y", math.nan), "y"),
    "infinite position": (_value("z", math.inf), "z"),
    "NaN colour": (_value("f_rest_3", math.nan), "f_rest_3"),
    "NaN opacity": (_value("opacity", math.nan), "opacity"),
    "NaN scale": (_value("scale_1", math.nan), "scale_1"),
    "overflowing scale": (_value("scale_1", 200.0), "scale"),
    "zero quaternion": (_zero_quaternion, "rot"),
    "half the lod": (_replace(b"float nx", b"float lod_native"), "vertex"),
    "gap in features": (_replace(b"float nx", b"float feature_1"), "feature"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_give_one_clear_error(tmp_path, case):
    change, field = BAD[case]
    make().save(tmp_path / "good.ply")
    path = tmp_path / "bad.ply"
    path.write_bytes(change((tmp_path / "good.ply").read_bytes()))
    with pytest.raises(Sr3dError, match=r"bad\.ply") as caught:
        read_ply(path)
    assert caught.value.field == field and len(str(caught.value)) < 400


def test_missing_properties_are_named(tmp_path):
    make().save(tmp_path / "a.ply")
    data = (tmp_path / "a.ply").read_bytes().replace(b" rot_", b" tor_")
    (tmp_path / "a.ply").write_bytes(data)
    with pytest.raises(Sr3dError, match="rot_0, rot_1, rot_2, rot_3"):
        read_ply(tmp_path / "a.ply")


def test_bad_values_are_located(tmp_path):
    make().save(tmp_path / "a.ply")
    (tmp_path / "a.ply").write_bytes(_value("x", math.nan, row=4)((tmp_path / "a.ply").read_bytes()))
    with pytest.raises(Sr3dError, match="1 bad of 6, first is number 4"):
        read_ply(tmp_path / "a.ply")


@pytest.mark.parametrize(
    ("field", "value"), [("native", 0.0), ("native", math.inf), ("coarser", 0.01), ("finer", 5.0), ("finer", -1.0)]
)
def test_bad_lod(tmp_path, field, value):
    g = make(lod=True)
    getattr(g.lod, field)[1] = value
    g.save(tmp_path / "a.ply")
    with pytest.raises(Sr3dError, match=f"lod_{field}: found 1 bad of 6, first is number 1"):
        read_ply(tmp_path / "a.ply")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(Sr3dError, match=r"none\.ply: file: found no such file"):
        read_ply(tmp_path / "none.ply")
    with pytest.raises(Sr3dError, match="no such file"):
        read_ply(tmp_path)


def test_point_cloud_needs_positions(tmp_path):
    (tmp_path / "a.ply").write_text("ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n1\n")
    with pytest.raises(Sr3dError, match="no property y, z"):
        read_points(tmp_path / "a.ply")


def _batched(g: Gaussians) -> Gaussians:
    return Gaussians(**{name: getattr(g, name)[None] for name in ("means", "quats", "scales", "opacities", "sh")})


def _with(name: str, index: int, value: float):
    def change(g: Gaussians) -> Gaussians:
        getattr(g, name)[index] = value
        return g

    return change


UNWRITABLE = {
    "batched": (_batched, "batch axes"),
    "NaN means": (_with("means", 1, math.nan), "means"),
    "infinite sh": (_with("sh", 1, math.inf), "sh"),
    "NaN quats": (_with("quats", 1, math.nan), "quats"),
    "zero quats": (_with("quats", 1, 0), "quats"),
    "NaN opacities": (_with("opacities", 1, math.nan), "opacities"),
    "opacities above 1": (_with("opacities", 1, 1.5), "opacities"),
    "negative scales": (_with("scales", 1, -0.1), "scales"),
}


@pytest.mark.parametrize("case", UNWRITABLE)
def test_what_cannot_be_written_leaves_the_old_file(tmp_path, case):
    change, field = UNWRITABLE[case]
    (tmp_path / "a.ply").write_bytes(b"old")
    with pytest.raises(Sr3dError, match=r"a\.ply") as caught:
        write_ply(change(make()), tmp_path / "a.ply")
    assert caught.value.field == field
    assert [p.name for p in tmp_path.iterdir()] == ["a.ply"] and (tmp_path / "a.ply").read_bytes() == b"old"


def test_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(Sr3dError, match=r"a\.ply: file: found No space left on device"):
        make().save(tmp_path / "a.ply")
    assert not list(tmp_path.iterdir())


def test_folder_must_exist(tmp_path):
    with pytest.raises(Sr3dError, match=r"a\.ply: folder"):
        make().save(tmp_path / "nowhere" / "a.ply")
    with pytest.raises(Sr3dError, match="a folder"):
        make().save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_gradients_and_other_types_are_no_obstacle(tmp_path):
    g = make().to(torch.float64)
    g.means.requires_grad_()
    g.save(tmp_path / "a.ply")
    assert torch.equal(read_ply(tmp_path / "a.ply").means, g.means.detach().float())
