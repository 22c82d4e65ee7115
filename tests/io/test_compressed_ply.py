"""PlayCanvas's compressed .ply, against a slow writer made from the format's definition."""

from __future__ import annotations

import math
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import SPECIAL, Change, examples, number, places, raw, several, text
from hypothesis import given
from hypothesis import strategies as st

import sr3d
from sr3d import Cameras, Gaussians, Sr3dError
from sr3d.io import read_ply

C0 = 0.28209479177387814
CHUNK = [f"{side}_{name}" for part in ("", "scale_") for side in ("min", "max") for name in (part + a for a in "xyz")]
COLORS = [f"{side}_{name}" for side in ("min", "max") for name in "rgb"]
WORDS = ["packed_position", "packed_rotation", "packed_scale", "packed_color"]


def make(n: int = 700, k: int = 1) -> Gaussians:
    """Chunks at different places and of different sizes; the first Gaussian faces every axis exactly."""
    g = torch.Generator().manual_seed(n + k)
    chunk = torch.arange(n) // 256
    quats = torch.nn.functional.normalize(torch.randn(n, 4, generator=g), dim=-1)
    quats[:4] = torch.eye(4)[: min(n, 4)]
    return Gaussians(
        means=torch.randn(n, 3, generator=g) * (1 + chunk[:, None]) + 5 * chunk[:, None],
        quats=quats,
        scales=torch.exp(torch.randn(n, 3, generator=g) - 4),
        opacities=torch.rand(n, generator=g),
        sh=torch.cat([torch.randn(n, 1, 3, generator=g), torch.randn(n, k - 1, 3, generator=g)], dim=1),
    )


def unorm(value: float, bits: int) -> int:
    largest = (1 << bits) - 1
    return max(0, min(largest, math.floor(value * largest + 0.5)))


def packed_rotation(quat: list[float]) -> int:
    largest = max(range(4), key=lambda i: abs(quat[i]))
    sign = -1 if quat[largest] < 0 else 1
    word = largest
    for i in range(4):
        if i != largest:
            word = word << 10 | unorm(sign * quat[i] * math.sqrt(0.5) + 0.5, 10)
    return word


def compress(g: Gaussians, colors: bool = True) -> bytes:
    """Gaussians → file, one by one, as splat-transform writes it; without `colors` as SuperSplat 1 did."""
    n, rest = len(g), 3 * (g.sh.shape[1] - 1)
    chunk_names = CHUNK + (COLORS if colors else [])
    lines = ["ply", "format binary_little_endian 1.0", "comment by hand", f"element chunk {-(-n // 256)}"]
    lines += [f"property float {name}" for name in chunk_names]
    lines += [f"element vertex {n}"] + [f"property uint {name}" for name in WORDS]
    if rest:
        lines += [f"element sh {n}"] + [f"property uchar f_rest_{i}" for i in range(rest)]
    tables = [g.means.tolist(), g.scales.log().tolist(), (g.sh[:, 0] * C0 + 0.5).tolist()]
    chunks, vertices = b"", b""
    for start in range(0, n, 256):
        rows = range(start, min(start + 256, n))
        bounds = []
        for table in tables:
            bounds.append([(min(table[i][a] for i in rows), max(table[i][a] for i in rows)) for a in range(3)])
        if not colors:
            bounds[2] = [(0.0, 1.0)] * 3
        for part in bounds[: len(chunk_names) // 6]:
            chunks += struct.pack("<6f", *(low for low, _ in part), *(high for _, high in part))
        for i in rows:
            p, s, c = (
                [(table[i][a] - low) / (high - low) if high > low else 0.0 for a, (low, high) in enumerate(part)]
                for table, part in zip(tables, bounds)
            )
            position, scale = (unorm(t[0], 11) << 21 | unorm(t[1], 10) << 11 | unorm(t[2], 11) for t in (p, s))
            color = unorm(c[0], 8) << 24 | unorm(c[1], 8) << 16 | unorm(c[2], 8) << 8 | unorm(float(g.opacities[i]), 8)
            vertices += struct.pack("<4I", position, packed_rotation(g.quats[i].tolist()), scale, color)
    higher = g.sh[:, 1:].transpose(-1, -2).flatten(1).tolist()
    sh = bytes(max(0, min(255, math.trunc((value / 8 + 0.5) * 256))) for row in higher for value in row)
    return "\n".join([*lines, "end_header\n"]).encode() + chunks + vertices + sh


def saved(folder: Path, data: bytes) -> Path:
    # The name says nothing: files are recognised by their header.
    path = folder / "a.ply"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("k", [1, 4, 9, 16])
@pytest.mark.parametrize("n", [1, 256, 700])
def test_within_half_a_step(tmp_path, n, k):
    g = make(n, k)
    back = Gaussians.load(saved(tmp_path, compress(g)))
    assert back.sh.shape == g.sh.shape and len(back) == n and back.features is None and back.lod is None
    chunk = torch.arange(n) // 256
    steps = torch.tensor([2047.0, 1023.0, 2047.0])
    for field, values, found in (
        ("means", g.means, back.means),
        ("scales", g.scales.log(), back.scales.log()),
    ):
        for c in range(int(chunk[-1]) + 1):
            inside = values[chunk == c]
            half = (inside.max(0).values - inside.min(0).values) / steps / 2
            assert ((found[chunk == c] - inside).abs() <= half * 1.001 + 2e-6).all(), field
    colors = (back.sh[:, 0] - g.sh[:, 0]).abs() * C0
    spread = (g.sh[:, 0].max(0).values - g.sh[:, 0].min(0).values) * C0
    assert (colors <= spread / 255 / 2 * 1.001 + 1e-6).all()
    assert (back.opacities - g.opacities).abs().max() <= 0.5 / 255 + 1e-6
    higher = g.sh[:, 1:].clamp(-4, 4)
    # The first and the last byte stand for the ends of their steps.
    steps = torch.where(higher.abs() < 4 - 1 / 32, 0.5, 1.0) / 32
    assert ((back.sh[:, 1:] - higher).abs() <= steps * 1.001).all()
    # Same rotation: q and -q are one. Three components are off by half a step, √2 / 1023 / 2, at most.
    assert (back.quats.norm(dim=-1) - 1).abs().max() < 1e-6
    assert ((back.quats * g.quats).sum(-1).abs() > 1 - 3e-6).all()


def test_words_by_hand(tmp_path):
    """One Gaussian per kind of rotation; numbers worked out from the definition."""
    header, end, _ = compress(make(3, 1)).partition(b"end_header\n")
    bounds = [0, 0, 0, 1, 2, 4, -3, -2, -1, -1, 0, 1, 0.0, 0.25, 0.5, 0.5, 1.0, 1.5]
    words = [
        (2047 << 21 | 1023 << 11 | 0, 0 << 30 | 1023 << 20 | 511 << 10 | 512, 0, 255 << 24 | 0 << 16 | 51 << 8 | 102),
        (0 << 21 | 0 << 11 | 2047, 1 << 30 | 0 << 20 | 1023 << 10 | 1023, 0xFFFFFFFF, 0),
        (0, 3 << 30 | 1023 << 20 | 0 << 10 | 1023, 2047 << 21, 0xFFFFFFFF),
    ]
    body = struct.pack("<18f", *bounds) + b"".join(struct.pack("<4I", *row) for row in words)
    g = read_ply(saved(tmp_path, header + end + body))
    assert g.means.tolist() == [[1, 2, 0], [0, 0, 4], [0, 0, 0]]
    logs = torch.tensor([[-3.0, -2, -1], [-1, 0, 1], [-1, -2, -1]])
    torch.testing.assert_close(g.scales.log(), logs)
    torch.testing.assert_close(g.opacities, torch.tensor([0.4, 0, 1]))
    colors = torch.tensor([[0.5, 0.25, 0.7], [0, 0.25, 0.5], [0.5, 1, 1.5]])
    torch.testing.assert_close(g.sh[:, 0] * C0 + 0.5, colors)
    # All three others at their largest leave nothing for the dropped one: that length is 1.5, so it is normalised.
    third = math.sqrt(1 / 3)
    expected = torch.tensor([[0.7071, 0.7071, -0.0007, 0.0007], [-third, 0, third, third], [third, -third, third, 0]])
    torch.testing.assert_close(g.quats, expected, atol=2e-4, rtol=0)


def test_older_files_have_no_bounds_of_colour(tmp_path):
    g = make(300, 4)
    g.sh[:, 0] = (torch.rand(300, 3, generator=torch.Generator().manual_seed(1)) - 0.5) / C0
    back = read_ply(saved(tmp_path, compress(g, colors=False)))
    assert ((back.sh[:, 0] - g.sh[:, 0]).abs().max() * C0) <= 0.5 / 255 + 1e-6


def test_no_gaussians_at_all(tmp_path):
    back = read_ply(saved(tmp_path, compress(make(0, 4))))
    assert len(back) == 0 and back.sh.shape == (0, 4, 3)


def test_coefficients_of_bytes_at_the_ends(tmp_path):
    g = make(1, 4)
    g.sh[0, 1:] = torch.tensor([[-9.0, 0.0, 9.0], [-4.0, 3.99, 4.0], [0.02, -0.02, 1.0]])
    back = read_ply(saved(tmp_path, compress(g)))
    expected = [[-4, 1 / 64, 4], [-4, 4, 4], [1 / 64, -1 / 64, 1 + 1 / 64]]
    torch.testing.assert_close(back.sh[0, 1:], torch.tensor(expected))


def _replace(old: bytes, new: bytes) -> Change:
    return lambda data: data.replace(old, new)


def _bound(name: str, value: float, row: int = 1) -> Change:
    """Another bound of a chunk."""

    def change(data: bytes) -> bytes:
        at = data.index(b"end_header\n") + 11 + 4 * (18 * row + (CHUNK + COLORS).index(name))
        return data[:at] + struct.pack("<f", value) + data[at + 4 :]

    return change


BAD = {
    "cut off": (lambda data: data[:-5], "data"),
    "no body": (lambda data: data.partition(b"end_header\n")[0] + b"end_header\n", "data"),
    "more vertices than chunks": (_replace(b"element vertex 300", b"element vertex 600"), "data"),
    "a million million vertices": (_replace(b"element vertex 300", b"element vertex 1000000000000"), "element vertex"),
    "a million million chunks": (_replace(b"element chunk 2", b"element chunk 1000000000000"), "element chunk"),
    "a chunk less": (_replace(b"element chunk 2", b"element chunk 1"), "element chunk"),
    "a chunk more": (lambda data: data.replace(b"element chunk 2", b"element chunk 3") + bytes(72), "element chunk"),
    "no chunks": (_replace(b"element chunk", b"element chuck"), "elements"),
    "fewer sh": (_replace(b"element sh 300", b"element sh 299"), "element sh"),
    "no position": (_replace(b"packed_position", b"packet_position"), "vertex"),
    "no colour": (_replace(b"packed_color", b"packed_colour"), "vertex"),
    "positions of 16 bits": (_replace(b"uint packed_position", b"ushort packed_position"), "vertex packed_position"),
    "signed rotations": (_replace(b"uint packed_rotation", b"int packed_rotation"), "vertex packed_rotation"),
    "no max_y": (_replace(b"float max_y", b"float top"), "chunk"),
    "no max_scale_z": (_replace(b"float max_scale_z", b"float top"), "chunk"),
    "half of the colours": (_replace(b"float max_g", b"float top"), "chunk"),
    "bounds of 64 bits": (lambda data: data.replace(b"float min_x", b"double min_x") + bytes(8), "chunk min_x"),
    "list of bounds": (_replace(b"float max_b", b"list uchar float max_b"), "data"),
    "8 f_rest": (_replace(b"property uchar f_rest_8\n", b""), "sh"),
    "gap in f_rest": (_replace(b"f_rest_7\n", b"f_rest_70\n"), "sh"),
    "signed f_rest": (_replace(b"uchar f_rest_3\n", b"char f_rest_3\n"), "sh f_rest_3"),
    "NaN bound": (_bound("min_y", math.nan), "min_y, max_y"),
    "infinite bound": (_bound("max_z", math.inf), "min_z, max_z"),
    "NaN scale": (_bound("max_scale_x", math.nan), "min_scale_x, max_scale_x"),
    "NaN colour": (_bound("min_g", math.nan), "min_g, max_g"),
    "min above max": (_bound("min_x", 100.0), "min_x, max_x"),
    "scales above float32": (_bound("max_scale_y", 200.0), "scale"),
    "colours above float32": (_bound("max_r", 3e38), "color"),
}


@pytest.fixture(scope="module")
def good() -> bytes:
    return compress(make(300, 4))


@pytest.mark.parametrize("case", BAD)
def test_bad_files_give_one_clear_error(tmp_path, good, case):
    change, field = BAD[case]
    path = saved(tmp_path, change(good))
    with pytest.raises(Sr3dError, match=r"a\.ply") as caught:
        read_ply(path)
    error = caught.value
    assert error.field == field and error.found and error.expected and len(str(error)) < 400 and "\n" not in str(error)


def test_fuzz(tmp_path, good):
    """Nothing but `Sr3dError`, or Gaussians that can be drawn."""
    header, middle, body = good.partition(b"end_header\n")
    opened = []
    inside = st.one_of(*raw, st.builds(number, places, st.sampled_from(SPECIAL), st.just("<f")))

    @examples(150)
    @given(head=st.one_of(st.none(), several(text, 3)), rest=st.one_of(st.none(), several(inside, 3)))
    def run(head: Change | None, rest: Change | None) -> None:
        path = saved(tmp_path, (head(header) if head else header) + middle + (rest(body) if rest else body))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                g = read_ply(path)
            except Sr3dError as error:
                assert len(str(error)) < 900
                opened.append(False)
                return
        opened.append(True)
        for name in ("means", "quats", "scales", "opacities", "sh"):
            assert torch.isfinite(getattr(g, name)).all(), name
        assert ((g.opacities >= 0) & (g.opacities <= 1)).all() and (g.scales >= 0).all()
        assert (g.quats.norm(dim=-1) > 0.99).all()

    run()
    assert 15 < sum(opened) < 135  # else one of the outcomes has not been tested


def test_a_real_file(scenes):
    """The bytes of SuperSplat 2.7.1, once more decoded one by one; and a picture: a guitar in front of nothing."""
    path = scenes / "splats" / "guitar.compressed.ply"
    g = Gaussians.load(path)
    assert len(g) == 90854 and g.sh_degree == 0
    chunk_bytes, vertex_bytes = 355 * 18 * 4, 90854 * 16
    body = path.read_bytes().partition(b"end_header\n")[2]
    assert len(body) == chunk_bytes + vertex_bytes
    for i in np.random.default_rng(0).integers(0, 90854, 200).tolist():
        bounds = struct.unpack_from("<18f", body, i // 256 * 72)
        position, rotation, scale, color = struct.unpack_from("<4I", body, chunk_bytes + 16 * i)
        for low, high, word, values in (
            (bounds[:3], bounds[3:6], position, g.means[i]),
            (bounds[6:9], bounds[9:12], scale, g.scales[i].log()),
        ):
            shares = [(word >> 21) / 2047, (word >> 11 & 1023) / 1023, (word & 2047) / 2047]
            expected = [a + (b - a) * t for a, b, t in zip(low, high, shares)]
            assert values.tolist() == pytest.approx(expected, abs=3e-6)
        channels = [(color >> s & 255) / 255 for s in (24, 16, 8)]
        expected = [a + (b - a) * t for a, b, t in zip(bounds[12:15], bounds[15:], channels)]
        assert (g.sh[i, 0] * C0 + 0.5).tolist() == pytest.approx(expected, abs=1e-6)
        assert g.opacities[i].item() == pytest.approx((color & 255) / 255, abs=1e-7)
        others = [((rotation >> s & 1023) / 1023 - 0.5) * math.sqrt(2) for s in (20, 10, 0)]
        others.insert(rotation >> 30, math.sqrt(1 - sum(v * v for v in others)))
        assert g.quats[i].tolist() == pytest.approx(others, abs=1e-6)
    camera = Cameras(
        world_to_cam=torch.tensor([[[1.0, 0, 0, -0.3], [0, 1, 0, 1.15], [0, 0, 1, 3.0], [0, 0, 0, 1]]]),
        K=torch.tensor([[[48.0, 0, 32], [0, 48, 32], [0, 0, 1]]]),
        width=64,
        height=64,
    )
    drawn = sr3d.render(g, camera)
    assert 0.05 < drawn.alpha.mean() < 0.7 and drawn.alpha.max() > 0.95
    solid = drawn.alpha[0] > 0.9
    assert drawn.rgb[0][solid].std(0).min() > 0.03
