from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from sr3d import Sr3dError, load_scene


@pytest.fixture
def folder(tmp_path: Path, capture) -> tuple[Path, object]:
    """Three frames, numbered 0, 9 and 10, in the exported layout."""
    c = capture()
    out = tmp_path / "scene0000_00"
    for sub in ("color", "pose", "intrinsic", "depth", "label"):
        (out / sub).mkdir(parents=True)
    for i, number in enumerate((0, 9, 10)):
        cv2.imwrite(str(out / f"color/{number}.jpg"), c.images[i][..., ::-1])
        cv2.imwrite(str(out / f"depth/{number}.png"), c.depths[i])
        cv2.imwrite(str(out / f"label/{number}.png"), np.full((12, 20), 300 + i, np.uint16))
        np.savetxt(out / f"pose/{number}.txt", np.linalg.inv(c.world_to_cam[i]))
    K = np.eye(4)
    K[:3, :3] = c.K[0]
    np.savetxt(out / "intrinsic/intrinsic_color.txt", K)
    return out, c


def test_exported_layout(folder):
    out, c = folder
    scene = load_scene(out)
    assert [p.name for p in scene.paths] == ["0.jpg", "9.jpg", "10.jpg"] and scene.name == "scene0000_00"
    np.testing.assert_allclose(scene.cameras.world_to_cam.numpy(), c.world_to_cam, atol=1e-6)
    np.testing.assert_allclose(scene.cameras.K.numpy(), np.stack([c.K[0]] * 3), atol=1e-6)
    np.testing.assert_allclose(scene.depths.numpy(), c.depths / 1000, atol=1e-6)
    assert scene.labels[:, 0, 0].tolist() == [300, 301, 302]
    assert load_scene(out, views=[-1]).paths[0].name == "10.jpg"


def test_lost_poses_are_left_out(folder):
    out, c = folder
    (out / "pose/9.txt").write_text("\n".join(["-inf -inf -inf -inf"] * 4))
    with pytest.warns(UserWarning, match=r"scene0000_00: 1 of 3 frames have no finite pose and are left out: 9\.jpg"):
        scene = load_scene(out)
    np.testing.assert_allclose(scene.cameras.world_to_cam.numpy(), c.world_to_cam[[0, 2]], atol=1e-6)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("file", "text", "field"),
    [
        ("pose/9.txt", "1 2 3", "matrix"),
        ("pose/9.txt", "a b c d", "file"),
        ("intrinsic/intrinsic_color.txt", "1 0 0\n0 1 0\n0 0 1\n", "matrix"),
        ("pose/9.txt", None, "file"),
    ],
)
def test_bad_files(folder, file, text, field):
    out, _ = folder
    (out / file).unlink() if text is None else (out / file).write_text(text)
    with pytest.raises(Sr3dError, match=file) as caught:
        load_scene(out)
    assert caught.value.field == field


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_pose_at_all(folder):
    out, _ = folder
    for file in (out / "pose").iterdir():
        file.write_text("\n".join(["-inf -inf -inf -inf"] * 4))
    with pytest.raises(Sr3dError, match="pose: poses"):
        load_scene(out)


def test_real_frames(scenes):
    scene = load_scene(scenes / "scannet4")
    assert [p.name for p in scene.paths] == ["48.jpg", "54.jpg", "60.jpg", "66.jpg"]
    assert tuple(scene.images.shape) == (4, 480, 640, 3)
    np.testing.assert_allclose(scene.cameras.positions[0].numpy(), [1.896290, 2.467417, 1.399475], atol=1e-6)
    # The third column of the camera-to-world rotation in the file is the viewing direction.
    np.testing.assert_allclose(scene.cameras.world_to_cam[0, 2, :3].numpy(), [0.608144, 0.561630, -0.561010], atol=1e-5)
    assert scene.cameras.K[0, 0, 2].item() == pytest.approx(318.905426, abs=1e-3)
