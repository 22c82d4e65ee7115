"""One entry for everything that can be inspected."""

from __future__ import annotations

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
    from sr3d.inspection.scene import inspect_scene

    path = Path(path)
    if not path.exists():
        expected = "a folder of shards, an index.json, a .tar, a scene folder, a .ply or a .sr3d file"
        raise Sr3dError(path, "path", "no such file or folder", expected)
    folder = Path("outputs", "inspect", path.resolve().stem) if output is None else Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Sr3dError(folder, "output", error.strerror or error, "a folder that can be written") from error
    return inspect_scene(path, folder)
