from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from sr3d import Cameras, Sr3dError, capture, figures, report
from sr3d.capture import CaptureConfig, choose_pairs, fit_sizes, typical_depth
from sr3d.report import METHODS, Comparison, Experiment, Report, ZoomShown, write_report
from sr3d.scene import Scene


def line(count: int, step: float, size: int = 32) -> Cameras:
    """Cameras that look along z, `step` apart along x."""
    poses = torch.eye(4).repeat(count, 1, 1)
    poses[:, 0, 3] = -step * torch.arange(count)
    K = torch.tensor([[size, 0, size / 2], [0, size, size / 2], [0, 0, 1.0]]).repeat(count, 1, 1)
    return Cameras(world_to_cam=poses, K=K, width=size, height=size)


def scores(psnr: float) -> dict[str, float]:
    return {"psnr": psnr - 1, "psnr_covered": psnr, "ssim": psnr / 40, "gaussians": 1234.0}


def result(ours: float) -> dict[str, Any]:
    return {
        "coverage": 0.97,
        "views": 6,
        **{m: scores(v) for m, v in zip(METHODS, (19.0, 20.0, 20.5, ours))},
    }


def comparison() -> Comparison:
    truth = torch.rand(16, 16, 3)
    return Comparison(
        title="a <b> title",
        given=torch.rand(4, 4, 3),
        renderings={m: truth * 0.9 for m in METHODS},
        depths={m: torch.full((16, 16), 2.0) for m in METHODS},
        truth=truth,
        covered=torch.ones(16, 16, dtype=torch.bool),
        scores={m: scores(20.0) for m in METHODS},
    )


@pytest.fixture
def written(tmp_path: Path) -> tuple[dict[str, Any], str]:
    figure = tmp_path / "contact.png"
    figure.write_bytes(b"png")
    video = tmp_path / "zoom.mp4"
    video.write_bytes(b"0" * 100)
    shown = Report(
        experiments=[
            Experiment(key="procedural", title="Places", result=result(21.25), comparisons=[comparison()]),
            Experiment(key="real", title="Kitchen", result=result(19.5)),
        ],
        missing={"real_depth": "no depth maps"},
        zooms=[ZoomShown(key="real", title="Zoom", metrics={"levels": [{"level": 0}]}, sheet=figure, video=video)],
        curves={"train/loss": [(0.0, 1.0), (10.0, 0.1)]},
        seconds={"training": 60.0},
        protocol={"seed": 3},
    )
    page = write_report(shown, tmp_path)
    return json.loads((tmp_path / "report.json").read_text()), page.read_text()


def test_json_has_one_entry_per_experiment(written: tuple[dict[str, Any], str]) -> None:
    content, _ = written
    assert content["procedural"] == result(21.25)
    assert content["real"]["sr3d"]["psnr_covered"] == 19.5
    assert "real_depth" not in content
    assert content["missing"] == {"real_depth": "no depth maps"}
    assert set(content) == {
        "procedural", "real", "missing", "zoom", "seconds", "versions", "hardware", "protocol",
    }  # fmt: skip


def test_losses_are_shown_as_plainly_as_wins(written: tuple[dict[str, Any], str]) -> None:
    _, page = written
    assert '<td class="gain win">+1.25</td>' in page
    assert '<td class="gain loss">-0.50</td>' in page


def test_page_is_self_contained_and_escaped(written: tuple[dict[str, Any], str]) -> None:
    _, page = written
    sources = re.findall(r'src="([^"]{0,20})', page)
    # 7 pictures, 7 details, 4 errors, 4 depths, one contact sheet, one video.
    assert len(sources) == 7 + 7 + 4 + 4 + 1 + 1
    assert all(s.startswith("data:") for s in sources)
    assert not re.search(r'(src|href)="(http|/)', page)
    assert "a &lt;b&gt; title" in page and "<b> title" not in page
    assert "real_depth: no depth maps" in page


def test_large_video_is_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_VIDEO_LIMIT", 10)
    video = tmp_path / "zoom" / "zoom.mp4"
    video.parent.mkdir()
    video.write_bytes(b"0" * 11)
    page = write_report(Report(zooms=[ZoomShown(key="z", title="Zoom", metrics={}, video=video)]), tmp_path)
    assert 'href="zoom/zoom.mp4"' in page.read_text()


def test_error_map_is_black_for_equal_and_white_for_far_images() -> None:
    truth = torch.zeros(2, 2, 3)
    assert figures.error_map(truth, truth).max() < 0.02
    assert figures.error_map(truth + 1, truth).min() > 0.74


def test_depth_map_orders_depths_and_marks_unknown() -> None:
    depth = torch.tensor([[1.0, 2.0, 4.0, 0.0]])
    colors = figures.depth_map(depth, (0.25, 1.0))
    brightness = colors.mean(dim=-1)[0]
    assert brightness[0] > brightness[1] > brightness[2]
    assert torch.equal(colors[0, 3], torch.full((3,), 0.5))


def test_busiest_window_finds_the_texture() -> None:
    image = torch.full((40, 60, 3), 0.5)
    image[22:30, 41:49] = torch.rand(8, 8, 3, generator=torch.Generator().manual_seed(0))
    top, left = figures.busiest_window(image, 10)
    assert 20 <= top <= 22 and 39 <= left <= 41


def test_curves_skip_empty_cells(tmp_path: Path) -> None:
    log = tmp_path / "metrics.csv"
    log.write_text("epoch,step,train/loss,val/x\n0,9,0.5,\n0,19,,2.0\n")
    assert figures.read_curves(log) == {"train/loss": [(9.0, 0.5)], "val/x": [(19.0, 2.0)]}


def test_missing_log_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(Sr3dError, match=r"metrics\.csv"):
        figures.read_curves(tmp_path / "metrics.csv")


def test_pairs_have_the_wanted_baseline_and_targets_between() -> None:
    # 0.05 apart at depth 2: 4 steps are a tenth of the depth.
    pairs = choose_pairs(line(21, 0.05), 2.0, CaptureConfig(baseline=0.1, pairs=4, targets=2))
    assert len(pairs) == 4
    assert all(j - i == 4 for i, j in (p.context for p in pairs))
    assert all(p.baseline == pytest.approx(0.1, rel=1e-5) for p in pairs)
    assert all(len(p.targets) == 2 and p.context[0] < min(p.targets) <= max(p.targets) < p.context[1] for p in pairs)
    middles = [sum(p.context) / 2 for p in pairs]
    assert middles == sorted(middles) and middles[-1] - middles[0] > 10


def test_pairs_prefer_inputs_that_see_the_target() -> None:
    cameras = line(9, 0.1)
    # View 5 and later look away: nothing in between 3 and 7 is seen by both.
    cameras.world_to_cam[5:, :3, :3] = torch.diag(torch.tensor([-1.0, 1, -1]))
    pairs = choose_pairs(cameras, 2.0, CaptureConfig(baseline=0.1, pairs=1))
    assert pairs[0].overlap > 0.9
    assert pairs[0].context[1] < 5 or pairs[0].context[0] >= 5


def test_two_views_are_too_few() -> None:
    with pytest.raises(Sr3dError, match="3 or more"):
        choose_pairs(line(2, 0.1), 2.0, CaptureConfig())


def test_sizes_are_divisible_and_keep_the_geometry() -> None:
    cameras = line(1, 0.0, 64).resized(67, 64)
    scene = Scene(images=torch.rand(1, 64, 67, 3), cameras=cameras)
    fitted = fit_sizes(scene, 4, 100)
    assert fitted.images.shape == (1, 32, 32, 3)
    point = torch.tensor([[0.1, 0.2, 3.0]])
    before, _ = cameras.project(point)
    after, _ = fitted.posed().project(point)
    # One column of 67 is cut before halving, and 33 become 32: both are cut on the right or evenly.
    assert after[0, 0].tolist() == pytest.approx([before[0, 0, 0].item() / 2, before[0, 0, 1].item() / 2], abs=1e-4)


def test_typical_depth_of_maps_and_of_points() -> None:
    images, cameras = torch.rand(2, 32, 32, 3), line(2, 0.1)
    depths = torch.zeros(2, 32, 32)
    depths[0, :3, 0] = torch.tensor([1.0, 3.0, 9.0])
    assert typical_depth(Scene(images=images, cameras=cameras, depths=depths)) == 3.0
    points = torch.tensor([[0.0, 0, 4], [0, 0, 5], [0, 0, 6], [0, 0, -7]])
    assert typical_depth(Scene(images=images, cameras=cameras, points=points)) == 5.0


def test_overlap_halves_with_half_a_frame() -> None:
    seen = capture._overlaps(line(2, 1.0), 2.0)
    assert seen[0, 0] == 1 and math.isclose(seen[0, 1], 0.5)


def test_validation_curves_name_data_set_factor_and_source() -> None:
    curves = {f"val/rooms/x4/sweep/{m}/psnr_covered": [(0.0, 20.0), (9.0, 21.0)] for m in ("sr3d", "upsampled")}
    svg = figures.curves_svg(curves)
    assert "sr3d, rooms, x4, sweep" in svg and "upsampled, rooms, x4, sweep" in svg
