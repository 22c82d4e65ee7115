from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_results import made_results

from sr3d import Sr3dError
from sr3d.evaluation.results_file import identical, read_case, read_results, write_case, write_results
from sr3d.evaluation.statistics import summarise


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_results(tmp_path / "run.json", made_results(2))
    return tmp_path / "run.json"


def change(file: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def test_round_trip_keeps_every_digit(file: Path) -> None:
    assert read_results(file) == made_results(2)


def test_levels_pooled_values_and_gaps_come_back(tmp_path: Path) -> None:
    results = made_results(2, levels=(1, 16))
    results.pooled = {"sr3d": {"psnr": 0.1 + 0.2, "ssim": None}}
    results.missing = [{"case": "x/0", "reason": "NaN in a render"}]
    results.cases[0].values["sr3d"]["psnr"][0] = None
    write_results(tmp_path / "run.json", results)
    assert read_results(tmp_path / "run.json") == results


def test_nan_is_written_as_no_value_and_infinity_refused(tmp_path: Path) -> None:
    results = made_results(1)
    results.cases[0].values["sr3d"]["psnr"][1] = math.nan
    write_results(tmp_path / "run.json", results)
    assert read_results(tmp_path / "run.json").cases[0].values["sr3d"]["psnr"][1] is None
    results.cases[0].values["sr3d"]["psnr"][1] = math.inf
    with pytest.raises(Sr3dError, match=r"cases\[0\]\.values\.sr3d\.psnr\[1\]: found inf"):
        write_results(tmp_path / "other.json", results)
    with pytest.raises(Sr3dError, match=r"scored\.values\.sr3d\.psnr\[1\]: found inf"):
        write_case(tmp_path / "case.json", results.cases[0], "f")
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_case_twice_is_refused(tmp_path: Path) -> None:
    results = made_results(1)
    results.cases.append(results.cases[0])
    with pytest.raises(Sr3dError, match="cases: found 'scene_0/0' 2 times"):
        write_results(tmp_path / "run.json", results)


def test_file_holds_the_summary_with_times_apart(file: Path) -> None:
    content, summary = json.loads(file.read_text()), summarise(made_results(2), "upsampled")
    kept, timed = content["summary"], content["timing"]["summary"]
    assert kept["means"]["1"]["sr3d"]["psnr"]["mean"] == summary.means[1]["sr3d"]["psnr"].mean
    assert kept["rows"]["1"]["scene_1"]["sr3d"].keys() == {"psnr", "psnr_covered", "ssim", "lpips", "gaussians"}
    assert timed["means"]["1"]["sr3d"].keys() == {"seconds", "fps", "peak_bytes"}
    assert timed["rows"]["1"]["scene_1"]["sr3d"]["fps"] == summary.rows[1]["scene_1"]["sr3d"]["fps"]
    assert timed["paired"]["1"]["sr3d"]["seconds"]["win_rate"] == 0.0


def test_two_runs_are_identical_but_for_their_times(file: Path) -> None:
    again = made_results(2)
    again.timing = {"started": "2027", "processes": 2}
    for case in again.cases:
        case.seconds = {name: 2 * value for name, value in case.seconds.items()}
        case.fps = {name: value / 2 for name, value in case.fps.items()}
        case.peak_bytes = {name: value + 1 for name, value in case.peak_bytes.items()}
    other = file.with_name("again.json")
    write_results(other, again)
    assert other.read_bytes() != file.read_bytes()
    assert identical(file, other) == []
    texts = []
    for path in (file, other):
        content = json.loads(path.read_text())
        del content["timing"]
        texts.append(json.dumps(content))
    assert texts[0] == texts[1]


def test_one_changed_value_is_found(file: Path) -> None:
    other = file.with_name("other.json")
    other.write_bytes(file.read_bytes())
    content = json.loads(file.read_text())
    value = content["cases"][2]["values"]["sr3d"]["ssim"][1]
    change(other, lambda c: c["cases"][2]["values"]["sr3d"]["ssim"].__setitem__(1, math.nextafter(value, 1)))
    assert identical(file, other) == ["cases[2].values.sr3d.ssim[1]"]
    change(other, lambda c: c["provenance"].pop("git"))
    change(other, lambda c: c["cases"].pop())
    change(other, lambda c: c["unavailable"].update(niqe="no pyiqa"))
    assert identical(file, other) == ["unavailable.niqe", "provenance.git", "cases"]


def first(content: dict[str, Any]) -> dict[str, Any]:
    return content["cases"][0]


BROKEN: list[tuple[Callable[[dict[str, Any]], object], str, str]] = [
    (lambda c: c.update(format="sr3d-index"), "format", "'sr3d-results'"),
    (lambda c: c.pop("format"), "format", "'sr3d-results'"),
    (lambda c: c.update(version=2), "version", "1"),
    (lambda c: c.update(version=True), "version", "1"),
    (lambda c: c.pop("expected"), "file", "expected"),
    (lambda c: c.update(extra=1), "file", "'extra'"),
    (lambda c: c.update(expected="12"), "expected", "a whole number"),
    (lambda c: c.update(expected=-1), "expected", "at least 0"),
    (lambda c: c.update(methods=[]), "methods", "an object"),
    (lambda c: c.update(cases={}), "cases", "a list"),
    (lambda c: c.update(summary=None), "summary", "an object"),
    (lambda c: c.update(timing={}), "timing", "no 'run'"),
    (lambda c: c["timing"]["cases"].pop("scene_0/0"), "timing.cases", "no 'scene_0/0'"),
    (lambda c: c["timing"]["cases"]["scene_0/0"].pop("fps"), "timing.cases.scene_0/0", "no 'fps'"),
    (lambda c: c["timing"]["cases"]["scene_0/0"]["seconds"].update(sr3d=-1.0), "cases[0].seconds.sr3d", "at least 0"),
    (lambda c: first(c).update(seconds={}), "cases[0]", "'seconds'"),
    (lambda c: first(c).pop("levels"), "cases[0]", "no 'levels'"),
    (lambda c: first(c).update(case=7), "cases[0].case", "text"),
    (lambda c: first(c).update(case="scene_0/1"), "cases", "every case once"),
    (lambda c: first(c).update(frames=[]), "cases[0].frames", "at least one"),
    (lambda c: first(c)["frames"].__setitem__(1, 1), "cases[0].frames[1]", "text"),
    (lambda c: first(c)["levels"].__setitem__(0, 1.0), "cases[0].levels[0]", "a whole number"),
    (lambda c: first(c)["levels"].__setitem__(0, 0), "cases[0].levels", "at least 1"),
    (lambda c: first(c)["coverage"].append(1.0), "cases[0].coverage", "2, one per target view"),
    (lambda c: first(c)["coverage"].__setitem__(0, 1.5), "cases[0].coverage", "between 0 and 1"),
    (lambda c: first(c)["values"]["sr3d"]["psnr"].pop(), "cases[0].values.sr3d.psnr", "2, one per target view"),
    (lambda c: first(c)["values"]["sr3d"]["psnr"].__setitem__(0, "2"), "cases[0].values.sr3d.psnr[0]", "a finite"),
    (lambda c: first(c)["values"].update(theirs={}), "cases[0].values", "one of bicubic"),
    (lambda c: first(c)["values"]["sr3d"].update(fid=[1.0, 2.0]), "cases[0].values.sr3d", "one of psnr"),
    (lambda c: first(c)["gaussians"].update(sr3d=0.5), "cases[0].gaussians.sr3d", "a whole number"),
    (lambda c: first(c)["gaussians"].update(sr3d=True), "cases[0].gaussians.sr3d", "a whole number"),
    (lambda c: c["pooled"].update(sr3d={"miou": 1.0}), "pooled.sr3d", "one of psnr"),
    (lambda c: c["columns"]["psnr"].update(better="more"), "columns.psnr.better", "'higher' or 'lower'"),
    (lambda c: c["columns"]["psnr"].pop("unit"), "columns.psnr", "no 'unit'"),
    (lambda c: c["columns"]["psnr"].update(digits="2"), "columns.psnr.digits", "a whole number"),
    (lambda c: c["missing"].append({"case": "x"}), "missing[0]", "no 'reason'"),
]


@pytest.mark.parametrize(("edit", "field", "words"), BROKEN, ids=[f"{f}-{w}" for _, f, w in BROKEN])
def test_damage_is_named(file: Path, edit: Callable[[dict[str, Any]], object], field: str, words: str) -> None:
    change(file, edit)
    with pytest.raises(Sr3dError) as error:
        read_results(file)
    assert error.value.source == str(file) and error.value.field == field
    assert words in f"{error.value.found} {error.value.expected}"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": NaN}', "[" * 100000, "\xff", '{"a": ' + "9" * 5000 + "}"])
def test_what_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text, encoding="latin-1")
    with pytest.raises(Sr3dError, match="file"):
        read_results(tmp_path / "run.json")


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Sr3dError, match="FileNotFoundError"):
        read_results(tmp_path / "run.json")


def test_case_is_read_back_under_its_fingerprint_only(tmp_path: Path) -> None:
    scored = made_results(1).cases[1]
    path = tmp_path / "case.json"
    assert read_case(path, "abc") is None
    write_case(path, scored, "abc")
    assert read_case(path, "abc") == scored
    assert read_case(path, "abd") is None


@pytest.mark.parametrize(
    ("edit", "field"),
    [
        (lambda c: c.pop("fingerprint"), "file"),
        (lambda c: c.update(format="sr3d-results"), "format"),
        (lambda c: c["scored"].pop("fps"), "scored"),
        (lambda c: c["scored"]["fps"].update(sr3d=None), "scored.fps.sr3d"),
        (lambda c: c["scored"]["levels"].pop(), "scored.levels"),
    ],
)
def test_damaged_case_is_refused(tmp_path: Path, edit: Callable[[dict[str, Any]], object], field: str) -> None:
    path = tmp_path / "case.json"
    write_case(path, made_results(1).cases[0], "abc")
    change(path, edit)
    with pytest.raises(Sr3dError) as error:
        read_case(path, "abc")
    assert error.value.field == field
