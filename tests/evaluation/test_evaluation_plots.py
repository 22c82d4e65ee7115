from __future__ import annotations

import io
import math
import re
import xml.etree.ElementTree as ET
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from made_results import made_results
from PIL import Image

from sr3d.evaluation.plots import (
    Cost,
    Focus,
    differences,
    focus_of,
    paired_differences,
    quality_against,
    quality_by_level,
    save_plots,
)
from sr3d.evaluation.results import Results
from sr3d.evaluation.statistics import Summary, summarise

METHODS = ("bicubic", "coarse", "upsampled", "sr3d")


def summed(results: Results) -> tuple[Results, Summary, Focus]:
    summary = summarise(results, "upsampled", resamples=200)
    focus = focus_of(results, summary)
    assert focus is not None
    return results, summary, focus


def markers(svg: bytes | None, prefix: str) -> dict[str, list[tuple[float, float]]]:
    """Name after the prefix → places of its markers, in points; y downwards."""
    assert svg is not None
    found = {}
    for group in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}g"):
        name = group.get("id", "")
        if name.startswith(f"{prefix}-"):
            places = [(float(u.get("x", "")), float(u.get("y", ""))) for u in group.iter() if u.tag.endswith("}use")]
            found[name.removeprefix(f"{prefix}-")] = places
    return found


def texts(svg: bytes | None) -> list[str]:
    assert svg is not None
    return ["".join(e.itertext()) for e in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def is_linear(x: list[float], y: list[float]) -> bool:
    fit = np.polyfit(x, y, 1)
    return abs(np.polyval(fit, x) - y).max() < 0.01 and abs(fit[0]) > 1e-6


@pytest.mark.parametrize("cost", ["seconds", "gaussians"])
def test_a_point_per_method_where_its_numbers_say(cost: Cost) -> None:
    results, summary, focus = summed(made_results(methods=METHODS))
    found = markers(quality_against(results, summary, focus, cost), cost)
    means = summary.means[1]
    methods = [m for m in METHODS if cost == "seconds" or m != "bicubic"]
    assert set(found) == set(methods) | {f"{m}-interval" for m in methods}
    assert all(len(found[m]) == 1 and len(found[f"{m}-interval"]) == 2 for m in methods)
    assert is_linear([math.log(means[m][cost].mean) for m in methods], [found[m][0][0] for m in methods])
    heights = [(means[m]["psnr_covered"].mean, found[m][0][1]) for m in methods]
    for m in methods:
        mean, (low, high) = means[m]["psnr_covered"], found[f"{m}-interval"]
        assert mean.low is not None and mean.high is not None
        heights += [(mean.low, low[1]), (mean.high, high[1])]
    assert is_linear(*map(list, zip(*heights))) and sorted(heights) == sorted(heights, key=lambda h: -h[1])


def test_a_line_per_method_over_levels() -> None:
    results, summary, focus = summed(made_results(scenes=3, methods=METHODS, levels=(1, 4, 16)))
    svg = quality_by_level(results, summary, focus)
    found = {m: places for m, places in markers(svg, "level").items() if m in METHODS}
    assert list(found) == list(METHODS) and all(len(places) == 3 for places in found.values())
    values = [summary.means[level][m]["psnr_covered"].mean for m in METHODS for level in (1, 4, 16)]
    assert is_linear(values, [y for m in METHODS for _, y in found[m]])
    assert is_linear([0, 2, 4], [x for x, _ in found["sr3d"]])
    assert {"1×", "4×", "16×", *METHODS} <= set(texts(svg))
    assert quality_by_level(*summed(made_results())) is None


def test_a_bar_per_scene_from_best_to_worst() -> None:
    results = made_results(scenes=5)
    for case in results.cases:
        planted = (0.5, -1.0, 2.0, 0.0, 0.25)[int(case.scene[-1])]
        base = case.values["upsampled"]["psnr_covered"]
        case.values["sr3d"]["psnr_covered"] = [v + planted for v in base if v is not None]
    svg = paired_differences(*summed(results))
    assert svg is not None
    bars = {}
    for group in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}g"):
        if group.get("id", "").startswith("difference-"):
            drawn = group[0]
            xs = [float(x) for x in re.findall(r"[ML] (\S+)", drawn.get("d", ""))]
            color = re.search(r"fill: (#\w+)", drawn.get("style", ""))
            assert color is not None
            bars[group.get("id")] = (xs[1] - xs[0], color[1])
    assert list(bars) == [f"difference-{i}" for i in range(5)]
    widths, colors = zip(*bars.values())
    assert is_linear([2.0, 0.5, 0.25, 0.0, -1.0], list(widths)) and abs(widths[3]) < 1e-6
    assert colors[0] == colors[1] == colors[2] != colors[4] and colors[3] not in (colors[0], colors[4])
    shown = texts(svg)
    assert [t for t in shown if t.startswith("scene_")] == [f"scene_{i}" for i in (2, 0, 4, 3, 1)]
    assert "mean +0.35" in shown and "95 % interval" in shown


def test_many_scenes_are_counted_instead_of_named() -> None:
    shown = texts(paired_differences(*summed(made_results(scenes=41))))
    assert "41 scenes" in shown and not any(t.startswith("scene_") for t in shown)


@pytest.mark.parametrize("scenes", [1, 4])
def test_differences_are_those_of_the_summary_also_where_views_have_no_value(scenes: int) -> None:
    results = made_results(scenes=scenes)
    results.cases[0].values["sr3d"]["psnr_covered"][0] = None
    results.cases[1].values["upsampled"]["psnr_covered"][1] = None
    summary = summarise(results, "upsampled", resamples=10)
    found = differences(results, summary, "sr3d", "psnr_covered", 1)
    cases = [case.case for case in results.cases]
    assert list(found) == (cases if scenes == 1 else [f"scene_{i}" for i in range(4)])
    assert np.mean(list(found.values())) == pytest.approx(summary.paired[1]["sr3d"]["psnr_covered"].difference)


def test_the_focus_is_sr3d_covered_psnr_and_the_highest_level_that_has_it() -> None:
    results = made_results(scenes=3, methods=("upsampled", "sr3d", "ply"), levels=(1, 4, 16))
    for case in results.cases:
        for values in case.values.values():
            values["psnr_covered"] = [None if at == 16 else v for v, at in zip(values["psnr_covered"], case.levels)]
    _, _, focus = summed(results)
    assert (focus.column, focus.level, focus.method) == ("psnr_covered", 4, "sr3d")
    assert list(focus.differences.values()) == sorted(focus.differences.values(), reverse=True)


@pytest.mark.parametrize(
    ("methods", "identity", "method"),
    [
        (("upsampled", "a", "b"), "", "b"),
        (("upsampled", "a", "b"), "a", "a"),
        (("a", "b", "upsampled"), "", "b"),
        (("upsampled",), "", "upsampled"),
    ],
)
def test_without_sr3d_the_focus_is_the_last_method(methods: tuple[str, ...], identity: str, method: str) -> None:
    results = made_results(scenes=2, methods=methods)
    if identity:
        results.methods[identity]["method"] = "sr3d"
    results, summary, focus = summed(results)
    assert focus.method == method and bool(focus.differences) == (method != "upsampled")
    assert (paired_differences(results, summary, focus) is None) == (method == "upsampled")


def test_without_covered_psnr_the_first_metric_counts_in_its_own_direction() -> None:
    results = made_results(scenes=4)
    results.columns = {"lpips": results.columns["lpips"]}
    _, _, focus = summed(results)
    assert focus.column == "lpips" and list(focus.differences.values()) == sorted(focus.differences.values())
    results.columns = {}
    assert focus_of(results, summarise(results, "upsampled")) is None


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    results, summary, focus = summed(made_results(levels=(1, 4)))
    for draw in (partial(quality_against, cost="seconds"), quality_by_level, paired_differences):
        first = draw(results, summary, focus)
        assert first is not None and first.startswith(b"<svg") and first == draw(results, summary, focus)
    paths = save_plots(results, summary, tmp_path / "a" / "plots")
    assert [p.name for p in paths] == ["quality_seconds.png", "quality_gaussians.png", "differences.png", "levels.png"]
    for path, other in zip(paths, save_plots(results, summary, tmp_path / "b")):
        assert path.read_bytes() == other.read_bytes()
        image = np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGBA"))
        assert (image[0, 0] == 255).all() and image.shape[1] == 960 and (image[..., :3] < 100).any()


def test_names_are_drawn_as_they_are_and_cut_where_they_are_long() -> None:
    long = "ply:" + "x" * 60 + "end.ply"
    results, summary, focus = summed(made_results(scenes=2, methods=("upsampled", "$a_1$<b>&", long)))
    shown = texts(quality_against(results, summary, focus, "seconds"))
    assert "$a_1$<b>&" in shown
    (cut,) = [t for t in shown if t.startswith("ply:")]
    assert len(cut) <= 28 and cut.endswith("end.ply") and "…" in cut
