"""`scaffold`: what the network starts from, before any learning; it takes the network's settings, not its weights."""

from __future__ import annotations

from typing import Any, ClassVar

from sr3d.evaluation.case import Made, Task
from sr3d.evaluation.methods.base import Method, MethodOptions
from sr3d.evaluation.methods.network import load_network, one_level, zoomed
from sr3d.models import SuperResolver
from sr3d.scene import Scene
from sr3d.zoom import Untrained


class Scaffold(Method):
    """The densified coarse scene (Gaussian Shuffle Split or children in the tangent plane), coloured from the views."""

    name: ClassVar[str] = "scaffold"

    def __init__(self, options: MethodOptions) -> None:
        super().__init__(options)
        network, self._weights = load_network(options, self.name)
        # An untrained network returns the scaffold exactly, at every level of a zoom.
        self.network = SuperResolver(network.config).eval().to(options.device)

    def identity(self) -> dict[str, Any]:
        """The checkpoint whose settings are used."""
        return {**super().identity(), **self._weights}

    def make(self, task: Task) -> Made:
        """One level on top of the coarse scene, or all levels of a zoom."""
        if task.zoom is not None:
            return Made(gaussians=zoomed(task, Untrained(self.network), None))
        views = Scene.stack([task.context]).to(self.options.device)
        coarse = task.coarse.unsqueezed().to(self.options.device)
        return Made(gaussians=one_level(self.network.scaffold(coarse, views.images, views.posed(), task.factor)[0]))
