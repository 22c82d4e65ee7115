from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sr3d.datasets.world import World
from sr3d.scene import Scene

SIZE = (160, 120)
VIEWS = 6


@pytest.fixture(scope="session")
def room() -> Scene:
    """A room from six places, far enough apart that every mistake shows."""
    world = World.generate(3, "room")
    return world.render(world.sample_cameras(VIEWS, *SIZE, baseline=0.5, seed=1), samples=1)


@pytest.fixture(scope="session")
def files(room: Scene, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Images, depth in millimetres and labels of the room on disk, and the transforms.json that is right for them."""
    folder = tmp_path_factory.mktemp("room")
    cameras = room.posed()
    assert room.depths is not None and room.labels is not None
    to_world = cameras.cam_to_world.double().numpy() @ np.diag([1.0, -1, -1, 1])
    frames = []
    for i in range(VIEWS):
        image = (room.images[i].numpy() * 255).round().astype(np.uint8)
        Image.fromarray(image).save(folder / f"{i}.png")
        Image.fromarray((room.depths[i].numpy() * 1000).round().astype(np.uint16)).save(folder / f"depth{i}.png")
        Image.fromarray(room.labels[i].numpy().astype(np.uint8)).save(folder / f"label{i}.png")
        paths = {"file_path": f"{i}.png", "depth_file_path": f"depth{i}.png", "label_file_path": f"label{i}.png"}
        frame = {key: str(folder / name) for key, name in paths.items()}
        frames.append({**frame, "transform_matrix": to_world[i].tolist()})
    K = cameras.K[0].double()
    lens = {"fl_x": K[0, 0], "fl_y": K[1, 1], "cx": K[0, 2], "cy": K[1, 2]}
    return {k: float(v) for k, v in lens.items()} | {"w": SIZE[0], "h": SIZE[1], "frames": frames}


@pytest.fixture
def capture(files: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """Write a transforms.json, changed by a function of its content, and return its folder."""

    def write(change: Callable[[dict[str, Any]], object] = lambda content: None, name: str = "capture") -> Path:
        content = copy.deepcopy(files)
        change(content)
        (tmp_path / name).mkdir()
        (tmp_path / name / "transforms.json").write_text(json.dumps(content))
        return tmp_path / name

    return write
