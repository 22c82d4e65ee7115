"""COLMAP models, text or binary, and their images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sr3d.datasets.assemble import frame_clips
from sr3d.datasets.clip import Clip
from sr3d.datasets.converter import ClipOptions, Drops, Entry, Split
from sr3d.io.colmap import colmap_frames, find_model

from .nerfstudio import count_frames, scene_entries


@dataclass(kw_only=True, frozen=True)
class Colmap:
    """COLMAP models. SRC is one scene, or a folder of scenes.

    A scene holds cameras and images (.bin or .txt) in sparse/0, sparse, colmap/sparse/0 or itself, and its pictures in
    images/. Frames are in natural order of their names; the sparse points go along. Lens distortion is removed
    (perspective models, OPENCV, and fisheye of up to four k). A folder of scenes is split by a hash of the scenes'
    names (80 / 10 / 10 %); a single scene is given to whatever split is asked for.

    Left out and counted: frames without an image file ("image missing"), with NaN in the pose ("pose not finite"), of
    another size than the rest of their clip ("other image size"), and whatever cannot be decoded, has no camera, an
    unknown lens, or a K that does not belong to its image ("damaged"). A model file that is cut off drops its scene.

    Args:
        metric: World units are metres. COLMAP's own are not, unless the model was aligned to something metric.
    """

    metric: bool = False

    source: ClassVar[str] = "colmap"
    version: ClassVar[int] = 1
    needs_src: ClassVar[bool] = True
    licence: ClassVar[str] = "that of the capture"

    def entries(self, src: Path, split: Split) -> list[Entry]:
        """The scenes of a split, in natural order of their names."""
        return scene_entries(src, split, lambda folder: find_model(folder) is not None, "a COLMAP model")

    def clips(self, entry: Entry, options: ClipOptions, drops: Drops) -> Iterator[Clip]:
        """The clips of a scene."""
        frames, points = colmap_frames(entry.path, count_frames(entry.name, drops))
        yield from frame_clips(
            frames,
            scene=entry.name,
            source=entry.path,
            options=options,
            drops=drops,
            metric=self.metric,
            points=points,
        )
