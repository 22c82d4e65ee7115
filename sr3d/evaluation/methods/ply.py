"""`ply`: somebody else's Gaussians, one file for each scene."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from sr3d.errors import Sr3dError
from sr3d.evaluation.case import Made, Task
from sr3d.evaluation.methods.base import Method, MethodOptions
from sr3d.gaussians import Gaussians
from sr3d.lod import Forest

_DEFAULT = ("{folder}/scene.sr3d", "{folder}/scene.ply")


class Ply(Method):
    """Gaussians from `ply:PATTERN`, e.g. `ply:others/{scene}.ply`, in the world frame of the scene.

    {scene} stands for the scene's name and {folder} for its folder; without a pattern the file is the folder's own
    scene.sr3d or scene.ply.
    """

    name: ClassVar[str] = "ply"
    uses_coarse: ClassVar[bool] = False

    def __init__(self, options: MethodOptions) -> None:
        super().__init__(options)
        self.patterns = _DEFAULT if options.argument is None else (options.argument,)
        for pattern in self.patterns:
            if "{scene}" not in pattern and "{folder}" not in pattern:
                raise Sr3dError("sr3d eval", "ply", pattern, "a path with {scene} or {folder}: one file for each scene")

    def identity(self) -> dict[str, Any]:
        """The pattern; the files' own hashes are in the notes of each case."""
        return {**super().identity(), "files": list(self.patterns)}

    def make(self, task: Task) -> Made:
        """The scene as it is stored."""
        scene, path = stored_scene(task.scene, task.folder, self.patterns)
        notes: dict[str, object] = {"file": str(path)}
        if path.is_file():
            notes["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        return Made(gaussians=scene.to(self.options.device), notes=notes)


def stored_scene(scene: str, folder: str, patterns: Sequence[str] = _DEFAULT) -> tuple[Gaussians | Forest, Path]:
    """Gaussians of a scene from the first file that is there, and which one it is.

    Args:
        scene: Name of the scene.
        folder: Of its own files.
        patterns: Paths with {scene} or {folder}.

    Raises:
        Sr3dError: No such file, or it cannot be read.
    """
    if not folder and all("{folder}" in pattern for pattern in patterns):
        raise Sr3dError(scene, "folder", "none: the scene has no files of its own", "ply:PATH with {scene}")
    paths = [Path(p.replace("{scene}", scene).replace("{folder}", folder)) for p in patterns]
    path = next((p for p in paths if p.exists()), None)
    if path is None:
        raise Sr3dError(scene, "Gaussians", f"no {' or '.join(map(str, paths))}", "a .ply or .sr3d file")
    return Forest.load(path) if path.suffix == ".sr3d" else Gaussians.load(path), path
