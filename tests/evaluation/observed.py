"""Observations for tests of metrics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sr3d import Cameras, Scene
from sr3d.evaluation.metrics.base import Observation


def observed(
    rgb: Tensor,
    truth: Tensor | None = None,
    *,
    covered: Tensor | None = None,
    depths: Tensor | None = None,
    labels: Tensor | None = None,
    cameras: Cameras | None = None,
    **parts: Any,
) -> Observation:
    """Views "a", "b", ... of the case "hall/0+1" by the method "mine"; all covered, from the origin, by default."""
    views, height, width = rgb.shape[:3]
    return Observation(
        case="hall/0+1",
        method="mine",
        frames=[chr(ord("a") + i) for i in range(views)],
        cameras=looking(torch.zeros(views, 3), height, width) if cameras is None else cameras,
        rgb=rgb,
        covered=torch.ones(views, height, width, dtype=torch.bool) if covered is None else covered,
        truth=None if truth is None else Scene(images=truth, depths=depths, labels=labels),
        **parts,
    )


def looking(positions: Tensor, height: int, width: int, focal: float = 50.0) -> Cameras:
    """Cameras along +z at `positions`. [T, 3]"""
    poses = torch.eye(4).repeat(len(positions), 1, 1)
    poses[:, :3, 3] = -positions
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]).repeat(len(positions), 1, 1)
    return Cameras(world_to_cam=poses, K=K, width=width, height=height)


def noisy(views: int, height: int, width: int, sigma: float = 0.1) -> tuple[Tensor, Tensor]:
    """Smooth random pictures, and the same with noise: (drawn, true)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(views, 3, 6, 7, generator=generator)
    truth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1).movedim(1, -1)
    rgb = (truth + sigma * torch.randn(truth.shape, generator=generator)).clamp(0, 1)
    return rgb.contiguous(), truth.contiguous()
