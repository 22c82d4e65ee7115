"""Generated scenes, which have no truth: looked at from around, at every level that was made (WonderZoom, A4)."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.errors import Sr3dError
from sr3d.evaluation.case import Case
from sr3d.evaluation.cases.base import CaseSet, Sources
from sr3d.evaluation.cases.folder import captures_by_name
from sr3d.evaluation.data_config import GeneratedData
from sr3d.evaluation.methods.ply import stored_scene
from sr3d.gaussians import Gaussians
from sr3d.zoom.cameras import CAMERAS, read_cameras
from sr3d.zoom.target import target_point

_SWING = math.radians(6.0)  # largest turn about the target, to both sides, and up and down


def open_generated(data: GeneratedData, factor: int, sources: Sources) -> CaseSet:
    """One case for each level of each folder that `sr3d zoom` has written.

    Raises:
        Sr3dError: No folders, or one without cameras of level 0 and others.
    """
    folders = captures_by_name(sources.paths)
    found = {name: read_cameras(folder / CAMERAS) for name, folder in folders.items()}
    for name, cameras in found.items():
        if 0 not in cameras.levels or len(cameras.levels) < 2:
            raise Sr3dError(folders[name] / CAMERAS, "levels", sorted(cameras.levels), "level 0 and others")
    # Level 0 is what the zoom started from, not a generated one.
    made = [(name, level) for name, cameras in found.items() for level in sorted(cameras.levels) if level > 0]

    def load(i: int) -> Case:
        name, level = made[i]
        cameras, folder = found[name], str(folders[name])
        scene, _ = stored_scene(name, folder)
        gaussians = scene if isinstance(scene, Gaussians) else scene.gaussians()
        around = orbit(gaussians, cameras.levels[level], cameras.center, data.views)
        return Case(
            name=f"{name}/level {level}",
            scene=name,
            context=None,
            factor=factor,
            cameras=around,
            frames=[f"view {k + 1}" for k in range(data.views)],
            truth=None,
            levels=[round(float(cameras.levels[level].focal[0] / cameras.levels[0].focal[0]))] * data.views,
            text=cameras.prompt,
            folder=folder,
        )

    return CaseSet(
        names=[f"{name}/level {level}" for name, level in made],
        scenes=[name for name, _ in made],
        views=len(made) * data.views,
        index={"items": [{"scene": n, "level": level} for n, level in made], "views": data.views},
        load=load,
    )


def orbit(gaussians: Gaussians, camera: Cameras, center: tuple[float, float], count: int) -> Cameras:
    """Views around what a camera sees at a pixel, in a square grid of up to 6° to each side; nine make 3 × 3.

    Args:
        gaussians: What is looked at, world frame. [N]
        camera: One view, kept at the grid's middle.
        center: Pixel (u, v) of the target.
        count: Number of views.

    Returns:
        Cameras whose target keeps its pixel and its depth. [count]

    Raises:
        Sr3dError: The Gaussians show nothing at the pixel.
    """
    camera = camera.to(torch.float64)
    target = target_point(gaussians, camera, center).double()
    side = math.ceil(math.sqrt(count))
    steps = torch.linspace(-_SWING, _SWING, side, dtype=torch.float64) if side > 1 else torch.zeros(1).double()
    middle = camera.world_to_cam[0, :3, :3] @ target + camera.world_to_cam[0, :3, 3]
    poses = []
    for pitch, yaw in [(float(p), float(y)) for p in steps for y in steps][:count]:
        turn = torch.eye(4, dtype=torch.float64)
        turn[:3, :3] = _rotation(pitch, yaw)
        # Turned about the target: it stays where it was in the camera's frame.
        turn[:3, 3] = middle - turn[:3, :3] @ middle
        poses.append(turn @ camera.world_to_cam[0])
    return replace(camera, world_to_cam=torch.stack(poses), K=camera.K.expand(count, 3, 3).clone())


def _rotation(pitch: float, yaw: float) -> Float[Tensor, "3 3"]:
    """About the camera's x axis, after one about its y axis; radians."""
    (cp, sp), (cy, sy) = ((math.cos(a), math.sin(a)) for a in (pitch, yaw))
    about_x = torch.tensor([[1.0, 0, 0], [0, cp, -sp], [0, sp, cp]], dtype=torch.float64)
    about_y = torch.tensor([[cy, 0, sy], [0, 1.0, 0], [-sy, 0, cy]], dtype=torch.float64)
    return about_x @ about_y
