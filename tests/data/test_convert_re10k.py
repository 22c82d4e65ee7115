"""The converter of RealEstate10K's and ACID's chunks."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captures import convert, file_of, picture, poses, to_world, write
from sr3d_data.re10k import Acid, RealEstate10K

from sr3d import Sr3dError
from sr3d.datasets.converter import ClipOptions, Drops, split_of

# Keys whose hash puts them into the validation set, and others.
KEYS = [f"{i:016x}" for i in range(60)]
HELD = [key for key in KEYS if split_of(key) == "validation"][:2]
REST = [key for key in KEYS if split_of(key) != "validation"][:3]
SIZE = (64, 36)


def jpeg(seed: int, size: tuple[int, int] = SIZE) -> bytes:
    return file_of(picture(*size, seed), "JPEG")


def scene(key: str, views: int = 4, seed: int = 3) -> dict[str, Any]:
    """One example as `real_estate_10k_tools/src/convert.py` makes it."""
    rows = [
        [0.49, 0.87, 0.5, 0.52, 0.0, 0.0, *np.linalg.inv(pose)[:3].reshape(-1).tolist()] for pose in poses(views, seed)
    ]
    return {
        "url": f"https://www.youtube.com/watch?v={key}",
        "timestamps": torch.tensor([81372956 + 33366 * i for i in range(views)], dtype=torch.int64),
        "cameras": torch.tensor(rows, dtype=torch.float32),
        "images": [torch.frombuffer(bytearray(jpeg(i)), dtype=torch.uint8) for i in range(views)],
        "key": key,
    }


def chunk(folder: Path, number: int, scenes: list[Any]) -> Path:
    """Write a chunk and name it in `index.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{number:0>6}.torch"
    torch.save(scenes, path)
    index = folder / "index.json"
    known = json.loads(index.read_text()) if index.exists() else {}
    index.write_text(json.dumps(known | {s["key"]: path.name for s in scenes if isinstance(s, dict)}))
    return path


@pytest.mark.parametrize("converter", [RealEstate10K(), Acid()])
def test_chunk(tmp_path: Path, converter) -> None:
    chunk(tmp_path / "test", 0, [scene("a", seed=1), scene("b", views=6, seed=2)])
    clips, drops = convert(converter, tmp_path, split="test")
    assert [(c.name, c.scene, len(c.views), c.metric) for c in clips] == [("a", "a", 4, False), ("b", "b", 6, False)]
    np.testing.assert_allclose(to_world(clips[0]), poses(4, 1), atol=2e-6)
    expected = np.array([[0.49 * 64, 0, 32], [0, 0.87 * 36, 0.52 * 36], [0, 0, 1]])
    assert all(np.abs(v.K - expected).max() < 1e-5 and v.size == SIZE for v in clips[0].views)
    assert [v.image for v in clips[1].views] == [jpeg(i) for i in range(6)], "byte for byte"
    assert [v.frame for v in clips[0].views][:2] == ["81372956", "81406322"]
    rotation = clips[0].views[0].world_to_cam[:3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
    assert not drops.frames and not drops.scenes


def test_splits(tmp_path: Path) -> None:
    chunk(tmp_path / "train", 0, [scene(k, 1) for k in (HELD[0], REST[0], REST[1])])
    chunk(tmp_path / "train", 1, [scene(k, 1) for k in (REST[2], HELD[1])])
    chunk(tmp_path / "test", 0, [scene("t", 1)])
    names = {
        s: [c.name for c in convert(RealEstate10K(), tmp_path, s)[0]] for s in ("train", "validation", "test", "all")
    }
    assert names["train"] == REST and names["validation"] == HELD and names["test"] == ["t"]
    assert sorted(names["all"]) == sorted([*REST, *HELD, "t"])
    assert [e.name for e in RealEstate10K().entries(tmp_path, "validation")] == [
        "validation-000000",
        "validation-000001",
    ]
    chunk(tmp_path / "validation", 0, [scene("v", 1)])
    assert [c.name for c in convert(RealEstate10K(), tmp_path, "validation")[0]] == ["v"]
    assert len(convert(RealEstate10K(), tmp_path, "train")[0]) == 5, "all of train/ where there is a validation/"


def test_clips_are_cut(tmp_path: Path) -> None:
    chunk(tmp_path / "test", 0, [scene("a", views=9)])
    clips, _ = convert(RealEstate10K(), tmp_path, "test", views=4)
    assert [(c.name, c.scene, len(c.views)) for c in clips] == [("a-000", "a", 3), ("a-001", "a", 3), ("a-002", "a", 3)]


def _nan(s: dict) -> None:
    s["cameras"][1, 9] = float("nan")


def _scaled(s: dict) -> None:
    s["cameras"][1, 6:9] *= 1.1


def _pixels(s: dict) -> None:
    s["cameras"][1, :4] *= 64


def _cut(s: dict) -> None:
    s["images"][1] = s["images"][1][:-40].clone()


def _bigger(s: dict) -> None:
    s["images"][1] = torch.frombuffer(bytearray(jpeg(1, (128, 72))), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_nan, "pose not finite"),
        (_scaled, "pose not a rotation"),
        (_pixels, "damaged"),
        (_cut, "damaged"),
        (_bigger, "other image size"),
    ],
)
def test_bad_frames_are_counted(tmp_path: Path, change, reason) -> None:
    bad = scene("a")
    change(bad)
    chunk(tmp_path / "test", 0, [bad, scene("b")])
    (a, b), drops = convert(RealEstate10K(), tmp_path, "test")
    assert [v.frame for v in a.views] == ["81372956", "81439688", "81473054"] and len(b.views) == 4
    assert dict(drops.frames) == {reason: 1} and "81406322" in drops.examples[0]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda s: s.pop("cameras"), "cameras"),
        (lambda s: s.update(cameras=s["cameras"][:2]), "cameras"),
        (lambda s: s.update(cameras=s["cameras"].int()), "cameras"),
        (lambda s: s.update(images=s["images"][0]), "images"),
        (lambda s: s.update(images=[torch.zeros(1, dtype=torch.uint8).expand(10**12)] * 4), "images"),
        (lambda s: s.update(images=[s["cameras"]] * 4), "images"),
        (lambda s: s.update(timestamps=None), "timestamps"),
        (lambda s: s.update(key=7), "key"),
    ],
)
def test_bad_scene_leaves_the_others(tmp_path: Path, change, field) -> None:
    bad = scene("a")
    change(bad)
    torch.save([bad, "no scene", scene("b")], write(tmp_path / "test/000000.torch", ""))
    (clip,), drops = convert(RealEstate10K(), tmp_path, "test")
    assert clip.name == "b" and dict(drops.scenes) == {"damaged": 2}
    assert f"{field}: found" in drops.examples[0]


class _Call:
    """Unpickled, it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.mkdir, (self.path,)


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def _bare_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps([_Call(path.with_name("made"))]))


def _code(path: Path) -> None:
    torch.save([_Call(path.with_name("made"))], path)


def _compressed(path: Path) -> None:
    with zipfile.ZipFile(path) as source:
        members = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


@pytest.mark.parametrize(
    "change",
    [
        _truncated,
        _bare_pickle,
        _code,
        _compressed,
        lambda path: path.write_bytes(b""),
        lambda path: torch.save({"key": 1}, path),
    ],
)
def test_hostile_chunk_is_one_error(tmp_path: Path, change) -> None:
    path = chunk(tmp_path / "test", 0, [scene("a")])
    change(path)
    entry = RealEstate10K().entries(tmp_path, "test")[0]
    with pytest.raises(Sr3dError) as caught:
        list(RealEstate10K().clips(entry, ClipOptions(), Drops()))
    assert caught.value.source == str(path) and caught.value.field == "chunk"
    assert not path.with_name("made").exists()


def test_other_sources(tmp_path: Path) -> None:
    with pytest.raises(Sr3dError, match=r"train: chunks: found none; expected 000000\.torch"):
        RealEstate10K().entries(tmp_path, "train")
    chunk(tmp_path / "train", 0, [scene("a")])
    chunk(tmp_path / "train", 1, [scene("b")]).unlink()
    with pytest.raises(Sr3dError, match=r"index\.json: chunks: found 1 missing: 000001\.torch"):
        RealEstate10K().entries(tmp_path, "train")
    write(tmp_path / "train/index.json", "[")
    with pytest.raises(Sr3dError, match="key → chunk"):
        RealEstate10K().entries(tmp_path, "train")
