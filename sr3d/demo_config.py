"""Sizes of a demo run, and what its training leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sr3d.capture import CaptureConfig
from sr3d.models import SuperResolver


@dataclass(kw_only=True)
class DemoConfig:
    """Sizes of a demo run.

    Attributes:
        output: Folder of everything that is written.
        scene: Capture to test on, anything `sr3d.load_scene` reads; None to leave it out.
        config: Training configuration; paths in it that start with `outputs/demo` are moved to `output`.
        overrides: Further arguments of the training, e.g. `--trainer.max_steps=10`.
        size: Width and height of procedural views.
        views: Views per procedural clip.
        scenes: Worlds per split: train, val, test.
        targets: Views per test clip that no method is given.
        seed: Of the procedural worlds.
        capture: How the capture becomes a test set.
        shown: Target views per experiment that the report shows.
        zoom: Final magnification, a power of the network's factor.
        frames: Of a zoom's video.
    """

    output: Path = Path("outputs/demo")
    scene: Path | None = None
    config: Path = Path(__file__).resolve().parents[1] / "configs" / "demo.yaml"
    overrides: list[str] = field(default_factory=list)
    size: int = 192
    views: int = 5
    scenes: dict[str, int] = field(default_factory=lambda: {"train": 80, "val": 6, "test": 12})
    targets: int = 3
    seed: int = 0
    capture: CaptureConfig = field(default_factory=CaptureConfig)
    shown: int = 2
    zoom: int = 16
    frames: int = 72


@dataclass(kw_only=True)
class Trained:
    """Result of the training stage.

    Attributes:
        network: In `eval()` mode.
        checkpoint: Where it is stored.
        curves: Columns of the log.
    """

    network: SuperResolver
    checkpoint: Path
    curves: dict[str, list[tuple[float, float]]]
