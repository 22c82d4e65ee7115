from __future__ import annotations

import pytest
import torch

from sr3d import Cameras, Scene, Sr3dError
from sr3d.coarse import enlarge, enlarge_depth
from sr3d.coarse.fill import fill_holes
from sr3d.coarse.surface import normals


def plane_depth(cameras: Cameras, normal: torch.Tensor, distance: float) -> torch.Tensor:
    """z-depth of the plane normal·X = distance of the camera frame."""
    return distance / (cameras.pixel_rays() @ normal)


def oblique(size: int) -> Cameras:
    K = torch.tensor([[[1.1 * size, 0, 0.45 * size], [0, 0.9 * size, 0.6 * size], [0, 0, 1]]])
    return Cameras(world_to_cam=torch.eye(4)[None], K=K, width=size, height=size)


def test_enlarged_images_keep_their_mean_and_their_range() -> None:
    images = torch.rand(2, 12, 16, 3, generator=torch.Generator().manual_seed(0))
    large = enlarge(images, 4)
    assert large.shape == (2, 48, 64, 3)
    assert float(large.min()) >= 0 and float(large.max()) <= 1
    assert abs(float(large.mean() - images.mean())) < 5e-3
    assert torch.equal(enlarge(images, 1), images)


@pytest.mark.parametrize("mode", ["edge", "joint", "bilinear"])
def test_a_plane_stays_a_plane(mode: str) -> None:
    normal = torch.tensor([0.3, -0.4, 1.0])
    depth = plane_depth(oblique(16), normal, 2.0)
    truth = plane_depth(oblique(16).resized(64, 64), normal, 2.0)
    images = torch.full((1, 64, 64, 3), 0.5)
    large = enlarge_depth(depth, 4, mode, images)
    inside = (slice(None), slice(4, -4), slice(4, -4))  # type: ignore[var-annotated]
    torch.testing.assert_close(large[inside], truth[inside], rtol=1e-4, atol=0)


@pytest.mark.parametrize("mode", ["nearest", "edge", "joint"])
def test_no_depth_between_two_surfaces(mode: str) -> None:
    depth = torch.full((1, 8, 8), 1.0)
    depth[..., 4:] = 3.0
    large = enlarge_depth(depth, 3, mode, torch.full((1, 24, 24, 3), 0.5))
    assert bool(((large - 1).abs().minimum((large - 3).abs()) < 1e-4).all())


def test_joint_enlargement_follows_the_edge_of_the_image() -> None:
    # The true edge is at 3.5 low-resolution pixels: the pixel column that holds it was measured as the near surface.
    images = torch.zeros(1, 32, 32, 3)
    images[:, :, 14:] = 1.0
    depth = torch.full((1, 8, 8), 3.0)
    depth[..., :4] = 1.0
    joint = enlarge_depth(depth, 4, "joint", images)
    edge = enlarge_depth(depth, 4, "edge")
    assert bool((edge[..., 14:16] == 1).all())
    assert bool((joint[:, 4:-4, 14] > 2.9).all()) and bool((joint[:, 4:-4, 12] < 1.1).all())


def test_unknown_depth_is_mixed_into_nothing() -> None:
    depth = torch.full((1, 8, 8), 2.0)
    depth[0, 3, 3] = 0
    for mode in ("nearest", "bilinear", "edge"):
        large = enlarge_depth(depth, 2, mode)
        assert bool((((large - 2).abs() < 1e-5) | (large == 0)).all()), mode
        assert int((large == 0).sum()) in range(1, 9), mode


def test_joint_enlargement_needs_a_guide() -> None:
    depth = torch.ones(1, 4, 4)
    with pytest.raises(Sr3dError, match="images"):
        enlarge_depth(depth, 2, "joint")


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_normals_of_a_plane_are_exact_at_any_scale_and_intrinsics(scale: float) -> None:
    normal = torch.tensor([0.5, 0.3, 1.0])
    depth = plane_depth(oblique(24), normal, 2.0) * scale
    expected = -torch.nn.functional.normalize(normal, dim=0)
    torch.testing.assert_close(normals(depth, oblique(24)), expected.expand(1, 24, 24, 3), atol=1e-3, rtol=0)


def test_holes_take_the_depth_of_their_own_colour() -> None:
    # A bright square in front of a dark wall: a hole over its border is split along the colours.
    images, depth = torch.full((1, 24, 24, 3), 0.1), torch.full((1, 24, 24), 4.0)
    images[:, 6:18, 6:18], depth[:, 6:18, 6:18] = 0.9, 2.0
    truth = depth.clone()
    depth[:, 3:9, 10:14] = 0
    filled = fill_holes(depth, images)
    torch.testing.assert_close(filled, truth)
    assert torch.equal(fill_holes(torch.zeros_like(depth), images), torch.zeros_like(depth))


def test_scattered_points_reach_every_pixel(stereo: Scene) -> None:
    points = torch.zeros_like(stereo.depths)
    points[:, 13, 7], points[:, 51, 29] = 1.5, 2.5
    filled = fill_holes(points, stereo.images)
    assert sorted(filled.unique().tolist()) == [1.5, 2.5]
