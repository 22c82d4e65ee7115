"""Whole captures of which every nth image is tested; all others may be inputs (Mip-NeRF 360, Tanks and Temples)."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from sr3d.capture import crop_to_multiple
from sr3d.datasets.batch import reduce_scene
from sr3d.errors import Sr3dError
from sr3d.evaluation.case import Case
from sr3d.evaluation.cases.base import CaseSet, Sources, plain_case, zoomed_case
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
        Sr3dError: A scene of the protocol is absent, has another number of images, or others are given.
    """
    folders = captures_by_name(sources.paths)
    absent = [name for name in data.scenes if name not in folders]
    if absent:
        raise Sr3dError("sr3d eval", "--scenes", f"no folder {', '.join(absent)}", f"all of {', '.join(data.scenes)}")
    others = [name for name in folders if name not in data.scenes]
    if others:
        raise Sr3dError("sr3d eval", "--scenes", ", ".join(others), f"scenes of the protocol: {', '.join(data.scenes)}")
    frames = {name: _frames(folders[name], count) for name, count in data.scenes.items()}
    chosen = [(name, group) for name in data.scenes for group in _groups(len(frames[name]), data)]
    inputs = [_nearest(frames[name], group, data) for name, group in chosen]
    names = [f"{name}/{'+'.join(frames[name][t].image.name for t in group)}" for name, group in chosen]

    def load(i: int) -> Case:
        name, group = chosen[i]
        used, count = [*inputs[i], *group], len(inputs[i])
        views = load_frames(folders[name], [frames[name][k] for k in used], None, name)
        full = reduce_scene(crop_to_multiple(views, data.input_divisor), data.target_divisor)
        context, target = reduce_scene(full.views(range(count)), factor), full.views(range(count, len(used)))
        folder = str(folders[name])
        if data.levels == [1]:
            shown = [path.name for path in target.paths]
            return plain_case(names[i], name, context, target, factor, shown, folder=folder)
        return zoomed_case(names[i], name, context, factor, data.levels, folder=folder)

    items = [{"scene": n, "test": g, "inputs": inputs[i]} for i, (n, g) in enumerate(chosen)]
    return CaseSet(
        names=names,
        scenes=[name for name, _ in chosen],
        views=sum(len(group) if data.levels == [1] else len(data.levels) for _, group in chosen),
        index={"items": items, "levels": data.levels},
        load=load,
    )


def _groups(count: int, data: HoldoutData) -> list[list[int]]:
    """Test views of every case of a scene of so many images."""
    tests = list(range(0, count, data.every))
    return [tests[k : k + data.views] for k in range(0, len(tests), data.views)]


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


def _nearest(frames: list[Frame], tests: list[int], data: HoldoutData) -> list[int]:
    """Of every test view the training views with the nearest cameras that look the same way (to 90°), each once.

    Raises:
        Sr3dError: A test view has none.
    """
    poses = torch.stack([torch.from_numpy(frame.world_to_cam) for frame in frames]).double()
    centers: Float[Tensor, "v 3"] = -torch.einsum("vji,vj->vi", poses[:, :3, :3], poses[:, :3, 3])
    axes = poses[:, 2, :3]
    out = dict[int, None]()
    for test in tests:
        distance = (centers - centers[test]).norm(dim=-1)
        distance[(axes @ axes[test]) <= 0] = math.inf
        distance[:: data.every] = math.inf
        order = [int(k) for k in distance.argsort(stable=True)[: data.inputs] if math.isfinite(float(distance[k]))]
        if not order:
            raise Sr3dError(frames[test].image, "inputs", "no training view looks the same way", "one or more")
        out.update(dict.fromkeys(order))
    return list(out)
