from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lod_scenes import camera, plane_forest
from rich.console import Console
from small import small_capture, small_checkpoint, small_config

from sr3d import Gaussians, demo, render
from sr3d.capture import CaptureConfig
from sr3d.cli import VERBS, _spelt_out, build_parser, main
from sr3d.demo import busiest_pixel, clear_output, make_shards, run_demo
from sr3d.demo_config import DemoConfig
from sr3d.evaluation.results_file import read_results
from sr3d.lod import Forest

SIZE = 32


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("network") / "predictor.ckpt")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_capture(tmp_path_factory.mktemp("capture") / "photos")


def test_every_verb_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for verb, function in VERBS.items():
        with pytest.raises(SystemExit) as stopped:
            main([verb, "--help"])
        assert stopped.value.code == 0
        summary = (function.__doc__ or "").splitlines()[0]
        assert summary[:40] in " ".join(capsys.readouterr().out.split())


def test_help_needs_no_heavy_verb_modules() -> None:
    code = "import sys, sr3d.cli; sr3d.cli.build_parser(); print([m for m in sys.modules if m in %r])"
    heavy = ("lightning", "wandb", "timm", "sr3d.demo", "sr3d.models", "matplotlib")
    out = subprocess.run([sys.executable, "-c", code % (heavy,)], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_options_follow_the_signatures() -> None:
    parsed = build_parser().parse_args(["zoom", "here", "--target", "1,2", "--checkpoint", "c", "--output", "o"])
    assert parsed.zoom.scene == Path("here") and parsed.zoom.factor == 16 and parsed.zoom.views is None


def test_dashes_and_switches() -> None:
    parse = build_parser().parse_args
    for words in (["--allow-missing", "--text-model", "a-b"], ["--allow_missing=true", "--text_model=a-b"]):
        found = parse(_spelt_out(["eval", *words, "-o", "out-put", "--data.max-pixels", "7"])).eval
        assert found.allow_missing and found.text_model == "a-b" and found.output == Path("out-put")
        assert found.data == {"max_pixels": 7}
    off = parse(_spelt_out(["eval", "--allow-missing", "false", "--wandb"])).eval
    assert not off.allow_missing and off.wandb
    assert not parse(_spelt_out(["models"])).models.checkpointing
    assert parse(_spelt_out(["models", "--checkpointing", "--views", "3"])).models.checkpointing


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["upscale", "nowhere", "--checkpoint", "{checkpoint}", "-o", "{out}/a.ply"], "nowhere: scene: found no such"),
        (["upscale", "{photos}", "--checkpoint", "gone.ckpt", "-o", "{out}/a.ply"], "gone.ckpt: checkpoint: found no"),
        (["upscale", "{photos}", "--views", "0,x", "--checkpoint", "{checkpoint}", "-o", "{out}/a.ply"], "--views"),
        (["upscale", "{photos}", "--views", "0,9", "--checkpoint", "{checkpoint}", "-o", "{out}/a.ply"], "found 9"),
        (["zoom", "{photos}", "--target", "7", "--checkpoint", "{checkpoint}", "-o", "{out}/z"], "--target: found 7"),
        (
            ["eval", "--protocol", "folder", "--scenes", "{photos}", "--data.pairs", "0", "-o", "{out}/e"],
            "pairs: found 0",
        ),
        (["eval", "--protocol", "nowhere", "-o", "{out}/e"], "nowhere"),
        (["eval", "--methods", "magic", "--checkpoint", "{checkpoint}", "-o", "{photos}/transforms.json"], "a file"),
        (["compare", "{out}/a.json", "{out}/b.json"], "a.json"),
        (["demo", "-o", "{checkpoint}"], "output: found a file"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(
    words: list[str],
    expected: str,
    photos: Path,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = {"photos": photos, "checkpoint": checkpoint, "out": tmp_path}
    assert main([w.format(**values) for w in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and expected in error
    assert list(tmp_path.iterdir()) == []


def test_unknown_verb_and_option_exit_with_2() -> None:
    for words in (["upscal"], ["doctor", "--nope"]):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 2


def test_upscale_writes_gaussians_of_the_chosen_views(photos: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "scene.ply"
    words = ["upscale", str(photos), "--views", "0,4", "--checkpoint", str(checkpoint), "-o", str(out)]
    assert main([*words, "--max_pixels", "400"]) == 0
    fine = Gaussians.load(out)
    # 80 x 60 reduced by four is 20 x 15: two views of 300 parents with 16 children.
    assert len(fine) == 2 * 300 * 16
    assert fine.lod is not None and torch.isinf(fine.lod.coarser).all()


def test_convert_between_ply_and_forest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forest = plane_forest(3, 2, bumps=2.0)  # no two at one depth, whose order would count
    forest.gaussians().save(tmp_path / "levels.ply")
    assert main(["convert", str(tmp_path / "levels.ply"), str(tmp_path / "scene.sr3d")]) == 0
    assert f"{len(forest):,} Gaussians, 3 levels" in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "scene.sr3d"), str(tmp_path / "again.ply")]) == 0
    views = [camera(f) for f in (1.0, 2.7)]
    for view in views:
        expected = render(forest, view).rgb
        for file in ("scene.sr3d", "again.ply"):
            assert (render(Gaussians.load(tmp_path / file), view).rgb - expected).abs().mean() < 1e-4
    # Somebody else's ply has no levels: one level that never fades.
    plain = replace(forest.gaussians(), lod=None)
    plain.save(tmp_path / "plain.ply")
    assert main(["convert", str(tmp_path / "plain.ply"), str(tmp_path / "plain.sr3d")]) == 0
    found = render(Forest.load(tmp_path / "plain.sr3d"), views[1]).rgb
    assert (found - render(plain, views[1]).rgb).abs().mean() < 1e-4
    assert main(["convert", str(tmp_path / "plain.ply"), str(tmp_path / "plain.splat")]) == 2
    assert "ends in .ply or .sr3d" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "scene.sr3d"), str(tmp_path / "scene.sr3d")]) == 2
    assert "the other format" in capsys.readouterr().err


def test_shards_are_reused_only_for_equal_options(tmp_path: Path) -> None:
    config = DemoConfig(output=tmp_path, size=16, views=3, scenes={"train": 1, "val": 1, "test": 1})
    assert make_shards(config) == []
    before = (tmp_path / "shards/train/index.json").stat().st_mtime_ns
    assert make_shards(config) == ["train", "val", "test"]
    assert (tmp_path / "shards/train/index.json").stat().st_mtime_ns == before
    config.scenes = {"train": 2, "val": 1, "test": 1}
    assert make_shards(config) == ["val", "test"]
    assert json.loads((tmp_path / "shards/train/index.json").read_text())["clips"] == 2


def test_earlier_results_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in ("report.html", "training/predictor.ckpt", "shards/train/index.json", "mine.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    clear_output(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.txt", "shards"]


def test_busiest_pixel_lies_in_the_middle_half() -> None:
    image = torch.zeros(40, 80, 3)
    image[:, :10] = torch.rand(40, 10, 3)
    image[18:24, 50:56] = torch.rand(6, 6, 3)
    u, v = busiest_pixel(image)
    assert 46 <= u <= 60 and 14 <= v <= 28


def test_whole_demo_shrunk(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = DemoConfig(
        output=Path("outputs/small"),
        scene=photos,
        config=small_config(tmp_path / "demo.yaml"),
        size=SIZE,
        views=4,
        scenes={"train": 2, "val": 1, "test": 2},
        targets=1,
        capture=CaptureConfig(pairs=1, targets=1, max_pixels=400),
        shown=1,
        frames=3,
    )
    console = Console(record=True, width=200)
    run_demo(config, console)
    content = json.loads(Path("outputs/small/report.json").read_text())
    for key in ("procedural", "procedural_depth", "real", "real_depth"):
        found = content[key]
        assert set(found) == {"coverage", "views", "coarse", "upsampled", "scaffold", "sr3d"}
        assert set(found["sr3d"]) == {"psnr", "psnr_covered", "ssim", "gaussians"}
        assert found["sr3d"]["gaussians"] <= 0.5 * found["upsampled"]["gaussians"]
        assert 5 < found["sr3d"]["psnr"] < 50
    assert content["procedural"]["views"] == 2 and content["real"]["views"] == 1
    assert content["zoom"].keys() == {"procedural", "real"}
    assert [level["level"] for level in content["zoom"]["procedural"]["levels"]] == [0, 1, 2]
    assert content["seconds"].keys() >= {"shards", "training", "evaluation real", "zoom procedural"}
    page = Path("outputs/small/report.html").read_text()
    assert page.count("<video") == 2 and "<svg" in page
    assert "report: outputs/small/report.html" in console.export_text()
    assert Path("outputs/small/training/predictor.ckpt").is_file()
    whole = read_results("outputs/small/evaluation/real_depth/results.json")
    assert whole.protocol["name"] == "folder" and list(whole.methods) == ["coarse", "upsampled", "scaffold", "sr3d"]


def test_demo_without_capture_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shown: list[DemoConfig] = []
    monkeypatch.setattr(demo, "run_demo", shown.append)
    assert main(["demo", "--output", str(tmp_path / "d"), "--scene", "some/place"]) == 0
    assert shown[0].output == tmp_path / "d" and shown[0].scene == Path("some/place")
