"""What is evaluated: input views of a scene, and views of it that no method is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from jaxtyping import Float
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.coarse import CoarseConfig, coarse_gaussians
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.lod import Forest
from sr3d.scene import Scene


@dataclass(kw_only=True)
class Case:
    """One prediction to be scored; the truth stays with the evaluation.

    Attributes:
        name: Names the case among all of its protocol, e.g. "fox/3+9".
        scene: Scene that it belongs to; statistics are over scenes.
        context: Low-resolution input views, posed, with depth where the data has it; None where Gaussians are all
            that is given. [V]
        factor: Ratio of the resolutions that is asked for.
        cameras: Target views. [T]
        frames: Name of every target view. [T]
        truth: What the target views show, with depths and labels where known; None where nobody knows. [T]
        levels: Magnification of every target view against the frame of its input; 1 where nothing is zoomed. [T]
        reduced: What a method in two dimensions enlarges to every target view: the truth itself, reduced to the
            inputs' resolution, or the input that is zoomed into; None without inputs. [T]
        center: Pixel of the first input view that the zoom stays on; None where nothing is zoomed.
        text: Description of the scene, "" without.
        classes: Names of the label ids from 1 on.
        folder: Where the scene's own files are, for methods that bring Gaussians; "" without.
    """

    name: str
    scene: str
    context: Scene | None
    factor: int
    cameras: Cameras
    frames: list[str]
    truth: Scene | None
    levels: list[int]
    reduced: Scene | None = None
    center: tuple[float, float] | None = None
    text: str = ""
    classes: list[str] = field(default_factory=list)
    folder: str = ""


@dataclass(kw_only=True)
class Task:
    """The part of a case that methods are given.

    Attributes:
        name: Of the case.
        scene: Of the case.
        given: Low-resolution input views; None where Gaussians are all that is given. [V]
        factor: Ratio of the resolutions that is asked for.
        cameras: Views that will be drawn. [T]
        config: Coarse stage, the same for all methods.
        zoom: Pixel of the first input view and magnification up to which detail is asked for; None without a zoom.
        text: Description of the scene, "" without.
        classes: Names of the label ids from 1 on.
        folder: Of the scene's own files.
        reduced: As in `Case`, for methods in two dimensions only: the others must not see it. [T]
    """

    name: str
    scene: str
    given: Scene | None
    factor: int
    cameras: Cameras
    config: CoarseConfig
    zoom: tuple[tuple[float, float], int] | None = None
    text: str = ""
    classes: list[str] = field(default_factory=list)
    folder: str = ""
    reduced: Scene | None = None

    @property
    def context(self) -> Scene:
        """The input views. [V]

        Raises:
            Sr3dError: There are none.
        """
        if self.given is None:
            raise Sr3dError(self.name, "input views", "none: the protocol is about given Gaussians", "method ply")
        return self.given

    @cached_property
    def coarse(self) -> Gaussians:
        """What the coarse stage makes of the inputs: the same Gaussians for every method. [M]"""
        return coarse_gaussians(self.context, self.config)


@dataclass(kw_only=True)
class Made:
    """What a method makes of a task: Gaussians, or images where it has none.

    Attributes:
        gaussians: The scene; levels of detail fade as their fields say. [N]
        images: The target views, of methods in two dimensions. [T]
        classify: Scores of the classes of the task from drawn features; None for methods without semantics.
        cameras: Poses of the input views as the method estimates them; None for methods that are given them. [V]
        notes: What is worth knowing about how it was made, plain values.
    """

    gaussians: Gaussians | Forest | None = None
    images: Float[Tensor, "t h w 3"] | None = None
    classify: Callable[[Tensor], Tensor] | None = None
    cameras: Cameras | None = None
    notes: dict[str, object] = field(default_factory=dict)
