from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sr3d import Cameras, Scene, Sr3dError


def make(views: int = 4, name: str = "room") -> Scene:
    g = torch.Generator().manual_seed(len(name))
    K = torch.eye(3).repeat(views, 1, 1)
    K[:, 0, 0] = K[:, 1, 1] = 10 + torch.arange(views)
    pose = torch.eye(4).repeat(views, 1, 1)
    pose[:, 0, 3] = torch.arange(views)
    return Scene(
        images=torch.rand(views, 6, 8, 3, generator=g),
        cameras=Cameras(world_to_cam=pose, K=K, width=8, height=6),
        depths=torch.rand(views, 6, 8, generator=g),
        labels=torch.randint(0, 5, (views, 6, 8), generator=g),
        points=torch.rand(9, 3, generator=g),
        paths=[Path(f"{i}.png") for i in range(views)],
        name=name,
    )


def test_views_pick_everything_in_order():
    scene = make()
    out = scene.views([2, -4])
    assert len(out) == 2 and [p.name for p in out.paths] == ["2.png", "0.png"]
    for name in ("images", "depths", "labels"):
        assert torch.equal(getattr(out, name), getattr(scene, name)[[2, 0]]), name
    assert torch.equal(out.cameras.K, scene.cameras.K[[2, 0]]) and torch.equal(out.points, scene.points)
    with pytest.raises(Sr3dError, match=r"room: view index: found 4; expected 0 to 3 \(4 views\)"):
        scene.views([0, 4])


def test_views_without_cameras():
    bare = Scene(images=make().images)
    assert len(bare.views([1])) == 1 and bare.views([1]).cameras is None and bare.views([1]).paths == []
    with pytest.raises(Sr3dError, match="scene: cameras"):
        bare.posed()


def test_stack_makes_a_batch():
    a, b = make(name="a"), make(name="bb")
    batch = Scene.stack([a, b])
    assert batch.images.shape == (2, 4, 6, 8, 3) and len(batch) == 4 and batch.name == "a, bb"
    assert torch.equal(batch.depths[1], b.depths) and torch.equal(batch.labels[0], a.labels)
    assert torch.equal(batch.cameras[1].K, b.cameras.K)
    chosen = batch.views([3, 1])
    assert torch.equal(chosen.images[1], b.images[[3, 1]]) and torch.equal(chosen.cameras.K[0], a.cameras.K[[3, 1]])
    assert torch.equal(chosen.labels[1], b.labels[[3, 1]])


def test_stack_drops_what_only_some_have():
    batch = Scene.stack([make(), replace(make(), depths=None)])
    assert batch.depths is None and batch.labels is not None


def test_stack_refuses_what_does_not_fit():
    with pytest.raises(Sr3dError, match="stack: images"):
        Scene.stack([make(4), make(3)])
    with pytest.raises(Sr3dError, match="stack: images"):
        Scene.stack([])
    with pytest.raises(Sr3dError, match="room: cameras"):
        Scene.stack([replace(make(), cameras=None)])


def test_to_a_device_copies_every_part():
    """The meta device stands for any other one."""
    moved = make().to("meta")
    parts = [moved.images, moved.depths, moved.labels, moved.points, moved.cameras.K, moved.cameras.world_to_cam]
    assert all(part.device.type == "meta" for part in parts)


def test_errors_cross_processes_unchanged():
    error = pickle.loads(pickle.dumps(Sr3dError(Path("a.ply"), "rot", 3, "4")))
    assert isinstance(error, ValueError) and str(error) == "a.ply: rot: found 3; expected 4"
    assert (error.source, error.field, error.found, error.expected) == ("a.ply", "rot", "3", "4")
