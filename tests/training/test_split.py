from __future__ import annotations

import pytest
import torch

from sr3d import Sr3dError
from sr3d.coarse import CoarseConfig, coarse_gaussians
from sr3d.datasets.batch import Batch, make_batch
from sr3d.datasets.world import World
from sr3d.rendering import render
from sr3d.training.evaluate import Drawn
from sr3d.training.split import split_error


def drawn(error: float) -> Drawn:
    """A scene placed at depths that are too large by a fraction."""
    world = World.generate(3, "table")
    batch = make_batch(world.render(world.sample_cameras(3, 64, 64, baseline=0.5), samples=1), [0, 2], [1], 2)
    batch = Batch.stack([batch])
    out = Drawn(batch)
    cameras = batch.target.posed()
    out.renderings["coarse"] = render(coarse_gaussians(batch.context, CoarseConfig()), cameras, lod=False)
    batch.context.depths = batch.context.depths * (1 + error)
    out.gaussians["method"] = coarse_gaussians(batch.context, CoarseConfig())
    return out


def test_wrong_depth_costs_geometry_and_not_texture() -> None:
    right, wrong = (split_error(drawn(e), CoarseConfig())["method"] for e in (0.0, 0.15))
    assert torch.equal(right["both"], wrong["both"])
    # With the truth for both it is better than with either.
    for kind in ("true colours", "true geometry"):
        assert (right[kind] < right["both"] + 0.3).all()
    geometry, texture = (right[kind] - wrong[kind] for kind in ("true colours", "true geometry"))
    assert (geometry > 1.5).all(), "the depth is wrong"
    # Not 0: what the other view puts at a wrong depth is in the way here.
    assert (texture < 0.5 * geometry).all(), "the colours hardly are"


def test_the_split_needs_true_depth() -> None:
    scene = drawn(0.0)
    scene.batch.high.depths = None
    with pytest.raises(Sr3dError, match="depth"):
        split_error(scene, CoarseConfig())
