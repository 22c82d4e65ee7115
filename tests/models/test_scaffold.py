from __future__ import annotations

import pytest
import torch
from conftest import SIZE, sloped_scene

from sr3d import Cameras, Gaussians, Sr3dError, render
from sr3d.lod import Lod
from sr3d.models.scaffold import ScaffoldConfig, split_gaussians
from sr3d.rendering import rgb_to_sh


def blob(opacity: float, scales: tuple[float, float, float]) -> tuple[Gaussians, Cameras]:
    K = torch.tensor([[[[60.0, 0, 32], [0, 60, 32], [0, 0, 1]]]])
    cameras = Cameras(world_to_cam=torch.eye(4)[None, None], K=K, width=64, height=64)
    gaussians = Gaussians(
        means=torch.tensor([[[0.0, 0.0, 2.0]]]),
        quats=torch.tensor([[[1.0, 0.2, 0.1, 0.3]]]),
        scales=torch.tensor([[scales]]),
        opacities=torch.tensor([[opacity]]),
        sh=rgb_to_sh(torch.tensor([[[0.2, 0.5, 0.8]]])),
        lod=Lod.roots(torch.tensor([[0.3]])),
    )
    return gaussians, cameras


@pytest.mark.parametrize("opacity", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("scales", [(0.3, 0.3, 0.3), (0.3, 0.2, 0.02)])
def test_shuffle_split_renders_like_its_parent(opacity: float, scales: tuple[float, float, float]) -> None:
    parent, cameras = blob(opacity, scales)
    children = split_gaussians(parent, ScaffoldConfig(split="shuffle"), 2, cameras)
    before, after = (render(g, cameras, lod=False).alpha for g in (parent, children))
    assert len(children) == 6
    # The total that they hide is the same (the quaternion is oblique: not along a principal axis), and so is the shape.
    assert abs(after.sum() / before.sum() - 1) < 0.08
    assert (after - before).abs().max() < 0.4 * opacity
    # Six plain copies of the opacity would be far too thick.
    naive = render(
        Gaussians(**{**vars(children), "opacities": torch.full_like(children.opacities, opacity)}), cameras, lod=False
    ).alpha
    assert (naive - before).abs().mean() > 2 * (after - before).abs().mean()


def test_shuffle_split_places_children_on_the_principal_axes() -> None:
    parent, cameras = blob(0.5, (0.3, 0.2, 0.1))
    parent = Gaussians(**{**vars(parent), "quats": torch.tensor([[[1.0, 0, 0, 0]]])})
    children = split_gaussians(parent, ScaffoldConfig(split="shuffle"), 2, cameras)
    offsets = (children.means - parent.means)[0]
    expected = torch.tensor([[0.15, 0, 0], [-0.15, 0, 0], [0, 0.1, 0], [0, -0.1, 0], [0, 0, 0.05], [0, 0, -0.05]])
    torch.testing.assert_close(offsets, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(children.scales[0, 0], torch.tensor([0.075, 0.2, 0.1]))
    torch.testing.assert_close(children.scales[0, 3], torch.tensor([0.3, 0.05, 0.1]))


@pytest.mark.parametrize("grid", [2, 3])
def test_inplane_children_fall_on_the_subpixels_of_the_view_that_made_the_parent(grid: int) -> None:
    coarse, _, cameras = sloped_scene(1, 2)
    children = split_gaussians(coarse, ScaffoldConfig(grid=grid), 2, cameras)
    pixels, _ = cameras.resized(SIZE * grid, SIZE * grid).project(children.means)
    for view in range(2):
        own = pixels[0, view].reshape(2, SIZE, SIZE, grid, grid, 2)[view].permute(0, 2, 1, 3, 4)
        v, u = torch.meshgrid(torch.arange(SIZE * grid) + 0.5, torch.arange(SIZE * grid) + 0.5, indexing="ij")
        expected = torch.stack([u, v], dim=-1)
        # The tangent plane is tilted, so perspective moves a sub-pixel by a few hundredths.
        torch.testing.assert_close(own.reshape(SIZE * grid, SIZE * grid, 2), expected, atol=0.05, rtol=0)


def test_inplane_scaffold_renders_like_its_parents() -> None:
    coarse, _, cameras = sloped_scene(1, 2)
    children = split_gaussians(coarse, ScaffoldConfig(grid=2), 2, cameras)
    before = render(coarse, cameras, lod=False)
    after = render(children, cameras, lod=False)
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    assert (after.alpha - before.alpha)[inner].abs().max() < 0.06
    assert (after.depth - before.depth)[inner].abs().max() < 0.02


def test_parents_need_level_of_detail() -> None:
    parent, cameras = blob(0.5, (0.3, 0.2, 0.1))
    parent.lod = None
    with pytest.raises(Sr3dError, match="lod"):
        split_gaussians(parent, ScaffoldConfig(), 2, cameras)
