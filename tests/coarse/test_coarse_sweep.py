from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from sr3d import Cameras, Scene, Sr3dError, render
from sr3d.coarse import CoarseConfig, coarse_gaussians, estimate_depth
from sr3d.datasets import World

SWEEP = CoarseConfig(source="sweep")


def relative_error(depth: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    return (depth - truth).abs() / truth


def moved(scene: Scene, scale: float, shift: float = 0.0) -> Scene:
    """The same photographs of a world of another size."""
    poses = scene.cameras.world_to_cam.clone()
    poses[:, :3, 3] = poses[:, :3, 3] * scale - poses[:, :3, :3] @ torch.full((3,), shift)
    return replace(scene, cameras=replace(scene.cameras, world_to_cam=poses), depths=None)


def test_depth_of_two_views(stereo: Scene) -> None:
    depth, confidence = estimate_depth(stereo, SWEEP)
    error = relative_error(depth, stereo.depths)
    # Two percent of depth are 0.1 pixels of parallax here; measured 2.4 %.
    assert float(error.median()) < 0.03
    assert float((error < 0.1).float().mean()) > 0.85
    assert float((confidence == 1).float().mean()) > 0.75
    assert bool((depth > 0).all())


def test_what_one_view_alone_sees_is_not_trusted() -> None:
    world = World.generate(3)
    scene = world.render(world.sample_cameras(2, 64, 64, baseline=0.15, seed=0))
    _, confidence = estimate_depth(scene, SWEEP)
    trusted = (confidence[0] == 1).float()
    points = scene.cameras.index([0]).unproject(scene.depths[:1])[0]
    pixels, z = scene.cameras.index([1]).project(points.flatten(0, 1))
    column, row = pixels[0].floor().long().reshape(64, 64, 2).unbind(-1)
    inside = (column >= 0) & (column < 64) & (row >= 0) & (row < 64)
    hidden = inside & (z.reshape(64, 64) > 1.1 * scene.depths[1][row.clamp(0, 63), column.clamp(0, 63)])
    core = torch.from_numpy(cv2.erode(hidden.numpy().astype(np.uint8), np.ones((3, 3)))) > 0
    assert int(core.sum()) > 100
    assert float(trusted[core].mean()) < 0.1
    assert float(trusted[hidden].mean()) < 0.25
    assert float(trusted[~inside].mean()) < 0.1
    assert float(trusted[inside & ~hidden].mean()) > 0.8


@pytest.mark.parametrize("views", [3, 5, 8])
def test_more_views(views: int) -> None:
    world = World.generate(3)
    scene = world.render(world.sample_cameras(views, 48, 48, baseline=0.12, seed=1))
    depth, confidence = estimate_depth(scene, SWEEP)
    assert depth.shape == (views, 48, 48)
    assert float(relative_error(depth, scene.depths).median()) < 0.04
    assert float((confidence == 1).float().mean()) > 0.7


def test_the_size_of_the_world_does_not_matter(stereo: Scene) -> None:
    depth, confidence = estimate_depth(stereo, SWEEP)
    for scale in (100.0, 0.01):
        other, trusted = estimate_depth(moved(stereo, scale), SWEEP)
        error = relative_error(other / scale, depth)
        assert float((error < 1e-3).float().mean()) > 0.99
        assert float((trusted != confidence).float().mean()) < 0.01


def test_exposure_changes_little(stereo: Scene) -> None:
    images = stereo.images.clone()
    images[1] = (images[1] * 0.93 + 0.01).clamp(0, 1)
    depth, _ = estimate_depth(replace(stereo, images=images), SWEEP)
    assert float(relative_error(depth, stereo.depths).median()) < 0.04


def test_sparse_points_bound_the_search(stereo: Scene) -> None:
    points = stereo.cameras.unproject(stereo.depths)[:, ::5, ::5].reshape(-1, 3)
    depth, _ = estimate_depth(replace(stereo, points=points), SWEEP)
    assert float(relative_error(depth, stereo.depths).median()) < 0.03
    assert float(depth.max()) < 1.6 * float(stereo.depths.max())


def test_two_runs_agree(stereo: Scene) -> None:
    assert torch.equal(estimate_depth(stereo, SWEEP)[0], estimate_depth(stereo, SWEEP)[0])


def kitchen(folder: Path, indices: list[int], width: int, height: int) -> Scene:
    """Frames of a real capture, reduced, with the depth camera's maps."""
    frames = json.loads((folder / "cameras.json").read_text())["frames"]
    images, depths, poses, K = [], [], [], []
    for i in indices:
        image = cv2.imread(str(folder / frames[i]["file"]))[..., ::-1].astype(np.float32) / 255
        images.append(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))
        depth = cv2.imread(str(folder / "depth" / f"{i:03d}.png"), cv2.IMREAD_UNCHANGED)
        depth = np.where(depth < 10_000, depth, 0).astype(np.float32) / 1000
        depths.append(cv2.resize(depth, (width, height), interpolation=cv2.INTER_NEAREST))
        poses.append(np.linalg.inv(np.array(frames[i]["camera_to_world"])))
        K.append(np.array(frames[i]["K"]))
    cameras = Cameras(
        world_to_cam=torch.tensor(np.stack(poses)).float(), K=torch.tensor(np.stack(K)).float(), width=640, height=480
    )
    return Scene(
        images=torch.tensor(np.stack(images)),
        cameras=cameras.resized(width, height),
        depths=torch.tensor(np.stack(depths)),
    )


def test_real_views_with_imprecise_poses(scenes: Path) -> None:
    """Poses of this capture are off by 2 to 10 of 640 pixels: a depth camera disagrees, a view in between does not."""
    inputs = kitchen(scenes / "redkitchen-clip", [0, 8, 16, 24], 160, 120)
    target = kitchen(scenes / "redkitchen-clip", [12], 160, 120)
    depth, confidence = estimate_depth(inputs, SWEEP)
    known = (inputs.depths > 0) & (confidence == 1)
    error = relative_error(depth, inputs.depths)[known]
    assert float(known.float().mean()) > 0.4
    assert float(error.median()) < 0.3
    psnr = {}
    for source in ("depth", "sweep"):
        drawn = render(coarse_gaussians(inputs, CoarseConfig(source=source)), target.cameras)
        seen = drawn.alpha > 0.8
        assert float(seen.float().mean()) > 0.95
        psnr[source] = float(-10 * torch.log10((drawn.rgb - target.images)[seen].square().mean()))
    assert psnr["sweep"] > max(24.0, psnr["depth"])


def test_errors(stereo: Scene) -> None:
    with pytest.raises(Sr3dError, match="views: found 1; expected 2 or more"):
        estimate_depth(stereo.views([0]), SWEEP)
    with pytest.raises(Sr3dError, match="parallax"):
        estimate_depth(stereo.views([0, 0]), SWEEP)
    with pytest.raises(Sr3dError, match="poses"):
        estimate_depth(replace(stereo, cameras=None), SWEEP)
    away = stereo.cameras.world_to_cam.clone()
    away[1] = torch.diag(torch.tensor([-1.0, 1, -1, 1])) @ away[1]
    opposite = replace(stereo, cameras=replace(stereo.cameras, world_to_cam=away))
    with pytest.raises(Sr3dError, match="overlap"):
        estimate_depth(opposite, SWEEP)
