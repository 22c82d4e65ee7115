from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_results import made_results
from rich.console import Console

from sr3d import Sr3dError
from sr3d.evaluation.compare import Change, Comparison, compare, terminal
from sr3d.evaluation.results import Results
from sr3d.evaluation.results_file import write_results


def compared(folder: Path, a: Results, b: Results) -> Comparison:
    write_results(folder / "a.json", a)
    write_results(folder / "b.json", b)
    return compare(folder / "a.json", folder / "b.json")


def shifted(results: Results, method: str, column: str, by: float, noise: float = 0.0) -> Results:
    """A copy with one column moved, and noise on all of them."""
    other, rng = copy.deepcopy(results), np.random.default_rng(11)
    for case in other.cases:
        for name, columns in case.values.items():
            for key, values in columns.items():
                step = by if (name, key) == (method, column) else 0.0
                columns[key] = [v + step + noise * rng.normal() for v in values if v is not None]
    return other


def found(comparison: Comparison, method: str, column: str) -> Change:
    (change,) = [c for c in comparison.changes if (c.method, c.column) == (method, column)]
    return change


def test_a_run_against_itself(tmp_path: Path) -> None:
    results = made_results()
    comparison = compared(tmp_path, results, results)
    assert not comparison.regressed
    assert {change.verdict for change in comparison.changes} == {""}
    assert len(comparison.changes) == 4 * 8 - 1
    pairs = [change.paired for change in comparison.changes]
    assert all(p and (p.difference, p.low, p.high, p.win_rate, p.n) == (0.0, 0.0, 0.0, 0.5, 6) for p in pairs)


@pytest.mark.parametrize(
    ("column", "by", "verdict"),
    [("psnr", -0.3, "worse"), ("psnr", 0.3, "better"), ("lpips", 0.3, "worse"), ("lpips", -0.3, "better")],
)
def test_a_planted_change_is_found_among_noise(tmp_path: Path, column: str, by: float, verdict: str) -> None:
    results = made_results(12)
    comparison = compared(tmp_path, results, shifted(results, "sr3d", column, by, noise=0.05))
    change = found(comparison, "sr3d", column)
    assert change.verdict == verdict and comparison.regressed == (verdict == "worse")
    assert change.paired and change.paired.difference == pytest.approx(by, abs=0.05)
    assert change.b - change.a == pytest.approx(change.paired.difference, abs=1e-9)
    assert [c.verdict for c in comparison.changes if c is not change] == [""] * (len(comparison.changes) - 1)


def test_a_shift_below_the_printed_digits_is_none(tmp_path: Path) -> None:
    results = made_results()
    assert not compared(tmp_path, results, shifted(results, "sr3d", "psnr", -0.004)).regressed
    assert compared(tmp_path, results, shifted(results, "sr3d", "psnr", -0.006)).regressed


def test_costs_are_marked_but_no_regression(tmp_path: Path) -> None:
    results, other = made_results(), made_results()
    for case in other.cases:
        case.seconds["sr3d"] *= 10
    comparison = compared(tmp_path, results, other)
    assert found(comparison, "sr3d", "seconds").verdict == "worse"
    assert not comparison.regressed


def test_one_case_is_never_called_worse(tmp_path: Path) -> None:
    results = made_results(1)
    results.cases.pop()
    comparison = compared(tmp_path, results, shifted(results, "sr3d", "psnr", -5.0))
    assert not comparison.regressed
    assert "One case only: no intervals." in comparison.notes


def test_levels_are_compared_one_by_one(tmp_path: Path) -> None:
    results, other = made_results(levels=(1, 4)), made_results(levels=(1, 4))
    for case in other.cases:
        values = case.values["sr3d"]["psnr"]
        case.values["sr3d"]["psnr"] = [v and v - (level == 4) for v, level in zip(values, case.levels)]
    comparison = compared(tmp_path, results, other)
    assert [(c.level, c.method, c.column) for c in comparison.changes if c.verdict] == [(4, "sr3d", "psnr")]


def test_common_methods_and_cases_are_compared_and_the_others_named(tmp_path: Path) -> None:
    results, other = made_results(methods=("coarse", "sr3d")), made_results(methods=("upsampled", "sr3d"))
    other.cases.pop()
    other.unavailable["lpips"] = "no weights"
    other.columns = {name: about for name, about in other.columns.items() if name != "lpips"}
    for case in other.cases:
        for values in case.values.values():
            del values["lpips"]
    comparison = compared(tmp_path, results, other)
    assert {change.method for change in comparison.changes} == {"sr3d"}
    assert comparison.notes[0].startswith("B − A on the same views of 11 cases")
    for note in ("Methods of A only: coarse.", "Methods of B only: upsampled.", "Columns of A only: lpips."):
        assert note in comparison.notes
    assert "Cases of A only: scene_5/1." in comparison.notes


def test_what_else_differs_is_said(tmp_path: Path) -> None:
    results, other = made_results(), made_results()
    other.methods["sr3d"]["checkpoint"] = "12ab"
    other.provenance["versions"]["torch"] = "2.16"
    other.cases[0].coverage[0] = 0.5
    notes = compared(tmp_path, results, other).notes
    assert "Settings: sr3d.checkpoint 'nothing' → '12ab'." in notes
    assert "Provenance: versions.torch '2.15' → '2.16'." in notes
    assert "Coverage differs in 1 cases: their covered pixels are not the same ones." in notes


def test_metrics_of_all_views_are_shown_without_a_verdict(tmp_path: Path) -> None:
    results = made_results()
    results.pooled = {"sr3d": {"ssim": 0.9}}
    for case in results.cases:
        del case.values["sr3d"]["ssim"]
    other = copy.deepcopy(results)
    other.pooled = {"sr3d": {"ssim": 0.1}}
    change = found(compared(tmp_path, results, other), "sr3d", "ssim")
    assert (change.level, change.a, change.b, change.paired, change.verdict) == (None, 0.9, 0.1, None, "")


EDITS: list[tuple[Callable[[Results], object], str]] = [
    (lambda r: r.protocol.update(sha256="ba" * 32), "protocol.sha256"),
    (lambda r: r.protocol["data"].update(seed=8), "protocol.data.seed"),
    (lambda r: r.protocol.pop("factor"), "protocol.factor"),
    (lambda r: r.cases[3].frames.__setitem__(1, "other"), "frames of case scene_1/1"),
    (lambda r: r.columns.update(psnr=r.columns["psnr"] | {"better": "lower"}), "columns.psnr.better"),
]


@pytest.mark.parametrize(("edit", "field"), EDITS, ids=[field for _, field in EDITS])
def test_other_protocols_are_refused(tmp_path: Path, edit: Callable[[Results], object], field: str) -> None:
    other = copy.deepcopy(made_results())
    edit(other)
    with pytest.raises(Sr3dError) as error:
        compared(tmp_path, made_results(), other)
    assert error.value.field == field and error.value.source == str(tmp_path / "b.json")


def test_other_words_of_a_protocol_are_no_obstacle(tmp_path: Path) -> None:
    other = made_results()
    other.protocol |= {"title": "Other words", "published": [], "baseline": "coarse", "metrics": []}
    assert not compared(tmp_path, made_results(), other).regressed


@pytest.mark.parametrize("kind", ["methods", "cases"])
def test_nothing_in_common_is_refused(tmp_path: Path, kind: str) -> None:
    other = made_results(methods=("theirs",)) if kind == "methods" else made_results(0)
    with pytest.raises(Sr3dError, match=f"{kind}: found none in common"):
        compared(tmp_path, made_results(), other)


def test_table_fits_a_hundred_columns(tmp_path: Path) -> None:
    results = made_results(12)
    comparison = compared(tmp_path, results, shifted(results, "sr3d", "psnr", -0.3))
    console = Console(width=100, file=(text := io.StringIO()))
    console.print(terminal(comparison))
    lines = [line.split() for line in text.getvalue().splitlines() if line.rstrip().endswith("worse")]
    assert [(line[0], line[1], line[6]) for line in lines] == [("sr3d", "PSNR", "-0.30")]
    assert lines[0][7:] == ["[-0.30,", "-0.30]", "0", "%", "worse"]
