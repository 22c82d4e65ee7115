"""Files ↔ nouns. Everything else sees OpenCV cameras, K in pixels and activated Gaussians only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sr3d.errors import Sr3dError
from sr3d.io.colmap import find_model, load_colmap
from sr3d.io.folder import load_images
from sr3d.io.forest import read_forest
from sr3d.io.forest_check import check_forest
from sr3d.io.forest_write import write_forest
from sr3d.io.ply import read_ply, write_ply
from sr3d.io.scannet import is_scannet, load_scannet
from sr3d.io.transforms import load_transforms
from sr3d.scene import Scene

__all__ = ["check_forest", "load_scene", "read_forest", "read_ply", "write_forest", "write_ply"]


def load_scene(path: str | Path, views: Sequence[int] | None = None) -> Scene:
    """Read a folder of images, with cameras where it has them.

    Args:
        path: A folder with, in this order of preference: `transforms.json` (nerfstudio, instant-ngp); a COLMAP model;
            ScanNet's exported layout; images, also in `images/`. Or a `.json` file itself.
        views: Views to decode, in this order, counted among the frames whose image exists; all if None.

    Returns:
        Scene named after the folder. Cameras are OpenCV world-to-camera, undistorted, rotations made exact; depths in
        world units, 0 where unknown. Frames without an image file are left out with one warning.

    Raises:
        Sr3dError: Nothing usable is there, a file is damaged, sizes disagree, or a camera is impossible.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".json":
        return load_transforms(path, views)
    if not path.is_dir():
        raise Sr3dError(path, "scene", "a file" if path.exists() else "no such folder", "a folder or a transforms.json")
    if (path / "transforms.json").is_file():
        return load_transforms(path / "transforms.json", views)
    if find_model(path) is not None:
        return load_colmap(path, views)
    if is_scannet(path):
        return load_scannet(path, views)
    scene = load_images(path, views)
    if scene is not None:
        return scene
    looked = (
        "transforms.json; a COLMAP model (cameras and images, .bin or .txt) in sparse/0, sparse, colmap/sparse/0 or "
        "the folder; ScanNet's color/, pose/ and intrinsic/intrinsic_color.txt; or PNG or JPEG images, also in images/"
    )
    content = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    raise Sr3dError(path, "scene", content, looked)
