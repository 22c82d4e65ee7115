"""What the methods with a network share: reading its checkpoint, and scenes made by it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from sr3d.errors import Sr3dError
from sr3d.evaluation.case import Task
from sr3d.evaluation.methods.base import MethodOptions
from sr3d.gaussians import Gaussians
from sr3d.lod import Lod
from sr3d.models import SuperResolver
from sr3d.zoom import LevelMaker, zoom_into


def load_network(options: MethodOptions, method: str) -> tuple[SuperResolver, dict[str, Any]]:
    """The network of the method's argument, else of the command line, and what identifies it.

    Raises:
        Sr3dError: No checkpoint was named, it cannot be read, or is made for other factors.
    """
    path = options.argument or options.checkpoint
    if path is None:
        expected = "a trained network: --checkpoint, or `make demo` for outputs/demo/training/predictor.ckpt"
        raise Sr3dError("sr3d eval", f"checkpoint of method {method}", "none", expected)
    network = SuperResolver.from_pretrained(path).eval().to(options.device)
    factors = [network.config.factor, *network.config.factors]
    if options.factor not in factors:
        found = f"made for {', '.join(f'{f}x' for f in factors)}"
        raise Sr3dError(path, "factor", found, f"{options.factor}x, as the protocol asks")
    return network, {"checkpoint": str(path), "sha256": _digest(Path(path))}


def zoomed(task: Task, maker: LevelMaker, embedding: Float[Tensor, " e"] | None) -> Gaussians:
    """All levels that a task's zoom asks for."""
    assert task.zoom is not None
    center, magnification = task.zoom
    # Made once for all methods, and its seconds are counted once.
    return zoom_into(task.context, center, magnification, maker=maker, coarse=task.coarse, embedding=embedding)


def one_level(gaussians: Gaussians) -> Gaussians:
    """Gaussians without their parents: there is nothing to fade to."""
    assert gaussians.lod is not None
    return replace(gaussians, lod=Lod.roots(gaussians.lod.native))


def _digest(path: Path) -> str | None:
    """SHA-256 of a checkpoint's file, or of the weights in its folder; None for a name on a hub."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    return "+".join(digests) or None
