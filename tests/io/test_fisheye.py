"""Fisheye lenses: images drawn through one, undone, against what a pinhole camera sees."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from sr3d import Sr3dError, load_scene
from sr3d.io.frames import Frame, decode_frame

WIDTH, HEIGHT = 160, 120
K = np.array([[62.0, 0, 83], [0, 60.5, 57], [0, 0, 1]])  # 130 degrees along the row: ScanNet++'s lens sees as much
LENS = (0.031, -0.012, 0.004, -0.0007)


def bent(theta: np.ndarray, lens: tuple[float, ...] = LENS) -> np.ndarray:
    """Distance from the middle, in focal lengths, of a ray `theta` off axis (OpenCV's and COLMAP's definition)."""
    return theta * (1 + sum(k * theta ** (2 * i) for i, k in enumerate(lens, start=1)))


def rays(lens: tuple[float, ...] = LENS) -> tuple[np.ndarray, np.ndarray]:
    """x/z and y/z of the ray through every pixel centre of the fisheye image."""
    v, u = np.meshgrid(np.arange(HEIGHT) + 0.5, np.arange(WIDTH) + 0.5, indexing="ij")
    x, y = (u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1]
    radius = np.hypot(x, y)
    angles = np.linspace(0, 1.5, 200_001)
    theta = np.interp(radius, bent(angles, lens), angles)
    scale = np.where(radius > 0, np.tan(theta) / np.maximum(radius, 1e-12), 1)
    return x * scale, y * scale


def smooth(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A colour of every viewing ray that varies slowly in its angle, whose edge lies at 65 degrees. [..., 3]"""
    theta, turn = np.arctan(np.hypot(x, y)), np.arctan2(y, x)
    a, b = theta * np.cos(turn), theta * np.sin(turn)
    return np.stack([0.5 + 0.4 * np.sin(2 * a), 0.5 + 0.4 * np.sin(2 * b), 0.5 + 0.4 * np.cos(2 * (a + b))], -1)


def difference(image: np.ndarray, K: np.ndarray, edge: int = 4) -> float:
    """Largest error against the pinhole camera K, without `edge` pixels at each side.

    OpenCV's new K lets the outermost pixels look 0.3 pixels outside the original, which interpolation spreads.
    """
    height, width = image.shape[:2]
    v, u = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    error = np.abs(image - smooth((u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1]))
    return float(error[edge : height - edge, edge : width - edge].max())


def save(path: Path, image: np.ndarray) -> None:
    """16 bits: rounding is not what is measured."""
    assert cv2.imwrite(str(path), (image[..., ::-1] * 65535).round().astype(np.uint16))


@pytest.mark.parametrize("named", ["camera_model", "is_fisheye"])
def test_of_transforms_json(capture, named):
    """nerfstudio's and ScanNet++'s OPENCV_FISHEYE, instant-ngp's is_fisheye."""
    c = capture(views=1, width=WIDTH, height=HEIGHT, depth=False)
    save(c.folder / "images/0.png", smooth(*rays()))
    frame = c.document["frames"][0]
    frame |= {"fl_x": K[0, 0], "fl_y": K[1, 1], "cx": K[0, 2], "cy": K[1, 2]}
    frame |= dict(zip(("k1", "k2", "k3", "k4"), LENS))
    frame |= {"camera_model": "OPENCV_FISHEYE"} if named == "camera_model" else {"is_fisheye": True}
    c.save()
    scene = load_scene(c.folder)
    image, new_K = scene.images[0].numpy(), scene.cameras.K[0].double().numpy()
    assert difference(image, new_K) < 1e-3 and difference(image, new_K, edge=0) < 0.01
    half_a_pixel_off = new_K + np.array([[0, 0, 0.5], [0, 0, 0], [0, 0, 0]])
    assert difference(image, half_a_pixel_off) > 5e-3
    # No more of the view is given away than must be: the nearest side of the fisheye's frame is one of the new frame.
    top = rays()[1][0, 83]
    assert (0.5 - new_K[1, 2]) / new_K[1, 1] == pytest.approx(top, rel=0.03)


@pytest.mark.parametrize(
    ("model", "lens"),
    [("OPENCV_FISHEYE", LENS), ("SIMPLE_RADIAL_FISHEYE", LENS[:1]), ("RADIAL_FISHEYE", LENS[:2])],
)
def test_of_colmap(tmp_path, model, lens):
    """Every fisheye model that is OpenCV's with fewer terms, against COLMAP's own projection of rays."""
    pycolmap = pytest.importorskip("pycolmap")
    params = [61.0, *((61.0,) if model == "OPENCV_FISHEYE" else ()), 83.0, 57.0, *lens]
    camera = pycolmap.Camera(camera_id=1, model=model, width=WIDTH, height=HEIGHT, params=params)
    pixel = camera.img_from_cam(np.array([0.9, -0.4, 1.0]))
    theta = np.arctan(np.hypot(0.9, 0.4))
    scale = 61 * bent(theta, lens) / np.hypot(0.9, 0.4)
    np.testing.assert_allclose(pixel, [83 + 0.9 * scale, 57 - 0.4 * scale], atol=1e-9)

    (tmp_path / "images").mkdir()
    model_K = np.array([[61.0, 0, 83], [0, 61, 57], [0, 0, 1]])
    v, u = np.meshgrid(np.arange(HEIGHT) + 0.5, np.arange(WIDTH) + 0.5, indexing="ij")
    radius = np.hypot(u - 83, v - 57) / 61
    angles = np.linspace(0, 1.5, 200_001)
    stretch = np.tan(np.interp(radius, bent(angles, lens), angles)) / np.maximum(radius, 1e-12)
    save(tmp_path / "images/0.png", smooth((u - 83) / 61 * stretch, (v - 57) / 61 * stretch))
    (tmp_path / "cameras.txt").write_text(f"1 {model} {WIDTH} {HEIGHT} {' '.join(map(str, params))}\n")
    (tmp_path / "images.txt").write_text("1 1 0 0 0 0 0 0 1 0.png\n\n")
    (tmp_path / "points3D.txt").write_text("")
    scene = load_scene(tmp_path)
    assert difference(scene.images[0].numpy(), scene.cameras.K[0].double().numpy()) < 1e-3
    assert not np.allclose(scene.cameras.K[0].numpy(), model_K, atol=1)


def test_depth_and_labels_follow(tmp_path):
    """z-depth and ids of a slanted wall, drawn at the fisheye's pixels, come out at the pinhole's."""
    x, y = rays()
    save(tmp_path / "0.png", smooth(x, y))
    depth = 2 / (1 - 0.2 * x + 0.1 * y)
    labels = np.where(x > 0.25, 300, 7).astype(np.uint16)
    np.save(tmp_path / "0.npy", depth.astype(np.float32))
    cv2.imwrite(str(tmp_path / "labels.png"), labels)
    frame = Frame(
        image=tmp_path / "0.png",
        world_to_cam=np.eye(4),
        K=K,
        distortion=LENS,
        fisheye=True,
        depth=tmp_path / "0.npy",
        labels=tmp_path / "labels.png",
    )
    decoded = decode_frame(tmp_path, frame)
    v, u = np.meshgrid(np.arange(HEIGHT) + 0.5, np.arange(WIDTH) + 0.5, indexing="ij")
    x, y = (u - decoded.K[0, 2]) / decoded.K[0, 0], (v - decoded.K[1, 2]) / decoded.K[1, 1]
    assert decoded.depth is not None and decoded.labels is not None
    assert np.abs(decoded.depth * (1 - 0.2 * x + 0.1 * y) / 2 - 1).max() < 0.025  # from the nearest pixel
    pixel = 1 / decoded.K[0, 0]
    away = np.abs(x - 0.25) > 2 * pixel
    assert np.array_equal(decoded.labels[away], np.where(x > 0.25, 300, 7)[away])


@pytest.mark.parametrize("lens", [(-3.0, 0, 0, 0), (float("nan"), 0, 0, 0), (0, 0, 0, 1e9)])
def test_lenses_that_cannot_be_undone(capture, lens):
    c = capture(views=1, width=WIDTH, height=HEIGHT, depth=False)
    frame = c.document["frames"][0]
    frame |= {"camera_model": "OPENCV_FISHEYE", "fl_x": 62, "fl_y": 62, "cx": 80, "cy": 60}
    frame |= dict(zip(("k1", "k2", "k3", "k4"), lens))
    c.save()
    with pytest.raises(Sr3dError, match=r"transforms\.json: (distortion|k1) of 0\.png"):
        load_scene(c.folder)


def test_without_lens_terms_it_is_still_a_fisheye(tmp_path):
    """All k zero is the equidistant lens, no pinhole."""
    save(tmp_path / "0.png", smooth(*rays((0.0, 0.0, 0.0, 0.0))))
    frame = Frame(image=tmp_path / "0.png", world_to_cam=np.eye(4), K=K, distortion=(0.0,) * 4, fisheye=True)
    decoded = decode_frame(tmp_path, frame)
    assert frame.distorted and difference(decoded.image, decoded.K) < 1e-3 < difference(decoded.image, K)
