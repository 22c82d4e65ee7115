from __future__ import annotations

import pytest
import torch

from sr3d import Cameras, Gaussians
from sr3d.lod import Lod
from sr3d.models import SuperResolverConfig
from sr3d.models.decoder import DecoderConfig
from sr3d.models.encoder import EncoderConfig
from sr3d.models.scaffold import ScaffoldConfig
from sr3d.rendering import rgb_to_sh

SIZE = 12


def tiny_config(split: str = "inplane") -> SuperResolverConfig:
    return SuperResolverConfig(
        factor=2,
        scaffold=ScaffoldConfig(split=split, grid=2),
        encoder=EncoderConfig(options={"embed_dim": 32, "depth": 1, "num_heads": 4}),
        decoder=DecoderConfig(width=16, convolutions=1, fine=8),
    )


def sloped_scene(batch: int, views: int, seed: int = 0) -> tuple[Gaussians, torch.Tensor, Cameras]:
    """Pixel-aligned Gaussians of `views` cameras over a gently curved surface two units away."""
    generator = torch.Generator().manual_seed(seed)
    poses = torch.eye(4).repeat(batch, views, 1, 1)
    poses[..., 0, 3] = -0.15 * torch.arange(views)
    poses[..., :3, 3] += 0.02 * torch.randn(batch, views, 3, generator=generator)
    K = torch.tensor([[SIZE * 1.0, 0, SIZE / 2], [0, SIZE * 1.1, SIZE / 2], [0, 0, 1]])
    cameras = Cameras(world_to_cam=poses, K=K.expand(batch, views, 3, 3).clone(), width=SIZE, height=SIZE)
    u = torch.linspace(-1, 1, SIZE)
    depth = 2 + 0.1 * u[None, :] + 0.05 * u[:, None] ** 2 + torch.zeros(batch, views, SIZE, SIZE)
    images = torch.rand(batch, views, SIZE, SIZE, 3, generator=generator)
    n = views * SIZE * SIZE
    footprint = cameras.footprint(depth.flatten(2)).reshape(batch, n)
    gaussians = Gaussians(
        means=cameras.unproject(depth).reshape(batch, n, 3),
        quats=torch.tensor([1.0, 0.05, 0.02, 0.01]).expand(batch, n, 4).clone(),
        scales=footprint[..., None] * torch.tensor([0.5, 0.5, 0.05]),
        opacities=torch.full((batch, n), 0.9),
        sh=rgb_to_sh(images.reshape(batch, n, 3)),
        lod=Lod.roots(footprint),
    )
    return gaussians, images, cameras


@pytest.fixture
def scene() -> tuple[Gaussians, torch.Tensor, Cameras]:
    return sloped_scene(2, 2)
