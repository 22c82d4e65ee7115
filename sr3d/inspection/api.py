"""One entry for everything that can be inspected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sr3d.errors import Sr3dError
from sr3d.inspection.report import Report


def inspect(path: str | Path, output: str | Path | None = None) -> Report:
    """What a file or folder is, what is in it, and what is wrong with it.

    Args:
        path: A folder of shards, its `index.json`, a tar file; a scene that `sr3d.load_scene` reads; a `.ply` or
            `.sr3d` file of Gaussians.
        output: Folder for the pictures, made if missing; `outputs/inspect/NAME` if None.

    Returns:
        Facts, violations with fixes, and the pictures that were written.

    Raises:
        Sr3dError: There is nothing that can be read, or a picture cannot be written.
    """
    path = Path(path)
    if not path.exists():
        expected = "a folder of shards, an index.json, a .tar, a scene folder, a .ply or a .sr3d file"
        raise Sr3dError(path, "path", "no such file or folder", expected)
    folder = Path("outputs", "inspect", path.resolve().stem) if output is None else Path(output)
    return _inspector(path)(path, folder)


def _inspector(path: Path) -> Callable[[Path, Path], Report]:
    """What inspects a path, by its name and content."""
    if path.suffix in (".ply", ".sr3d"):
        from sr3d.inspection.gaussians import inspect_gaussians

        return inspect_gaussians
    if path.suffix == ".tar" or path.name == "index.json" or (path / "index.json").is_file():
        from sr3d.inspection.shards import inspect_shards

        return inspect_shards
    from sr3d.inspection.scene import inspect_scene

    return inspect_scene
