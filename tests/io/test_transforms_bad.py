from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from sr3d import Sr3dError, load_scene


def _set(frame: int, key: str, value):
    def change(c):
        c.document["frames"][frame][key] = value

    return change


def _pose(change):
    def apply(c):
        matrix = np.array(c.document["frames"][1]["transform_matrix"])
        change(matrix)
        c.document["frames"][1]["transform_matrix"] = matrix.tolist()

    return apply


def _scale(matrix):
    matrix[:3, :3] *= 1.002


def _mirror(matrix):
    matrix[:3, 0] *= -1


def _angle(c):
    del c.document["frames"][1]["fl_x"]
    c.document["frames"][1]["camera_angle_x"] = 7


def _nan(matrix):
    matrix[0, 3] = np.nan


def _last_row(matrix):
    matrix[3] = [0, 0, 1, 0]


def _normalised(c):
    for frame in c.document["frames"]:
        frame |= {"fl_x": 0.9, "fl_y": 0.9, "cx": 0.5, "cy": 0.5}


def _write(name: str, array: np.ndarray):
    def change(c):
        cv2.imwrite(str(c.folder / name), array)

    return change


def _resize_with_frame(c):
    cv2.imwrite(str(c.folder / "images/1.png"), np.zeros((24, 40, 3), np.uint8))
    c.document["frames"][1] |= {"w": 40, "h": 24}


def _remove(*names: str):
    def change(c):
        for name in names:
            (c.folder / name).unlink()

    return change


def _text(text: str | bytes):
    def change(c):
        c.save = lambda: None
        c.json.write_bytes(text.encode() if isinstance(text, str) else text)

    return change


def _truncate_image(c):
    data = (c.folder / "images/1.png").read_bytes()
    (c.folder / "images/1.png").write_bytes(data[: len(data) // 2])


def _truncate_jpeg(c):
    cv2.imwrite(str(c.folder / "images/1.jpg"), c.images[1])
    data = (c.folder / "images/1.jpg").read_bytes()
    (c.folder / "images/1.jpg").write_bytes(data[: len(data) - 60])
    c.document["frames"][1]["file_path"] = "images/1.jpg"


def _pickle(c):
    text = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    (c.folder / "depth/0.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00" + text + b"cos\nsystem\n.")
    c.document["frames"][0]["depth_file_path"] = "depth/0.npy"


def _labels_for_one(c):
    cv2.imwrite(str(c.folder / "labels/0.png"), np.zeros((12, 20), np.uint8))
    c.document["frames"][0]["label_file_path"] = "labels/0.png"


def _hostile_points(c):
    (c.folder / "p.ply").write_bytes(b"ply\nformat ascii 1.0\nelement vertex 9\nproperty float x\nend_header\n")
    c.document["ply_file_path"] = "p.ply"


BAD = {
    "not json": (_text("{"), "transforms.json", "file"),
    "not text": (_text(b"\xff\xfe\x00"), "transforms.json", "file"),
    "deeply nested": (_text("[" * 100000), "transforms.json", "file"),
    "a list": (_text("[]"), "transforms.json", "file"),
    "no frames": (_text("{}"), "transforms.json", "frames"),
    "empty frames": (_text('{"frames": []}'), "transforms.json", "frames"),
    "frames of numbers": (_text('{"frames": [1]}'), "transforms.json", "frames"),
    "no file_path": (lambda c: c.document["frames"][1].pop("file_path"), "transforms.json", "file_path of frame 1"),
    "file_path is a number": (_set(1, "file_path", 3), "transforms.json", "file_path of frame 1"),
    "no pose": (
        lambda c: c.document["frames"][1].pop("transform_matrix"),
        "transforms.json",
        "transform_matrix of 1.png",
    ),
    "pose 2x2": (_set(1, "transform_matrix", [[1, 0], [0, 1]]), "transforms.json", "transform_matrix of 1.png"),
    "pose of words": (_set(1, "transform_matrix", [["a"] * 4] * 4), "transforms.json", "transform_matrix of 1.png"),
    "pose with NaN": (_pose(_nan), "transforms.json", "transform_matrix of 1.png"),
    "scaled rotation": (_pose(_scale), "transforms.json", "pose of 1.png"),
    "mirrored rotation": (_pose(_mirror), "transforms.json", "pose of 1.png"),
    "projective pose": (_pose(_last_row), "transforms.json", "pose of 1.png"),
    "no focal length": (lambda c: c.document["frames"][1].pop("fl_x"), "transforms.json", "fl_x of 1.png"),
    "focal length is text": (_set(1, "fl_x", "18"), "transforms.json", "fl_x of 1.png"),
    "focal length is huge": (_set(1, "fl_x", 10**400), "transforms.json", "fl_x of 1.png"),
    "focal length is NaN": (_set(1, "fl_y", math.nan), "transforms.json", "fl_y of 1.png"),
    "negative focal length": (_set(1, "fl_x", -18), "transforms.json", "K of 1.png"),
    "opening angle of a full turn": (_angle, "transforms.json", "camera_angle_x of 1.png"),
    "normalised K": (_normalised, "transforms.json", "K of 0.png"),
    "unknown lens": (_set(1, "camera_model", "FULL_OPENCV"), "transforms.json", "camera_model of 1.png"),
    "model is a list": (_set(1, "camera_model", ["OPENCV"]), "transforms.json", "camera_model of 1.png"),
    "fourth radial term": (_set(1, "k4", 0.1), "transforms.json", "k4 of 1.png"),
    "lens that folds": (_set(1, "k1", -40.0), "transforms.json", "distortion of 1.png"),
    "w is half a pixel": (_set(1, "w", 20.5), "transforms.json", "w of 1.png"),
    "w disagrees with the image": (_set(1, "w", 40), "transforms.json", "size of 1.png"),
    "w, h twice the image": (lambda c: c.document["frames"][1].update(w=40, h=24), "transforms.json", "size of 1.png"),
    "two image sizes": (_resize_with_frame, "transforms.json", "size of 1.png"),
    "all images missing": (_remove("images/0.png", "images/1.png", "images/2.png"), "transforms.json", "images"),
    "one image left": (_remove("images/0.png", "images/2.png"), "transforms.json", "images"),
    "truncated png": (_truncate_image, "images/1.png", "image"),
    "truncated jpeg": (_truncate_jpeg, "images/1.jpg", "image"),
    "depth file missing": (_remove("depth/1.png"), "depth/1.png", "file"),
    "depth of another aspect": (_write("depth/1.png", np.ones((12, 12), np.uint16)), "depth/1.png", "size"),
    "depth in colour": (_write("depth/1.png", np.zeros((12, 20, 3), np.uint8)), "depth/1.png", "channels"),
    "depth with a pickle": (_pickle, "depth/0.npy", "depth"),
    "depth unit zero": (_set(1, "depth_unit_scale_factor", 0), "transforms.json", "depth_unit_scale_factor of 1.png"),
    "labels for one frame": (_labels_for_one, "transforms.json", "labels"),
    "truncated points": (_hostile_points, "p.ply", "data"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_bad_input_gives_one_clear_error(capture, case):
    change, file, field = BAD[case]
    c = capture()
    change(c)
    c.save()
    with pytest.raises(Sr3dError) as caught:
        load_scene(c.folder)
    assert caught.value.source.endswith(file) and caught.value.field == field
    assert file in str(caught.value) and "expected" in str(caught.value) and len(str(caught.value)) < 600


def test_size_error_names_both_images(capture):
    c = capture()
    _resize_with_frame(c)
    c.save()
    with pytest.raises(Sr3dError, match=r"1\.png: found 40x24; expected 20x12 as 0\.png"):
        load_scene(c.folder)


@pytest.mark.parametrize("views", [[], [3], [0, -4]])
def test_views_out_of_range(capture, views):
    with pytest.raises(Sr3dError, match=r"transforms\.json: views"):
        load_scene(capture().folder, views=views)
