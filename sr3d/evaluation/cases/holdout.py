"""Whole captures of which every nth image is tested; all others may be inputs (Mip-NeRF 360, Tanks and Temples)."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.capture import crop_to_multiple
from sr3d.datasets.batch import reduce_scene
from sr3d.errors import Sr3dError
from sr3d.evaluation.case import Case
from sr3d.evaluation.cases.base import CaseSet, Sources, plain_case
from sr3d.evaluation.cases.folder import captures_by_name
from sr3d.evaluation.data_config import HoldoutData
from sr3d.io.colmap import colmap_frames, find_model
from sr3d.io.frames import Frame, load_frames
from sr3d.io.images import natural_key
from sr3d.io.scannet import is_scannet, scannet_frames
from sr3d.io.transforms import transforms_frames


def open_holdouts(data: HoldoutData, factor: int, sources: Sources) -> CaseSet:
    """One case for each test image.

    Raises:
        Sr3dError: A scene of the protocol is absent, has another number of images, or divisors do not fit the factor.
    """
    if data.input_divisor != factor * data.target_divisor:
        found = f"{data.input_divisor} and {data.target_divisor}"
        raise Sr3dError("protocol", "input_divisor, target_divisor", found, f"a ratio of {factor}")
    folders = captures_by_name(sources.paths)
    absent = [name for name in data.scenes if name not in folders]
    if absent:
        raise Sr3dError("sr3d eval", "--scenes", f"no folder {', '.join(absent)}", f"all of {', '.join(data.scenes)}")
    frames = {name: _frames(folders[name], count) for name, count in data.scenes.items()}
    chosen = [(name, test) for name in data.scenes for test in range(0, len(frames[name]), data.every)]
    inputs = {name: _nearest(frames[name], data) for name in data.scenes}

    def load(i: int) -> Case:
        name, test = chosen[i]
        used = [*inputs[name][test], test]
        views = load_frames(folders[name], [frames[name][k] for k in used], None, name)
        full = reduce_scene(crop_to_multiple(views, data.input_divisor), data.target_divisor)
        context = reduce_scene(full.views(range(len(used) - 1)), factor)
        label, folder = f"{name}/{frames[name][test].image.name}", str(folders[name])
        if data.levels == [1]:
            return plain_case(label, name, context, full.views([-1]), factor, [full.paths[-1].name], folder=folder)
        first = context.posed().index([0])
        cameras = Cameras.cat([first.zoomed(float(level)) for level in data.levels])
        return Case(
            name=label,
            scene=name,
            context=context,
            factor=factor,
            cameras=cameras,
            frames=[f"{level}x" for level in data.levels],
            truth=None,
            levels=list(data.levels),
            reduced=context.views([0] * len(data.levels)),
            center=(first.width / 2, first.height / 2),
            folder=folder,
        )

    items = [{"scene": n, "test": frames[n][t].image.name, "inputs": inputs[n][t]} for n, t in chosen]
    return CaseSet(
        names=[f"{name}/{frames[name][test].image.name}" for name, test in chosen],
        scenes=[name for name, _ in chosen],
        views=len(chosen) * len(data.levels),
        index={"items": items, "levels": data.levels},
        load=load,
    )


def _frames(folder: Path, count: int) -> list[Frame]:
    """All frames in natural order of their image names; no image is decoded."""

    def broken(name: str, error: Sr3dError) -> None:
        raise error

    if (folder / "transforms.json").is_file():
        frames, _ = transforms_frames(folder / "transforms.json", broken)
    elif find_model(folder) is not None:
        frames, _ = colmap_frames(folder, broken)
    elif is_scannet(folder):
        frames = scannet_frames(folder, broken)
    else:
        raise Sr3dError(folder, "scene", "no poses", "transforms.json, a COLMAP model, or ScanNet's layout")
    if len(frames) != count:
        raise Sr3dError(folder, "images", len(frames), f"{count}, as the protocol says")
    return sorted(frames, key=lambda frame: natural_key(frame.image.name))


def _nearest(frames: list[Frame], data: HoldoutData) -> dict[int, list[int]]:
    """Test view → the training views with the nearest camera that looks the same way (to 90°), nearest first."""
    poses = torch.stack([torch.from_numpy(frame.world_to_cam) for frame in frames]).double()
    centers: Float[Tensor, "v 3"] = -torch.einsum("vji,vj->vi", poses[:, :3, :3], poses[:, :3, 3])
    axes = poses[:, 2, :3]
    tests = set(range(0, len(frames), data.every))
    out = {}
    for test in sorted(tests):
        distance = (centers - centers[test]).norm(dim=-1)
        distance[(axes @ axes[test]) <= 0] = math.inf
        distance[sorted(tests)] = math.inf
        order = [int(k) for k in distance.argsort(stable=True)[: data.inputs] if math.isfinite(float(distance[k]))]
        if not order:
            raise Sr3dError(frames[test].image, "inputs", "no training view looks the same way", "one or more")
        out[test] = order
    return out
