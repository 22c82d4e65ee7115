from __future__ import annotations

import pytest
import torch

from sr3d.datasets.world import World
from sr3d.gaussians import Gaussians
from sr3d.models import SuperResolver, SuperResolverConfig
from sr3d.models.encoder import EncoderConfig
from sr3d.models.scaffold import ScaffoldConfig
from sr3d.scene import Scene
from sr3d.zoom import ZoomLevel, zoom_into


@pytest.fixture(scope="session")
def world() -> World:
    return World.generate(3, "table")


@pytest.fixture(scope="session")
def table(world: World) -> Scene:
    """Two views of 24 x 24 pixels with exact depth."""
    return world.render(world.sample_cameras(2, 24, 24), samples=4)


@pytest.fixture(scope="session")
def target() -> tuple[float, float]:
    return 10.5, 13.5


@pytest.fixture(scope="session")
def doubler() -> SuperResolver:
    """Network of factor 2, untrained: it returns the scaffold."""
    torch.manual_seed(0)
    encoder = EncoderConfig(options={"embed_dim": 48, "depth": 1, "num_heads": 4})
    return SuperResolver(SuperResolverConfig(factor=2, scaffold=ScaffoldConfig(grid=2), encoder=encoder)).eval()


@pytest.fixture(scope="session")
def zoomed(table: Scene, target: tuple[float, float], doubler: SuperResolver) -> tuple[Gaussians, list[ZoomLevel]]:
    """Three levels above the coarse scene, and what was reported of them."""
    levels: list[ZoomLevel] = []
    return zoom_into(table, target, 8, network=doubler, on_level=levels.append), levels
