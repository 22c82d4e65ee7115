"""What `sr3d eval` scores on: shards, shards by a frozen index, or a capture."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sr3d.capture import CaptureConfig, capture_batches, read_capture
from sr3d.datasets.batch import Batch
from sr3d.datasets.evaluation import freeze, indexed_batches, read_evaluation, write_evaluation
from sr3d.datasets.index import FILE
from sr3d.datasets.reader import BatchConfig, ClipBatches, ShardDataset
from sr3d.datasets.sample import StoredClip
from sr3d.datasets.shards import read_index
from sr3d.datasets.views import ViewConfig
from sr3d.errors import Sr3dError


@dataclass(kw_only=True)
class TestSet:
    """Batches of inputs and targets.

    Attributes:
        batches: A new pass over all of them.
        views: Number of target views that a frozen index names; None without one.
        has_depth: Whether inputs come with depth.
        protocol: How they were chosen, for the file of scores.
    """

    batches: Callable[[], Iterator[Batch]]
    has_depth: bool
    protocol: dict[str, Any]
    views: int | None = None

    def check_complete(self, scored: int) -> None:
        """Raise unless as many target views were scored as the frozen index names.

        Raises:
            Sr3dError: Fewer or more.
        """
        if self.views is not None and scored != self.views:
            raise Sr3dError("sr3d eval", "target views scored", scored, f"{self.views}, as the index names")


def open_test_set(data: Path, config: CaptureConfig, index: Path | None) -> TestSet:
    """Test batches of shards (a folder, a tar file), or of a capture.

    Args:
        data: What to test on.
        config: Factor, number of targets and sizes; for captures also their pairs of inputs.
        index: Frozen evaluation index for shards; else the ends of every clip are the inputs.

    Raises:
        Sr3dError: See `ShardDataset`, `read_capture`, `read_evaluation`; or an index is given for a capture.
    """
    if is_shards(data):
        clips = ShardDataset(data)
        first = next(clips.clips())
        size = fitting_size(first.cameras.width, first.cameras.height, config.factor, config.max_pixels)
        if index is None:
            chosen = BatchConfig(factor=config.factor, views=ViewConfig(target=config.targets), image_size=size)
            protocol = {"inputs": "first and last view of every clip", "targets": config.targets, "image_size": size}
            batches = ClipBatches(data, chosen, shuffle=False, strict=True)
            return TestSet(batches=lambda: iter(batches), has_depth=first.has_depth, protocol=protocol)
        return _indexed(data, clips, index, config.factor, size, first.has_depth)
    if index is not None:
        raise Sr3dError("sr3d eval", "--index", f"{index} for a capture", "shards: indices name clips of shards")
    capture = read_capture(data, config)
    pairs = [asdict(p) for p in capture.pairs]
    return TestSet(
        batches=lambda: capture_batches(capture, config),
        has_depth=capture.scene.depths is not None,
        protocol={"typical_depth": capture.depth, "pairs": pairs, "rule": asdict(config)},
    )


def freeze_shards(data: Path, output: Path, config: ViewConfig) -> tuple[int, int]:
    """Write a frozen evaluation index of shards.

    Returns:
        Number of items, and of clips without fitting views, which the index lists as left out.

    Raises:
        Sr3dError: See `freeze`; or `data` is a tar file without index.
    """
    index = freeze(ShardDataset(data).clips(), config, source=read_index(data).source, sha256=_digest(data))
    write_evaluation(output, index)
    return len(index.items), len(index.left_out)


def is_shards(data: Path) -> bool:
    """Whether a path is a folder of shards, or a tar file."""
    return (data / FILE).is_file() or data.suffix == ".tar"


def fitting_size(width: int, height: int, factor: int, max_pixels: int) -> tuple[int, int] | None:
    """Width and height, divisible by `factor`, whose inputs have at most `max_pixels`; None if they are so already."""
    shrink = max(1.0, math.sqrt(width * height / factor**2 / max(1, max_pixels)))
    size = (int(width / shrink) // factor * factor, int(height / shrink) // factor * factor)
    return None if size == (width, height) else (max(factor, size[0]), max(factor, size[1]))


def _indexed(
    data: Path, clips: ShardDataset, path: Path, factor: int, size: tuple[int, int] | None, has_depth: bool
) -> TestSet:
    index, places = read_evaluation(path), clips.reader.places()
    digest = _digest(data)

    def lookup(name: str) -> StoredClip:
        return clips.reader.read(*places[name])

    def batches() -> Iterator[Batch]:
        return indexed_batches(index, places, lookup, factor, image_size=size, sha256=digest)

    own = hashlib.sha256(path.read_bytes()).hexdigest()
    protocol: dict[str, Any] = {
        "index": str(path),
        "sha256": own,
        "items": len(index.items),
        "left_out": len(index.left_out),
    }
    protocol |= {"rule": index.rule, "image_size": size}
    targets = sum(len(item.target) for item in index.items)
    return TestSet(batches=batches, has_depth=has_depth, protocol=protocol, views=targets)


def _digest(data: Path) -> str | None:
    """SHA-256 of the index of a folder of shards."""
    path = data / FILE
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
