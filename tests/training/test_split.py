from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sr3d import Sr3dError
from sr3d.coarse import CoarseConfig, coarse_gaussians, pixel_gaussians
from sr3d.datasets.batch import Batch, make_batch
from sr3d.datasets.world import World
from sr3d.rendering import render
from sr3d.training.evaluate import Drawn
from sr3d.training.metrics import psnr
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


def test_the_most_that_can_be_had_is_the_truth_placed_pixel_by_pixel() -> None:
    scene, config = drawn(0.0), CoarseConfig()
    high = scene.batch.high
    placed = pixel_gaussians(
        high.images[0], high.cameras[0], high.depths[0], config.upsampled_sigma, config.upsampled_opacity, config
    )
    image = render(placed, scene.batch.target.cameras[0], lod=False).rgb
    expected = psnr(image[None], scene.batch.target.images, scene.covered)
    assert torch.equal(split_error(scene, config)["method"]["both"], expected)


def test_wrong_depth_costs_geometry() -> None:
    found = [split_error(drawn(e), CoarseConfig())["method"] for e in (0.0, 0.05, 0.15)]
    geometry = [float(f["true colours"]) for f in found]
    assert geometry[0] > geometry[1] > geometry[2] and geometry[0] - geometry[2] > 1.5
    texture = [float(f["true geometry"]) for f in found]
    # Not equal: what the other view puts at a wrong depth is in the way.
    assert texture[0] - texture[2] < 0.5 * (geometry[0] - geometry[2])


def test_wrong_colours_cost_texture_and_no_geometry() -> None:
    scene, faded = drawn(0.0), drawn(0.0)
    faded.gaussians["method"] = replace(faded.gaussians["method"], sh=0.7 * faded.gaussians["method"].sh)
    right, wrong = (split_error(s, CoarseConfig())["method"] for s in (scene, faded))
    assert torch.equal(right["true colours"], wrong["true colours"])
    assert (right["true geometry"] - wrong["true geometry"] > 0.3).all()


def test_the_split_needs_true_depth() -> None:
    scene = drawn(0.0)
    scene.batch.high.depths = None
    with pytest.raises(Sr3dError, match="depth"):
        split_error(scene, CoarseConfig())
