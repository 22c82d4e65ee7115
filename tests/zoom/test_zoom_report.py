from __future__ import annotations

import base64
import errno
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from sr3d.cameras import Cameras
from sr3d.errors import Sr3dError
from sr3d.zoom.level_sheet import LevelPictures, level_sheet
from sr3d.zoom.page import write_zoom_page
from sr3d.zoom.path import zoom_path
from sr3d.zoom.video import length_label, rounded_length, scale_bar

EMPTY_PNG = b"\x89PNG"


def camera(width: int, height: int, fx: float) -> Cameras:
    K = torch.tensor([[fx, 0, width / 2], [0, 2 * fx, height / 2], [0, 0, 1]])
    return Cameras(world_to_cam=torch.eye(4)[None], K=K[None], width=width, height=height)


def white_run(frame: torch.Tensor) -> int:
    """Longest horizontal run of pure white."""
    rows = (frame == 255).all(dim=-1).numpy()
    return max(len(run) for row in rows for run in "".join("#" if p else "." for p in row).split("."))


def level(number: int, **changes) -> LevelPictures:
    pictures = LevelPictures(
        level=number,
        magnification=4.0**number,
        rendered=torch.rand(8, 12, 3),
        guidance=torch.rand(16, 24, 3),
        words="costs $5, not $6",
        new=torch.rand(32, 48, 3),
        depth=torch.linspace(1, 2, 48).expand(32, 48),
        error=torch.full((32, 48), 0.1),
        seen=torch.ones(32, 48, dtype=torch.bool),
        gaussians=1234,
        seconds=1.5,
        scores={"psnr": 30.1, "low_psnr": None},
    )
    return replace(pictures, **changes)


def test_bar_has_the_length_it_says():
    """Frame 400 wide, fx 500, target 2 m away: 250 pixels a metre, and a quarter of the frame is 40 cm."""
    path = zoom_path(camera(400, 300, 500.0), (200.0, 150.0), 100.0, 5)
    for shade in (0, 60, 200):
        frames = torch.full((5, 300, 400, 3), shade, dtype=torch.uint8)
        drawn = scale_bar(frames, path, 2.0, "m")
        assert (frames == shade).all()
        # 20 cm, 10 cm, 2 cm (at 10x a quarter is 4 cm), 1 cm, 2 mm.
        expected = [250 * 100 ** (i / 4) * length for i, length in enumerate((0.2, 0.1, 0.02, 0.01, 0.002))]
        assert [white_run(frame) for frame in drawn] == [round(length) for length in expected]
        assert (drawn == 0).all(dim=-1).any(dim=(1, 2)).all()  # outline
        assert (drawn[:, 120:] == shade).all() and (drawn[:, :, 200:] == shade).all()  # a corner, no more


def test_bar_of_a_camera_that_comes_closer():
    path = Cameras.cat([camera(400, 300, 500.0)] * 2)
    frames = torch.full((2, 300, 400, 3), 90, dtype=torch.uint8)
    drawn = scale_bar(frames, path, torch.tensor([2.0, 0.5]), None)
    assert [white_run(frame) for frame in drawn] == [50, 100]  # 0.2 of 250, 0.1 of 1000
    as_zoom = scale_bar(frames[:1], path.index([0]).zoomed(4.0), 2.0, None)
    # The same size of the target, but magnification 4.0x against 1.0x: that line alone differs.
    rows = (drawn[1] != as_zoom[0]).any(dim=-1).any(dim=-1).nonzero()
    assert 0 < len(rows) < 20 and rows.max() < 40


def test_bar_scales_with_the_frame():
    small, large = (
        scale_bar(torch.full((1, 90 * k, 120 * k, 3), 90, dtype=torch.uint8), camera(120 * k, 90 * k, 150.0 * k), 2.0)
        for k in (2, 8)
    )
    touched = [(drawn[0] != 90).any(dim=-1).nonzero().amax(dim=0) for drawn in (small, large)]
    assert torch.allclose(touched[1] / touched[0], torch.tensor(4.0), rtol=0.1)


@pytest.mark.parametrize("exponent", range(-15, 15))
def test_lengths_are_rounded_down_in_every_decade(exponent):
    for found, mantissa in ((1.0, 1), (1.99, 1), (2.0, 2), (4.99, 2), (5.0, 5), (9.99, 5)):
        assert rounded_length(float(f"{found}e{exponent}")) == (mantissa, exponent)
    value, unit = length_label(5, exponent, "m").split()
    meters = {"km": 1e3, "m": 1.0, "cm": 1e-2, "mm": 1e-3, "um": 1e-6, "nm": 1e-9}[unit]
    assert float(value) * meters == pytest.approx(float(f"5e{exponent}"), rel=1e-12)
    if -9 <= exponent < 6:
        assert 1 <= float(value) < 1000 and value.isdigit()
    value, unit = length_label(2, exponent, None).split()
    assert float(value) == float(f"2e{exponent}") and unit == "units"
    assert ("e" in value) == (not -2 <= exponent <= 2)


def test_labels():
    lengths = [(2, 0), (5, -1), (1, -2), (2, -3), (1, -4), (5, -6), (2, -7), (1, -9), (2, -10), (2, 3)]
    labels = ["2 m", "50 cm", "1 cm", "2 mm", "100 um", "5 um", "200 nm", "1 nm", "2e-10 m", "2 km"]
    assert [length_label(*length, "m") for length in lengths] == labels
    assert length_label(2, -2, "ft") == "0.02 ft" and length_label(1, 3, None) == "1e3 units"


@pytest.mark.parametrize(
    ("depth", "count", "message"),
    [
        (0.0, 2, "depth: found 0.0; expected positive"),
        (float("nan"), 2, "depth: found nan"),
        (torch.ones(3), 2, "found 3 depths; expected one, or 2"),
        (1.0, 3, "cameras, height, width"),
    ],
)
def test_bar_refuses(depth, count, message):
    path = Cameras.cat([camera(40, 30, 50.0)] * 2)
    with pytest.raises(Sr3dError, match=message):
        scale_bar(torch.zeros(count, 30, 40, 3, dtype=torch.uint8), path, depth)


def test_sheet_size_and_places(tmp_path):
    """Tiles of 367 x 245 pixels (area 300 squared, aspect 3:2), 14 apart, 20 from the edge; a row is 44 + 245 + 56."""
    blue = torch.tensor([0.0, 0.0, 1.0]).expand(32, 48, 3)
    seen = torch.ones(32, 48, dtype=torch.bool)
    seen[:, :24] = False
    levels = [level(0, guidance=None, words=""), level(1, new=blue, seen=seen), level(2, words="long " * 200)]
    level_sheet(levels, tmp_path / "levels.png", "any $ title")
    with Image.open(tmp_path / "levels.png") as file:
        sheet = np.asarray(file.convert("RGB"))
    heights = [44 + 245 + 56, 44 + 245 + 56, 44 + 245 + 7 * 20 + 16]
    assert sheet.shape == (76 + sum(heights), 2 * 20 + 5 * 367 + 4 * 14, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["levels.png"]
    top, lefts = 76 + heights[0] + 44, [20 + i * (367 + 14) for i in range(5)]
    middle = top + 245 // 2
    assert (sheet[top + 2 : top + 243, lefts[2] + 2 : lefts[2] + 365] == (0, 0, 255)).all()
    near, far = (sheet[middle, lefts[3] + x].astype(float) / 255 for x in (3, 363))
    turbo = colormaps["turbo"]
    assert np.allclose(near, turbo(0.0)[:3], atol=0.01) and np.allclose(far, turbo(1.0)[:3], atol=0.01)
    unseen, error = sheet[middle, lefts[4] + 90], sheet[middle, lefts[4] + 270]
    assert unseen.tolist() == [0xB4, 0xB9, 0xC2]
    assert np.allclose(error / 255, colormaps["magma"](0.1 / 0.25)[:3], atol=0.01)
    # "no guidance" stands in the empty tile; a row that has guidance shows it there.
    empty = sheet[76 + 44 : 76 + 44 + 245, lefts[1] : lefts[1] + 367]
    assert (empty == (0xF2, 0xF4, 0xF7)).all(-1).mean() > 0.95 and empty.min() < 150


@pytest.mark.parametrize(("height", "width", "tile"), [(10, 80, (380, 48)), (80, 10, (210, 620)), (30, 30, (300, 300))])
def test_sheet_of_any_aspect_ratio(height, width, tile, tmp_path):
    flat = {"depth": torch.zeros(height, width), "error": torch.zeros(height, width)}
    pictures = level(3, new=torch.rand(height, width, 3), seen=flat["error"] > 0, words="", **flat)
    level_sheet([pictures], tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as sheet:
        assert sheet.size == (2 * 20 + 5 * tile[0] + 4 * 14, 76 + 44 + tile[1] + 56)


def test_sheet_refuses_and_leaves_what_was_there(tmp_path, monkeypatch):
    def full(canvas, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "no space left")

    (tmp_path / "a.png").write_bytes(b"old")
    monkeypatch.setattr(FigureCanvasAgg, "print_png", full)
    with pytest.raises(Sr3dError, match="no space left"):
        level_sheet([level(0)], tmp_path / "a.png")
    with pytest.raises(Sr3dError, match="levels: found none"):
        level_sheet([], tmp_path / "a.png")
    with pytest.raises(Sr3dError, match="existing folder"):
        level_sheet([level(0)], tmp_path / "none" / "a.png")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.png", b"old")]


@pytest.fixture
def shown(tmp_path):
    """Metrics of three levels, and the files of a page."""
    levels = [
        {
            "level": i,
            "magnification": 4.0**i,
            "gaussians": 12345 * (i + 1),
            "seconds": 1.25 + i,
            "parents": 7001 + i,
            "scores": {"psnr": 30.25 + i, "low_psnr": None},
        }
        for i in range(3)
    ]
    metrics = {"gaussians": 74070, "levels": levels, "seconds": {"level 0": 1.25, "video": 40.0}, "prompt": "<gold>"}
    (tmp_path / "sheet & co.png").write_bytes(EMPTY_PNG)
    (tmp_path / "zoom #1.mp4").write_bytes(b"small")
    return {"title": "<mug> & saucer", "metrics": metrics, "sheet": tmp_path / "sheet & co.png"}


def test_page_has_every_number(shown, tmp_path):
    tree = "level 0\n└── <level 1>"
    page = write_zoom_page(tmp_path, **shown, video=tmp_path / "zoom #1.mp4", tree=tree, words=["a < b"])
    assert page == tmp_path / "index.html"
    text = page.read_text(encoding="utf-8")
    rows = re.findall(r"<tr><th>(\d)</th>(.*?)</tr>", text)
    cells = [[number, *re.findall(r"<td>(.*?)</td>", row)] for number, row in rows]
    assert cells == [
        ["0", "1", "12,345", "1.25", "7,001", "30.25", "–"],
        ["1", "4", "24,690", "2.25", "7,002", "31.25", "–"],
        ["2", "16", "37,035", "3.25", "7,003", "32.25", "–"],
    ]
    for headline in (">16×<", ">74,070<", ">41.25<", ">32.2 dB<"):
        assert headline in text
    for escaped in ("&lt;mug&gt; &amp; saucer", "&lt;gold&gt;", "└── &lt;level 1&gt;", "a &lt; b"):
        assert escaped in text
    for raw in ("<mug>", "<gold>", "<level 1>"):
        assert raw not in text
    assert f"data:image/png;base64,{base64.b64encode(EMPTY_PNG).decode()}" in text
    assert f"data:video/mp4;base64,{base64.b64encode(b'small').decode()}" in text
    # Nothing is fetched.
    assert all(source.startswith("data:") for source in re.findall(r'(?:src|href)="(.*?)"', text))


def test_bars_are_in_proportion(shown, tmp_path):
    text = write_zoom_page(tmp_path, **shown).read_text(encoding="utf-8")
    assert "<video" not in text and "Branches" not in text
    heights = [float(h) for h in re.findall(r'<rect [^>]*height="(.*?)"', text)]
    assert heights == pytest.approx([50, 100, 150, 150 * 1.25 / 3.25, 150 * 2.25 / 3.25, 150], abs=0.06)


def test_large_video_stays_a_file(shown, tmp_path):
    (tmp_path / "zoom #1.mp4").write_bytes(bytes(3_000_000))
    page = write_zoom_page(tmp_path, **shown, video=tmp_path / "zoom #1.mp4")
    assert 'src="zoom%20%231.mp4"' in page.read_text(encoding="utf-8") and page.stat().st_size < 100_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": {"gaussians": 1, "levels": []}}, "metrics.levels: found none"),
        ({"video": "none.mp4"}, "none.mp4: file: found missing"),
        ({"sheet": "none.png"}, "none.png: file: found missing"),
    ],
)
def test_page_refuses(shown, changes, message, tmp_path):
    changes = {name: tmp_path / value if isinstance(value, str) else value for name, value in changes.items()}
    with pytest.raises(Sr3dError, match=message):
        write_zoom_page(tmp_path, **{**shown, **changes})
    assert not (tmp_path / "index.html").exists()
