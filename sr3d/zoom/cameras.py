"""The cameras that the levels of a zoom were made for, beside its Gaussians."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from sr3d.cameras import Cameras
from sr3d.errors import Sr3dError
from sr3d.io.transforms import read_json

CAMERAS = "cameras.json"
_LARGEST = 1e30  # above which a number is damage, NaN and infinity included
_MAX_SIDE = 1 << 16


@dataclass(kw_only=True)
class ZoomCameras:
    """What a zoom looked at.

    Attributes:
        levels: Level → frame of the first view at its magnification, one camera each.
        center: Pixel (u, v) that keeps its place.
        prompt: Words that the scene was made with, "" without.
    """

    levels: dict[int, Cameras]
    center: tuple[float, float]
    prompt: str = ""


def write_cameras(path: Path, cameras: ZoomCameras) -> None:
    """Write a JSON file: OpenCV axes, world to camera, K in pixels."""
    frames = [
        {
            "level": level,
            "width": camera.width,
            "height": camera.height,
            "K": camera.K[0].double().tolist(),
            "world_to_cam": camera.world_to_cam[0].double().tolist(),
        }
        for level, camera in cameras.levels.items()
    ]
    document = {"center": list(cameras.center), "prompt": cameras.prompt, "frames": frames}
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_cameras(path: Path) -> ZoomCameras:
    """Read what `write_cameras` has written.

    Raises:
        Sr3dError: The file is missing or damaged, or a camera is impossible.
    """
    document = read_json(path)
    frames, center, prompt = (document.get(key) for key in ("frames", "center", "prompt"))
    if not isinstance(prompt, str) or not _numbers(center, (2,)):
        raise Sr3dError(path, "center, prompt", f"{center!r:.40}, {prompt!r:.40}", "a pixel [u, v] and a text")
    if not isinstance(frames, list) or not frames:
        raise Sr3dError(path, "frames", repr(frames)[:40], "a list of cameras")
    levels: dict[int, Cameras] = {}
    for i, frame in enumerate(frames):
        whole = isinstance(frame, dict) and all(type(frame.get(k)) is int for k in ("level", "width", "height"))
        if not whole or not _numbers(frame.get("K"), (3, 3)) or not _numbers(frame.get("world_to_cam"), (4, 4)):
            raise Sr3dError(
                path, f"frames[{i}]", repr(frame)[:60], "level, width, height, K [3, 3], world_to_cam [4, 4]"
            )
        if frame["level"] < 0 or frame["level"] in levels:
            raise Sr3dError(path, f"frames[{i}].level", frame["level"], "levels of 0 or more, each once")
        if not all(0 < frame[side] <= _MAX_SIDE for side in ("width", "height")):
            found = f"{frame['width']}x{frame['height']}"
            raise Sr3dError(path, f"frames[{i}] width, height", found, f"1 to {_MAX_SIDE} pixels a side")
        camera = Cameras(
            world_to_cam=torch.tensor(frame["world_to_cam"], dtype=torch.float64)[None],
            K=torch.tensor(frame["K"], dtype=torch.float64)[None],
            width=frame["width"],
            height=frame["height"],
        )
        camera.check(path, [f"frames[{i}]"])
        levels[frame["level"]] = camera
    assert isinstance(center, list)
    return ZoomCameras(levels=levels, center=(float(center[0]), float(center[1])), prompt=prompt)


def _numbers(value: object, shape: tuple[int, ...]) -> bool:
    """Whether nested lists hold finite numbers in this shape."""
    if not shape:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST
    return isinstance(value, list) and len(value) == shape[0] and all(_numbers(v, shape[1:]) for v in value)
