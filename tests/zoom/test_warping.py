from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.datasets.world import World
from sr3d.errors import Sr3dError
from sr3d.scene import Scene
from sr3d.zoom.path import zoom_centers
from sr3d.zoom.warping import warp


@pytest.fixture(scope="module")
def room() -> tuple[World, Scene]:
    """Three views of 64 x 48 pixels, wide apart, with exact depth."""
    world = World.generate(5)
    return world, world.render(world.sample_cameras(3, 64, 48, baseline=0.2), samples=16)


def _row(shifts: list[float], size: int = 40, focal: float = 30.0) -> Cameras:
    """Cameras in a row along x that look along z. [C]"""
    poses = torch.eye(4).repeat(len(shifts), 1, 1)
    poses[:, 0, 3] = -torch.tensor(shifts)
    K = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]]).repeat(len(shifts), 1, 1)
    return Cameras(world_to_cam=poses, K=K, width=size, height=size)


def _plane(cameras: Cameras, normal: list[float], offset: float) -> Tensor:
    """Depth of the plane normal · x = offset. [C, H, W]"""
    n = torch.tensor(normal, dtype=cameras.K.dtype)
    rays = torch.einsum("cij,chwj->chwi", cameras.cam_to_world[:, :3, :3], cameras.pixel_rays())
    return (offset - cameras.positions @ n)[:, None, None] / (rays @ n)


def _own_pixels(cameras: Cameras) -> Tensor:
    """Maps of pixel coordinates: bilinear reading of them is exact. [C, H, W, 2]"""
    v, u = torch.meshgrid(torch.arange(cameras.height) + 0.5, torch.arange(cameras.width) + 0.5, indexing="ij")
    return torch.stack([u, v], dim=-1).expand(len(cameras), -1, -1, -1)


def test_colors_with_true_depth_are_those_of_the_target(room):
    _, scene = room
    for target in range(3):
        warped = warp(scene.images, scene.depths, scene.cameras, target)
        difference = (warped.maps - scene.images[target])[warped.valid]
        assert warped.valid.float().mean() > 0.6
        assert difference.abs().mean() < 0.016 and difference.abs().mean(dim=-1).median() < 0.008
        assert not warped.maps[~warped.valid].any()
    shifted = warp(scene.images.roll(1, dims=2), scene.depths, scene.cameras, 0)
    assert (shifted.maps - scene.images[0])[shifted.valid].abs().mean() > 0.032  # which a pixel makes


def test_two_planes_against_the_closed_form():
    """A point of depth z moves by f·b/z."""
    cameras = _row([0.0, 0.2, -0.3])
    pixels = _own_pixels(cameras)
    for depth in (2.0, 4.0):
        warped = warp(pixels, _plane(cameras, [0, 0, 1], depth), cameras, 0)
        for i, baseline in enumerate((0.2, -0.3)):
            expected = pixels[0] - torch.tensor([30 * baseline / depth, 0])
            inside = (expected[..., 0] > 0) & (expected[..., 0] < 40)
            assert torch.equal(warped.valid[i], inside)
            between = inside & (expected[..., 0] >= 0.5) & (expected[..., 0] <= 39.5)
            assert torch.allclose(warped.maps[i][between], expected[between], atol=1e-4)
            assert warped.depth_error[i][inside].max() < 1e-6
            assert warped.depth_error[i][~inside].isinf().all()


def test_hidden_points_are_never_valid():
    """A square at depth 2 before a wall at depth 4; what it hides is known from the rays."""
    cameras = _row([0.0, 0.8, -0.5], size=80, focal=60.0)
    half = 0.5

    def crossing(points: Tensor, eye: Tensor) -> Tensor:
        """Pixels, of the eye's view, from the edge of the square to where it is crossed: positive inside."""
        at = eye + (points - eye) * (2 / points[..., 2:])
        return (half - at[..., :2].abs().amax(dim=-1)) * 60 / 2

    wall = cameras.unproject(_plane(cameras, [0, 0, 1], 4.0))
    eyes = cameras.positions
    depths = torch.stack([torch.where(crossing(wall[i], eyes[i]) > 0, 2.0, 4.0) for i in range(3)])
    warped = warp(_own_pixels(cameras), depths, cameras, 0)
    points = cameras.unproject(depths)[0]
    pixels, _ = cameras.project(points.reshape(-1, 3))
    for i, source in enumerate((1, 2)):
        inside = ((pixels[source] > 0) & (pixels[source] < 80)).all(dim=-1).reshape(80, 80)
        cover = torch.where(points[..., 2] > 3, crossing(points, eyes[source]), -torch.inf)
        hidden, free = inside & (cover > 1), inside & (cover < -1)
        assert hidden.sum() > 150 and not (warped.valid[i] & hidden).any()
        assert warped.valid[i][free].all()
        # At the border of two surfaces the nearest pixel is read: never a mixture of both.
        seen = warped.valid[i]
        off = (warped.maps[i] - pixels[source].reshape(80, 80, 2))[seen].abs()
        assert off.max() <= 0.5 + 1e-4


def test_grazing_planes_pass():
    """Ground seen at 4 to 20 degrees: depth changes by far more than the tolerance from pixel to pixel."""
    cameras = _row([0.0, 0.15])
    cameras = replace(cameras, K=cameras.K + torch.tensor([[0, 0, 0], [0, 0, -22.0], [0, 0, 0]]))
    depths = _plane(cameras, [0, 1, 0], 0.5)
    jump = (depths[0, 1:] / depths[0, :-1] - 1).abs()
    assert (jump > 0.04).float().mean() > 0.3
    warped = warp(_own_pixels(cameras), depths, cameras, 0)
    inside = warped.depth_error[0].isfinite()
    assert inside.float().mean() > 0.8 and torch.equal(warped.valid[0], inside)


def test_equal_cameras_give_the_same_maps(room):
    _, scene = room
    twice = scene.cameras.index([0, 0])
    depths = scene.depths[[0, 0]].clone()
    depths[:, 5:9, 7:20] = 0
    depths[0, 20, 20], depths[1, 30, 30], depths[1, 31, 31] = torch.nan, torch.inf, -1.0
    features = torch.randn(2, 48, 64, 5, generator=torch.Generator().manual_seed(0))
    features[1, 5:9, 7:20] = 1e6  # unknown: of no weight
    warped = warp(features, depths, twice, 0)
    known = (depths > 0).all(dim=0) & depths.isfinite().all(dim=0)
    assert torch.equal(warped.valid[0], known) and known.sum() == 48 * 64 - 52 - 3
    assert torch.allclose(warped.maps[0][known], features[1][known], atol=1e-3)
    assert warped.depth_error[0][known].max() < 1e-5


@pytest.mark.parametrize("factor", [4.0, 16.0])
def test_zoomed_frames(room, factor):
    world, scene = room
    point = scene.cameras.unproject(scene.depths)[0, 24, 30]
    centers, inside = zoom_centers(point, scene.cameras)
    assert inside.all()
    frames = scene.cameras.to(torch.float64).zoomed(factor, centers.double())
    near = world.render(frames, samples=8)
    warped = warp(near.images, near.depths, frames, 0)
    shared = warped.depth_error.isfinite()
    assert warped.maps.dtype == torch.float32 and shared.float().mean() > 0.4
    assert warped.valid[shared].float().mean() > 0.98  # hardly anything is hidden this close
    assert (warped.maps - near.images[0])[warped.valid].abs().mean() < 0.012


def test_magnification_of_a_million():
    """Float64 cameras keep a hundredth of a pixel."""
    cameras = _row([0.0, 0.2]).to(torch.float64)
    point = torch.tensor([0.1, 0.05, 2.0], dtype=torch.float64)
    frames = cameras.zoomed(2.0**20, zoom_centers(point, cameras)[0])
    pixels = _own_pixels(frames)
    warped = warp(pixels, _plane(frames, [0, 0, 1], 2.0).float(), frames, 0)
    inner = pixels[0] - torch.tensor([3.0, 0.0])  # f·b/z of the unzoomed view, which the centres follow
    shift = (zoom_centers(point, cameras)[0][0] - zoom_centers(point, cameras)[0][1]).float()
    assert torch.allclose(shift, torch.tensor([3.0, 0.0]), atol=1e-5)
    between = (inner[..., 0] >= 0.5) & (inner[..., 0] <= 39.5)
    assert torch.allclose(warped.maps[0][between], inner[between], atol=0.01)


def test_agrees_with_a_loop_over_pixels(room):
    world, scene = room
    cameras = scene.cameras.resized(12, 12).to(torch.float64)
    small = world.render(cameras, samples=4)
    depths = small.depths.clone()
    depths[1, 3:5] = 0
    warped = warp(small.images, depths, cameras, 2, tolerance=0.03)
    seen = 0
    for s in range(2):
        for row in range(12):
            for column in range(12):
                value, error = _slow(small.images, depths, cameras, 2, s, row, column, 0.03)
                assert bool(warped.valid[s, row, column]) == (error <= 0.03)
                assert float(warped.depth_error[s, row, column]) == pytest.approx(error, abs=1e-5)
                assert torch.allclose(warped.maps[s, row, column].double(), value, atol=1e-5)
                seen += error <= 0.03
    assert 100 < seen < 260


def _slow(
    images: Tensor, depths: Tensor, cameras: Cameras, target: int, source: int, row: int, column: int, tolerance: float
) -> tuple[Tensor, float]:
    """The definition in `warp`, one pixel at a time, with matrices."""
    nothing = torch.zeros(3, dtype=torch.float64), float("inf")
    size, d = 12, float(depths[target, row, column])
    if d <= 0:
        return nothing
    cam = torch.linalg.inv(cameras.K[target]) @ torch.tensor([column + 0.5, row + 0.5, 1.0]).double() * d
    world = torch.linalg.inv(cameras.world_to_cam[target]) @ torch.cat([cam, cam.new_ones(1)])
    there = cameras.K[source] @ (cameras.world_to_cam[source] @ world)[:3]
    z = float(there[2])
    if z <= 0 or not (0 < there[0] / z < size and 0 < there[1] / z < size):
        return nothing
    x, y = float(there[0] / z) - 0.5, float(there[1] / z) - 0.5
    color, inverse, weight = torch.zeros(3).double(), 0.0, 0.0
    x0, y0 = int(x // 1), int(y // 1)
    for j, wy in ((y0, y0 + 1 - y), (y0 + 1, y - y0)):
        for i, wx in ((x0, x0 + 1 - x), (x0 + 1, x - x0)):
            j_in, i_in = min(max(j, 0), size - 1), min(max(i, 0), size - 1)
            near = float(depths[source, j_in, i_in])
            if near > 0:
                color, inverse = color + wy * wx * images[source, j_in, i_in].double(), inverse + wy * wx / near
                weight += wy * wx
    nearest = min(max(round(y), 0), size - 1), min(max(round(x), 0), size - 1)
    front = float(depths[(source, *nearest)])
    if front <= 0:
        return nothing
    off_mean, off_nearest = abs(z * inverse / weight - 1), abs(z / front - 1)
    error = min(off_mean, off_nearest)
    if error > tolerance:
        return nothing[0], error
    return (color / weight if off_mean <= tolerance else images[(source, *nearest)].double()), error


def test_one_view_has_no_others(room):
    _, scene = room
    warped = warp(scene.images[:1], scene.depths[:1], scene.cameras.index([0]), 0)
    assert warped.maps.shape == (0, 48, 64, 3)
    assert warped.valid.shape == warped.depth_error.shape == (0, 48, 64)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"target": 3}, "target"),
        ({"target": -1}, "target"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"tolerance": float("nan")}, "tolerance"),
        ({"depths": torch.ones(3, 48, 63)}, "depths"),
        ({"depths": torch.ones(2, 48, 64)}, "depths"),
        ({"maps": torch.ones(3, 24, 64, 3)}, "maps"),
    ],
)
def test_wrong_input_raises_one_error(room, change, field):
    _, scene = room
    arguments = {"maps": scene.images, "depths": scene.depths, "cameras": scene.cameras, "target": 0} | change
    with pytest.raises(Sr3dError, match=rf"sr3d\.zoom\.warp: {field}"):
        warp(**arguments)
    batch = Cameras(world_to_cam=scene.cameras.world_to_cam[None], K=scene.cameras.K[None], width=64, height=48)
    with pytest.raises(Sr3dError, match="cameras"):
        warp(scene.images, scene.depths, batch, 0)
