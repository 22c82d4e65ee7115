from __future__ import annotations

import io
import re

import pytest
from made_results import made_results
from rich.console import Console

from sr3d.evaluation.results import Results
from sr3d.evaluation.sheets import Sheet, number, sheets
from sr3d.evaluation.statistics import summarise
from sr3d.evaluation.tables import latex, markdown, terminal


def sheet(results: Results, title: str) -> Sheet:
    return next(s for s in sheets(results, summarise(results, "upsampled")) if s.title.startswith(title))


def printed(results: Results) -> str:
    console = Console(width=100, file=(text := io.StringIO()))
    for table in terminal(results, summarise(results, "upsampled")):
        console.print(table)
    return text.getvalue()


def test_scores_are_means_with_intervals_and_the_best_is_marked() -> None:
    results = made_results()
    means = summarise(results, "upsampled").means[1]["sr3d"]
    scores = sheet(results, "Rooms")
    assert scores.head == ["Method", "PSNR (dB) ↑", "PSNR covered (dB) ↑", "SSIM ↑", "LPIPS ↓"]
    cell = scores.rows[3][1]
    assert (cell.value, cell.interval) == (
        f"{means['psnr'].mean:.2f}",
        f"[{means['psnr'].low:.2f}, {means['psnr'].high:.2f}]",
    )
    assert [[c.best for c in row[1:]] for row in scores.rows] == [[False] * 4] * 3 + [[True] * 4]


def test_two_dimensional_methods_are_marked_and_never_the_best() -> None:
    results = made_results()
    for case in results.cases:
        case.values["bicubic"]["psnr"] = [99.0] * len(case.frames)
    scores = sheet(results, "Rooms")
    assert scores.rows[0][0].interval == "(sees the target views, reduced)"
    assert scores.rows[0][1].value == "99.00"
    assert [row[1].best for row in scores.rows] == [False, False, False, True]


def test_what_prints_alike_is_equally_good() -> None:
    results = made_results(methods=("coarse", "upsampled", "sr3d"))
    for case in results.cases:
        for method, value in (("coarse", 20.0), ("upsampled", 20.101), ("sr3d", 20.099)):
            case.values[method]["psnr"] = [value] * len(case.frames)
    assert [row[1].best for row in sheet(results, "Rooms").rows] == [False, True, True]


def test_differences_have_sign_interval_and_win_rate() -> None:
    results = made_results()
    rows = {row[0].value: row for row in sheet(results, "Difference to upsampled").rows}
    assert list(rows) == ["bicubic", "coarse", "sr3d"]
    better, worse = rows["sr3d"][1], rows["coarse"][4]
    assert re.fullmatch(r"\+0\.\d\d", better.value) and re.fullmatch(r"\[\+0\.\d\d, \+0\.\d\d\]", better.interval)
    assert (better.won, better.gain) == ("100 % won", "win")
    assert worse.value.startswith("+0.0") and (worse.won, worse.gain) == ("0 % won", "loss")


def test_a_difference_within_its_interval_is_neither_gain_nor_loss() -> None:
    results = made_results()
    for i, case in enumerate(results.cases):
        case.values["sr3d"]["psnr"] = [value + (-1) ** (i // 2) for value in case.values["upsampled"]["psnr"]]
    cell = sheet(results, "Difference to upsampled").rows[2][2]
    assert (cell.won, cell.gain) == ("50 % won", "")


def test_counts_coverage_and_gaps_are_stated() -> None:
    results = made_results()
    results.cases[0].values["sr3d"]["psnr"][0] = None
    for case in results.cases[:2]:
        del case.values["coarse"]
    results.expected = 32
    results.missing = [{"case": "scene_9/1", "reason": "NaN in a render"}]
    summary = summarise(results, "upsampled")
    notes = " ".join(sheet(results, "Rooms").notes)
    assert f"30 target views of 6 scenes; {100 * summary.coverage[1]:.1f} % of their pixels are covered" in notes
    assert "Intervals over fewer than 10 scenes are too narrow." in notes
    gaps = sheet(results, "Cost").notes
    assert "30 of 32 target views that the protocol names were evaluated." in gaps
    assert "Not available: musiq (package pyiqa is missing)." in gaps
    assert "Missing: scene_9/1 (NaN in a render)." in gaps
    assert "1 of 30 views have no psnr and are left out (sr3d)." in gaps
    assert "5 of 30 views have no psnr, psnr_covered, ssim, lpips and are left out (coarse)." in gaps
    assert "coarse: psnr over 5 of 6 scenes only." in gaps


def test_one_scene_counts_cases_and_one_case_has_no_interval() -> None:
    results = made_results(1)
    notes = " ".join(sheet(results, "Rooms").notes)
    assert "5 target views of 1 scene (2 cases)" in notes and "Mean over cases" in notes
    results.cases.pop()
    scores = sheet(results, "Rooms")
    assert "One case only: no intervals." in scores.notes
    assert {cell.interval for row in scores.rows[1:] for cell in row} == {""}


def test_every_level_has_its_tables() -> None:
    results = made_results(levels=(1, 16))
    results.columns = results.columns | {"fid": {"title": "FID", "better": "lower", "digits": 1, "unit": ""}}
    results.pooled = {"coarse": {"fid": 40.04}, "sr3d": {"fid": 31.26}}
    titles = [s.title for s in sheets(results, summarise(results, "upsampled"))]
    for level in (1, 16):
        for start in ("Rooms that were never seen", "Difference to upsampled", "Scenes: PSNR covered (dB) ↑"):
            assert f"{start}, level {level}×" in titles
    assert [row[1].value for row in sheet(results, "All levels").rows] == ["–", "40.0", "–", "31.3"]
    assert titles.count("Cost per case") == 1


def test_metrics_of_all_views_stand_beside_the_others_where_there_is_one_level() -> None:
    results = made_results()
    results.columns = results.columns | {"miou": {"title": "mIoU", "better": "higher", "digits": 3, "unit": ""}}
    results.pooled = {"coarse": {"miou": None}, "sr3d": {"miou": 0.41239}}
    scores = sheet(results, "Rooms that were never seen (continued)")
    assert scores.head == ["Method", "mIoU ↑"]
    assert [(row[-1].value, row[-1].interval) for row in scores.rows[1:]] == [("–", ""), ("–", ""), ("0.412", "")]


def test_scenes_against_methods() -> None:
    results = made_results()
    rows, scenes = summarise(results, "upsampled").rows[1], sheet(results, "Scenes: PSNR covered (dB) ↑")
    assert scenes.head == ["Scene", "bicubic", "coarse", "upsampled", "sr3d"]
    assert [row[0].value for row in scenes.rows] == [f"scene_{i}" for i in range(6)]
    assert scenes.rows[2][4].value == f"{rows['scene_2']['sr3d']['psnr_covered']:.2f}" and scenes.rows[2][4].best


def test_hundreds_of_scenes_are_left_to_the_file() -> None:
    results = made_results(51)
    assert not [s for s in sheets(results, summarise(results, "upsampled")) if s.title.startswith("Scenes")]


def test_quoted_rows_stand_above_ours_with_source_and_note() -> None:
    results = made_results()
    quoted = sheet(results, "Quoted from Somebody et al. 2025, Table 1")
    assert quoted.head == ["Method", "PSNR (dB) ↑", "SSIM ↑", "Time (s)"]
    assert [[cell.value for cell in row] for row in quoted.rows[:2]] == [
        ["Theirs_A (quoted)", "23.10", "0.799", "–"],
        ["Theirs & more (quoted)", "24.05", "0.812", "1.5 h"],
    ]
    psnr = summarise(results, "upsampled").means[1]["sr3d"]["psnr"].mean
    assert [cell.value for cell in quoted.rows[-1]][:2] == ["sr3d (ours)", f"{psnr:.2f}"]
    assert quoted.rows[-1][3].value == "–"
    assert quoted.notes == ["Trained on 100 % of the data, which we do not have."]
    assert not [cell for row in quoted.rows for cell in row if cell.best]


@pytest.mark.parametrize(
    ("value", "digits", "unit", "sign", "text"),
    [
        (294912.0, 0, "", "", "294,912"),
        (1.5e9, 0, "bytes", "", "1,500 MB"),
        (-0.001, 2, "dB", "+", "0.00"),
        (-0.006, 2, "dB", "+", "-0.01"),
        (0.006, 2, "dB", "+", "+0.01"),
        (-2e5, 0, "bytes", "+", "0 MB"),
        (-0.5, 1, "", "+", "-0.5"),
    ],
)
def test_numbers(value: float, digits: int, unit: str, sign: str, text: str) -> None:
    assert number(value, {"digits": digits, "unit": unit}, sign) == text


def test_terminal_keeps_values_whole_in_a_hundred_columns() -> None:
    results = made_results(levels=(1, 4))
    results.columns = results.columns | {"clip_iqa": {"title": "CLIP-IQA", "better": "higher", "digits": 3, "unit": ""}}
    results.columns |= {"ms_ssim": results.columns["ssim"] | {"title": "MS-SSIM"}}
    for case in results.cases:
        for values in case.values.values():
            values["clip_iqa"] = values["ms_ssim"] = values["ssim"]
    text = printed(results)
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    for s in sheets(results, summarise(results, "upsampled")):
        for row in s.rows:
            for cell in row[1:]:
                assert cell.value in text and cell.interval in text and cell.won in text


def test_markdown_is_a_table_with_as_many_cells_in_every_line() -> None:
    results = made_results()
    results.missing = [{"case": "a|b", "reason": "NaN <here>"}]
    text = markdown(results, summarise(results, "upsampled"))
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    assert r"| Theirs\_A (quoted) | 23.10 | 0.799 | – |" in text
    assert re.search(r"\| sr3d \| \*\*\d\d\.\d\d\*\* \\\[\d\d\.\d\d, \d\d\.\d\d\\\] \|", text)
    assert r"Missing: a\|b (NaN \<here\>)." in text
    assert "| bicubic (sees the target views, reduced) |" in text


def test_latex_is_escaped() -> None:
    results = made_results()
    text = latex(results, summarise(results, "upsampled"))
    assert r"Theirs\_A (quoted) & 23.10 & 0.799 & -- \\" in text
    assert r"Theirs \& more (quoted) & 24.05 & 0.812 & 1.5 h \\" in text
    assert r"Trained on 100 \% of the data" in text
    assert r"PSNR (dB) $\uparrow$ & " in text
    assert re.search(r"\\textbf\{\d\d\.\d\d\} \{\\scriptsize \[\d\d\.\d\d, \d\d\.\d\d\]\}", text)
    assert not re.search(r"(?<!\\)[%_#]", text)
    assert text.count(r"\begin{tabular}") == text.count(r"\toprule") == text.count(r"\bottomrule") == 5
    assert text.isascii()
    for body in re.findall(r"\\begin\{tabular\}\{(\w+)\}\n(.*?)\\end", text, re.S):
        for line in body[1].splitlines():
            if not line.startswith(("\\toprule", "\\midrule", "\\bottomrule")):
                assert len(re.findall(r"(?<!\\)&", line)) == len(body[0]) - 1


def test_what_a_method_in_two_dimensions_is_given_is_said() -> None:
    for levels, words in (((1,), "(sees the target views, reduced)"), ((4, 16), "(enlarges the input)")):
        results = made_results(levels=levels)
        text = markdown(results, summarise(results, "upsampled"))
        assert f"| bicubic {words}" in text


def test_costs_stand_beside_quoted_costs_at_any_number_of_levels() -> None:
    for levels in ((1,), (4, 16)):
        results = made_results(levels=levels)
        results.protocol["published"] = [{"source": "Toys", "columns": ["fps", "psnr"], "rows": {"Theirs": [9, 21.5]}}]
        quoted = sheets(results, summarise(results, "upsampled"))[-1]
        ours = {row[0].value: [cell.value for cell in row[1:]] for row in quoted.rows}
        assert quoted.head[1] == "FPS ↑" and ours["Theirs (quoted)"] == ["9", "21.5"]
        assert float(ours["coarse (ours)"][0]) > 0
        assert (ours["coarse (ours)"][1] != "–") == (len(levels) == 1)
