from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sr3d import Cameras, Scene, Sr3dError, load_scene
from sr3d.datasets.batch import degrade_scene, make_batch, reduce_scene, resize_scene
from sr3d.datasets.degrade import DegradeConfig, block_mean, degrade, low_size, resample

OFF = DegradeConfig(
    method="realistic", blur=(0.0, 0.0), shot_noise=(0.0, 0.0), read_noise=(0.0, 0.0), jpeg_rounds=(0, 0)
)
NOISE = replace(OFF, shot_noise=(0.05, 0.05), read_noise=(0.01, 0.01))


def _images(views: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(views, height, width, 3, generator=torch.Generator().manual_seed(seed))


def _flat(value: float, views: int = 1, size: int = 64) -> Tensor:
    return torch.full((views, size, size, 3), value)


def _scene(views: int = 3, height: int = 24, width: int = 32, name: str = "room") -> Scene:
    """Cameras in front of a plane that recedes to the right, so that depth is known everywhere."""
    pose = torch.eye(4).repeat(views, 1, 1)
    pose[:, 0, 3] = -0.1 * torch.arange(views)
    K = torch.tensor([[30.0, 0, 17], [0, 28, 11], [0, 0, 1]]).repeat(views, 1, 1)
    cameras = Cameras(world_to_cam=pose, K=K, width=width, height=height)
    depths = _plane(cameras)
    labels = torch.arange(views * height * width).reshape(views, height, width)
    return Scene(images=_images(views, height, width), cameras=cameras, depths=depths, labels=labels, name=name)


def _plane(cameras: Cameras) -> Tensor:
    """z-depth of the plane z = 2 + x / 2."""
    origins, rays = cameras.positions, cameras.pixel_rays()
    return (2 + origins[:, 0] / 2)[:, None, None] / (1 - rays[..., 0] / 2)


def test_sizes() -> None:
    assert low_size(640, 480, 4) == (160, 120) and low_size(640, 480, 3) == (213, 160)
    assert low_size(640, 480, 2.5) == (256, 192) and low_size(3, 2, 100) == (1, 1)
    for factor in (0.5, 0, float("nan"), float("inf")):
        with pytest.raises(Sr3dError, match="factor"):
            low_size(640, 480, factor)


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_area_is_the_block_mean(factor: int) -> None:
    images = _images(2, 24, 36)
    blocks = images.unflatten(-2, (-1, factor)).unflatten(-4, (-1, factor)).mean(dim=(-4, -2))
    low = degrade(images, (36 // factor, 24 // factor), DegradeConfig(), 0)
    torch.testing.assert_close(low, blocks, atol=2e-7, rtol=0)
    assert torch.equal(reduce_scene(Scene(images=images), factor).images, low)


def _area(length: int, new: int) -> np.ndarray:
    """Share of every old pixel in every new one, by hand. [new, length]"""
    edges = np.arange(new + 1) * length / new
    low, high = np.maximum(edges[:-1, None], np.arange(length)), np.minimum(edges[1:, None], np.arange(length) + 1)
    return np.clip(high - low, 0, None) * new / length


def _filter(length: int, new: int, lobes: int) -> np.ndarray:
    """Antialiased bicubic (a = -0.5; lobes 2) or Lanczos (lobes 3) weights, cut at the border. [new, length]"""
    scale = length / new
    x = np.abs((np.arange(length) + 0.5 - (np.arange(new)[:, None] + 0.5) * scale) / scale)
    if lobes == 3:
        weights = np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0)
    else:
        inner, outer = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        weights = np.where(x < 1, inner, np.where(x < 2, outer, 0))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("method", ["area", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(16, 8), (13, 9), (21, 23)])
def test_filters_are_what_they_are_called(method: str, size: tuple[int, int]) -> None:
    image = _images(1, 24, 40)[0].double().numpy() * 0.4 + 0.3
    matrix = {"area": _area, "bicubic": lambda a, b: _filter(a, b, 2), "lanczos": lambda a, b: _filter(a, b, 3)}[method]
    expected = np.einsum("ih,hwc,jw->ijc", matrix(24, size[1]), image, matrix(40, size[0]))
    out = degrade(torch.from_numpy(image).float()[None], size, DegradeConfig(method=method), 0)
    np.testing.assert_allclose(out[0].numpy(), expected, atol=2e-6)


def test_overshoot_is_clipped() -> None:
    step = torch.zeros(1, 16, 16, 3)
    step[:, :, 8:] = 1
    out = degrade(step, (8, 8), DegradeConfig(method="lanczos"), 0)
    assert out.min() == 0 and out.max() == 1


def test_chain_with_everything_off_is_a_reduction() -> None:
    images = _images(1, 24, 32)
    plain = [resample(images, (8, 6), method) for method in ("area", "bilinear", "bicubic")]
    seen = set()
    for seed in range(12):
        out = degrade(images, (8, 6), OFF, seed)
        near = [torch.allclose(out, p, atol=2e-4) for p in plain]
        assert sum(near) == 1
        seen.add(near.index(True))
    assert seen == {0, 1, 2}


def test_blur_is_in_low_resolution_pixels() -> None:
    for factor in (2, 5):
        point = torch.zeros(1, 21 * factor, 31 * factor, 3)
        point[:, 10 * factor : 11 * factor, 15 * factor : 16 * factor] = 1
        out = degrade(point, (31, 21), replace(OFF, blur=(1.5, 1.5)), 0)[0, ..., 0].double()
        v, u = torch.meshgrid(torch.arange(21) - 10.0, torch.arange(31) - 15.0, indexing="ij")
        assert abs(out.sum() - 1) < 0.01
        # The Gaussian, the point's own width and the filter's: at most 1/12 + 1/2 pixel² on top.
        for offset in (u, v):
            assert 1.5**2 - 0.1 < (out * offset**2).sum() / out.sum() < 1.5**2 + 0.6


def test_noise_has_the_strength_it_says() -> None:
    """Of linear light: variance = shot² · light + read²."""
    for value in (0.3, 0.5, 0.8):
        light = value**2.2
        out = degrade(_flat(value, size=256), (256, 256), NOISE, 0).double() ** 2.2
        expected = np.sqrt(0.05**2 * light + 0.01**2)
        assert abs(out.mean() - light) < 3e-4
        assert abs(out.std() / expected - 1) < 0.02


def test_jpeg_is_a_file_with_half_the_colour_resolution() -> None:
    stripes = torch.zeros(1, 32, 32, 3)
    stripes[:, :, ::2, 0], stripes[:, :, 1::2, 2] = 1, 1
    out = degrade(stripes, (32, 32), replace(OFF, jpeg=(95, 95), jpeg_rounds=(1, 1)), 0)[0]
    red = out[..., 0] - out[..., 2]
    assert (red[:, ::2] - red[:, 1::2]).abs().mean() < 0.4  # 2 in the original
    smooth = cv2.GaussianBlur(_images(1, 64, 64)[0].numpy(), (0, 0), 2)
    errors = []
    for quality in (30, 60, 90):
        config = replace(OFF, jpeg=(quality, quality), jpeg_rounds=(1, 1))
        out = degrade(torch.from_numpy(smooth)[None], (64, 64), config, 0)[0]
        assert torch.equal((out * 255).round() / 255, out)
        errors.append(float((out - torch.from_numpy(smooth)).abs().mean()))
    assert errors[0] > errors[1] > errors[2]


def test_one_seed_one_picture_whatever_else_there_is() -> None:
    images, config = _images(3, 48, 64), DegradeConfig(method="realistic")
    out = degrade(images, (16, 12), config, 7)
    assert torch.equal(out, degrade(images, (16, 12), config, 7))
    assert torch.equal(out[:1], degrade(images[:1], (16, 12), config, 7))
    assert not torch.equal(out, degrade(images, (16, 12), config, 8))
    assert out.dtype == torch.float32 and out.min() >= 0 and out.max() <= 1


def test_settings_are_shared_by_the_views_of_a_clip_unless_told_otherwise() -> None:
    config = replace(OFF, blur=(0.0, 3.0))
    same = _images(1, 64, 64).expand(4, -1, -1, -1)
    for per_view, different in ((False, 1), (True, 4)):
        out = degrade(same, (32, 32), replace(config, per_view=per_view), 3)
        assert len({round(float(view.std()), 6) for view in out}) == different
    noisy = degrade(_flat(0.5, 2), (64, 64), NOISE, 0)
    assert abs(np.corrcoef(noisy[0].flatten(), noisy[1].flatten())[0, 1]) < 0.05


@pytest.mark.parametrize(
    ("field", "value"),
    [("blur", (-0.1, 1.0)), ("blur", (2.0, 1.0)), ("shot_noise", (0.0, 2.0)), ("read_noise", (0.1, float("nan"))),
     ("jpeg", (0, 90)), ("jpeg", (50, 101)), ("jpeg_rounds", (-1, 1))],
)  # fmt: skip
def test_unusable_settings(field: str, value: tuple[float, float]) -> None:
    with pytest.raises(Sr3dError) as error:
        DegradeConfig(**{field: value})
    assert error.value.field == field


def test_unusable_arguments() -> None:
    images = _images(1, 8, 12)
    for size in ((13, 8), (12, 9), (0, 1)):
        with pytest.raises(Sr3dError, match=f"size: found {size[0]}x{size[1]}"):
            degrade(images, size, DegradeConfig(), 0)
    with pytest.raises(Sr3dError, match="seed: found -1"):
        degrade(images, (4, 4), DegradeConfig(), -1)


@pytest.mark.parametrize("factor", [1.0, 2.0, 2.5, 3.0, 3.7])
def test_cameras_depth_and_labels_follow_any_factor(factor: float) -> None:
    scene = _scene()
    low = degrade_scene(scene, factor, DegradeConfig(method="bicubic"), 0)
    cameras = low.posed()
    assert (cameras.width, cameras.height) == low_size(32, 24, factor) == (low.images.shape[2], low.images.shape[1])
    assert low.depths is not None and low.labels is not None and scene.labels is not None
    torch.testing.assert_close(low.depths[:, 1:-1, 1:-1], _plane(cameras)[:, 1:-1, 1:-1], rtol=1e-5, atol=0)
    # A point keeps its place in the frame.
    points = torch.tensor([[0.1, 0.2, 3.0], [-0.4, -0.3, 2.5]])
    share = torch.tensor([cameras.width / 32, cameras.height / 24])
    torch.testing.assert_close(cameras.project(points)[0], scene.posed().project(points)[0] * share)
    # Label of the old pixel that holds the centre of the new one.
    rows = ((np.arange(cameras.height) + 0.5) * 24 / cameras.height).astype(int)
    columns = ((np.arange(cameras.width) + 0.5) * 32 / cameras.width).astype(int)
    assert torch.equal(low.labels, scene.labels[:, rows[:, None], columns])


@pytest.mark.parametrize("factor", [1.5, 2.5])
def test_depth_on_an_edge_is_that_of_the_pixel_at_the_centre(factor: float) -> None:
    depths = torch.full((1, 30, 30), 4.0)
    depths[:, :, 13:] = 1
    depths[:, 20:] = 0
    low = degrade_scene(Scene(images=torch.zeros(1, 30, 30, 3), depths=depths), factor, DegradeConfig(), 0)
    assert low.depths is not None
    size = low.depths.shape[-1]
    centres = (np.arange(size) + 0.5) * factor
    expected = np.where(centres < 13, 4.0, 1.0) * np.where(centres[:, None] < 20, 1, 0)
    assert low.depths[0].tolist() == expected.tolist()


@pytest.mark.parametrize("size", [(32, 24), (16, 12), (10, 10), (32, 8), (7, 20), (64, 64), (48, 20), (1, 1)])
def test_resized_scene_shows_the_centre_and_its_cameras_know(size: tuple[int, int]) -> None:
    """Pixels that hold their own place: the camera must find there what the image shows there."""
    scene = _scene()
    u, v = torch.meshgrid(torch.arange(32) + 0.5, torch.arange(24) + 0.5, indexing="xy")
    scene = replace(scene, images=torch.stack([u / 32, v / 24, torch.zeros_like(u)], -1).expand(3, -1, -1, -1))
    out = resize_scene(scene, size)
    cameras = out.posed()
    assert (cameras.width, cameras.height) == size == (out.images.shape[2], out.images.shape[1])
    old = scene.posed()
    points = old.unproject(torch.full((3, 24, 32), 3.0)).reshape(3, -1, 3)
    for view in range(3):
        uv = cameras.index([view]).project(points[view])[0][0]
        # Half a pixel from the border a filter has neighbours on both sides.
        margin = uv.new_tensor([max(1.0, size[0] / 32), max(1.0, size[1] / 24)])
        inside = ((uv > margin) & (uv < uv.new_tensor(size) - margin)).all(-1)
        place = uv[inside] - 0.5
        first = place.floor().long()
        t = (place - first).unsqueeze(-1)
        image = out.images[view]
        corner = [image[first[:, 1] + b, first[:, 0] + a, :2] for b in (0, 1) for a in (0, 1)]
        top, bottom = (c[0] * (1 - t[:, 0]) + c[1] * t[:, 0] for c in (corner[:2], corner[2:]))
        shown = (top * (1 - t[:, 1]) + bottom * t[:, 1]) * torch.tensor([32, 24])
        really = old.index([view]).project(points[view])[0][0][inside]
        # A tenth of an old pixel: to the area filter pixels are squares of one colour.
        assert (shown - really).abs().max() < 0.1 if len(shown) else min(size) == 1
    # What is left is central (the principal point was 1 pixel off the centre), whole in one direction, undistorted.
    centre = (cameras.K[0, [0, 1], 2] - torch.tensor(size) / 2) / cameras.K[0, [0, 1], [0, 1]]
    assert (centre - torch.tensor([1 / 30, -1 / 28])).abs().max() < 0.02
    scale = cameras.K[0, [0, 1], [0, 1]] / torch.tensor([30.0, 28.0])
    assert abs(scale[0] / scale[1] - 1) < 0.08
    assert abs(max(size[0] / 32, size[1] / 24) / scale.mean() - 1) < 0.08
    assert out.depths is not None and out.labels is not None and out.depths.shape == (3, size[1], size[0])


def test_resized_by_a_whole_number_is_the_block_mean_of_the_centre() -> None:
    scene = _scene()
    out = resize_scene(scene, (8, 8))
    assert torch.equal(out.images, block_mean(scene.images[:, :, 4:28], 3))
    with pytest.raises(Sr3dError, match="size: found 0x4"):
        resize_scene(scene, (0, 4))


def test_batch_with_degraded_inputs() -> None:
    clip, config = _scene(5), DegradeConfig(method="realistic")
    batch = make_batch(clip, [0, 4], [2], 2.5, config, seed=3)
    assert torch.equal(batch.context.images, degrade(clip.images[[0, 4]], (13, 10), config, 3))
    assert torch.equal(batch.high.images, clip.images[[0, 4]]) and torch.equal(batch.target.images, clip.images[[2]])
    assert make_batch(clip, [0, 4], [2], 3, DegradeConfig()).context.images.shape == (2, 8, 11, 3)
    assert torch.equal(make_batch(clip, [0, 4], [2], 4, DegradeConfig()).context.images,
                       make_batch(clip, [0, 4], [2], 4).context.images)  # fmt: skip
    with pytest.raises(Sr3dError, match=r"room: image size: found 32x24 with factor 2\.5"):
        make_batch(clip, [0, 4], [2], 2.5)


def test_targets_anywhere_when_an_index_says_so() -> None:
    clip = _scene(5)
    for target in ([0], [1, 3, 4], [4]):
        with pytest.raises(Sr3dError, match="target view"):
            make_batch(clip, [1, 3], target, 4)
        batch = make_batch(clip, [1, 3], target, 4, anywhere=True)
        assert torch.equal(batch.target.images, clip.images[target])


class _Degraded(Dataset[Tensor]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Tensor:
        scene = resize_scene(_scene(2, 300, 400), (256, 256))
        return degrade_scene(scene, 2.5, DegradeConfig(method="realistic"), index).images


@pytest.mark.timeout(60)
def test_workers_make_the_same_pictures_and_do_not_hang() -> None:
    """Threads of the parent (OpenMP, OpenCV) do not live in a forked worker."""
    here = [_Degraded()[i] for i in range(2)]
    torch.rand(1000, 1000).matmul(torch.rand(1000, 1000)).exp().sum()
    workers = DataLoader(_Degraded(), batch_size=None, num_workers=2, multiprocessing_context="fork")
    for expected, out in zip(here, workers):
        assert torch.equal(expected, out)


def test_defaults_are_as_sharp_as_a_real_camera(scenes: Path) -> None:
    """Power of differences one pixel apart to two pixels apart: 0.25 for a ramp, 1 for white noise."""

    def sharpness(image: Tensor) -> float:
        grey = image.mean(-1)
        ratios = [
            (g[1:] - g[:-1]).square().mean() / (g[2:] - g[:-2]).square().mean() for g in (grey, grey.T.contiguous())
        ]
        return float(sum(ratios)) / 2

    clip = load_scene(scenes / "redkitchen-clip").views([0])
    native = sharpness(clip.images[0])
    config = DegradeConfig(method="realistic")
    chain = [sharpness(degrade(clip.images, (160, 120), config, seed)[0]) for seed in range(12)]
    assert min(chain) < native < max(chain)
    assert abs(np.median(chain) / native - 1) < 0.1
    assert sharpness(degrade(clip.images, (160, 120), DegradeConfig(), 0)[0]) > 1.1 * native
