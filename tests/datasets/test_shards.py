from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import webdataset as wds
from stored import H, V, W, write_eleven
from stored import clip as _clip

from sr3d import Scene, Sr3dError
from sr3d.datasets import ShardDataset, World, pack_procedural, write_shards
from sr3d.datasets.index import FILE
from sr3d.datasets.procedural import world_seed
from sr3d.datasets.shards import list_shards, read_clips, read_index


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven clips in several tar files."""
    out = tmp_path_factory.mktemp("shards")
    write_eleven(out)
    assert len(list(out.glob("*.tar"))) >= 3
    return out


SHARD = "shard-000000-00.tar"
KEY = "000000-0000"


def _names(clips: object) -> list[str]:
    return [c.name for c in clips]


def test_round_trip(folder: Path) -> None:
    clips = list(ShardDataset(folder))
    assert _names(clips) == [f"clip {i}/a.b" for i in range(11)]
    for i, clip in enumerate(clips):
        truth = _clip(i)
        assert torch.equal((clip.images * 255).round(), (truth.images * 255).round())
        assert (clip.images - truth.images).abs().max() < 1e-6
        assert torch.equal(clip.posed().world_to_cam, truth.posed().world_to_cam)
        assert torch.equal(clip.posed().K, truth.posed().K)
        assert clip.labels is not None and truth.labels is not None and torch.equal(clip.labels, truth.labels)
        assert clip.depths is not None and truth.depths is not None
        assert torch.equal(clip.depths == 0, truth.depths == 0)
        error = (clip.depths - truth.depths).abs() / truth.depths.clamp_min(1e-9)
        assert error.max() < 1e-3 and error.max() > 1e-6


def test_jpg_and_clips_without_depth_and_labels(tmp_path: Path) -> None:
    smooth = torch.linspace(0.2, 0.8, W).expand(V, H, W)[..., None].repeat(1, 1, 1, 3)
    plain = Scene(images=smooth, cameras=_clip(0).cameras, name="plain")
    write_shards([plain], tmp_path / "s", image_format="jpg")
    (clip,) = ShardDataset(tmp_path / "s")
    assert clip.depths is None and clip.labels is None
    assert 0 < (clip.images - smooth).abs().max() < 0.03


def test_index(folder: Path, tmp_path: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    assert index["clips"] == 11 and index["views"] == 33 and index["options"]["made"] == "for a test"
    for entry in index["shards"]:
        data = (folder / entry["file"]).read_bytes()
        assert entry["bytes"] == len(data) and entry["sha256"] == hashlib.sha256(data).hexdigest()
        assert entry["clips"] == len(entry["names"]) == len(entry["offsets"])
        for offset, name in zip(entry["offsets"], entry["names"]):
            assert data[offset:].startswith(KEY[:9].encode()) and name.encode() in data[offset : offset + 14_000]
    assert sorted(os.listdir(folder)) == sorted([*(e["file"] for e in index["shards"]), "index.json"])
    # The same clips give the same bytes.
    write_eleven(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "index.json").read_text())
    assert again["shards"] == index["shards"]


def test_an_interrupted_write_leaves_no_index_and_no_half_file(tmp_path: Path) -> None:
    def clips():
        yield _clip(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(clips(), tmp_path)
    assert os.listdir(tmp_path) == []


def test_writing_refuses(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Sr3dError, match=r"index.json.*there already"):
        write_shards([_clip(0)], folder)
    with pytest.raises(Sr3dError, match="clips: found none"):
        write_shards([], tmp_path / "a")
    with pytest.raises(Sr3dError, match="images without poses"):
        write_shards([Scene(images=_clip(0).images)], tmp_path / "b")
    bad = _clip(0)
    assert bad.depths is not None
    bad.depths[0, 0, 0] = torch.nan
    with pytest.raises(Sr3dError, match="depths"):
        write_shards([bad], tmp_path / "c")


def _rewritten(folder: Path, tmp_path: Path, change: Callable[[str, bytes], tuple[str, bytes] | None]) -> Path:
    """The first tar file with every member passed through `change`, without an index."""
    out = tmp_path / "changed.tar"
    with tarfile.open(folder / SHARD) as old, tarfile.open(out, "w") as new:
        for member in old:
            file = old.extractfile(member)
            assert file is not None
            changed = change(member.name, file.read())
            if changed is not None:
                info = tarfile.TarInfo(changed[0])
                info.size = len(changed[1])
                new.addfile(info, io.BytesIO(changed[1]))
    return out


def _png(shape: tuple[int, ...]) -> bytes:
    return cv2.imencode(".png", np.zeros(shape, np.uint8))[1].tobytes()


def _swap(ending: str, data: bytes | None) -> Callable[[str, bytes], tuple[str, bytes] | None]:
    def change(name: str, old: bytes) -> tuple[str, bytes] | None:
        if not name.endswith(ending):
            return name, old
        return None if data is None else (name, data)

    return change


def _edit(**values: object) -> Callable[[str, bytes], tuple[str, bytes]]:
    def change(name: str, old: bytes) -> tuple[str, bytes]:
        return name, json.dumps({**json.loads(old), **values}).encode() if name.endswith(".json") else old

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_swap(".001.png", None), r"000000-0000\.001\.png: found missing"),
        (_swap(".001.depth.png", None), r"001\.depth\.png: found missing"),
        (_swap(".002.labels.png", None), r"002\.labels\.png: found missing"),
        (_swap(".clip.json", None), r"000000-0000\.clip\.json: found missing"),
        (_swap(".001.png", b"not an image"), r"001\.png: found 12 bytes without the end of a PNG"),
        (_swap(".001.png", b"not an imageIEND\xaeB`\x82"), r"001\.png: found 20 bytes that are no image"),
        (_swap(".001.png", b""), r"001\.png: found 0 bytes"),
        (_swap(".001.png", _png((H, W + 1, 3))), rf"001\.png: found {W + 1}x{H}.*expected {W}x{H}"),
        (_swap(".001.depth.png", _png((H, W, 3))), r"001\.depth\.png: found .* 3 channels"),
        (_swap(".clip.json", b"{"), r"clip\.json: found JSONDecodeError"),
        (_swap(".clip.json", b"[]"), r"clip\.json: found list"),
        (_edit(width=-1), r"clip\.json: width: found -1"),
        (_edit(version=1), r"clip\.json: version: found 1; expected 2: pack the data again"),
        (_edit(frames=[]), r"clip\.json: frames"),
        (_edit(depth_unit="inf"), r"clip\.json: depth_unit"),
        (_edit(depth_unit=[1, 1]), r"clip\.json: depth_unit"),
        (_edit(images=["exe"] * V), r"clip\.json: images"),
        (_edit(K=[[1, 2], [3]]), r"clip\.json: K: found shape"),
        (_edit(world_to_cam=[[[1.0] * 4] * 4] * V), r"pose of 000000-0000 view 0"),
        (lambda name, data: ("../../" + name, data), r"member: found '\.\./\.\./0"),
        (lambda name, data: ("/etc/" + name, data), r"member: found '/etc"),
        (lambda name, data: (name.replace(".png", ".pyd"), data), r"member: found .*pyd"),
        (lambda name, data: (name.replace(".json", ".pickle"), data), r"member: found .*pickle"),
    ],
)
def test_broken_members(
    folder: Path, tmp_path: Path, change: Callable[[str, bytes], tuple[str, bytes] | None], message: str
) -> None:
    path = _rewritten(folder, tmp_path, change)
    with pytest.raises(Sr3dError, match=message) as caught:
        list(ShardDataset(path))
    assert caught.value.source == str(path)


def test_nothing_is_unpacked_or_executed(folder: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    path = _rewritten(folder, tmp_path, lambda name, data: ("../escaped." + name.split(".", 1)[1], data))
    with pytest.raises(Sr3dError):
        list(ShardDataset(path))
    assert sorted(tmp_path.rglob("*")) == sorted([*before, path])
    assert not (tmp_path.parent / "escaped.000.png").exists()
    # A pipe, which webdataset would run as a command, is refused.
    with pytest.raises(Sr3dError, match=r"pipe:.*expected http"):
        list(ShardDataset(f"pipe:touch {tmp_path}/ran;.tar"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("keep", [0, 100, 5000, -10240, -20000])
@pytest.mark.parametrize("indexed", [False, True])
def test_truncated_tar(folder: Path, tmp_path: Path, keep: int, indexed: bool) -> None:
    name = SHARD
    data = (folder / name).read_bytes()
    (tmp_path / name).write_bytes(data[:keep])
    if indexed:
        index = json.loads((folder / "index.json").read_text())
        index["shards"] = index["shards"][:1]
        (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(Sr3dError, match=r"shard-000000-00\.tar: (size|tar file): found") as caught:
        list(ShardDataset(tmp_path if indexed else tmp_path / name))
    assert caught.value.source == str(tmp_path / name)


def test_garbage_of_the_right_size(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"x" * 9216 + bytes(1024))
    with pytest.raises(Sr3dError, match=r"tar file: found (no header|a damaged header)"):
        list(ShardDataset(path))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_only_plain_files(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo(f"{KEY}.clip.json")
    info.type, info.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(info)
    with pytest.raises(Sr3dError, match=r"member: found .*(link|folder|special).*plain files only"):
        list(ShardDataset(tmp_path / "a.tar"))


def test_samples_out_of_order_and_twice(folder: Path, tmp_path: Path) -> None:
    members = [(f"{key}.clip.json", b"{}") for key in ("a", "b", "a")]
    for names, message in ((members, "together"), ([members[0]] * 2, "twice")):
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for name, data in names:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        with pytest.raises(Sr3dError, match=message):
            list(ShardDataset(tmp_path / "a.tar"))


def _entry(**values: object) -> dict[str, object]:
    entry = {"file": "x.tar", "bytes": 9, "views": 3, "sha256": "0" * 64, "offsets": [0]}
    return {**entry, "names": ["a"], "scenes": ["a"], **values}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "x"}, "format"),
        ({"version": 1}, "version: found 1; expected 2: pack the data again"),
        ({"licence": None}, "licence"),
        ({"options": []}, "options"),
        ({"shards": []}, "shards: found"),
        ({"shards": [3]}, "shards: found"),
        ({"shards": [_entry(file="../x.tar")]}, r"shards\[0\]\.file: found '\.\./x\.tar'"),
        ({"shards": [_entry(bytes=0)]}, r"shards\[0\]\.bytes"),
        ({"shards": [_entry(sha256="00")]}, r"shards\[0\]\.sha256"),
        ({"shards": [_entry(names=[])]}, r"shards\[0\]\.names"),
        ({"shards": [_entry(names=["a", "b"])]}, r"shards\[0\]: found .*one entry for every clip"),
        ({"shards": [_entry(offsets=[10])]}, r"shards\[0\]\.offsets"),
        ({"shards": [_entry(offsets=[0.5])]}, r"shards\[0\]\.offsets"),
        ({"shards": [_entry()]}, r"x\.tar: tar file: found No such file"),
    ],
)
def test_broken_index(folder: Path, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    index = json.loads((folder / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(index | changes))
    with pytest.raises(Sr3dError, match=message):
        ShardDataset(tmp_path)


@pytest.mark.parametrize(("text", "message"), [("{", "content: found JSONDecodeError"), ("[]", "format")])
def test_an_index_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(Sr3dError, match=message):
        ShardDataset(tmp_path)


def test_missing_index_and_wrong_count(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Sr3dError, match=r"index\.json: file: found missing"):
        ShardDataset(tmp_path)
    shard = list_shards(folder)[0]
    assert shard.entry is not None
    count = shard.entry.clips
    shard.entry.names.append("another")
    with pytest.raises(Sr3dError, match=rf"clips: found {count}.*expected {count + 1}"):
        list(read_clips(shard))


def test_other_programs_read_the_shards(folder: Path) -> None:
    data = wds.WebDataset(str(folder / SHARD), shardshuffle=False)
    keys = [sample["__key__"] for sample in data]
    assert keys == [f"000000-{i:04d}" for i in range(read_index(folder).shards[0].clips)]


def test_an_index_that_does_not_fit_its_tar_file(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "s")
    content = json.loads((folder / FILE).read_text())
    entry = content["shards"][0]

    def read(**changes: object) -> None:
        changed = {**content, "shards": [{**entry, **changes}, *content["shards"][1:]]}
        (tmp_path / "s" / FILE).write_text(json.dumps(changed))
        list(ShardDataset(tmp_path / "s"))

    read()
    without = {key: entry[key][:1] + entry[key][2:] for key in ("offsets", "names", "scenes")}
    for changes, message in (
        (without, "samples at byte 0: found 2; expected one"),
        ({"names": entry["names"][::-1]}, "name of 000000-0000: found"),
        ({"file": content["shards"][1]["file"]}, "file: found .* twice"),
        ({"names": [content["shards"][1]["names"][0], *entry["names"][1:]]}, "names: found .* twice"),
    ):
        with pytest.raises(Sr3dError, match=message):
            read(**changes)


def test_names_that_are_no_text(tmp_path: Path) -> None:
    odd = _clip(0)
    odd.name = "caf\udce9"  # a Latin-1 file name, as Python lists it
    write_shards([odd], tmp_path)
    (clip,) = ShardDataset(tmp_path)
    assert clip.name == odd.name


def test_pack_procedural(tmp_path: Path) -> None:
    pack_procedural(tmp_path / "train", scenes=2, views=3, size=24, seed=3, progress=False)
    clips = list(ShardDataset(tmp_path / "train"))
    worlds = [World.generate(world_seed(3, i, "train")) for i in range(2)]
    assert _names(clips) == [f"procedural-{w.kind}-{w.seed}" for w in worlds]
    again = worlds[1].render(worlds[1].sample_cameras(3, 24, 24))
    assert (clips[1].images - again.images).abs().max() <= 0.5 / 255 + 1e-6
    seeds = [
        world_seed(s, i, split) for s in (0, 1) for i in (0, 1, 999_999) for split in ("train", "validation", "test")
    ]
    assert len(set(seeds)) == len(seeds)
    with pytest.raises(Sr3dError, match="scene 1000000"):
        world_seed(0, 10**6, "train")
