"""Every command of the README runs.

`make` lines are dry-run in the repository (`make -n`): they name targets and variables that exist. `sr3d` lines run for
real, as they stand and in their order, in a folder with a small capture `photos`, a small `configs/demo.yaml` and an
untrained network at the path of the demo's checkpoint; the options in `SHRINK` are added to save time. Python blocks
are executed in the same folder.
"""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
from pathlib import Path

import pytest
from small import ROOT, small_capture, small_checkpoint, small_config

from sr3d.cli import main

SHRINK = {
    "pack procedural": ["--scenes", "1", "--size", "32"],
    "pack nerfstudio": ["--workers", "1"],
    "upscale": ["--max_pixels", "400"],
    "zoom": ["--width", "20", "--frames", "3"],
    "eval --protocol folder": [
        "--metrics",
        "psnr",
        *(f"--data.{k}" for k in ("pairs=1", "targets=1", "max_pixels=400")),
    ],
    "eval --protocol shards": ["--metrics", "psnr"],
}
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    return BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))


def run_make(words: list[str]) -> None:
    """Targets and variables must be there; nothing is executed."""
    variables = [w.split("=")[0] for w in words if "=" in w]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name in variables:
        assert re.search(rf"^{name} \?=", makefile, re.MULTILINE), f"{name} is no variable of the Makefile"
    assert [w for w in words if "=" not in w], "no target"
    done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def run_line(line: str) -> None:
    command, *words = shlex.split(line)
    if command == "make":
        run_make(words)
        return
    assert command == "sr3d", f"{command}: the README may use make and sr3d"
    verb = " ".join(words[: {"pack": 2, "eval": 3}.get(words[0], 1)])
    assert main([*words, *SHRINK.get(verb, [])]) == 0


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like that of a reader after `make demo`."""
    small_capture(tmp_path / "photos", enlarge=8)
    small_config(tmp_path / "configs" / "demo.yaml")
    small_checkpoint(tmp_path / "outputs" / "demo" / "training" / "predictor.ckpt")
    # Estimates of the large networks take half a minute.
    monkeypatch.setattr("sr3d.models.estimate.list_models", lambda: ["tiny"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_every_block_runs(desk: Path) -> None:
    for language, text in blocks():
        if language == "python":
            (desk / "block.py").write_text(text, encoding="utf-8")
            runpy.run_path(str(desk / "block.py"))
            continue
        for line in text.splitlines():
            run_line(line)
    assert (desk / "scene.ply").is_file()
    assert (desk / "zoomed" / "zoom.mp4").is_file()
    for name in ("before", "after", "scores"):
        assert (desk / name / "results.json").is_file() and (desk / name / "report.html").is_file()
    assert (desk / "outputs" / "shards" / "val" / "index.json").is_file()


def test_readme_shows_the_verbs_a_reader_needs() -> None:
    lines = [line for language, text in blocks() if language == "bash" for line in text.splitlines()]
    starts = {" ".join(line.split()[:2]) for line in lines}
    names = ("upscale", "zoom", "convert", "inspect", "pack", "train", "models", "freeze", "eval", "compare")
    verbs = {f"sr3d {verb}" for verb in names}
    assert starts == {"make demo", "make test"} | verbs


@pytest.mark.parametrize(
    "line",
    [
        "make dmeo",
        "make demo SCNE=photos",
        "sr3f upscale photos",
        "sr3d upscal photos --checkpoint c -o scene.ply",
        "sr3d upscale photos --view 0,4 --checkpoint outputs/demo/training/predictor.ckpt -o scene.ply",
        "sr3d upscale photo --checkpoint outputs/demo/training/predictor.ckpt -o scene.ply",
        "sr3d eval --protocol folder --scenes photo",
    ],
)
def test_misspelt_commands_fail(line: str, desk: Path) -> None:
    with pytest.raises((AssertionError, SystemExit)):
        run_line(line)


def test_files_that_the_readme_links_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert links and [link for link in links if not (ROOT / link).exists()] == []
