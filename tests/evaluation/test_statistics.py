from __future__ import annotations

import math
import random
from dataclasses import asdict

import numpy as np
import pytest
from made_results import made_results

from sr3d import Sr3dError
from sr3d.evaluation.results import Results
from sr3d.evaluation.statistics import baseline_of, summarise


def chosen(scenes: dict[str, list[list[float | None]]], other: list[float | None], column: str = "psnr") -> Results:
    """Results with given values of "sr3d" for the views of every case, and constant ones of "upsampled"."""
    results = made_results(len(scenes), ("upsampled", "sr3d"))
    results.cases = [case for case in results.cases if case.case.endswith("/0")]
    cases = []
    for made, (scene, parts), base in zip(results.cases, scenes.items(), other):
        for part, values in enumerate(parts):
            case = type(made)(**asdict(made))
            case.case, case.scene = f"{scene}/{part}", scene
            case.frames, case.levels = [str(i) for i in range(len(values))], [1] * len(values)
            case.coverage = [0.5] * len(values)
            case.values = {"sr3d": {column: values}, "upsampled": {column: [base] * len(values)}}
            cases.append(case)
    results.cases = cases
    return results


def test_every_scene_counts_once_however_many_views_it_has() -> None:
    results = chosen({"a": [[10.0, 20.0], [30.0]], "b": [[26.0] * 9]}, [0.0, 0.0])
    summary = summarise(results, "upsampled")
    assert summary.unit == "scene"
    assert summary.rows[1]["a"]["sr3d"]["psnr"] == 20.0
    assert summary.means[1]["sr3d"]["psnr"].mean == 23.0
    assert summary.means[1]["sr3d"]["psnr"].n == 2
    assert summary.views == {1: 12}
    assert summary.coverage == {1: 0.5}


def test_interval_is_that_of_a_bootstrap_written_out() -> None:
    results = made_results(12)
    found = summarise(results, "upsampled").means[1]["sr3d"]["lpips"]
    rows = summarise(results, "upsampled").rows[1]
    values = [row["sr3d"]["lpips"] for row in rows.values()]
    draw = random.Random(1)
    means = sorted(sum(draw.choices(values, k=12)) / 12 for _ in range(20000))
    spread = means[19499] - means[500]
    assert found.mean == pytest.approx(sum(values) / 12, abs=1e-12)
    assert found.low == pytest.approx(means[500], abs=0.05 * spread)
    assert found.high == pytest.approx(means[19499], abs=0.05 * spread)


def test_interval_holds_the_true_mean_as_often_as_it_says() -> None:
    results = chosen({f"s{i}": [[0.0]] for i in range(30)}, [0.0] * 30)
    results.columns = {f"c{j}": results.columns["psnr"] for j in range(150)}
    for case, values in zip(results.cases, np.random.default_rng(5).normal(3.0, 1.0, (30, 150)).tolist()):
        case.values = {"sr3d": {column: [value] for column, value in zip(results.columns, values)}}
    found = [mean for column, mean in summarise(results, "upsampled").means[1]["sr3d"].items() if column[0] == "c"]
    held = sum(mean.low is not None and mean.high is not None and mean.low <= 3.0 <= mean.high for mean in found)
    assert len(found) == 150
    assert 0.90 <= held / 150 <= 0.98


def test_the_same_in_every_run_and_another_with_another_seed() -> None:
    first, again = (summarise(made_results(), "coarse", seed=3) for _ in range(2))
    assert asdict(first) == asdict(again)
    assert asdict(first) != asdict(summarise(made_results(), "coarse", seed=4))


@pytest.mark.parametrize(("column", "win_rate"), [("psnr", 0.625), ("lpips", 0.375)])
def test_difference_keeps_its_sign_and_ties_count_half(column: str, win_rate: float) -> None:
    results = chosen({"a": [[3.0]], "b": [[2.0]], "c": [[1.0]], "d": [[4.0]]}, [2.0, 2.0, 2.0, 2.0], column)
    paired = summarise(results, "upsampled").paired[1]["sr3d"][column]
    assert (paired.difference, paired.win_rate, paired.n) == (0.5, win_rate, 4)
    assert paired.low is not None and paired.high is not None
    assert -1.0 <= paired.low < 0.5 < paired.high <= 2.0


def test_lower_is_better_where_the_column_says_so() -> None:
    paired = summarise(made_results(), "upsampled").paired[1]
    assert paired["sr3d"]["lpips"].difference < 0 and paired["sr3d"]["lpips"].win_rate == 1.0
    assert paired["coarse"]["lpips"].difference > 0 and paired["coarse"]["lpips"].win_rate == 0.0
    assert paired["sr3d"]["gaussians"].difference == 4608 * (64 - 16) and paired["sr3d"]["gaussians"].win_rate == 0.0
    assert "upsampled" not in paired


def test_paired_interval_is_far_narrower_than_that_of_the_means() -> None:
    summary = summarise(made_results(20), "upsampled")
    mean, paired = summary.means[1]["sr3d"]["psnr"], summary.paired[1]["sr3d"]["psnr"]
    assert None not in (mean.low, mean.high, paired.low, paired.high)
    assert (paired.high or 0) - (paired.low or 0) < 0.2 * ((mean.high or 0) - (mean.low or 0))
    assert (paired.low or 0) <= 0.7 <= (paired.high or 0)


def test_cases_take_the_place_of_scenes_where_there_is_one_scene() -> None:
    results = chosen({"a": [[10.0, 20.0], [30.0]]}, [14.0])
    summary = summarise(results, "upsampled")
    found, paired = summary.means[1]["sr3d"]["psnr"], summary.paired[1]["sr3d"]["psnr"]
    assert summary.unit == "case"
    assert (found.mean, found.low, found.high, found.n) == (22.5, 15.0, 30.0, 2)
    assert (paired.difference, paired.n) == (8.5, 2)
    assert summary.rows[1]["a"]["sr3d"]["psnr"] == 20.0


def test_one_case_has_no_interval() -> None:
    summary = summarise(chosen({"a": [[10.0, 20.0]]}, [14.0]), "upsampled")
    found, paired = summary.means[1]["sr3d"]["psnr"], summary.paired[1]["sr3d"]["psnr"]
    assert (found.mean, found.low, found.high, found.n) == (15.0, None, None, 1)
    assert (paired.difference, paired.low, paired.high, paired.win_rate) == (1.0, None, None, 1.0)


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_views_without_a_value_are_left_out_of_both_sides_of_a_difference(nothing: float | None) -> None:
    results = chosen({"a": [[10.0, nothing]], "b": [[nothing]], "c": [[30.0, 32.0]]}, [0.0, 0.0, 0.0])
    results.cases[0].values["upsampled"]["psnr"] = [4.0, 100.0]
    summary = summarise(results, "upsampled")
    assert summary.means[1]["sr3d"]["psnr"].mean == 20.5 and summary.means[1]["sr3d"]["psnr"].n == 2
    assert summary.paired[1]["sr3d"]["psnr"].difference == (6.0 + 31.0) / 2
    assert summary.without == {1: {"sr3d": {"psnr": 2}}}
    assert "sr3d" in summary.rows[1]["b"] and "psnr" not in summary.rows[1]["b"]["sr3d"]


def test_a_column_without_any_value_is_left_out() -> None:
    summary = summarise(made_results(), "upsampled")
    assert "gaussians" not in summary.means[1]["bicubic"]
    assert "gaussians" not in summary.paired[1]["bicubic"]
    assert summary.means[1]["sr3d"]["gaussians"].mean == 4608 * 64


def test_costs_are_means_over_cases_not_views() -> None:
    results = made_results(1)
    results.cases[0].seconds["sr3d"], results.cases[1].seconds["sr3d"] = 1.0, 4.0
    assert [len(case.frames) for case in results.cases] == [2, 3]
    assert summarise(results, "upsampled").rows[1]["scene_0"]["sr3d"]["seconds"] == 2.5


def test_levels_are_kept_apart() -> None:
    results = made_results(levels=(4, 1))
    for case in results.cases:
        case.values["sr3d"]["psnr"] = [30.0 if level == 1 else 20.0 for level in case.levels]
        case.coverage = [1.0 if level == 1 else 0.25 for level in case.levels]
    summary = summarise(results, "upsampled")
    assert summary.levels == [1, 4]
    assert [summary.means[level]["sr3d"]["psnr"].mean for level in (1, 4)] == [30.0, 20.0]
    assert summary.coverage == {1: 1.0, 4: 0.25} and summary.views == {1: 30, 4: 30}
    assert summary.means[1]["sr3d"]["gaussians"] == summary.means[4]["sr3d"]["gaussians"]


def test_unknown_baseline_names_the_methods() -> None:
    with pytest.raises(Sr3dError, match="baseline: found theirs; expected one of bicubic, coarse"):
        summarise(made_results(), "theirs")


def test_baseline_is_the_protocols_where_it_was_run() -> None:
    assert baseline_of(made_results()) == "upsampled"
    assert baseline_of(made_results(methods=("coarse", "sr3d"))) == "coarse"


def test_no_case_no_statistics() -> None:
    summary = summarise(made_results(0), "upsampled")
    assert (summary.levels, summary.means, summary.rows) == ([], {}, {})
