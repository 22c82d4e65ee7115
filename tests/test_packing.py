from __future__ import annotations

import json
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
from small import small_capture
from stored import clip

from sr3d.cli import main
from sr3d.datasets import ShardDataset, write_shards
from sr3d.datasets.converter import Converter, converters, find_converter
from sr3d.datasets.evaluation import read_evaluation
from sr3d.datasets.shards import list_shards, read_clips, read_index
from sr3d.errors import Sr3dError
from sr3d.evaluation.results_file import read_results

SIZE = 32
SOURCES = ["acid", "colmap", "dl3dv", "folders", "nerfstudio", "procedural", "re10k", "scannet", "scannetpp"]


def test_every_data_set_has_a_converter() -> None:
    assert converters() == SOURCES
    for name in SOURCES:
        cls = find_converter(name)
        assert isinstance(cls(), Converter) and cls.source == name and cls.licence and cls.version >= 1
    with pytest.raises(Sr3dError, match="source: found 'nosuch'; expected acid, colmap"):
        find_converter("nosuch")


def test_a_converter_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = entry_points(group="sr3d.converters", name="colmap")
    point = next(iter(broken))
    monkeypatch.setattr(type(point), "load", lambda self: __import__("no_such_module"))
    with pytest.raises(Sr3dError, match="converter colmap: found No module named 'no_such_module'"):
        find_converter("colmap")


def test_pack_a_capture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, out = small_capture(tmp_path / "photos"), tmp_path / "shards"
    command = ["pack", "nerfstudio", str(photos), str(out), "--workers", "1", "--stride", "2", "--min_views", "2"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    index = read_index(out)
    assert "licence of the data" in printed and str(out / "index.json") in printed.replace("\n", "")
    assert index.options["clips"]["stride"] == 2 and index.split == "train"
    frames = len(json.loads((photos / "transforms.json").read_text())["frames"])
    assert index.views == -(-frames // 2)
    assert main(command) == 0
    assert "found whole from an earlier run" in capsys.readouterr().out


def test_pack_procedural_in_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "pack",
        "procedural",
        str(tmp_path / "s"),
        "--scenes",
        "2",
        "--views",
        "3",
        "--size",
        "16",
        "--workers",
        "1",
    ]
    assert main([*command, "--part", "1/1", "--split", "test"]) == 0
    (first, second) = ShardDataset(tmp_path / "s")
    assert len(first) == len(second) == 3 and first.images.shape[1] == 16
    assert main([*command, "--part", "3/2", "--split", "test"]) == 2
    assert "--part" in capsys.readouterr().err
    assert main([*command, "--split", "train"]) == 2
    assert "the options and files it was begun with" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["pack"], ["pack", "nosuch", "a", "b"], ["pack", "dl3dv", "a", "b", "--no_such", "1"]]
)
def test_wrong_words(words: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2


@pytest.mark.parametrize("source", [s for s in SOURCES if s != "procedural"])
def test_a_folder_of_something_else_is_one_clear_error(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("nowhere", "empty"):
        src = tmp_path / name
        if name == "empty":
            src.mkdir()
        assert main(["pack", source, str(src), str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and str(src) in error and "found" in error and "expected" in error
        assert not (tmp_path / "out").exists()


def test_help_names_the_options_of_a_converter(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["pack", "dl3dv", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--images" in text and "images_8" in text and "--part" in text and "Licence of the data" in text


def test_freeze_and_evaluate_by_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    find = find_converter("procedural")(scenes=2, views=5, size=SIZE)
    assert main(["pack", "procedural", str(tmp_path / "s"), "--scenes", str(find.scenes), "--views", "5", "--size",
                 str(SIZE), "--split", "test", "--workers", "1"]) == 0  # fmt: skip
    index = tmp_path / "index.json"
    assert (
        main(["freeze", str(tmp_path / "s"), "--by", "overlap", "--low", "0.2", "--targets", "1", "-o", str(index)])
        == 0
    )
    frozen = read_evaluation(index)
    assert len(frozen.items) + len(frozen.left_out) == 2 and frozen.source == "procedural"
    words = ["eval", "--protocol", "shards", "--methods", "coarse,upsampled", "--metrics", "psnr", "--source", "depth"]
    words += ["--index", str(index), "-o", str(tmp_path / "scores")]
    assert main([*words, "--scenes", str(tmp_path / "s")]) == 0
    found = read_results(tmp_path / "scores" / "results.json")
    assert found.expected == len(frozen.items) == sum(len(case.frames) for case in found.cases)
    assert all(np.isfinite(value) for case in found.cases for value in case.values["coarse"]["psnr"])
    # Other shards of the same names are not what was frozen.
    write_shards((clip(i) for i in range(2)), tmp_path / "other")
    capsys.readouterr()
    assert main([*words, "--scenes", str(tmp_path / "other")]) == 2
    assert "SHA-256" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["redkitchen", "redkitchen-clip", "shelf", "apple", "castle4", "fox"])
def test_cameras_in_the_shards_are_those_of_the_source(scenes: Path, name: str, tmp_path: Path) -> None:
    assert main(["pack", "nerfstudio", str(scenes / name), str(tmp_path / "s"), "--workers", "1"]) == 0
    truth = {Path(f["file"]).name: f for f in json.loads((scenes / name / "cameras.json").read_text())["frames"]}
    (clip,) = read_clips(list_shards(tmp_path / "s")[0])
    assert set(clip.frames) == set(truth)
    to_world = np.linalg.inv(clip.cameras.world_to_cam.numpy())
    for frame, pose, K in zip(clip.frames, to_world, clip.cameras.K.numpy()):
        np.testing.assert_allclose(pose, truth[frame]["camera_to_world"], atol=1e-6)
        if name != "fox":  # undistorted: a new K
            np.testing.assert_allclose(K, truth[frame]["K"], atol=1e-6)
    assert clip.has_depth == (name in ("redkitchen", "redkitchen-clip", "shelf"))
