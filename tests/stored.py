"""Small clips and shards for tests."""

from __future__ import annotations

from pathlib import Path

import torch

from sr3d import Cameras, Scene
from sr3d.datasets import write_shards

H, W, V = 12, 16, 3


def clip(number: int, dtype: torch.dtype = torch.float32) -> Scene:
    """Three random views; every number another clip."""
    g = torch.Generator().manual_seed(number)
    pose = torch.eye(4, dtype=dtype).repeat(V, 1, 1)
    pose[:, :3, 3] = torch.randn(V, 3, generator=g, dtype=dtype)
    K = torch.tensor([[20.0, 0, 8.25], [0, 21, 6], [0, 0, 1]], dtype=dtype).repeat(V, 1, 1) + 0
    K[:, 0, 0] += torch.rand(V, generator=g, dtype=dtype)
    depths = 0.3 + 6 * torch.rand(V, H, W, generator=g)
    depths[0, 0, :3] = 0
    return Scene(
        images=torch.randint(0, 256, (V, H, W, 3), generator=g) / 255,
        cameras=Cameras(world_to_cam=pose, K=K, width=W, height=H),
        depths=depths,
        labels=torch.randint(0, 300 if number % 2 else 9, (V, H, W), generator=g),
        name=f"clip {number}/a.b",
    )


def write_eleven(folder: Path) -> None:
    """Eleven clips in several tar files."""
    write_shards((clip(i) for i in range(11)), folder, shard_bytes=25_000, options={"made": "for a test"})
