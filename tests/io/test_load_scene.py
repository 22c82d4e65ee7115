from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sr3d import Sr3dError, load_scene


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "holiday"
    folder.mkdir()
    for i in (1, 2, 10):
        Image.fromarray(np.full((6, 8, 3), 20 * i, np.uint8)).save(folder / f"{i}.png")
    return folder


def test_plain_folder(photos):
    scene = load_scene(photos)
    assert scene.name == "holiday" and [p.name for p in scene.paths] == ["1.png", "2.png", "10.png"]
    assert scene.cameras is None and scene.depths is None and scene.points is None
    torch.testing.assert_close(scene.images[:, 0, 0, 0], torch.tensor([20, 40, 200]) / 255)
    with pytest.raises(Sr3dError, match="holiday: cameras: found images without poses"):
        scene.posed()


def test_images_subfolder_and_views(photos):
    (photos / "images").mkdir()
    for file in photos.glob("*.png"):
        file.rename(photos / "images" / file.name)
    (photos / "images/2.png").write_bytes(b"damaged")
    scene = load_scene(photos, views=[2, 0])
    assert [p.name for p in scene.paths] == ["10.png", "1.png"] and scene.name == "holiday"
    with pytest.raises(Sr3dError, match=r"2\.png: image"):
        load_scene(photos)
    with pytest.raises(Sr3dError, match="holiday: views: found 3"):
        load_scene(photos, views=[3])


def test_phone_photos_are_upright(photos):
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in (1, 2, 10):
        Image.fromarray(np.zeros((8, 6, 3), np.uint8)).save(photos / f"{i}.png", exif=exif)
    assert tuple(load_scene(photos).images.shape) == (3, 6, 8, 3)


def test_photos_of_two_sizes(photos):
    Image.fromarray(np.zeros((6, 9, 3), np.uint8)).save(photos / "2.png")
    with pytest.raises(Sr3dError, match=r"size of 2\.png: found 9x6; expected 8x6 as 1\.png"):
        load_scene(photos)


def test_transforms_win_over_colmap_and_images(capture):
    c = capture()
    (c.folder / "sparse/0").mkdir(parents=True)
    for name in ("cameras.txt", "images.txt"):
        (c.folder / "sparse/0" / name).write_text("damaged")
    assert load_scene(c.folder).cameras is not None
    c.json.unlink()
    with pytest.raises(Sr3dError, match=r"images\.txt: line|cameras\.txt: line"):
        load_scene(c.folder)


def test_unusable_places_say_what_was_looked_for(tmp_path):
    with pytest.raises(Sr3dError, match="no such folder"):
        load_scene(tmp_path / "none")
    (tmp_path / "video.mp4").touch()
    with pytest.raises(Sr3dError) as caught:
        load_scene(tmp_path)
    text = str(caught.value)
    for looked in ("transforms.json", "COLMAP", "sparse/0", "color/", "PNG or JPEG", "images/"):
        assert looked in text
    assert "found video.mp4" in text
    with pytest.raises(Sr3dError, match="found a file"):
        load_scene(tmp_path / "video.mp4")


def test_import_works_without_optional_extras():
    """In a fresh process where viser and ray cannot be imported."""
    code = (
        "import sys; sys.modules['viser'] = sys.modules['ray'] = None; import sr3d; "
        "assert sr3d.load_scene and sr3d.render; "
        "print([m for m in ('viser', 'ray', 'wandb', 'lightning', 'transformers', 'pycolmap') if sys.modules.get(m)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
