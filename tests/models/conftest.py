from __future__ import annotations

import pytest
import torch
from tiny_networks import sloped_scene

from sr3d import Cameras, Gaussians


@pytest.fixture
def scene() -> tuple[Gaussians, torch.Tensor, Cameras]:
    return sloped_scene(2, 2)
