"""`ply`: somebody else's Gaussians, one file for each scene."""

from __future__ import annotations

import hashlib
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
        paths = [Path(p.replace("{scene}", task.scene).replace("{folder}", task.folder)) for p in self.patterns]
        path = next((p for p in paths if p.exists()), None)
        if path is None:
            raise Sr3dError(task.name, "Gaussians", f"no {' or '.join(map(str, paths))}", "a .ply or .sr3d file")
        if path.suffix == ".sr3d":
            return Made(gaussians=Forest.load(path).to(self.options.device), notes={"file": str(path)})
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return Made(gaussians=Gaussians.load(path).to(self.options.device), notes={"file": str(path), "sha256": digest})
