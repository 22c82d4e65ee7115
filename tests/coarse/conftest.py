from __future__ import annotations

import pytest

from sr3d import Scene
from sr3d.datasets import World


def photograph(seed: int, views: int, size: int = 64) -> Scene:
    """Views along a path through a procedural world, with exact depth."""
    world = World.generate(seed)
    return world.render(world.sample_cameras(views, size, size, seed=0))


@pytest.fixture(scope="session")
def stereo() -> Scene:
    """Two views of a table-top with parallax of 2 to 8 pixels."""
    return photograph(3, 2)
