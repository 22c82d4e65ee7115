"""ScanNet: recordings and exported frames, on numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from captures import convert, decode, file_of, to_world, write
from scannet_rooms import (
    LSM,
    SIZE,
    TABLE,
    K,
    Room,
    depth_of,
    make_room,
    write_frames,
    write_labels,
    write_recording,
)
from sens_files import color_bytes
from sr3d_data.scannet import ScanNet

from sr3d import Sr3dError, load_scene
from sr3d.datasets.clip import Clip
from sr3d.datasets.converter import Converter

WRITERS = {"sens": write_recording, "exported": write_frames}


@pytest.fixture(scope="module")
def room() -> Room:
    return make_room()


@pytest.fixture
def scan(tmp_path) -> Path:
    """Folder of one scan, empty; SRC is `tmp_path`."""
    folder = tmp_path / "scans/scene0012_01"
    folder.mkdir(parents=True)
    return folder


def only(src: Path, converter: Converter | None = None, **options) -> Clip:
    """The one clip of a data set nothing of which is left out."""
    clips, drops = convert(converter or ScanNet(), src, **options)
    assert not drops.frames and not drops.scenes and len(clips) == 1, drops
    return clips[0]


@pytest.mark.parametrize("layout", WRITERS)
def test_cameras_images_and_depth(tmp_path, scan, room, layout):
    WRITERS[layout](scan, room)
    clip = only(tmp_path)
    assert (clip.name, clip.scene, clip.metric, clip.classes) == ("scene0012_01", "scene0012", True, [])
    assert [view.frame for view in clip.views] == ["0", "1", "2", "3"]
    np.testing.assert_allclose(to_world(clip), room.to_world, atol=1e-6)
    for i, view in enumerate(clip.views):
        np.testing.assert_allclose(view.K, K, atol=1e-6)
        stored = color_bytes(room.images[i], "jpeg") if layout == "sens" else file_of(room.images[i], "JPEG")
        assert view.image == stored and view.size == SIZE and view.suffix == "jpg"
        assert view.labels is None and view.semantics is None
        depth = depth_of(view)
        np.testing.assert_allclose(depth, room.measured(i), atol=1e-6)
        # The renderer's own depth of the colour camera, which the converter never saw.
        error = np.abs(depth - room.depths[i]) / room.depths[i]
        assert np.median(error) < 0.005 and np.mean(error < 0.05) > 0.95


def test_mixing_up_the_two_intrinsics_would_show(room):
    """The check above is sharp: depth read at proportional pixels, as if both cameras had one K, is far worse."""
    rows, columns = np.arange(SIZE[1]) * 48 // 72, np.arange(SIZE[0]) * 64 // 96
    error = np.abs(room.counts[0][rows[:, None], columns] / 1000 - room.depths[0]) / room.depths[0]
    assert np.median(error) > 0.01


def test_exported_depth_without_intrinsics_of_its_own(tmp_path, scan, room):
    """It was resampled to the colour camera."""
    write_frames(scan, room)
    (scan / "intrinsic/intrinsic_depth.txt").unlink()
    for i, depth in enumerate(room.depths):
        write(scan / f"depth/{i}.png", (depth * 1000).round().astype(np.uint16)[::2, ::2])
    clip = only(tmp_path)
    found = depth_of(clip.views[1])[::2, ::2]
    np.testing.assert_allclose(found, (room.depths[1] * 1000).round()[::2, ::2] / 1000, atol=1e-6)


@pytest.mark.parametrize(("color", "depth"), [("png", "raw"), ("raw", "zlib")])
def test_other_compressions(tmp_path, scan, room, color, depth):
    write_recording(scan, room, color=color, depth=depth, shift=500.0)
    clip = only(tmp_path, lossless=True)
    for i, view in enumerate(clip.views):
        assert np.array_equal(decode(view.image), room.images[i]) and view.suffix == "png"
        assert view.depth_unit == pytest.approx(1 / 500)
        np.testing.assert_allclose(depth_of(view), room.measured(i) * 2, atol=1e-5)


@pytest.mark.parametrize("place", ["zip", "folder", "unfiltered zip"])
def test_labels_become_the_classes_of_lsm(tmp_path, scan, room, place):
    write_recording(scan, room)
    write_labels(scan, room.labels, "label" if place == "unfiltered zip" else "label-filt")
    if place == "folder":
        (scan / "scene0012_01_2d-label-filt.zip").unlink()
        for i, ids in enumerate(room.labels):
            write(scan / f"label-filt/{i}.png", ids.astype(np.uint16))
    clip = only(tmp_path)
    assert clip.classes == ["wall", "floor", "ceiling", "chair", "table", "sofa", "bed", "other"]
    assert len(np.unique(room.labels)) > 4
    for i, view in enumerate(clip.views):
        assert np.array_equal(decode(view.labels), room.labels[i])
        assert np.array_equal(decode(view.semantics), np.vectorize(LSM.get)(room.labels[i]))


def test_filtered_labels_are_preferred(tmp_path, scan, room):
    write_recording(scan, room)
    write_labels(scan, np.full_like(room.labels, 1), "label")
    write_labels(scan, room.labels)
    assert np.array_equal(decode(only(tmp_path).views[0].labels), room.labels[0])


def test_every_raw_id_of_the_table(tmp_path, scan, room):
    write_recording(scan, room)
    ids = np.resize(list(LSM), (4, 72, 96))
    write_labels(scan, ids)
    semantics = decode(only(tmp_path).views[0].semantics)
    assert np.array_equal(semantics, np.vectorize(LSM.get)(ids[0])) and set(np.unique(semantics)) == set(range(9))


def test_ids_outside_the_table_are_unknown_and_counted(tmp_path, scan, room):
    write_recording(scan, room)
    ids = np.ones_like(room.labels)
    ids[2, :5], ids[3, 1, 1] = 5, 60000
    write_labels(scan, ids)
    (clip,), drops = convert(ScanNet(), tmp_path)
    assert drops.frames == {"label id outside the table": 2} and len(clip.views) == 4
    assert any("scene0012_01/3" in example and "60000" in example for example in drops.examples)
    found = np.stack([decode(view.semantics) for view in clip.views])
    assert np.array_equal(found, np.where(ids == 1, 1, 0))
    assert decode(clip.views[3].labels)[1, 1] == 60000


def test_labels_that_were_mapped_to_nyu40(tmp_path, scan, room):
    """8 bits: as raw ids they are refused, the option takes them; ids over 40 are none."""
    write_frames(scan, room)
    write(scan.parent / "scannetv2-labels.combined.tsv", TABLE)
    for i in range(4):
        write(scan / f"label/{i}.png", np.resize(np.arange(42, dtype=np.uint8), (72, 96)))
    _, drops = convert(ScanNet(), tmp_path)
    assert drops.frames == {"damaged": 4} and drops.scenes == {"fewer than 1 usable frames": 1}
    assert "label_ids nyu40" in drops.examples[0]
    (clip,), drops = convert(ScanNet(label_ids="nyu40"), tmp_path)
    assert drops.frames == {"label id outside the table": 4}
    expected = [0, 1, 2, 8, 7, 4, 6, 5, *[8] * 14, 3, *[8] * 18, 0]
    assert decode(clip.views[0].semantics).ravel()[:42].tolist() == expected


def test_instances_and_no_labels(tmp_path, scan, room):
    write_recording(scan, room)
    write_labels(scan, room.labels)
    with pytest.raises(Sr3dError, match="instances"):
        convert(ScanNet(labels="instances"), tmp_path)
    instances = np.arange(4 * 72 * 96).reshape(4, 72, 96) % 251
    write_labels(scan, instances.astype(np.uint8), "instance-filt")
    view = only(tmp_path, ScanNet(labels="instances")).views[2]
    assert np.array_equal(decode(view.labels), instances[2])
    assert np.array_equal(decode(view.semantics), np.vectorize(LSM.get)(room.labels[2]))
    clip = only(tmp_path, ScanNet(labels="none"))
    assert clip.classes == [] and clip.views[0].labels is None and clip.views[0].semantics is None


def test_labels_of_another_size_and_padded_names(tmp_path, scan, room):
    """scannet_frames_25k names frames 000000 and keeps labels at the depth camera's size."""
    write_frames(scan, room)
    for kind, suffix in (("color", "jpg"), ("depth", "png"), ("pose", "txt")):
        for i in range(4):
            (scan / kind / f"{i}.{suffix}").rename(scan / kind / f"{i:06d}.{suffix}")
    write_labels(scan, room.labels[:, ::2, ::2])
    view = only(tmp_path).views[3]
    assert view.frame == "000003"
    assert np.array_equal(decode(view.labels), room.labels[3, ::2, ::2].repeat(2, 0).repeat(2, 1))


def bordered(room: Room, left: int, top: int, right: int, bottom: int) -> Room:
    """The same recording with black margins; a lossless image keeps them black."""
    images = room.images.clip(40, 255).copy()
    images[:, :top], images[:, SIZE[1] - bottom :] = 3, 0
    images[:, :, :left], images[:, :, SIZE[0] - right :] = 0, 5
    return Room(room.to_world, images, room.depths, room.counts, room.labels)


@pytest.mark.parametrize("border", [(2, 1, 0, 1), (0, 0, 1, 0), (0, 0, 0, 0)])
def test_black_borders_are_cut_off(tmp_path, scan, room, border):
    """One pixel more than is black. K, depth and labels follow: a point of the room is seen where it was."""
    changed = bordered(room, *border)
    write_recording(scan, changed, color="png")
    write_labels(scan, room.labels)
    clip = only(tmp_path, lossless=True)
    left, top, right, bottom = (n + 1 if n else 0 for n in border)
    rows, columns = slice(top, SIZE[1] - bottom), slice(left, SIZE[0] - right)
    for i, view in enumerate(clip.views):
        assert view.size == (SIZE[0] - left - right, SIZE[1] - top - bottom)
        assert np.array_equal(decode(view.image), changed.images[i][rows, columns])
        assert np.array_equal(decode(view.labels), room.labels[i][rows, columns])
        np.testing.assert_allclose(depth_of(view), room.measured(i)[rows, columns], atol=1e-6)
        # The point that pixel (40, 30) shows, through the view's own camera, lands on its shifted place.
        z = room.depths[i, 30, 40]
        point = room.to_world[i] @ [*(np.linalg.inv(K) @ [40.5, 30.5, 1] * z), 1]
        u, v, w = view.K @ (view.world_to_cam @ point)[:3]
        assert (u / w, v / w) == pytest.approx((40.5 - left, 30.5 - top), abs=1e-4)


def test_dark_rooms_have_no_border(tmp_path, scan, room):
    """What is black far into the image, or in some frames only, is kept."""
    changed = bordered(room, 0, 12, 0, 0)
    changed.images[1:, :, :2] = 0
    write_recording(scan, changed, color="png")
    assert only(tmp_path).views[0].size == SIZE


def test_crop_by_hand(tmp_path, scan, room):
    write_recording(scan, room, color="png")
    view = only(tmp_path, ScanNet(crop=5), lossless=True).views[0]
    assert view.size == (SIZE[0] - 10, SIZE[1] - 10)
    np.testing.assert_allclose(view.K[:2, 2], K[:2, 2] - 5, atol=1e-6)
    assert np.array_equal(decode(view.image), room.images[0, 5:-5, 5:-5])
    changed = bordered(room, 2, 2, 2, 2)
    write_recording(scan, changed, color="png")
    assert only(tmp_path, ScanNet(crop=0)).views[0].size == SIZE
    with pytest.raises(Sr3dError, match="crop"):
        convert(ScanNet(crop=36), tmp_path)


def test_clips_of_a_scan(tmp_path, scan, room):
    """Cut into clips the room stays one scene; reduced images take K and maps along."""
    write_recording(scan, room)
    clips, _ = convert(ScanNet(), tmp_path, views=2, max_side=48)
    assert [(c.name, c.scene) for c in clips] == [(f"scene0012_01-00{i}", "scene0012") for i in (0, 1)]
    view = clips[1].views[0]
    assert view.size == (48, 36) and view.frame == "2"
    np.testing.assert_allclose(view.K[:2], K[:2] / 2, atol=1e-6)
    clips, _ = convert(ScanNet(), tmp_path, stride=3)
    assert [view.frame for view in clips[0].views] == ["0", "3"]


def test_official_splits(tmp_path, scan, room):
    for name in ("scans/scene0012_00", "scans_test/scene0707_00"):
        (tmp_path / name).mkdir(parents=True)
        write_recording(tmp_path / name, room)
    write_recording(scan, room)
    lists = {"train": "scene0012_00\nscene0012_01\nscene0500_00\n", "val": "scene0003_00", "test": "scene0707_00"}
    with pytest.raises(Sr3dError, match=r"list of the split train: found none; expected scannetv2_train\.txt of http"):
        ScanNet().entries(tmp_path, "train")
    for name, text in lists.items():
        write(tmp_path / f"splits/scannetv2_{name}.txt", text)
    names = {split: [e.name for e in ScanNet().entries(tmp_path, split)] for split in ("train", "test", "all")}
    assert names["train"] == ["scene0012_00", "scene0012_01"] and names["test"] == ["scene0707_00"]
    assert names["all"] == names["train"] + names["test"]
    with pytest.raises(Sr3dError, match=r"scannetv2_val\.txt: found none on disk"):
        ScanNet().entries(tmp_path, "validation")
    write(tmp_path / "mine/scannetv2_val.txt", "scene0707_00")
    own = ScanNet(split_files=tmp_path / "mine")
    (entry,) = own.entries(tmp_path, "validation")
    assert entry.name == "scene0707_00" and entry.bytes == (entry.path / "scene0707_00.sens").stat().st_size
    with pytest.raises(Sr3dError, match="mine: list of the split train"):
        own.entries(tmp_path, "train")


def test_other_places_of_scans(tmp_path, room):
    """SRC may be the folder of scans itself; frames that were exported count as about their size."""
    write_frames(tmp_path / "scene0001_00", room)
    (entry,) = ScanNet().entries(tmp_path, "all")
    sizes = [path.stat().st_size for path in (tmp_path / "scene0001_00/color").iterdir()]
    assert entry.bytes == pytest.approx(sum(sizes), rel=0.3)
    write(tmp_path / "scene0002_00/notes.txt", "nothing else")
    entries = ScanNet().entries(tmp_path, "all")
    assert [e.name for e in entries] == ["scene0001_00", "scene0002_00"]  # counted as damaged, not overlooked
    with pytest.raises(Sr3dError, match=r"scene0002_00: scan: found no recording"):
        convert(ScanNet(), tmp_path)


@pytest.mark.parametrize("name", ["nothing", "scene0000_00.sens"])
def test_no_scan(tmp_path, name):
    write(tmp_path / name / "file", "")
    with pytest.raises(Sr3dError, match="scans: found none"):
        ScanNet().entries(tmp_path, "all")
    with pytest.raises(Sr3dError, match="scans: found none"):
        ScanNet().entries(tmp_path / "missing", "all")


def test_table_of_labels(tmp_path, scan, room):
    write_recording(scan, room)
    write_labels(scan, room.labels)
    table = scan.parent / "scannetv2-labels.combined.tsv"
    table.rename(tmp_path / "mine.tsv")
    with pytest.raises(Sr3dError, match=r"table of labels: found none; expected scannetv2-labels\.combined\.tsv"):
        ScanNet().entries(tmp_path, "all")
    assert only(tmp_path, ScanNet(label_map=tmp_path / "mine.tsv")).classes
    (tmp_path / "mine.tsv").rename(tmp_path / "scannetv2-labels.combined.tsv")
    assert only(tmp_path).classes


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ("", "lines"),
        ("id\traw_category\n1\twall\n", "line 2"),
        ("id\tnyu40id\n1\t1\nchair\t5\n", "line 3"),
        ("id\tnyu40id\n70000\t1\n", "line 2"),
        ("id\tnyu40id\n1\t41\n", "line 2"),
        ("id\tnyu40id\n1\n", "lines"),
        ("\xff\xfe", "file"),
    ],
)
def test_bad_tables(tmp_path, scan, room, content, field):
    write_recording(scan, room)
    write_labels(scan, room.labels)
    write(scan.parent / "scannetv2-labels.combined.tsv", content.encode("latin-1"))
    with pytest.raises(Sr3dError, match=r"combined\.tsv") as caught:
        ScanNet().entries(tmp_path, "all")
    assert caught.value.field == field


def test_intrinsics_of_the_depth_camera_are_used_by_load_scene(scan, room):
    write_frames(scan, room)
    scene = load_scene(scan)
    np.testing.assert_allclose(scene.depths[2].numpy(), room.measured(2), atol=1e-5)
