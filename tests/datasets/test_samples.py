"""One clip as files, and back."""

from __future__ import annotations

import io
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from stored import H, W
from stored import clip as _clip

from sr3d import Gaussians, Sr3dError
from sr3d.datasets import World, write_shards
from sr3d.datasets.assemble import decode_image
from sr3d.datasets.clip import ImageFormat, encode_image, scene_clip
from sr3d.datasets.sample import StoredClip, encode_sample
from sr3d.datasets.shards import list_shards, read_clips
from sr3d.lod import Lod


def test_cameras_are_stored_in_double_precision() -> None:
    truth = _clip(3, torch.float64)
    members = encode_sample(scene_clip(truth))
    head = json.loads(members["clip.json"])
    assert head["world_to_cam"] == truth.posed().world_to_cam.tolist()
    assert head["K"] == truth.posed().K.tolist()
    stored = StoredClip(members, "memory", "0").cameras
    assert torch.equal(stored.world_to_cam, truth.posed().world_to_cam) and torch.equal(stored.K, truth.posed().K)


def test_only_the_views_that_are_asked_for_are_decoded(tmp_path: Path) -> None:
    write_shards([_clip(0)], tmp_path)
    clip = next(read_clips(list_shards(tmp_path)[0]))
    whole, part = clip.scene(), clip.scene([2, 0])
    assert torch.equal(part.images, whole.images[[2, 0]])
    assert part.depths is not None and whole.depths is not None and torch.equal(part.depths, whole.depths[[2, 0]])
    broken = {name: b"" if name == "001.png" else data for name, data in encode_sample(scene_clip(_clip(0))).items()}
    StoredClip(broken, "memory", "0").scene([0, 2])
    with pytest.raises(Sr3dError, match=r"001\.png"):
        StoredClip(broken, "memory", "0").scene([1])


def _gaussians() -> Gaussians:
    g = torch.Generator().manual_seed(0)
    return Gaussians(
        means=torch.randn(5, 3, generator=g),
        quats=torch.randn(5, 4, generator=g),
        scales=torch.rand(5, 3, generator=g),
        opacities=torch.rand(5, generator=g),
        sh=torch.randn(5, 1, 3, generator=g),
        features=torch.randn(5, 2, generator=g),
        lod=Lod.roots(torch.rand(5, generator=g)),
    )


def test_everything_else_that_a_clip_can_hold(tmp_path: Path) -> None:
    clip = scene_clip(_clip(0))
    clip.gaussians, clip.text, clip.classes = _gaussians(), "a room, façade", ["wall", "floor"]
    clip.points = np.arange(12, dtype=np.float32).reshape(4, 3)
    for view in clip.views:
        view.semantics = view.labels
        view.labels = encode_image(np.zeros((H, W, 3), np.uint8), "png")
    write_shards([clip], tmp_path)
    (stored,) = read_clips(list_shards(tmp_path)[0])
    gaussians, points = stored.gaussians(), stored.points()
    assert stored.text() == clip.text and stored.classes == clip.classes
    assert points is not None and torch.equal(points, torch.from_numpy(clip.points))
    assert gaussians is not None and gaussians.features is not None and clip.gaussians.features is not None
    assert torch.equal(gaussians.means, clip.gaussians.means)
    assert torch.equal(gaussians.features, clip.gaussians.features)
    assert gaussians.lod is not None and clip.gaussians.lod is not None
    assert torch.equal(gaussians.lod.native, clip.gaussians.lod.native)
    labels = stored.scene().labels
    assert labels is not None and torch.equal(labels, _clip(0).labels)  # semantics win over labels


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("points.npy", b"\x93NUMPY\x01\x00garbage", r"points\.npy"),
        ("points.npy", b"PK\x03\x04" + bytes(200), r"points\.npy"),
        ("points.npy", b"\x93NUMPY\x01\x00v\x00{'descr': (" + bytes(200), r"points\.npy"),
        ("gaussians.safetensors", b"\xff" * 64, r"gaussians\.safetensors"),
        ("text.txt", b"\xff\xfe", r"text\.txt.*UTF-8"),
        ("overlap.png", b"", r"overlap\.png"),
    ],
)
def test_damaged_extras(name: str, data: bytes, message: str) -> None:
    stored = StoredClip({**encode_sample(scene_clip(_clip(0))), name: data}, "memory", "0")
    with pytest.raises(Sr3dError, match=message):
        _ = stored.points(), stored.gaussians(), stored.text(), stored.overlap


def test_a_hostile_npy_is_not_unpickled() -> None:
    text = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    data = b"\x93NUMPY\x01\x00v\x00" + text + b"cos\nsystem\n."
    stored = StoredClip({**encode_sample(scene_clip(_clip(0))), "points.npy": data}, "memory", "0")
    with pytest.raises(Sr3dError, match=r"points\.npy: found .*something else"):
        stored.points()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"means": torch.full((5, 3), torch.nan)}, "means with NaN"),
        ({"means": torch.zeros(4, 3)}, "means of shape"),
        ({"means": torch.zeros(5, 3, dtype=torch.int64)}, "means of torch.int64"),
        ({"sh": torch.zeros(5)}, "sh of shape"),
        ({"scales": -torch.ones(5, 3)}, "scales that are not positive"),
        ({"extra": torch.zeros(5)}, "unknown .*extra"),
        ({"lod.native": torch.ones(5)}, "only .*lod.native"),
    ],
)
def test_wrong_gaussians(change: dict[str, torch.Tensor], message: str) -> None:
    plain = scene_clip(_clip(0))
    plain.gaussians = replace(_gaussians(), lod=None, features=None)
    members = encode_sample(plain)
    tensors = {**safetensors.torch.load(members["gaussians.safetensors"]), **change}
    members["gaussians.safetensors"] = safetensors.torch.save(tensors)
    with pytest.raises(Sr3dError, match=message):
        StoredClip(members, "memory", "0").gaussians()


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_an_image_is_not_decoded_before_its_size_is_known_to_be_right(suffix: ImageFormat) -> None:
    members = encode_sample(scene_clip(_clip(0)))
    huge = encode_image(np.zeros((3000, 4000, 3), np.uint8), suffix)
    head = json.loads(members["clip.json"]) | {"images": [suffix, "png", "png"]}
    stored = StoredClip({**members, "clip.json": json.dumps(head).encode(), f"000.{suffix}": huge}, "memory", "0")
    tracemalloc.start()
    with pytest.raises(Sr3dError, match=rf"found 4000x3000; expected {W}x{H}"):
        stored.scene([0])
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("orientation", [3, 6])
def test_exif_does_not_turn_pixels_away_from_their_camera(orientation: int) -> None:
    image = np.zeros((H, W, 3), np.uint8)
    image[: H // 2] = 200
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95, exif=exif)
    members = encode_sample(scene_clip(_clip(0), "jpg")) | {"000.jpg": buffer.getvalue()}
    found = StoredClip(members, "memory", "0").scene([0]).images[0]
    assert found[: H // 2 - 1].mean() > 0.7 and found[H // 2 + 1 :].mean() < 0.1
    assert decode_image(buffer.getvalue()).shape == (H, W, 3)


def test_depth_error_stays_below_a_thousandth_at_room_scale() -> None:
    world = World.generate(1, "room")
    truth = world.render(world.sample_cameras(2, 48, 48), samples=1)
    stored = StoredClip(encode_sample(scene_clip(truth)), "memory", "0").scene()
    assert stored.depths is not None and truth.depths is not None
    assert ((stored.depths / truth.depths - 1).abs() < 1e-3).all()
    assert stored.labels is not None and truth.labels is not None and torch.equal(stored.labels, truth.labels)
