from __future__ import annotations

import math

import pytest
import torch

from sr3d import Cameras, Sr3dError

WIDTH, HEIGHT = 9, 6


def make(*batch: int, c: int = 3) -> Cameras:
    """Cameras with random rotations and off-centre principal points, float64."""
    g = torch.Generator().manual_seed(5 + sum(batch))
    rotation, _ = torch.linalg.qr(torch.randn(*batch, c, 3, 3, dtype=torch.float64, generator=g))
    rotation = rotation * torch.linalg.det(rotation)[..., None, None].sign()
    pose = torch.zeros(*batch, c, 4, 4, dtype=torch.float64)
    pose[..., :3, :3] = rotation
    pose[..., :3, 3] = torch.randn(*batch, c, 3, dtype=torch.float64, generator=g)
    pose[..., 3, 3] = 1
    K = torch.zeros(*batch, c, 3, 3, dtype=torch.float64)
    K[..., 0, 0], K[..., 1, 1], K[..., 2, 2] = 8 + torch.arange(c), 9 + torch.arange(c), 1
    K[..., 0, 2], K[..., 1, 2] = 4.2, 3.3
    return Cameras(world_to_cam=pose, K=K, width=WIDTH, height=HEIGHT)


def one(fx: float = 10.0, fy: float = 20.0, cx: float = 4.0, cy: float = 3.0) -> Cameras:
    K = torch.tensor([[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]], dtype=torch.float64)
    return Cameras(world_to_cam=torch.eye(4, dtype=torch.float64)[None], K=K, width=WIDTH, height=HEIGHT)


def depths(cameras: Cameras) -> torch.Tensor:
    shape = (*cameras.K.shape[:-2], cameras.height, cameras.width)
    return 1 + torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def test_axes_are_opencv():
    """Right is +u, down is +v, forward is depth."""
    points = torch.tensor([[0.0, 0, 2], [1, 0, 2], [0, 1, 2], [0, 0, -3]], dtype=torch.float64)
    pixels, depth = one().project(points)
    torch.testing.assert_close(pixels[0, :3], torch.tensor([[4.0, 3], [9, 3], [4, 13]], dtype=torch.float64))
    assert depth[0].tolist() == [2, 2, 2, -3]


def test_pixel_centres_are_at_half():
    """The ray through pixel (column 1, row 2) is that through (1.5, 2.5)."""
    ray = one().pixel_rays()[0, 2, 1]
    torch.testing.assert_close(ray, torch.tensor([(1.5 - 4) / 10, (2.5 - 3) / 20, 1], dtype=torch.float64))


@pytest.mark.parametrize("batch", [(), (2,), (2, 2)])
def test_unproject_and_project_are_inverse(batch):
    cameras = make(*batch)
    depth = depths(cameras)
    points = cameras.unproject(depth)
    flat = points.flatten(-3, -2).flatten(-3, -2)  # every view's points, in one list per batch element
    pixels, z = cameras.project(flat)
    n = WIDTH * HEIGHT
    v, u = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    expected = torch.stack([u, v], -1).reshape(n, 2).double().expand(*batch, n, 2)
    for i in range(3):
        own = slice(i * n, (i + 1) * n)
        torch.testing.assert_close(pixels[..., i, own, :], expected)
        torch.testing.assert_close(z[..., i, own], depth[..., i, :, :].flatten(-2))


def test_unproject_refuses_another_size():
    with pytest.raises(Sr3dError, match=r"unproject: depth: found \(6, 8\); expected \(6, 9\)"):
        make().unproject(torch.ones(3, 6, 8, dtype=torch.float64))


def test_inverse_pose_and_positions():
    cameras = make(2)
    identity = torch.eye(4, dtype=torch.float64).expand(2, 3, 4, 4)
    torch.testing.assert_close(cameras.cam_to_world @ cameras.world_to_cam, identity)
    torch.testing.assert_close(cameras.positions, torch.linalg.inv(cameras.world_to_cam)[..., :3, 3])


def test_world_rays_pass_through_unprojected_points():
    cameras = make(2)
    depth = depths(cameras)
    origins, directions = cameras.world_rays()
    offset = cameras.unproject(depth) - origins[..., None, None, :]
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones_like(depth))
    torch.testing.assert_close(torch.linalg.cross(offset, directions).abs().max().item(), 0.0, atol=1e-12, rtol=0)
    assert ((offset * directions).sum(-1) > 0).all()


def test_footprint_is_the_size_of_one_pixel():
    """Two points one footprint apart, on a fronto-parallel plane, are one pixel apart where fx = fy."""
    cameras = one(fx=16, fy=16)
    step = cameras.footprint(torch.tensor([[5.0]], dtype=torch.float64)).item()
    assert step == 5 / 16
    pixels, _ = cameras.project(torch.tensor([[0.0, 0, 5], [step, 0, 5], [0, step, 5]], dtype=torch.float64))
    torch.testing.assert_close((pixels[0, 1:] - pixels[0, :1]).norm(dim=-1), torch.ones(2, dtype=torch.float64))
    assert one(fx=10, fy=40).focal.item() == 20


@pytest.mark.parametrize("factor", [0.5, 1.0, 4.0])
def test_zoom_magnifies_about_a_fixed_pixel(factor):
    cameras = make()
    points = cameras.unproject(depths(cameras)).reshape(-1, 3)
    before, depth = cameras.project(points)
    for centre in (None, (2.0, 5.0), torch.tensor([[1.0, 2], [3, 4], [5, 6]])):
        zoomed = cameras.zoomed(factor, centre)
        after, same_depth = zoomed.project(points)
        fixed = torch.tensor([WIDTH / 2, HEIGHT / 2]) if centre is None else torch.as_tensor(centre)
        fixed = fixed.double().expand(3, 2)[:, None]
        torch.testing.assert_close(after - fixed, factor * (before - fixed))
        torch.testing.assert_close(same_depth, depth)
        assert (zoomed.width, zoomed.height) == (WIDTH, HEIGHT)
    torch.testing.assert_close(cameras.zoomed(factor).footprint(depth), cameras.footprint(depth) / factor)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf])
def test_zoom_refuses_impossible_factors(factor):
    with pytest.raises(Sr3dError, match="zoomed: factor"):
        make().zoomed(factor)


def test_resize_scales_pixels_per_axis():
    cameras = make(2)
    points = torch.randn(2, 20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    small = cameras.resized(18, 3)
    assert (small.width, small.height) == (18, 3)
    scale = torch.tensor([18 / WIDTH, 3 / HEIGHT], dtype=torch.float64)
    torch.testing.assert_close(small.project(points)[0], cameras.project(points)[0] * scale)
    torch.testing.assert_close(small.resized(WIDTH, HEIGHT).K, cameras.K)


def test_crop_shifts_pixels():
    cameras = make()
    points = cameras.unproject(depths(cameras))
    window = cameras.cropped(2, 1, 5, 4)
    assert (window.width, window.height) == (5, 4)
    torch.testing.assert_close(window.unproject(depths(cameras)[:, 1:5, 2:7]), points[:, 1:5, 2:7])


def test_indexing():
    single, batch = make(), make(2)
    assert torch.equal(single[1].K, single.K[1:2]) and torch.equal(single[-1].K, single.K[2:])
    assert torch.equal(single[[2, 0]].world_to_cam, single.world_to_cam[[2, 0]])
    assert torch.equal(single[1:].K, single.K[1:])
    assert torch.equal(batch[1].K, batch.K[1]) and len(batch[1]) == 3
    assert torch.equal(batch.index([0, 2]).K, batch.K[:, [0, 2]])
    assert torch.equal(batch.index(torch.tensor([True, False, True])).K, batch.K[:, [0, 2]])
    assert len(single) == len(batch) == 3


def test_cat():
    a, b = make(2), make(2, c=2)
    out = Cameras.cat([a, b])
    assert len(out) == 5 and torch.equal(out.K[:, :3], a.K) and torch.equal(out.world_to_cam[:, 3:], b.world_to_cam)
    for parts in ([a, b.resized(5, 5)], []):
        with pytest.raises(Sr3dError, match="width, height"):
            Cameras.cat(parts)


def test_to_another_type():
    cameras = make().to(torch.float32)
    assert cameras.K.dtype == cameras.world_to_cam.dtype == torch.float32


def test_gradients_reach_the_pose():
    cameras = make()
    cameras.world_to_cam.requires_grad_()
    cameras.unproject(depths(cameras)).sum().backward()
    assert cameras.world_to_cam.grad[:, :3].abs().sum() > 0


def _edit(name: str, index: tuple[int, ...], value: float):
    def change(cameras: Cameras) -> None:
        getattr(cameras, name)[index] = value

    return change


def _mirror(cameras: Cameras) -> None:
    cameras.world_to_cam[1, 0, :3] *= -1


def _normalise(cameras: Cameras) -> None:
    cameras.K[1] = torch.tensor([[0.8, 0, 0.5], [0, 1.1, 0.5], [0, 0, 1]])


BAD = {
    "NaN in a pose": (_edit("world_to_cam", (1, 0, 3), math.nan), "pose"),
    "no rotation": (_edit("world_to_cam", (1, 0, 0), 3.0), "pose"),
    "mirror": (_mirror, "pose"),
    "last row": (_edit("world_to_cam", (1, 3, 0), 0.1), "pose"),
    "NaN in K": (_edit("K", (1, 0, 2), math.nan), "K"),
    "negative fx": (_edit("K", (1, 0, 0), -8.0), "K"),
    "fy zero": (_edit("K", (1, 1, 1), 0.0), "K"),
    "normalised K": (_normalise, "K"),
}


@pytest.mark.parametrize("case", BAD)
def test_check_names_the_first_bad_camera(case):
    change, field = BAD[case]
    # A real image size: for nine pixels no focal length is too short.
    cameras = make().resized(640, 480)
    cameras.check("scene.json")
    change(cameras)
    with pytest.raises(Sr3dError) as caught:
        cameras.check("scene.json", ["a.png", "b.png", "c.png"])
    assert caught.value.source == "scene.json" and caught.value.field == f"{field} of b.png"
    with pytest.raises(Sr3dError, match=f"{field} of camera 1"):
        cameras.check("scene.json")


def test_check_reads_batches():
    cameras = make(2)
    cameras.world_to_cam[1, 0, 0, 0] = math.inf
    with pytest.raises(Sr3dError, match="pose of camera 3"):
        cameras.check("batch")
