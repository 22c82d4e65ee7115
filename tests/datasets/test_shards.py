from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from sr3d import Cameras, Scene, Sr3dError
from sr3d.datasets import ShardDataset, World, pack_procedural, write_shards
from sr3d.datasets.clip import decode_clip, encode_clip
from sr3d.datasets.procedural import world_seed
from sr3d.datasets.shards import list_shards, read_samples

H, W, V = 12, 16, 3


def _clip(number: int, dtype: torch.dtype = torch.float32) -> Scene:
    g = torch.Generator().manual_seed(number)
    pose = torch.eye(4, dtype=dtype).repeat(V, 1, 1)
    pose[:, :3, 3] = torch.randn(V, 3, generator=g, dtype=dtype)
    K = torch.tensor([[20.0, 0, 8.25], [0, 21, 6], [0, 0, 1]], dtype=dtype).repeat(V, 1, 1) + 0
    K[:, 0, 0] += torch.rand(V, generator=g, dtype=dtype)
    depths = 0.3 + 6 * torch.rand(V, H, W, generator=g)
    depths[0, 0, :3] = 0
    return Scene(
        images=torch.randint(0, 256, (V, H, W, 3), generator=g) / 255,
        cameras=Cameras(world_to_cam=pose, K=K, width=W, height=H),
        depths=depths,
        labels=torch.randint(0, 300 if number % 2 else 9, (V, H, W), generator=g),
        name=f"clip {number}/a.b",
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven clips in four tar files."""
    out = tmp_path_factory.mktemp("shards")
    write_shards((_clip(i) for i in range(11)), out, shard_bytes=25_000, options={"made": "for a test"})
    assert len(list(out.glob("*.tar"))) == 4
    return out


def _names(clips: object) -> list[str]:
    return [c.name for c in clips]  # type: ignore[attr-defined]


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


def test_cameras_are_stored_in_double_precision() -> None:
    truth = _clip(3, torch.float64)
    head = json.loads(encode_clip(truth)["cameras.json"])
    assert head["world_to_cam"] == truth.posed().world_to_cam.tolist()
    assert head["K"] == truth.posed().K.tolist()


def test_jpg_and_clips_without_depth_and_labels(tmp_path: Path) -> None:
    smooth = torch.linspace(0.2, 0.8, W).expand(V, H, W)[..., None].repeat(1, 1, 1, 3)
    plain = Scene(images=smooth, cameras=_clip(0).cameras, name="plain")
    write_shards([plain], tmp_path / "s", image_format="jpg")
    (clip,) = ShardDataset(tmp_path / "s")
    assert clip.depths is None and clip.labels is None
    assert 0 < (clip.images - smooth).abs().max() < 0.03


def test_index(folder: Path, tmp_path: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    assert index["clips"] == 11 and index["options"]["made"] == "for a test"
    for entry in index["shards"]:
        data = (folder / entry["file"]).read_bytes()
        assert entry["bytes"] == len(data) and entry["sha256"] == hashlib.sha256(data).hexdigest()
        assert entry["clips"] == len(entry["names"])
    assert sorted(os.listdir(folder)) == sorted([*(e["file"] for e in index["shards"]), "index.json"])
    # The same clips give the same bytes.
    write_shards((_clip(i) for i in range(11)), tmp_path / "again", shard_bytes=25_000)
    again = json.loads((tmp_path / "again" / "index.json").read_text())
    assert again["shards"] == index["shards"]


def test_an_interrupted_write_leaves_no_index_and_no_half_file(tmp_path: Path) -> None:
    def clips():  # type: ignore[no-untyped-def]
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


def test_order_follows_seed_and_epoch(folder: Path) -> None:
    data = ShardDataset(folder, shuffle=True, seed=1)
    first, second = _names(data), _names(data)
    assert sorted(first) == sorted(second) == sorted(_names(ShardDataset(folder)))
    assert first != second
    assert _names(ShardDataset(folder, shuffle=True, seed=1)) == first
    assert _names(ShardDataset(folder, shuffle=True, seed=1, epoch=1)) == second
    assert _names(ShardDataset(folder, shuffle=True, seed=2)) != first
    kept = ShardDataset(folder, shuffle=True, seed=1, cache=True)
    before, after = list(kept), list(kept)
    assert _names(before) != _names(after)
    by_name = {c.name: c.images for c in before}
    assert all(torch.equal(by_name[c.name], c.images) for c in after)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle", [False, True])
def test_processes_and_workers_share_the_clips(
    folder: Path, world_size: int, workers: int, shuffle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world_size)
    seen: list[str] = []
    even: list[int] = []
    even_names: list[str] = []
    for rank in range(world_size):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        seen += _names(DataLoader(ShardDataset(folder, shuffle=shuffle), batch_size=None, num_workers=workers))
        same = ShardDataset(folder, shuffle=shuffle, even=True)
        part = _names(DataLoader(same, batch_size=None, num_workers=workers))
        even.append(len(part))
        even_names += sorted(set(part))
    assert sorted(seen) == sorted(f"clip {i}/a.b" for i in range(11))
    assert len(set(even)) == 1 and even[0] >= 11 // (world_size * max(1, workers))
    assert len(set(even_names)) == len(even_names)


def test_a_cached_part_stays_with_its_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    kept, drawn = ShardDataset(folder, shuffle=True, cache=True), ShardDataset(folder, shuffle=True)
    orders = [_names(kept) for _ in range(4)]
    assert len({frozenset(o) for o in orders}) == 1 and len({tuple(o) for o in orders}) > 1
    assert len({frozenset(_names(drawn)) for _ in range(4)}) > 1


def _rewritten(folder: Path, tmp_path: Path, change: Callable[[str, bytes], tuple[str, bytes] | None]) -> Path:
    """The first tar file with every member passed through `change`, without an index."""
    out = tmp_path / "changed.tar"
    with tarfile.open(folder / "shard-000000.tar") as old, tarfile.open(out, "w") as new:
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
        (_swap(".001.png", None), r"00000000\.001\.png: found missing"),
        (_swap(".001.depth.png", None), r"001\.depth\.png: found missing"),
        (_swap(".002.labels.png", None), r"002\.labels\.png: found missing"),
        (_swap(".cameras.json", None), r"00000000\.cameras\.json: found missing"),
        (_swap(".001.png", b"not an image"), r"001\.png: found 12 bytes that are no image"),
        (_swap(".001.png", b""), r"001\.png: found 0 bytes"),
        (_swap(".001.png", _png((H, W + 1, 3))), rf"001\.png: found {W + 1}x{H}.*expected {W}x{H}"),
        (_swap(".001.depth.png", _png((H, W, 3))), r"001\.depth\.png: found .* 3 channels"),
        (_swap(".cameras.json", b"{"), r"cameras\.json: found JSONDecodeError"),
        (_swap(".cameras.json", b"[]"), r"cameras\.json: found list"),
        (_edit(width=-1), r"cameras\.json: width: found -1"),
        (_edit(views=10**9), r"cameras\.json: views"),
        (_edit(depth_unit="inf"), r"cameras\.json: depth_unit"),
        (_edit(image_format="exe"), r"cameras\.json: image_format"),
        (_edit(K=[[1, 2], [3]]), r"cameras\.json: K: found shape"),
        (_edit(world_to_cam=[[[1.0] * 4] * 4] * V), r"pose of 00000000 view 0"),
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
    # A pipe, which webdataset would run as a command, is a file name like any other here.
    with pytest.raises(Sr3dError, match="No such file"):
        list(ShardDataset(f"pipe:touch {tmp_path}/ran;.tar"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("keep", [0, 100, 5000, -10240, -20000])
@pytest.mark.parametrize("indexed", [False, True])
def test_truncated_tar(folder: Path, tmp_path: Path, keep: int, indexed: bool) -> None:
    name = "shard-000000.tar"
    data = (folder / name).read_bytes()
    (tmp_path / name).write_bytes(data[:keep])
    if indexed:
        index = json.loads((folder / "index.json").read_text())
        index["shards"] = index["shards"][:1]
        (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(Sr3dError, match=r"shard-000000\.tar: (size|tar file): found") as caught:
        list(ShardDataset(tmp_path if indexed else tmp_path / name))
    assert caught.value.source == str(tmp_path / name)


def test_garbage_of_the_right_size(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"x" * 9216 + bytes(1024))
    with pytest.raises(Sr3dError, match="tar file: found ReadError"):
        list(ShardDataset(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "content: found JSONDecodeError"),
        ("[]", "format"),
        ('{"format": "sr3d-shards", "version": 9}', "format"),
        ('{"format": "sr3d-shards", "version": 1, "shards": []}', "shards: found"),
        ('{"format": "sr3d-shards", "version": 1, "shards": [3]}', r"shards\[0\]\.file"),
        (
            '{"format": "sr3d-shards", "version": 1, "shards": [{"file": "../x.tar", "clips": 1, "bytes": 1}]}',
            r"shards\[0\]\.file: found '\.\./x\.tar'",
        ),
        (
            '{"format": "sr3d-shards", "version": 1, "shards": [{"file": "x.tar", "clips": 0, "bytes": 1}]}',
            r"shards\[0\]\.clips",
        ),
        (
            '{"format": "sr3d-shards", "version": 1, "shards": [{"file": "x.tar", "clips": 1, "bytes": 1}]}',
            r"x\.tar: tar file: found No such file",
        ),
    ],
)
def test_broken_index(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(Sr3dError, match=message):
        ShardDataset(tmp_path)


def test_missing_index_and_wrong_count(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Sr3dError, match=r"index\.json: file: found missing"):
        ShardDataset(tmp_path)
    with pytest.raises(Sr3dError, match="even"):
        ShardDataset(folder / "shard-000000.tar", even=True)
    shard = list_shards(folder)[0]
    assert shard.clips is not None
    shard.clips += 1
    with pytest.raises(Sr3dError, match=r"clips: found 3.*expected 4"):
        list(read_samples(shard))


def test_depth_error_stays_below_a_thousandth_at_room_scale() -> None:
    world = World.generate(1, "room")
    truth = world.render(world.sample_cameras(2, 48, 48), samples=1)
    stored = decode_clip(encode_clip(truth), "memory", "0").scene()
    assert stored.depths is not None and truth.depths is not None
    assert ((stored.depths / truth.depths - 1).abs() < 1e-3).all()
    assert stored.labels is not None and truth.labels is not None and torch.equal(stored.labels, truth.labels)


def test_pack_procedural(tmp_path: Path) -> None:
    pack_procedural(tmp_path / "train", scenes=2, views=2, size=24, seed=3, progress=False)
    clips = list(ShardDataset(tmp_path / "train"))
    worlds = [World.generate(world_seed(3, i, "train")) for i in range(2)]
    assert _names(clips) == [f"procedural-{w.kind}-{w.seed}" for w in worlds]
    again = worlds[1].render(worlds[1].sample_cameras(2, 24, 24))
    assert (clips[1].images - again.images).abs().max() <= 0.5 / 255 + 1e-6
    seeds = [
        world_seed(s, i, split) for s in (0, 1) for i in (0, 1, 999_999) for split in ("train", "validation", "test")
    ]
    assert len(set(seeds)) == len(seeds)
    with pytest.raises(Sr3dError, match="scene 1000000"):
        world_seed(0, 10**6, "train")
