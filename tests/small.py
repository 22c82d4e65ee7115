"""Small versions of what the command line works on: a config, a network, a capture on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from sr3d.datasets.world import World
from sr3d.models import SuperResolver, SuperResolverConfig
from sr3d.models.checkpoint import PREFIX, network_entries
from sr3d.models.decoder import DecoderConfig
from sr3d.models.encoder import EncoderConfig
from sr3d.models.scaffold import ScaffoldConfig

ROOT = Path(__file__).resolve().parents[1]


def small_config(path: Path) -> Path:
    """The demo's training, shrunk to two steps of a tiny network."""
    values = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    values["trainer"] |= {"max_steps": 2, "accelerator": "cpu", "val_check_interval": 2, "limit_val_batches": 1}
    values["trainer"]["log_every_n_steps"] = 1
    values["trainer"]["logger"] = [v for v in values["trainer"]["logger"] if v["class_path"].endswith("CSVLogger")]
    shrink_callbacks(values["trainer"]["callbacks"])
    values["model"]["warmup_steps"] = 1
    shrink_network(values["model"]["network"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values))
    return path


def shrink_callbacks(callbacks: list[dict[str, Any]]) -> None:
    """Callbacks of a config that act within two steps."""
    small = {"every_n_train_steps": 2, "every_n_steps": 1, "clips": 1, "count": 1}
    for callback in callbacks:
        options = callback.get("init_args", {})
        options |= {k: v for k, v in small.items() if k in options}


def shrink_network(network: dict[str, Any]) -> None:
    """Tiny widths for the network of a config; parts that are off stay off."""
    small = {
        "encoder": {"pretrained": False, "options": {"embed_dim": 24, "depth": 1, "num_heads": 2}},
        "refinement": {"heads": 2},
        "decoder": {"blocks": 1, "heads": 2, "width": 16, "convolutions": 1, "fine": 8},
        "geometry": {"hypotheses": 1, "features": 4},
        "points": {"blocks": 1, "width": 8, "heads": 2, "window": 16},
        "head": {"width": 16},
        "semantics": {"width": 4, "embedding": 6},
    }
    for name, values in small.items():
        if network.get(name) is not None:
            network[name] |= values


def small_checkpoint(path: Path) -> Path:
    """An untrained network of factor 4 in the form of a training run's checkpoint."""
    torch.manual_seed(0)
    network = SuperResolver(
        SuperResolverConfig(
            scaffold=ScaffoldConfig(grid=4),
            encoder=EncoderConfig(options={"embed_dim": 24, "depth": 1, "num_heads": 2}),
            decoder=DecoderConfig(heads=2, width=16, convolutions=1, fine=8),
        )
    )
    state = {PREFIX + k: v for k, v in network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**network_entries(network), "state_dict": state}, path)
    return path


def small_capture(folder: Path, views: int = 5, enlarge: int = 1) -> Path:
    """A table-top as people photograph it: transforms.json (OpenGL), images, 16-bit depth in millimetres.

    Drawn at 80 x 60 pixels and enlarged by repetition.
    """
    world = World.generate(3, "table")
    shot = world.render(world.sample_cameras(views, 80, 60, baseline=0.1), samples=2)
    cameras = shot.posed().resized(80 * enlarge, 60 * enlarge)
    assert shot.depths is not None
    (folder / "images").mkdir(parents=True)
    (folder / "depth").mkdir()
    to_world = cameras.cam_to_world.double().numpy() @ np.diag([1.0, -1, -1, 1])
    frames = []
    for i in range(views):
        image = (shot.images[i].numpy() * 255).round().astype(np.uint8)
        depth = (shot.depths[i].numpy() * 1000).round().astype(np.uint16)
        Image.fromarray(image.repeat(enlarge, 0).repeat(enlarge, 1)).save(folder / "images" / f"{i}.png")
        Image.fromarray(depth.repeat(enlarge, 0).repeat(enlarge, 1)).save(folder / "depth" / f"{i}.png")
        frame = {"file_path": f"images/{i}.png", "depth_file_path": f"depth/{i}.png"}
        frames.append({**frame, "transform_matrix": to_world[i].tolist()})
    K = cameras.K[0]
    lens = {"fl_x": K[0, 0], "fl_y": K[1, 1], "cx": K[0, 2], "cy": K[1, 2]}
    content = {k: float(v) for k, v in lens.items()} | {"w": cameras.width, "h": cameras.height, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(content))
    return folder
