from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from sr3d import Sr3dError, load_scene

pycolmap = pytest.importorskip("pycolmap")

POINTS = np.array([[0.1, 0.2, 0.3], [-1.0, 2.0, 0.5], [3.0, 0.0, 1.0]])


def write_model(capture, folder: Path, binary: bool, model: str = "PINHOLE", extra: tuple[float, ...] = ()) -> None:
    """The cameras of a capture as COLMAP itself writes them: one camera per image, and images out of order."""
    folder.mkdir(parents=True, exist_ok=True)
    out = pycolmap.Reconstruction()
    height, width = capture.images.shape[1:3]
    for i in reversed(range(len(capture.K))):
        fx, fy, cx, cy = capture.K[i, 0, 0], capture.K[i, 1, 1], capture.K[i, 0, 2], capture.K[i, 1, 2]
        params = [fx, cx, cy] if "SIMPLE" in model or model == "RADIAL" else [fx, fy, cx, cy]
        out.add_camera_with_trivial_rig(
            pycolmap.Camera(camera_id=i + 1, model=model, width=width, height=height, params=[*params, *extra])
        )
        pose = pycolmap.Rigid3d(capture.world_to_cam[i, :3])
        image = pycolmap.Image(image_id=len(capture.K) - i, name=f"{i}.png", camera_id=i + 1)
        out.add_image_with_trivial_frame(image, pose)
    for point in POINTS:
        out.add_point3D(point, pycolmap.Track(), np.array([1, 2, 3], dtype=np.uint8))
    (out.write_binary if binary else out.write_text)(folder)


@pytest.fixture
def colmap(capture) -> Callable:
    def make(where: str = "sparse/0", binary: bool = True, model: str = "PINHOLE", extra: tuple[float, ...] = (), **kw):
        c = capture(**kw)
        c.json.unlink()
        write_model(c, c.folder / where, binary, model, extra)
        return c

    return make


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("where", ["sparse/0", "sparse", "colmap/sparse/0", "."])
def test_cameras_images_and_points(colmap, where, binary):
    c = colmap(where, binary)
    scene = load_scene(c.folder)
    assert [p.name for p in scene.paths] == ["0.png", "1.png", "2.png"] and scene.name == "room"
    np.testing.assert_allclose(scene.cameras.world_to_cam.numpy(), c.world_to_cam, atol=1e-6)
    np.testing.assert_allclose(scene.cameras.K.numpy(), c.K, atol=1e-6)
    np.testing.assert_allclose(scene.images.numpy(), c.images / 255, atol=1e-6)
    np.testing.assert_allclose(np.sort(scene.points.numpy(), 0), np.sort(POINTS, 0), atol=1e-6)
    assert scene.depths is None


def test_same_as_transforms_json(capture):
    c = capture()
    before = load_scene(c.folder)
    write_model(c, c.folder / "sparse/0", binary=True)
    c.json.unlink()
    after = load_scene(c.folder)
    np.testing.assert_allclose(after.cameras.world_to_cam.numpy(), before.cameras.world_to_cam.numpy(), atol=1e-6)


def test_model_folder_itself(colmap):
    c = colmap("sparse/0")
    scene = load_scene(c.folder / "sparse/0")
    assert len(scene) == 3 and scene.paths[0].resolve() == (c.folder / "images/0.png").resolve()


def test_images_beside_the_model_and_in_subfolders(colmap):
    c = colmap(".", binary=False)
    text = (c.folder / "images.txt").read_text().replace(" 1.png", " left cam/1.png")
    (c.folder / "images.txt").write_text(text)
    (c.folder / "left cam").mkdir()
    shutil.move(c.folder / "images/1.png", c.folder / "left cam/1.png")
    shutil.move(c.folder / "images/0.png", c.folder / "0.png")
    shutil.move(c.folder / "images/2.png", c.folder / "2.png")
    (c.folder / "images").rmdir()
    assert [p.name for p in load_scene(c.folder).paths] == ["0.png", "2.png", "1.png"]


@pytest.mark.parametrize("binary", [True, False])
def test_observations_are_skipped(colmap, binary):
    """Images with 2D points, points with tracks: the fields after them are still found."""
    c = colmap("sparse/0", binary)
    folder = c.folder / "sparse/0"
    model = pycolmap.Reconstruction(folder)
    for image in model.images.values():
        image.points2D = pycolmap.Point2DList([pycolmap.Point2D(np.array([1.5, 2.5])) for _ in range(4)])
    for image_id in model.images:
        model.add_observation(1, pycolmap.TrackElement(image_id, 2))
    (model.write_binary if binary else model.write_text)(folder)
    scene = load_scene(c.folder)
    np.testing.assert_allclose(scene.cameras.world_to_cam.numpy(), c.world_to_cam, atol=1e-6)
    assert scene.points.shape == (3, 3)


@pytest.mark.parametrize(
    ("model", "extra"),
    [("SIMPLE_RADIAL", [-0.2]), ("RADIAL", [-0.2, 0.05]), ("OPENCV", [-0.2, 0.05, 0.004, -0.003])],
)
@pytest.mark.parametrize("binary", [True, False])
def test_lens_models_agree_with_colmap(colmap, model, extra, binary):
    """COLMAP's own projection of a ray and where the undistorted image shows it: a dot drawn there is found there."""
    c = colmap("sparse/0", binary, model, tuple(extra), views=1, width=160, height=120)
    folder = c.folder / "sparse/0"
    sized = pycolmap.Reconstruction(folder)
    camera = sized.cameras[1]
    camera.params = [150.0] * (2 if model == "OPENCV" else 1) + [78.0, 63.0, *extra]
    (sized.write_binary if binary else sized.write_text)(folder)
    rays = np.array([[-0.35, -0.25], [0.3, 0.2], [0.4, -0.28]])
    v, u = np.meshgrid(np.arange(120) + 0.5, np.arange(160) + 0.5, indexing="ij")
    image = np.zeros((120, 160))
    for u0, v0 in [camera.img_from_cam(np.array([x, y, 1.0])) for x, y in rays]:
        image += np.exp(-((u - u0) ** 2 + (v - v0) ** 2) / 8)
    cv2.imwrite(str(c.folder / "images/0.png"), (image.clip(0, 1) * 65535).astype(np.uint16))
    scene = load_scene(c.folder)
    loaded, K = scene.images[0, ..., 0].numpy(), scene.cameras.K[0].numpy()
    for x, y in rays:
        u0, v0 = K[0, 0] * x + K[0, 2], K[1, 1] * y + K[1, 2]
        near = loaded * ((u - u0) ** 2 + (v - v0) ** 2 < 64)
        found = (near * u).sum() / near.sum(), (near * v).sum() / near.sum()
        assert found == pytest.approx((u0, v0), abs=0.05)


def test_undistorted_image_shows_its_rays(colmap, lens, distorted, pattern_error):
    c = colmap("sparse/0", True, "OPENCV", tuple(lens.values()), views=1, width=160, height=120)
    model = pycolmap.Reconstruction(c.folder / "sparse/0")
    K = np.array([[150.0, 0, 78], [0, 152, 63], [0, 0, 1]])
    model.cameras[1].params = [150.0, 152.0, 78.0, 63.0, *lens.values()]
    model.write_binary(c.folder / "sparse/0")
    cv2.imwrite(str(c.folder / "images/0.png"), distorted(K, 160, 120))
    scene = load_scene(c.folder)
    assert pattern_error(scene.images[0].numpy(), scene.cameras.K[0].numpy()) < 8e-4


def test_views_and_missing_images(colmap):
    c = colmap()
    (c.folder / "images/1.png").unlink()
    with pytest.warns(UserWarning, match=r"images\.bin: 1 of 3 frames have no image file and are left out: .*1\.png"):
        scene = load_scene(c.folder, views=[1])
    assert scene.paths[0].name == "2.png"
    np.testing.assert_allclose(scene.cameras.world_to_cam[0].numpy(), c.world_to_cam[2], atol=1e-6)


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
@pytest.mark.parametrize("suffix", [".bin", ".txt"])
def test_truncated_models(colmap, name, suffix):
    """Cut anywhere, even to nothing, binary files are refused; so is a text file that ends within a line."""
    c = colmap(binary=suffix == ".bin")
    path = c.folder / f"sparse/0/{name}{suffix}"
    data = path.read_bytes()
    cuts = [0, 4, 8, 30, len(data) // 2, len(data) - 1] if suffix == ".bin" else [data.rindex(b" ", 0, -12)]
    for cut in cuts:
        path.write_bytes(data[:cut])
        with pytest.raises(Sr3dError, match=rf"{name}\{suffix}") as caught:
            load_scene(c.folder)
        assert caught.value.field == ("size" if suffix == ".bin" else "line"), cut


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
def test_impossible_counts(colmap, name):
    c = colmap()
    path = c.folder / f"sparse/0/{name}.bin"
    path.write_bytes((10**15).to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(Sr3dError, match=f"{name}.bin: size"):
        load_scene(c.folder)


def _edit(name: str, old: str, new: str):
    def change(c):
        path = c.folder / f"sparse/0/{name}.txt"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


def _quaternion(values: str):
    def change(c):
        path = c.folder / "sparse/0/images.txt"
        lines = path.read_text().splitlines()
        number = next(i for i, line in enumerate(lines) if line.endswith(" 1.png"))
        columns = lines[number].split()
        lines[number] = " ".join([columns[0], *values.split(), *columns[5:]])
        path.write_text("\n".join(lines) + "\n")

    return change


BAD = {
    "lens without distortion terms": (
        _edit("cameras", "2 PINHOLE 20 12", "2 FOV 20 12 1"),
        "cameras.txt",
        "model of camera 2",
    ),
    "unknown model": (_edit("cameras", "2 PINHOLE", "2 POTATO"), "cameras.txt", "model of camera 2"),
    "too few parameters": (_edit("cameras", "2 PINHOLE 20 12 19", "2 PINHOLE 20 12"), "cameras.txt", "line"),
    "focal length of words": (_edit("cameras", "2 PINHOLE 20 12 19", "2 PINHOLE 20 12 long"), "cameras.txt", "line"),
    "negative focal length": (_edit("cameras", "PINHOLE 20 12 19", "PINHOLE 20 12 -19"), "images.txt", "K of 1.png"),
    "size of the camera": (_edit("cameras", "2 PINHOLE 20 12", "2 PINHOLE 40 24"), "images.txt", "size of 1.png"),
    "camera missing": (_edit("images", " 2 1.png", " 9 1.png"), "cameras.txt", "camera 9 of 1.png"),
    "zero quaternion": (_quaternion("0 0 0 0"), "images.txt", "pose of 1.png"),
    "NaN quaternion": (_quaternion("nan 0 0 1"), "images.txt", "pose of 1.png"),
    "NaN point": (_edit("points3D", "0.5", "nan"), "points3D.txt", "points"),
    "no images": (lambda c: shutil.rmtree(c.folder / "images"), "images.txt", "images"),
    "not text": (lambda c: (c.folder / "sparse/0/images.txt").write_bytes(b"\xff\xfe\x80"), "images.txt", "file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_models_give_one_clear_error(colmap, case, tmp_path):
    change, file, field = BAD[case]
    c = colmap(binary=False)
    change(c)
    with pytest.raises(Sr3dError) as caught:
        load_scene(c.folder)
    assert caught.value.source.endswith(file) and caught.value.field == field
    assert len(str(caught.value).replace(str(tmp_path), "")) < 300


def test_real_cameras_through_colmap(scenes, capture, tmp_path):
    """redkitchen-clip as a COLMAP model: the same scene as from its transforms.json."""
    truth = load_scene(scenes / "redkitchen-clip", views=[0, 9])
    folder = tmp_path / "clip"
    (folder / "images").mkdir(parents=True)
    c = capture(views=2)
    c.world_to_cam = truth.cameras.world_to_cam.double().numpy()
    c.K = truth.cameras.K.double().numpy()
    c.images = np.empty((2, 480, 640, 3))
    write_model(c, folder / "sparse/0", binary=True)
    for i, path in enumerate(truth.paths):
        cv2.imwrite(str(folder / f"images/{i}.png"), cv2.imread(str(path)))
    scene = load_scene(folder)
    np.testing.assert_allclose(scene.cameras.world_to_cam.numpy(), truth.cameras.world_to_cam.numpy(), atol=1e-6)
    np.testing.assert_allclose(scene.cameras.K.numpy(), truth.cameras.K.numpy(), atol=1e-4)
    assert np.abs(scene.images.numpy() - truth.images.numpy()).mean() < 0.01
