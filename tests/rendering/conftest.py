from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from sr3d.cameras import Cameras
from sr3d.gaussians import Gaussians


def _make(
    n: int, *, size: tuple[int, int] = (32, 24), views: int = 1, features: int = 0, degree: int = 0, seed: int = 0
) -> tuple[Gaussians, Cameras]:
    """Random Gaussians of one to two pixels in front of `views` cameras that differ in pose and intrinsics; float64."""
    g = torch.Generator().manual_seed(seed)
    width, height = size
    rand = lambda *shape: torch.rand(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    z = 2 + 3 * rand(n)
    spread = torch.tensor([width, height], dtype=torch.float64) / width * 1.1
    gaussians = Gaussians(
        means=torch.cat([(rand(n, 2) - 0.5) * spread, torch.ones(n, 1, dtype=torch.float64)], dim=-1) * z[:, None],
        quats=rand(n, 4) * 2 - 1,
        scales=(z / width)[:, None] * (0.5 + 1.5 * rand(n, 3)),
        opacities=0.1 + 0.8 * rand(n),
        sh=(rand(n, (degree + 1) ** 2, 3) - 0.5),
        features=rand(n, features) if features else None,
    )
    poses = torch.eye(4, dtype=torch.float64).repeat(views, 1, 1)
    angle = 0.1 * (rand(views) - 0.5)
    poses[:, 0, 0] = poses[:, 2, 2] = angle.cos()
    poses[:, 0, 2], poses[:, 2, 0] = angle.sin(), -angle.sin()
    poses[:, :3, 3] = 0.2 * (rand(views, 3) - 0.5)
    K = torch.zeros(views, 3, 3, dtype=torch.float64)
    K[:, 0, 0], K[:, 1, 1] = width * (0.95 + 0.1 * rand(views)), width * (0.95 + 0.1 * rand(views))
    K[:, 0, 2], K[:, 1, 2] = width / 2 + rand(views), height / 2 - rand(views)
    K[:, 2, 2] = 1
    return gaussians, Cameras(world_to_cam=poses, K=K, width=width, height=height)


@pytest.fixture
def make() -> Callable[..., tuple[Gaussians, Cameras]]:
    return _make
