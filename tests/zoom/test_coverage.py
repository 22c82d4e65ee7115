"""Gaps in a new level are closed, and nothing else changes."""

from __future__ import annotations

import pytest
import torch

from sr3d.cameras import Cameras
from sr3d.gaussians import Gaussians
from sr3d.rendering import render
from sr3d.zoom.coverage import without_gaps

NEAR = 0.01


@pytest.fixture
def camera() -> Cameras:
    K = torch.tensor([[[16.0, 0, 8], [0, 16.0, 8], [0, 0, 1]]])
    return Cameras(world_to_cam=torch.eye(4)[None], K=K, width=16, height=16)


def wall(missing: float) -> Gaussians:
    """One flat Gaussian for each pixel of 32 x 32 at distance 1, none where x is within `missing` of 0."""
    x = (torch.arange(32) + 0.5) / 32 - 0.5
    means = torch.stack([*torch.meshgrid(x, x, indexing="xy"), torch.ones(32, 32)], dim=-1).flatten(0, 1)
    means = means[means[:, 0].abs() >= missing]
    return Gaussians(
        means=means,
        quats=torch.tensor([1.0, 0, 0, 0]).expand(len(means), 4),
        scales=torch.tensor([0.02, 0.02, 0.001]).expand(len(means), 3),
        opacities=torch.full((len(means),), 0.95),
        sh=torch.zeros(len(means), 1, 3),
    )


def least(gaussians: Gaussians, camera: Cameras) -> float:
    return float(render(gaussians, camera.resized(32, 32), near=NEAR).alpha.min())


def test_what_is_next_to_a_gap_becomes_wider(camera: Cameras) -> None:
    alphas, torn = torch.ones(1, 16, 16), wall(missing=0.06)
    nothing = torn.index(slice(0, 0))
    assert least(torn, camera) < 0.5
    closed = without_gaps(torn, nothing, camera, alphas, 2, NEAR)
    assert least(closed, camera) > 0.85
    wider = closed.scales[:, 0] > torn.scales[:, 0]
    assert bool((torn.means[wider, 0].abs() < 0.25).all()) and 0 < int(wider.sum()) < len(torn) / 2
    # In the plane only, and nothing but the scales.
    assert torch.equal(closed.scales[:, 2], torn.scales[:, 2])
    assert torch.equal(closed.scales[~wider], torn.scales[~wider])
    assert all(getattr(closed, name) is getattr(torn, name) for name in ("means", "quats", "opacities", "sh"))


def test_what_has_no_gap_stays(camera: Cameras) -> None:
    whole, torn, alphas = wall(missing=0.0), wall(missing=0.06), torch.ones(1, 16, 16)
    nothing = torn.index(slice(0, 0))
    assert torch.equal(without_gaps(whole, nothing, camera, alphas, 2, NEAR).scales, whole.scales)
    # There was no surface, or another branch has made what is missing.
    faint = alphas.clone()
    faint[:, :, 5:11] = 0.3
    assert torch.equal(without_gaps(torn, nothing, camera, faint, 2, NEAR).scales, torn.scales)
    rest = whole.index(whole.means[:, 0].abs() < 0.06)
    assert torch.equal(without_gaps(torn, rest, camera, alphas, 2, NEAR).scales, torn.scales)
