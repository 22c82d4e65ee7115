from __future__ import annotations

import json

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.io import check_forest
from sr3d.lod import Forest
from sr3d.rendering import render
from sr3d.zoom import zoom_path
from sr3d.zoom.measure import consistency, magnify, photograph, resample
from sr3d.zoom.results import write_results
from sr3d.zoom.run import ZoomRun, run_zoom
from sr3d.zoom.target import Pixel
from sr3d.zoom.video import video_size, write_video

FILES = [
    "cameras.json", "contact.png", "index.html", "inputs.safetensors", "levels.png", "metrics.json", "pictures",
    "scene.ply", "scene.sr3d", "zoom.json", "zoom.mp4",
]  # fmt: skip


def test_path_is_exponential_about_the_center(table, target):
    path = zoom_path(table.cameras.index([0]), target, 16.0, 9)
    focal = path.focal / table.cameras.focal[0]
    assert torch.allclose(focal, 2 ** (torch.arange(9) / 2), rtol=1e-5)
    ray = torch.linalg.inv(path.K) @ torch.tensor([*target, 1.0])
    assert torch.allclose(ray, ray[:1].expand_as(ray), atol=1e-5)
    with pytest.raises(Sr3dError, match="found 2 cameras"):
        zoom_path(table.cameras, target, 16.0, 9)


def test_resample_agrees_with_the_world(world, table):
    target = (31 / 3, 40 / 3)  # under which the pixels at 4x are those of the photograph
    first = table.cameras.index([0])
    large = first.resized(96, 96)
    photo = world.render(large, samples=16).images[0]
    reduced = resample(photo, large, first)
    assert torch.allclose(reduced, photo.unflatten(0, (24, 4)).unflatten(2, (24, 4)).mean((1, 3)), atol=0.02)
    truth = photograph(photo, large)
    for factor in (2.0, 4.0):
        zoomed = first.zoomed(factor, target)
        assert (
            truth(zoomed)[0] - world.render(zoomed, samples=16).images[0]
        ).abs().mean() < 0.02  # a shift by a pixel: 0.07
    assert truth(first.zoomed(4.5, target)) is None


def test_scores_and_consistency(world, zoomed, table, target):
    forest, _ = zoomed
    columns = magnify(forest, table, target, [1.0, 2.0, 4.0], lambda cameras: world.render(cameras, samples=4).images)
    scores = [column.scores() for column in columns]
    assert scores[0]["bicubic"]["psnr"] > 60
    for column in scores:
        assert column["sr3d"]["coverage"] > 0.99
        assert 12 < column["sr3d"]["psnr"] < 40 and 0 < column["sr3d"]["ssim"] < 1
    seen = consistency(forest, table, 2)
    own = render(forest, table.cameras).rgb
    expected = -10 * torch.log10((own.clamp(0, 1) - table.images).square().mean((1, 2, 3))).mean()
    assert seen["coarse"] == pytest.approx(float(expected), abs=1e-3)
    assert seen["sr3d"] > seen["coarse"] - 1
    without = magnify(forest, table, target, [2.0])[0]
    assert "truth" not in without.images and set(without.scores()["sr3d"]) == {"coverage"}


def test_video_holds_every_frame(tmp_path):
    ramp = torch.arange(0, 250, 25, dtype=torch.uint8)
    frames = ramp[:, None, None, None].expand(10, 48, 64, 3).contiguous()
    write_video(frames, tmp_path / "a.mp4")
    read = iio.imread(tmp_path / "a.mp4", plugin="FFMPEG")
    assert read.shape == (10, 48, 64, 3)
    assert np.abs(read.astype(int).mean((1, 2, 3)) - ramp.numpy()).max() < 4
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    with pytest.raises(Sr3dError, match="even width and height"):
        write_video(frames[:, :47], tmp_path / "b.mp4")
    with pytest.raises(Sr3dError, match="mp4"):
        write_video(frames, tmp_path / "b.gif")


def test_video_size_is_even():
    assert video_size(160, 120, 512) == (512, 384)
    assert video_size(120, 213, 301) == (170, 300)


def test_results_appear_together_or_not_at_all(zoomed, table, target, tmp_path):
    forest, levels = zoomed

    def broken(cameras):
        raise RuntimeError("no truth today")

    with pytest.raises(RuntimeError, match="no truth today"):
        write_results(forest, table, target, levels, tmp_path / "out", step=2, truth=broken, frames=3, video_width=48)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(Sr3dError, match="a file"):
        write_results(forest, table, target, levels, tmp_path / "file", step=2, frames=3, video_width=48)


def test_run_zoom(world, table, doubler, tmp_path):
    """A folder as a user has it: photographs four times the width, OpenGL poses, depth in millimetres."""
    cameras = table.cameras.resized(98, 98)
    photos = world.render(cameras, samples=2)
    frames = []
    for i, pose in enumerate(cameras.cam_to_world):
        iio.imwrite(tmp_path / f"{i}.png", (photos.images[i] * 255).round().byte().numpy())
        iio.imwrite(tmp_path / f"{i}-depth.png", (photos.depths[i] * 1000).round().numpy().astype(np.uint16))
        matrix = (pose @ torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))).tolist()
        frames.append({"file_path": f"{i}.png", "depth_file_path": f"{i}-depth.png", "transform_matrix": matrix})
    K = cameras.K[0]
    low_camera = cameras.index([0]).resized(19, 19)
    lens = {"fl_x": K[0, 0].item(), "fl_y": K[1, 1].item(), "cx": K[0, 2].item(), "cy": K[1, 2].item()}
    (tmp_path / "transforms.json").write_text(json.dumps({"w": 98, "h": 98, **lens, "frames": frames}))
    asked = {
        "scene": tmp_path, "output": tmp_path / "out", "views": [0, 1], "factor": 4, "width": 24, "frames": 6,
        "video_width": 64,
    }  # fmt: skip
    inside, outside = Pixel(u=40.5, v=55.5), Pixel(u=99.0, v=5.0)
    with pytest.raises(Sr3dError, match="no such file"):
        run_zoom(ZoomRun(target=inside, checkpoint=str(tmp_path / "none.safetensors"), **asked))
    assert not (tmp_path / "out").exists()

    doubler.save_pretrained(tmp_path / "network.safetensors")
    asked["checkpoint"] = str(tmp_path / "network.safetensors")
    with pytest.raises(Sr3dError, match="a pixel of the first view, 95 x 95"):
        run_zoom(ZoomRun(target=outside, **asked))
    assert not (tmp_path / "out").exists()
    metrics = run_zoom(ZoomRun(target=inside, **asked))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == FILES
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics
    # 98 pixels reduced by 5 (the next whole factor): 19 wide.
    assert metrics["levels"][0]["gaussians"] == 2 * 19 * 19
    assert len(Gaussians.load(tmp_path / "out" / "scene.ply")) == metrics["gaussians"]
    forest = Forest.load(tmp_path / "out" / "scene.sr3d")
    check_forest(forest)
    assert (forest.parents >= 0).sum() == len(forest) - 2 * 19 * 19  # all but level 0
    frame = low_camera.zoomed(2.5, (8.0, 11.0))
    from_blocks, from_ply = (render(g, frame).rgb for g in (forest, Gaussians.load(tmp_path / "out" / "scene.ply")))
    assert (from_blocks - from_ply).abs().mean() < 3e-3  # the order of Gaussians at one depth may differ
    # A second run finds everything done.
    again = run_zoom(ZoomRun(target=inside, **asked))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == FILES and again["levels"] == metrics["levels"]
    assert iio.imread(tmp_path / "out" / "zoom.mp4", plugin="FFMPEG").shape == (6, 64, 64, 3)
    assert [column["magnification"] for column in metrics["magnifications"]] == [1, 2, 4]
    assert all(column["sr3d"]["psnr"] > 12 for column in metrics["magnifications"])
    assert iio.imread(tmp_path / "out" / "contact.png").shape[1] > 300
