from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from made_results import made_results
from PIL import Image

from sr3d import Sr3dError, figures
from sr3d.evaluation.plots import Focus
from sr3d.evaluation.report import shown_scenes, write_report
from sr3d.evaluation.results import Results
from sr3d.evaluation.statistics import baseline_of, summarise
from sr3d.io.images import write_image

METHODS = ("bicubic", "coarse", "upsampled", "sr3d")


class Page(HTMLParser):
    """Tags with their attributes, cells of tables with their text, and the text of all."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[tuple[str, str]]] = []
        self.text, self._open = "", False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {k: v or "" for k, v in attrs}
        self.tags.append((tag, given))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append((given.get("class", ""), ""))
            self._open = True

    def handle_endtag(self, tag: str) -> None:
        self._open = self._open and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open:
            kind, text = self.rows[-1].pop()
            self.rows[-1].append((kind, text + data))

    def starting(self, name: str) -> list[list[tuple[str, str]]]:
        return [row for row in self.rows if row and row[0][1].startswith(name)]

    def pictures(self, label: str) -> list[np.ndarray]:
        uris = [given["src"] for tag, given in self.tags if tag == "img" and given["alt"] == label]
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))) for uri in uris]


def page_of(results: Results, folder: Path) -> Page:
    summary = summarise(results, baseline_of(results), resamples=50)
    return Page(write_report(results, summary, folder).read_text(encoding="utf-8"))


def plant(results: Results, column: str, differences: list[float]) -> None:
    """Make sr3d better than the baseline in a column, by another number in each scene."""
    for case in results.cases:
        base = case.values["upsampled"][column]
        case.values["sr3d"][column] = [v + differences[int(case.scene[-1])] for v in base if v is not None]


def with_pictures(results: Results, folder: Path, *, size: int = 24, truth: bool = True) -> None:
    """The left third is not covered, sr3d is the truth, the others are darker; the input is four times smaller."""
    image = torch.rand(size, size, 3, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.5
    covered = torch.ones(size, size, 3)
    covered[:, : size // 3] = 0
    drawn = {"input": image[::4, ::4], "covered": covered, "sr3d": image, "bicubic": image * 0.8}
    drawn |= {"coarse": image * 0.5, "upsampled": image * 0.6} | ({"truth": image} if truth else {})
    for name, content in drawn.items():
        write_image(folder / f"{name}.png", content)
    for case in results.cases:
        case.pictures = {name: f"{name}.png" for name in drawn}


def test_everything_that_was_found_is_said(tmp_path: Path) -> None:
    results = made_results()
    plant(results, "psnr_covered", [1.0, 1.5, 0.75, 1.0, 1.0, 1.0])
    plant(results, "lpips", [0.1, 0.2, 0.3, 0.2, 0.1, 0.1])
    plant(results, "ssim", [0.1, -0.1, 0.2, -0.2, 0.1, -0.1])
    results.missing = [{"case": "scene_9/0", "reason": "view 7: NaN in the render"}]
    results.expected += 3
    results.protocol["notes"] = ["The paper leaves the filter open."]
    results.provenance["machine"] = {"gpus": ["Some GPU"], "versions": {"numpy": "9.8.7"}}
    results.methods["sr3d"]["sha256"] = "ef" * 32
    page = page_of(results, tmp_path)
    assert all(len(page.starting(m)) >= 3 for m in METHODS)
    (gains,) = [row for row in page.starting("sr3d") if any(kind for kind, _ in row)]
    assert [kind for kind, _ in gains] == ["", "gain win", "gain win", "", "gain loss"]
    assert gains[1][1].startswith("+1.04") and "100 % won" in gains[1][1]
    for name, value in (("Theirs_A", "23.10"), ("Theirs & more", "24.05")):
        (row,) = page.starting(name)
        assert row[0][1] == f"{name} (quoted)" and row[1][1] == value
    assert page.starting("sr3d (ours)") and not any("(quoted)" in row[0][1] for row in page.starting("sr3d"))
    for text in (
        "Rooms that were never seen", "30 of 33 target views, 12 cases, 6 scenes", "4 times smaller", "plane sweep",
        "Somebody et al. 2025, Table 1", "Trained on 100 % of the data", "musiq (package pyiqa is missing)",
        "scene_9/0 (view 7: NaN in the render)", "leaves the filter open", "ab" * 32, "cd" * 20, "ef" * 32, "9.8.7",
        "Some GPU", "1 CPU", "git dirtyno",
    ):  # fmt: skip
        assert text in page.text, text
    assert [given for tag, given in page.tags if tag == "b" and given.get("class") == "loss"]
    assert sum(tag == "svg" for tag, _ in page.tags) == 3


@pytest.mark.parametrize(
    ("column", "order"),
    [("psnr_covered", ("scene_2", "scene_1", "scene_3")), ("lpips", ("scene_3", "scene_1", "scene_2"))],
)
def test_the_best_the_median_and_the_worst_scene(tmp_path: Path, column: str, order: tuple[str, ...]) -> None:
    results = made_results(scenes=5)
    results.columns = {column: results.columns[column]}
    plant(results, column, [1.0, 0.5, 3.0, -2.0, 0.25])
    page = page_of(results, tmp_path)
    found = re.findall(r"The (best|median|worst) scene: (scene_\d)", page.text)
    assert found == list(zip(("best", "median", "worst"), order))
    digits = results.columns[column]["digits"]
    assert (
        f"sr3d minus upsampled: {'+' if order[0] == 'scene_2' else '-'}{3 if digits == 2 else 2:.{digits}f}"
        in page.text
    )
    assert page.text.count("No pictures were kept") == 3
    assert [given["id"] for _, given in page.tags if given.get("id", "").endswith("-scene")] == [
        "best-scene", "median-scene", "worst-scene",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, {}),
        (1, {"a": "only"}),
        (2, {"a": "best", "b": "worst"}),
        (3, {"a": "best", "b": "median", "c": "worst"}),
        (4, {"a": "best", "c": "median", "d": "worst"}),
    ],
)
def test_few_scenes_are_shown_once(count: int, expected: dict[str, str]) -> None:
    focus = Focus(column="psnr", level=1, method="sr3d", differences={"abcd"[i]: -float(i) for i in range(count)})
    assert shown_scenes(focus) == expected


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    results = made_results(scenes=3, levels=(1, 4))
    with_pictures(results, tmp_path)
    page = page_of(results, tmp_path)
    links = [given[k] for _, given in page.tags for k in ("src", "href", "xlink:href", "data") if k in given]
    assert links and all(link.startswith(("data:image/jpeg;base64,", "#")) for link in links)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe"}
    assert "@import" not in page.text and "prefers-color-scheme: dark" in page.text


def test_names_are_text(tmp_path: Path) -> None:
    results = made_results(scenes=2, methods=("upsampled", "<i>sr3d</i>"))
    odd = '<script>alert("x")</script>&'
    for case in results.cases:
        case.scene = case.scene.replace("scene_0", odd)
    results.protocol |= {"title": f"{odd} title", "notes": [odd]}
    results.unavailable = {odd: odd}
    page = page_of(results, tmp_path)
    assert not {"script", "i"} & {tag for tag, _ in page.tags}
    assert f"scene: {odd}" in page.text and f"{odd} title" in page.text and "<i>sr3d</i>" in page.text


def test_pictures_of_a_scene(tmp_path: Path) -> None:
    results = made_results(scenes=1)
    results.cases = results.cases[:1]
    with_pictures(results, tmp_path)
    page = page_of(results, tmp_path)
    assert "The only case: scene_0/0" in page.text and "view 0_001" in page.text
    # Input, methods, truth; the same details; errors of the methods.
    images, details, errors = (page.pictures(label) for label in ("image", "detail", "error"))
    assert [len(p) for p in (images, details, errors)] == [6, 6, 4]
    assert all(p.shape == (240, 240, 3) for p in (*images, *errors)) and all(p.shape == (256, 256, 3) for p in details)
    # A pixel of the input fills 40 × 40 here.
    assert np.ptp(images[0][4:36, 4:36].astype(int)).max() < 90 and np.abs(images[4].astype(int) - images[5]).max() < 3
    for i, error in enumerate(errors):
        hatched, seen = error[:, :76].astype(int), error[:, 88:].astype(int)
        assert np.ptp(hatched, axis=-1).max() < 12 and 90 < hatched.min() < 120 < hatched.max() < 155
        assert (seen.mean() < 3) == (METHODS[i] == "sr3d")
    scores = [row for row in page.rows if row and row[0][1].startswith("0_00")]
    assert len(scores) == 2 and scores[1][2][1] == f"{100 * results.cases[0].coverage[1]:.1f} %"
    expected = [results.cases[0].values[m]["psnr_covered"][1] for m in METHODS]
    assert [text for _, text in scores[1][3:]] == [f"{value:.2f} dB" for value in expected]
    assert all(f"{value:.2f} dB" in page.text for value in expected)


def test_without_truth_or_input_there_is_less_to_show(tmp_path: Path) -> None:
    results = made_results(scenes=3)
    with_pictures(results, tmp_path, truth=False)
    (tmp_path / "input.png").unlink()
    (tmp_path / "coarse.png").unlink()
    page = page_of(results, tmp_path)
    assert [len(page.pictures(label)) for label in ("image", "detail", "error")] == [9, 9, 0]
    assert "ground truth" not in page.text and "nearest view" not in page.text


def test_a_magnified_view_has_no_detail_of_the_input(tmp_path: Path) -> None:
    results = made_results(scenes=1, levels=(4, 16))
    with_pictures(results, tmp_path)
    page = page_of(results, tmp_path)
    assert "The best case: " in page.text and "magnified 16×" in page.text and "level 16×" in page.text
    assert [len(page.pictures(label)) for label in ("image", "detail", "error")] == [12, 10, 8]
    assert sum(tag == "svg" for tag, _ in page.tags) == 4


def test_large_pictures_become_thumbnails(tmp_path: Path) -> None:
    results = made_results(scenes=1)
    with_pictures(results, tmp_path, size=600)
    page = page_of(results, tmp_path)
    assert {p.shape for p in page.pictures("image")} == {(300, 300, 3)}
    assert {p.shape for p in page.pictures("detail")} == {(240, 240, 3)}


def test_a_picture_of_another_size_is_an_error_and_no_page_is_left(tmp_path: Path) -> None:
    results = made_results(scenes=1)
    with_pictures(results, tmp_path)
    write_image(tmp_path / "coarse.png", torch.zeros(23, 24, 3))
    with pytest.raises(Sr3dError, match=r"coarse\.png: size of the picture: found \(23, 24\); expected .*\(24, 24\)"):
        page_of(results, tmp_path)
    assert not list(tmp_path.glob("*.html"))


def test_nothing_evaluated_is_a_page_too(tmp_path: Path) -> None:
    results = made_results(scenes=1)
    results.missing = [{"case": case.case, "reason": "it <crashed>"} for case in results.cases]
    results.cases = []
    page = page_of(results, tmp_path)
    assert "0 of 5 target views, 0 cases, 0 scenes" in page.text and "scene_0/1 (it <crashed>)" in page.text
    assert "svg" not in {tag for tag, _ in page.tags}


def test_the_same_results_give_the_same_page(tmp_path: Path) -> None:
    pages = []
    for _ in range(2):
        results = made_results(scenes=2, levels=(1, 2))
        with_pictures(results, tmp_path)
        page_of(results, tmp_path)
        pages.append((tmp_path / "report.html").read_bytes())
    assert pages[0] == pages[1]


def test_details_are_where_pixels_count() -> None:
    image = torch.zeros(40, 40, 3)
    image[4:12:2, 4:12] = 1.0
    image[26:34:2, 26:34] = 0.5
    counted = torch.ones(40, 40, dtype=torch.bool)
    assert max(figures.busiest_window(image, 10, counted)) < 12
    counted[:, :20] = False
    assert min(figures.busiest_window(image, 10, counted)) > 20
