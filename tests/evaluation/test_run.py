"""Whole runs of protocols: the same twice, on two processes, after a crash; complete or not at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small import ROOT, small_capture, small_checkpoint

from sr3d import Gaussians, Sr3dError
from sr3d.cli import main
from sr3d.evaluation import run as runs
from sr3d.evaluation.cases import Sources
from sr3d.evaluation.methods import MethodOptions, create_methods, method_classes
from sr3d.evaluation.protocol import Protocol, read_protocol
from sr3d.evaluation.results import Results
from sr3d.evaluation.results_file import identical, read_results
from sr3d.evaluation.run import RunConfig, run_protocol

METHODS = ["bicubic", "coarse", "upsampled", "scaffold", "optimise:2", "sr3d"]
SMALL = {"pairs": 2, "targets": 1, "max_pixels": 400}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two captures of one table."""
    first = small_capture(tmp_path_factory.mktemp("captures") / "one", enlarge=1)
    shutil.copytree(first, first.with_name("two"))
    return [first, first.with_name("two")]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("weights") / "net.ckpt")


def config_of(output: Path, photos: list[Path], methods: list[str], checkpoint: Path | None = None, **more: Any) -> Any:
    options = MethodOptions(checkpoint=None if checkpoint is None else str(checkpoint))
    sources = Sources(paths=photos)
    metrics = more.pop("metrics", ["psnr", "ssim"])
    return RunConfig(
        output=output, methods=methods, options=options, sources=sources, data=SMALL, metrics=metrics, **more
    )


def run(protocol: Protocol, config: RunConfig) -> Results:
    found = run_protocol(protocol, config)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, photos: list[Path], checkpoint: Path) -> Path:
    """A finished run of all methods by the command line."""
    folder = tmp_path_factory.mktemp("run")
    assert main(words(photos, checkpoint, folder)) == 0
    return folder


def words(photos: list[Path], checkpoint: Path, output: Path) -> list[str]:
    data = [part for key, value in SMALL.items() for part in (f"--data.{key}", str(value))]
    return [
        "eval", "--protocol", "folder", "--scenes", ",".join(map(str, photos)), "--methods", ",".join(METHODS),
        "--checkpoint", str(checkpoint), "--metrics", "psnr,ssim", "--source", "depth", *data, "-o", str(output),
    ]  # fmt: skip


def differing(a: Path, b: Path) -> list[str]:
    """Values of two runs that differ; somebody may edit the checkout meanwhile."""
    found = identical(a / "results.json", b / "results.json")
    return [path for path in found if not path.startswith("provenance.git")]


def test_a_run_leaves_tables_report_and_json(whole: Path) -> None:
    assert {p.name for p in whole.iterdir()} >= {"results.json", "results.md", "results.tex", "report.html", "cases"}
    found = read_results(whole / "results.json")
    assert found.protocol["source"] == "depth" and list(found.methods) == METHODS and not found.missing
    assert {case.scene for case in found.cases} == {"one", "two"}
    assert found.expected == sum(len(case.frames) for case in found.cases)
    for case in found.cases:
        # Untrained: the network returns the scaffold.
        assert case.values["sr3d"]["psnr"] == pytest.approx(case.values["scaffold"]["psnr"], abs=1e-4)
        assert case.gaussians["upsampled"] == 16 * (case.gaussians["coarse"] or 0) and case.gaussians["bicubic"] is None
        assert (whole / case.pictures["truth"]).is_file() and 0 < case.coverage[0] <= 1
        assert case.seconds["coarse"] > 0 and case.peak_bytes["sr3d"] > 1e7
    # The same photographs twice: the same scores.
    one, two = ([case.values for case in found.cases if case.scene == scene] for scene in ("one", "two"))
    assert one == two
    assert found.methods["sr3d"]["sha256"] and found.provenance["machine"]["versions"]["torch"]


def test_two_runs_agree_in_everything_but_time(
    whole: Path, photos: list[Path], checkpoint: Path, tmp_path: Path
) -> None:
    assert main(words(photos, checkpoint, tmp_path / "again")) == 0
    assert differing(whole, tmp_path / "again") == []
    a, b = (json.loads((folder / "results.json").read_text()) for folder in (whole, tmp_path / "again"))
    for part in ("protocol", "cases", "summary", "methods"):
        assert json.dumps(a[part]) == json.dumps(b[part])
    assert a["timing"] != b["timing"]
    assert main(["compare", str(whole / "results.json"), str(tmp_path / "again" / "results.json")]) == 0


@pytest.mark.slow
def test_two_processes_agree_with_one(whole: Path, photos: list[Path], checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sr3d.cli", *words(photos, checkpoint, tmp_path / "two"), "--devices", "2"]
    command += ["--accelerator", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert differing(whole, tmp_path / "two") == []
    assert read_results(tmp_path / "two" / "results.json").timing["processes"] == 2


def test_a_stopped_run_goes_on_where_it_was(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path / "run", photos, ["coarse", "upsampled"])
    protocol, real, seen = read_protocol("folder"), runs.score_case, list[str]()

    def dies(case: Any, state: Any) -> Any:
        seen.append(case.name)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(case, state)

    monkeypatch.setattr(runs, "score_case", dies)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run_protocol(protocol, config)
    stopped = list(seen)
    assert not (tmp_path / "run" / "results.json").exists()
    found = run(protocol, config)
    # The two that were done are not done again.
    assert seen[3:] == [name for name in (c.case for c in found.cases) if name not in stopped[:2]]
    fresh = run(protocol, config_of(tmp_path / "fresh", photos, ["coarse", "upsampled"]))
    assert [c.values for c in fresh.cases] == [c.values for c in found.cases]
    # Other settings are another run: nothing is taken over.
    before = len(seen)
    run(protocol, config_of(tmp_path / "run", photos, ["coarse", "upsampled"], seed=1))
    assert len(seen) == before + len(found.cases)


def test_what_is_wrong_with_one_case_does_not_touch_the_others(photos: list[Path], tmp_path: Path) -> None:
    damaged = tmp_path / "captures" / "damaged"
    shutil.copytree(photos[0], damaged)
    protocol, folders = read_protocol("folder"), [photos[0], damaged]
    whole = run(protocol, config_of(tmp_path / "run", folders, ["coarse"]))
    document = {"format": "sr3d-evaluation", "version": 1, "data": {}, "rule": {}, "left_out": []}
    (tmp_path / "index.json").write_text(json.dumps({**document, "items": whole_items(whole)}))
    for image in (damaged / "images").iterdir():
        image.write_bytes(b"no image")
    config = config_of(tmp_path / "again", folders, ["coarse"])
    config.sources.index = tmp_path / "index.json"
    with pytest.raises(Sr3dError, match=r"cases evaluated: found 2 of 4; damaged/.*no image|cases evaluated.*damaged"):
        run_protocol(protocol, config)
    kept = sorted(p.name for p in (tmp_path / "again" / "cases").glob("*.json"))
    assert len(kept) == 2
    config.allow_missing = True
    found = run(protocol, config)
    assert [entry["case"].split("/")[0] for entry in found.missing] == ["damaged", "damaged"]
    assert [c.values for c in found.cases] == [c.values for c in whole.cases if c.scene == "one"]
    assert found.expected == whole.expected


def whole_items(results: Results) -> list[dict[str, Any]]:
    """The index of a run of one target per case, made again from its names."""
    items = []
    for case in results.cases:
        clip, inputs = case.case.rsplit("/", 1)
        first, last = map(int, inputs.split("+"))
        items.append({"clip": clip, "context": [first, last], "target": [int(case.frames[0].split(".")[0])]})
        assert first < items[-1]["target"][0] < last
    return items


def broken(tmp_path: Path, change: str) -> list[str]:
    """A `ply` method whose file is not what it should be."""
    n = 30
    torch.manual_seed(0)
    scene = Gaussians(
        means=torch.randn(n, 3), quats=torch.randn(n, 4), scales=torch.rand(n, 3) * 0.1 + 0.01,
        opacities=torch.rand(n) * 0.9 + 0.05, sh=torch.randn(n, 1, 3),
    )  # fmt: skip
    if change != "missing":
        scene.save(tmp_path / "one.ply")
    return [f"ply:{tmp_path}/{{scene}}.ply"]


def test_gaussians_of_others(photos: list[Path], tmp_path: Path) -> None:
    found = run(read_protocol("folder"), config_of(tmp_path / "a", photos[:1], ["coarse", *broken(tmp_path, "")]))
    label = list(found.methods)[1]
    assert found.cases[0].gaussians[label] == 30 and len(str(found.cases[0].notes[label]["sha256"])) == 64
    with pytest.raises(Sr3dError, match=r"two.*no .*two\.ply.*expected"):
        run_protocol(read_protocol("folder"), config_of(tmp_path / "b", photos, broken(tmp_path, "")))


def test_nan_in_a_rendering_names_case_and_view(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upsampled = method_classes()["upsampled"]
    real = upsampled.make

    def nan(self: Any, task: Any) -> Any:
        made = real(self, task)
        made.gaussians.sh[len(made.gaussians) // 2 :] = torch.nan
        return made

    monkeypatch.setattr(upsampled, "make", nan)
    with pytest.raises(Sr3dError, match=r"one/\d\+\d.*method upsampled, view \d\.png.*NaN"):
        run_protocol(read_protocol("folder"), config_of(tmp_path / "a", photos[:1], ["coarse", "upsampled"]))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"methods": ["magic"]}, "--methods: found 'magic'; expected bicubic, coarse"),
        ({"methods": ["coarse", "coarse"]}, "coarse twice"),
        ({"methods": ["sr3d"]}, "checkpoint of method sr3d: found none"),
        ({"methods": ["ply:one.ply"]}, "one file for each scene"),
        ({"methods": []}, "--methods: found none"),
        ({"limit": 0}, "--limit: found 0"),
        ({"metrics": ["beauty"]}, "beauty"),
        ({"data": {"piars": 1}}, "piars"),
        ({"paths": []}, "--scenes: found none"),
        ({"paths": [Path("nowhere")]}, "no nowhere"),
    ],
)
def test_wrong_options_are_refused(change: dict[str, Any], expected: str, photos: list[Path], tmp_path: Path) -> None:
    config = config_of(tmp_path / "run", change.pop("paths", photos), change.pop("methods", ["coarse"]))
    for name, value in change.items():
        setattr(config, name, value)
    with pytest.raises(Sr3dError) as error:
        run_protocol(read_protocol("folder"), config)
    assert expected in str(error.value)


def test_a_checkpoint_for_another_factor_is_refused(photos: list[Path], checkpoint: Path, tmp_path: Path) -> None:
    protocol = read_protocol("folder")
    protocol.factor = 2
    with pytest.raises(Sr3dError, match=r"net\.ckpt: factor: found made for 4x; expected 2x, as the protocol asks"):
        run_protocol(protocol, config_of(tmp_path / "run", photos, ["sr3d"], checkpoint))


def test_an_index_that_names_absent_scenes(photos: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    path.write_text(json.dumps({"three": {"context": [0, 2], "target": [1]}}))
    config = config_of(tmp_path / "run", photos, ["coarse"])
    config.sources.index = path
    with pytest.raises(Sr3dError, match="three not among the scenes; expected one, two"):
        run_protocol(read_protocol("folder"), config)


def test_labels_and_arguments_of_methods(checkpoint: Path) -> None:
    options = MethodOptions(checkpoint=str(checkpoint))
    made = create_methods(["mine=sr3d", f"sr3d:{checkpoint}", "optimise:7"], options)
    assert list(made) == ["mine", f"sr3d:{checkpoint}", "optimise:7"]
    assert made["mine"].identity()["sha256"] == made[f"sr3d:{checkpoint}"].identity()["sha256"]
    assert made["optimise:7"].identity()["steps"] == 7
