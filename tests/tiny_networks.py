"""Small networks with every part at work, and scenes for them."""

from __future__ import annotations

from dataclasses import replace

import torch

from sr3d import Cameras, Gaussians
from sr3d.lod import Lod
from sr3d.models import SuperResolver, SuperResolverConfig
from sr3d.models.conditioning import ConditioningConfig
from sr3d.models.decoder import DecoderConfig
from sr3d.models.encoder import EncoderConfig
from sr3d.models.geometry import GeometryConfig
from sr3d.models.points import PointsConfig
from sr3d.models.recurrence import RecurrenceConfig
from sr3d.models.scaffold import ScaffoldConfig
from sr3d.models.semantics import SemanticsConfig
from sr3d.rendering import rgb_to_sh

SIZE = 12
VARIANTS = ("inplane", "shuffle", "plain", "full")


def tiny_config(variant: str = "inplane") -> SuperResolverConfig:
    """A small network: SR3R's parts with either split, as little as possible ("plain"), or every part ("full")."""
    config = SuperResolverConfig(
        factor=2,
        scaffold=ScaffoldConfig(split="shuffle" if variant == "shuffle" else "inplane"),
        encoder=EncoderConfig(options={"embed_dim": 32, "depth": 1, "num_heads": 4}),
        decoder=DecoderConfig(width=16, convolutions=1, fine=8),
    )
    if variant == "plain":
        config = replace(config, refinement=None, head=None)
    if variant == "full":
        config = replace(
            config,
            factors=[4],
            scaffold=ScaffoldConfig(budget=0.6, flat_grid=1),
            conditioning=ConditioningConfig(embedding=8),
            geometry=GeometryConfig(hypotheses=2, features=8),
            points=PointsConfig(blocks=2, width=16, heads=2, window=32),
            semantics=SemanticsConfig(width=6, embedding=8),
            recurrence=RecurrenceConfig(steps=1),
        )
    return config


def perturbed(variant: str = "inplane", sh_degree: int = 0) -> SuperResolver:
    """A network whose zero-initialised layers are not zero, so that every residual is at work."""
    torch.manual_seed(1)
    network = SuperResolver(replace(tiny_config(variant), sh_degree=sh_degree))
    decoder = network.decoder
    zeros = [layer for layer in (decoder.texture, decoder.trust, decoder.depth) if layer is not None]
    for layer in zeros if network.head is None else [*zeros, network.head.out]:
        torch.nn.init.normal_(layer.weight, std=0.1)
    return network.eval()


def sloped_scene(batch: int, views: int, seed: int = 0) -> tuple[Gaussians, torch.Tensor, Cameras]:
    """Pixel-aligned Gaussians of `views` cameras over a gently curved surface two units away."""
    generator = torch.Generator().manual_seed(seed)
    poses = torch.eye(4).repeat(batch, views, 1, 1)
    poses[..., 0, 3] = -0.15 * torch.arange(views)
    poses[..., :3, 3] += 0.02 * torch.randn(batch, views, 3, generator=generator)
    K = torch.tensor([[SIZE * 1.0, 0, SIZE / 2], [0, SIZE * 1.1, SIZE / 2], [0, 0, 1]])
    cameras = Cameras(world_to_cam=poses, K=K.expand(batch, views, 3, 3).clone(), width=SIZE, height=SIZE)
    u = torch.linspace(-1, 1, SIZE)
    depth = 2 + 0.1 * u[None, :] + 0.03 * u[:, None] + 0.05 * u[:, None] ** 2 + torch.zeros(batch, views, SIZE, SIZE)
    # Not quite the same surface: which of two equal depths is drawn first would be left to rounding.
    depth = depth * (1 + 0.004 * torch.arange(views)[:, None, None])
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
