"""Shards and Gaussian files: what is in them, and damage that is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sr3d import Gaussians, Sr3dError
from sr3d.cli import main
from sr3d.coarse import CoarseConfig, coarse_gaussians
from sr3d.datasets.procedural import pack_procedural
from sr3d.inspection import Report, inspect
from sr3d.lod import Lod
from sr3d.scene import Scene


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two splits of procedural shards beside each other."""
    folder = tmp_path_factory.mktemp("shards")
    for split, name in (("train", "train"), ("validation", "val")):
        pack_procedural(folder / name, scenes=2, views=4, size=64, split=split, progress=False)
    return folder


@pytest.fixture
def shards(packed: Path, tmp_path: Path) -> Path:
    shutil.copytree(packed, tmp_path / "shards")
    return tmp_path / "shards" / "train"


def errors(report: Report) -> list[str]:
    return [f"{v.where}: {v.found}" for v in report.violations if v.severity == "error"]


def test_whole_shards(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = inspect(shards, tmp_path / "pictures")
    assert report.violations == [] and report.kind == "shards of procedural, split train"
    assert report.facts["checksums"] == "1 of 1 tar files are as the index says"
    assert report.facts["found"].startswith("2 clips, 8 views, 2 scenes")
    assert report.facts["reprojection"].startswith("passes for 2 of 2 clips")
    assert report.facts["clips with"] == "depth 2, labels 0, semantics 2, metres 2 of 2"
    assert "wall" in report.facts["labels"] or "table" in report.facts["labels"]
    assert [p.name for p in report.pictures] == ["views.png", "cameras-0.png", "cameras-1.png"]
    assert main(["inspect", str(shards / "index.json"), "-o", str(tmp_path / "pictures")]) == 0
    assert "fit to train on" in capsys.readouterr().out


def test_one_tar_file(shards: Path, tmp_path: Path) -> None:
    (tar,) = shards.glob("*.tar")
    report = inspect(tar, tmp_path / "pictures")
    assert report.usable and report.facts["found"].startswith("2 clips, 8 views")
    assert [v.found.split(":")[0] for v in report.violations] == ["a tar file alone"]


def flip_byte(tar: Path, at: int) -> None:
    data = bytearray(tar.read_bytes())
    data[at] ^= 0xFF
    tar.write_bytes(data)


def in_image(tar: Path) -> int:
    """A byte in the middle of the first image."""
    data = tar.read_bytes()
    return data.index(b"\x89PNG") + 12 if b"\x89PNG" in data else data.index(b"\xff\xd8") + 2


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda tar: flip_byte(tar, in_image(tar)), "SHA-256"),
        (lambda tar: flip_byte(tar, in_image(tar)), "that are no image"),
        (lambda tar: tar.write_bytes(tar.read_bytes()[:-2048]), "bytes where the index says"),
        (lambda tar: tar.write_bytes(tar.read_bytes()[: len(tar.read_bytes()) * 9 // 10]), "cut off after"),
    ],
)
def test_damaged_shards(shards: Path, tmp_path: Path, damage: Callable[[Path], object], text: str) -> None:
    (tar,) = shards.glob("*.tar")
    damage(tar)
    report = inspect(shards, tmp_path / "pictures")
    assert any(text in e for e in errors(report)), errors(report)
    assert report.facts["checksums"] == "0 of 1 tar files are as the index says"


def test_missing_and_foreign_tar_files(shards: Path, tmp_path: Path) -> None:
    (tar,) = shards.glob("*.tar")
    (other,) = (shards.parent / "val").glob("*.tar")
    shutil.copy(other, tar)
    report = inspect(shards, tmp_path / "pictures")
    assert sum("not 'procedural" in e for e in errors(report)) == 2
    tar.unlink()
    with pytest.raises(Sr3dError, match="clips: found none that can be read: No such file"):
        inspect(shards, tmp_path / "pictures")


def test_scenes_in_two_splits(shards: Path, tmp_path: Path) -> None:
    index = shards.parent / "val" / "index.json"
    content = json.loads((shards / "index.json").read_text())
    index.write_text(json.dumps(content | {"split": "validation"}))
    (error,) = errors(inspect(shards, tmp_path / "pictures"))
    assert "2 scenes are in the split validation (val) too: procedural" in error


def test_clips_with_wrong_poses(room: Scene, tmp_path: Path) -> None:
    from sr3d.datasets.shards import write_shards

    cameras = room.posed()
    turned = torch.diag(torch.tensor([1.0, -1, -1, 1])) @ cameras.world_to_cam
    write_shards([replace(room, cameras=replace(cameras, world_to_cam=turned))], tmp_path / "shards")
    report = inspect(tmp_path / "shards", tmp_path / "pictures")
    (violation,) = report.violations
    assert "world_to_cam has camera axes right, up, backward (OpenGL's)" in violation.found
    assert violation.fix == "change its rows to 1, -2, -3" and not report.usable
    assert report.facts["reprojection"].startswith("passes for 0 of 1 clips")


@pytest.fixture(scope="session")
def gaussians(room: Scene) -> Gaussians:
    g = coarse_gaussians(room.views([0, 3]), CoarseConfig(source="depth"))
    return g.index(slice(None, None, 7))


def test_gaussian_files(gaussians: Gaussians, tmp_path: Path) -> None:
    for name, kind in (("g.ply", "Gaussians (.ply)"), ("g.sr3d", "forest of Gaussians (.sr3d)")):
        replace(gaussians, lod=Lod.roots(gaussians.scales.amax(-1))).save(tmp_path / name)
        report = inspect(tmp_path / name, tmp_path / "pictures")
        assert report.kind == kind and report.violations == []
        assert report.facts["Gaussians"] == f"{len(gaussians):,}, SH degree 0"
        assert [p.name for p in report.pictures] == ["renders.png", "above.png"]
    assert report.facts["links and bounds"] == "all checked: right"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda g: replace(g, scales=g.scales.exp()), "scale: all scales are 1 or more"),
        (lambda g: replace(g, scales=g.scales * 1000), "scale: median"),
        (lambda g: replace(g, opacities=torch.sigmoid(torch.linspace(0, 1, len(g)))), "opacity: all between 0.5 and"),
        (lambda g: replace(g, opacities=g.opacities * 1e-3), "opacity: 100 % of the Gaussians are too faint"),
        (lambda g: Gaussians.cat([g, g.index(slice(0, 9))]), "Gaussians: 9 rows are copies of others"),
        (lambda g: replace(g, scales=g.scales * 1e-12), "Gaussians have no size"),
    ],
)
def test_wrong_gaussians(
    gaussians: Gaussians, tmp_path: Path, change: Callable[[Gaussians], Gaussians], text: str
) -> None:
    change(replace(gaussians, lod=None)).save(tmp_path / "g.ply")
    report = inspect(tmp_path / "g.ply", tmp_path / "pictures")
    assert any(text in f"{v.where}: {v.found}" for v in report.violations), report.violations
