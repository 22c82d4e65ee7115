"""The frames of a scene folder of any kind, with what is wrong with them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from sr3d.errors import Sr3dError
from sr3d.inspection.mistakes import Convention
from sr3d.inspection.report import Report
from sr3d.inspection.shots import Shot, take_shot
from sr3d.io.colmap import colmap_frames, find_model
from sr3d.io.frames import Frame, decode_frame
from sr3d.io.images import list_images, read_image
from sr3d.io.scannet import is_scannet, scannet_frames
from sr3d.io.transforms import transforms_frames

_UNIT = "the unit of the depth files"
_KINDS = {
    "transforms": ("transforms.json", "transform_matrix", True, True, "depth_unit_scale_factor"),
    "colmap": ("COLMAP", "the pose in images.txt or images.bin", False, False, _UNIT),
    "scannet": ("ScanNet's exported layout", "pose/*.txt", True, False, _UNIT),
    "images": ("images without poses", "poses", True, False, _UNIT),
}


@dataclass(kw_only=True)
class Listing:
    """What a scene folder names.

    Attributes:
        kind: In words.
        source: File or folder named in errors.
        convention: Of its poses.
        frames: Posed frames; empty for plain images.
        images: Plain images without poses; empty for posed ones.
        dropped: Name of a frame, and why it cannot be used.
        notes: Warnings of the readers.
        points: Sparse points, world frame. [P, 3]
    """

    kind: str
    source: Path
    convention: Convention
    frames: list[Frame]
    images: list[Path]
    dropped: list[tuple[str, Sr3dError]]
    notes: list[str]
    points: Float[Tensor, "p 3"] | None = None

    def __len__(self) -> int:
        return len(self.frames) or len(self.images)

    def unreadable(self, report: Report) -> Sr3dError:
        """The error for a scene none of whose frames can be decoded."""
        found = next((v for v in report.violations if v.severity == "error"), None)
        reason = f": {found.where}: {found.found}" if found else ""
        return Sr3dError(
            self.source,
            "frames",
            f"none can be decoded{reason}",
            found.fix.removeprefix("expected ") if found else "images",
        )


def list_scene(path: Path) -> Listing:
    """The frames of anything that `sr3d.load_scene` reads; no image is decoded.

    Raises:
        Sr3dError: Nothing usable is there, or the file that lists the frames is damaged.
    """
    dropped: list[tuple[str, Sr3dError]] = []

    def drop(name: str, error: Sr3dError) -> None:
        dropped.append((name, error))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kind, frames, points = _posed(path, drop)
        images = _plain(path) if kind == "images" else []
    name, field, cam_to_world, opengl, unit = _KINDS[kind]
    convention = Convention(field=field, cam_to_world=cam_to_world, opengl=opengl, unit=unit)
    if not frames and not images:
        reason = f": {dropped[0][1]}" if dropped else ""
        raise Sr3dError(path, "frames", f"none usable{reason}", "at least one image that can be read")
    return Listing(
        kind=name,
        source=path,
        convention=convention,
        frames=frames,
        images=images,
        dropped=dropped,
        notes=[str(w.message) for w in caught if issubclass(w.category, UserWarning)],
        points=points,
    )


def _posed(path: Path, drop: Callable[[str, Sr3dError], None]) -> tuple[str, list[Frame], Float[Tensor, "p 3"] | None]:
    """Kind, frames and points, in the order of preference of `load_scene`."""
    if path.is_file() or (path / "transforms.json").is_file():
        return "transforms", *transforms_frames(path if path.is_file() else path / "transforms.json", drop)
    if not path.is_dir():
        raise Sr3dError(path, "scene", "no such file or folder", "shards, an index, a scene folder or a Gaussian file")
    if find_model(path) is not None:
        return "colmap", *colmap_frames(path, drop)
    if is_scannet(path):
        return "scannet", scannet_frames(path, drop), None
    return "images", [], None


def _plain(folder: Path) -> list[Path]:
    """The images that `load_scene` would take; its error where there are none."""
    images = list_images(folder)
    if not images and (folder / "images").is_dir():
        images = list_images(folder / "images")
    if not images:
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise Sr3dError(folder, "content", found, "shards, an index.json, a scene with images, or a .ply or .sr3d file")
    return images


def take_shots(listing: Listing, chosen: list[int], report: Report) -> list[Shot]:
    """Decode the chosen frames; those that cannot be decoded become errors of the report."""
    shots = []
    for i in chosen:
        try:
            shots.append(_shot(listing, i))
        except Sr3dError as error:
            report.error(f"{Path(error.source).name}, {error.field}", error.found, f"expected {error.expected}")
    return shots


def _shot(listing: Listing, number: int) -> Shot:
    if listing.images:
        path = listing.images[number]
        return take_shot(path.name, read_image(path, upright=True))
    frame = listing.frames[number]
    decoded = decode_frame(listing.source, frame)
    return take_shot(
        frame.image.name,
        decoded.image,
        world_to_cam=frame.world_to_cam,
        K=decoded.K,
        depth=decoded.depth,
        labels=decoded.labels,
    )
