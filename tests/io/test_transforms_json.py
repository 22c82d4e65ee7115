from __future__ import annotations

import json
import math
import warnings

import cv2
import numpy as np
import pytest
import torch

from sr3d import Sr3dError, load_scene


def test_cameras_images_and_depth(capture):
    c = capture()
    scene = load_scene(c.folder)
    assert scene.name == "room" and [p.name for p in scene.paths] == ["0.png", "1.png", "2.png"]
    np.testing.assert_allclose(scene.cameras.world_to_cam.numpy(), c.world_to_cam, atol=1e-6)
    np.testing.assert_allclose(scene.cameras.K.numpy(), c.K, atol=1e-6)
    assert (scene.cameras.width, scene.cameras.height) == (20, 12)
    assert scene.images.dtype == torch.float32
    np.testing.assert_allclose(scene.images.numpy(), c.images / 255, atol=1e-6)
    np.testing.assert_allclose(scene.depths.numpy(), c.depths / 1000, atol=1e-6)
    assert scene.labels is None and scene.points is None


def test_a_world_point_lands_on_its_pixel(capture):
    """OpenGL axes by their definition (looks along -z, y up): a point right and above has u > cx, v < cy."""
    c = capture(views=1)
    c2w = np.array(c.document["frames"][0]["transform_matrix"])
    point = c2w @ [0.1, 0.2, -2.0, 1.0]
    pixels, depth = load_scene(c.folder).cameras.project(torch.tensor(point[None, :3], dtype=torch.float32))
    fx, fy, cx, cy = c.K[0, 0, 0], c.K[0, 1, 1], c.K[0, 0, 2], c.K[0, 1, 2]
    np.testing.assert_allclose(pixels[0, 0].numpy(), [cx + fx * 0.05, cy - fy * 0.1], atol=1e-4)
    assert depth.item() == pytest.approx(2.0, abs=1e-5)


def test_json_path_and_three_row_matrices(capture):
    c = capture()
    for frame in c.document["frames"]:
        frame["transform_matrix"] = frame["transform_matrix"][:3]
    c.save()
    np.testing.assert_allclose(load_scene(c.json).cameras.world_to_cam.numpy(), c.world_to_cam, atol=1e-6)


def test_shared_intrinsics_with_defaults_and_no_extension(capture):
    """Missing fl_y is fl_x, a missing principal point is the centre, a missing size is the image's."""
    c = capture()
    for frame in c.document["frames"]:
        for key in ("fl_x", "fl_y", "cx", "cy", "w", "h"):
            del frame[key]
        frame["file_path"] = "./" + frame["file_path"].removesuffix(".png")
    c.document["fl_x"] = 21.5
    c.save()
    expected = np.array([[21.5, 0, 10], [0, 21.5, 6], [0, 0, 1]])
    np.testing.assert_allclose(load_scene(c.folder).cameras.K.numpy(), np.stack([expected] * 3), atol=1e-6)


def test_frame_intrinsics_win_over_shared_ones(capture):
    c = capture()
    c.document |= {"fl_x": 99.0, "cx": 1.0}
    c.save()
    np.testing.assert_allclose(load_scene(c.folder).cameras.K.numpy(), c.K, atol=1e-6)


def test_opening_angles(capture):
    c = capture()
    for frame in c.document["frames"]:
        del frame["fl_x"], frame["fl_y"]
    c.document |= {"camera_angle_x": 2 * math.atan(10 / 25), "camera_angle_y": 2 * math.atan(6 / 24)}
    c.save()
    K = load_scene(c.folder).cameras.K
    torch.testing.assert_close(K[:, 0, 0], torch.full((3,), 25.0))
    torch.testing.assert_close(K[:, 1, 1], torch.full((3,), 24.0))


def test_depth_unit_and_float_depth(capture):
    c = capture()
    metres = c.depths[1] / 500 + 0.25
    metres[0, :3] = [np.nan, np.inf, -1.0]
    np.save(c.folder / "depth/1.npy", metres)
    c.document["depth_unit_scale_factor"] = 0.01
    c.document["frames"][1]["depth_file_path"] = "depth/1.npy"
    del c.document["frames"][2]["depth_file_path"]
    c.save()
    depths = load_scene(c.folder).depths.numpy()
    np.testing.assert_allclose(depths[0], c.depths[0] / 100, atol=1e-5)
    assert depths[1, 0, :3].tolist() == [0, 0, 0]
    np.testing.assert_allclose(depths[1, 1:], metres[1:], atol=1e-5)
    assert not depths[2].any()


def test_depth_of_another_size_is_taken_from_the_nearest_pixel(capture):
    c = capture()
    small = np.arange(1, 10 * 6 + 1, dtype=np.uint16).reshape(6, 10)
    cv2.imwrite(str(c.folder / "depth/0.png"), small)
    expected = np.repeat(np.repeat(small, 2, axis=0), 2, axis=1) / 1000
    np.testing.assert_allclose(load_scene(c.folder).depths[0].numpy(), expected, atol=1e-6)


def test_labels_keep_their_ids(capture):
    c = capture()
    labels = np.random.default_rng(0).choice([0, 7, 300, 65535], (3, 12, 20)).astype(np.uint16)
    for i, frame in enumerate(c.document["frames"]):
        cv2.imwrite(str(c.folder / f"labels/{i}.png"), labels[i])
        frame["label_file_path"] = f"labels/{i}.png"
    c.save()
    scene = load_scene(c.folder)
    assert scene.labels.dtype == torch.int64 and np.array_equal(scene.labels.numpy(), labels)


def test_sparse_points(capture):
    c = capture()
    (c.folder / "points.ply").write_text(
        "ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty float y\nproperty float z\n"
        "property uchar red\nend_header\n1 2 3 9\n-1 0.5 4 9\n"
    )
    c.document["ply_file_path"] = "points.ply"
    c.save()
    assert load_scene(c.folder).points.tolist() == [[1, 2, 3], [-1, 0.5, 4]]
    (c.folder / "points.ply").unlink()
    with pytest.warns(UserWarning, match=r"transforms\.json: ply_file_path: no file"):
        assert load_scene(c.folder).points is None


def test_only_chosen_views_are_decoded(capture):
    c = capture()
    whole = load_scene(c.folder)
    (c.folder / "images/1.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    scene = load_scene(c.folder, views=[-1, 0])
    assert torch.equal(scene.images, whole.images[[2, 0]]) and torch.equal(scene.depths, whole.depths[[2, 0]])
    assert torch.equal(scene.cameras.K, whole.cameras.K[[2, 0]])
    with pytest.raises(Sr3dError, match=r"1\.png: image"):
        load_scene(c.folder)


def test_missing_images_are_left_out_with_one_warning(capture):
    c = capture(views=5)
    for i in (1, 3):
        (c.folder / f"images/{i}.png").unlink()
    with pytest.warns(UserWarning) as caught:
        scene = load_scene(c.folder)
    assert len(caught) == 1
    text = str(caught[0].message)
    assert "transforms.json: 2 of 5 frames have no image file" in text and "1.png" in text and "3.png" in text
    assert [p.name for p in scene.paths] == ["0.png", "2.png", "4.png"]
    np.testing.assert_allclose(scene.cameras.world_to_cam.numpy(), c.world_to_cam[[0, 2, 4]], atol=1e-6)
    with pytest.warns(UserWarning):
        assert load_scene(c.folder, views=[2]).paths[0].name == "4.png"


def test_names_that_no_file_system_takes_are_missing_files(capture):
    c = capture()
    c.document["frames"][1]["file_path"] = "a" * 300
    c.save()
    with pytest.warns(UserWarning, match="1 of 3 frames"):
        assert len(load_scene(c.folder)) == 2


def test_complete_captures_do_not_warn(capture):
    c = capture(views=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_scene(c.folder)) == 1


@pytest.mark.parametrize("shared", [True, False])
def test_distortion_is_removed(capture, lens, distorted, pattern_error, shared):
    """Every pixel, to the last at the border, shows what its ray under the new K sees.

    Taking pixel centres at +0 instead of +0.5 doubles the error.
    """
    c = capture(views=2, width=160, height=120, depth=False)
    for i, frame in enumerate(c.document["frames"]):
        K = np.array([[150.0 + 5 * i, 0, 78], [0, 152, 63], [0, 0, 1]])
        cv2.imwrite(str(c.folder / f"images/{i}.png"), distorted(K, 160, 120))
        frame |= {"fl_x": K[0, 0], "fl_y": K[1, 1], "cx": K[0, 2], "cy": K[1, 2]} | ({} if shared else lens)
    c.document |= lens if shared else {}
    c.save()
    scene = load_scene(c.folder)
    assert not torch.allclose(scene.cameras.K[0, 0, 0], torch.tensor(150.0), atol=1)
    for i in range(2):
        assert pattern_error(scene.images[i].numpy(), scene.cameras.K[i].numpy()) < 8e-4


def test_depth_and_labels_follow_the_undistorted_image(capture):
    """A map that stores its own column is resampled to the columns the rays came from, without mixing values."""
    c = capture(views=1, width=160, height=120)
    columns = np.tile(np.arange(160, dtype=np.uint16) * 100, (120, 1))
    cv2.imwrite(str(c.folder / "depth/0.png"), columns)
    cv2.imwrite(str(c.folder / "labels/0.png"), columns)
    frame = c.document["frames"][0]
    frame |= {"fl_x": 150, "fl_y": 150, "cx": 80, "cy": 60, "k1": -0.15, "label_file_path": "labels/0.png"}
    c.save()
    scene = load_scene(c.folder)
    K = scene.cameras.K[0].double().numpy()
    u = np.arange(160) + 0.5
    x = (u - K[0, 2]) / K[0, 0]
    y = (60.5 - K[1, 2]) / K[1, 1]
    source = x * (1 - 0.15 * (x * x + y * y)) * 150 + 80 - 0.5
    assert np.abs(scene.labels[0, 60].numpy() / 100 - source).max() <= 0.501
    np.testing.assert_allclose(scene.depths[0].numpy() * 1000, scene.labels[0].numpy(), atol=1e-2)


def test_rounded_rotations_become_exact_about_the_same_centre(capture):
    c = capture()
    for frame in c.document["frames"]:
        matrix = np.array(frame["transform_matrix"])
        matrix[:3, :3] = matrix[:3, :3].round(4) + 1e-4
        frame["transform_matrix"] = matrix.tolist()
    c.save()
    poses = load_scene(c.folder).cameras
    R = poses.world_to_cam[:, :3, :3]
    torch.testing.assert_close(R @ R.transpose(1, 2), torch.eye(3).expand(3, 3, 3), atol=1e-6, rtol=0)
    expected = np.linalg.inv(c.world_to_cam)[:, :3, 3]
    np.testing.assert_allclose(poses.positions.numpy(), expected, atol=1e-5)


def _truth(folder):
    frames = json.loads((folder / "cameras.json").read_text())["frames"]
    c2w = torch.tensor([frame["camera_to_world"] for frame in frames], dtype=torch.float64)
    return frames, c2w, torch.tensor([frame["K"] for frame in frames])


@pytest.mark.parametrize("name", ["redkitchen", "redkitchen-clip", "shelf", "apple", "castle4", "fox"])
@pytest.mark.filterwarnings("ignore:.*17 of 67 frames have no image file")
def test_real_cameras(scenes, name):
    """Against cameras.json, which states the same cameras in OpenCV axes; some rotations there are rounded (4e-4)."""
    frames, c2w, K = _truth(scenes / name)
    chosen = list(range(0, len(frames), 6))
    scene = load_scene(scenes / name, views=chosen)
    assert [f"images/{p.name}" for p in scene.paths] == [frames[i]["file"] for i in chosen]
    found = scene.cameras.cam_to_world.double()
    torch.testing.assert_close(found[:, :3, 3], c2w[chosen, :3, 3], atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(found[:, :3, :3], c2w[chosen, :3, :3], atol=4e-4, rtol=0)
    U, _, Vt = torch.linalg.svd(c2w[chosen, :3, :3])
    torch.testing.assert_close(found[:, :3, :3], U @ Vt, atol=1e-6, rtol=0)
    if name != "fox":  # undistorted: another K
        torch.testing.assert_close(scene.cameras.K, K[chosen], atol=1e-3, rtol=0)
    assert tuple(scene.images.shape[1:3]) == (frames[0]["h"], frames[0]["w"])


def test_real_depth_agrees_between_views(scenes):
    """Points of one view's depth map, projected into the next: median relative difference of depth under 1 %."""
    scene = load_scene(scenes / "redkitchen-clip", views=[0, 2])
    depth = scene.depths
    points = scene.cameras.unproject(depth)[0, ::7, ::7].reshape(-1, 3)
    pixels, z = scene.cameras.project(points[depth[0, ::7, ::7].reshape(-1) > 0])
    u, v = pixels[1].floor().long().unbind(-1)
    inside = (u >= 0) & (u < 640) & (v >= 0) & (v < 480)
    seen = depth[1, v[inside], u[inside]]
    error = ((z[1, inside] - seen).abs() / seen)[seen > 0]
    assert len(error) > 1000 and error.median() < 0.01


def test_real_labels(scenes):
    scene = load_scene(scenes / "shelf", views=[0, 7])
    assert scene.labels.unique().tolist() == [0, 48, 114, 132, 144]


def test_real_fox_is_undistorted(scenes):
    """Content at a distorted pixel of the file is found where `cv2.undistortPoints` sends it under the new K."""
    with pytest.warns(UserWarning, match="17 of 67 frames have no image file"):
        scene = load_scene(scenes / "fox", views=[0])
    document = json.loads((scenes / "fox/transforms.json").read_text())
    raw = cv2.imread(str(scene.paths[0]))[..., ::-1].astype(np.float32) / 255
    K = np.array([[document["fl_x"], 0, document["cx"] - 0.5], [0, document["fl_y"], document["cy"] - 0.5], [0, 0, 1]])
    lens = np.array([document[key] for key in ("k1", "k2", "p1", "p2")])
    new_K = scene.cameras.K[0].double().numpy() - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]
    rng = np.random.default_rng(0)
    source = rng.uniform([40, 40], [500, 920], (4000, 2))
    target = cv2.undistortPoints(source[:, None], K, lens, P=new_K)[:, 0].astype(np.float32)
    # Blurred, so that the interpolation of either side does not matter.
    raw, loaded = cv2.GaussianBlur(raw, (0, 0), 2), cv2.GaussianBlur(scene.images[0].numpy(), (0, 0), 2)
    a = cv2.remap(raw, *source.astype(np.float32).T[:, :, None], cv2.INTER_LINEAR)
    b = cv2.remap(loaded, *target.T[:, :, None], cv2.INTER_LINEAR)
    moved = cv2.remap(loaded, *source.astype(np.float32).T[:, :, None], cv2.INTER_LINEAR)
    assert np.abs(a - b).mean() < 2e-3 < 5e-3 < np.abs(a - moved).mean()
