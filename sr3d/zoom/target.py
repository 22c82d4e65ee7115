"""Where a zoom goes: a pixel, a point, a box, or words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.options import numbers
from sr3d.rendering import Rendering, render

_WINDOW = 1  # half side, in pixels, of the window that gives a pixel's depth
SOLID = 0.5  # alpha from which a pixel shows a surface
_BEHIND = 0.05  # of the depth: how far a point may be from the surface that the first view shows there


@dataclass(kw_only=True, frozen=True)
class Pixel:
    """Pixel (u, v) of the first view, pixel centres at +0.5."""

    u: float
    v: float


@dataclass(kw_only=True, frozen=True)
class Point:
    """World coordinates."""

    x: float
    y: float
    z: float


@dataclass(kw_only=True, frozen=True)
class Box:
    """Opposite corners, world coordinates: the zoom goes to the surface nearest to its middle that is inside."""

    lower: tuple[float, float, float]
    upper: tuple[float, float, float]


@dataclass(kw_only=True, frozen=True)
class Query:
    """Words that name something in the scene."""

    text: str


Target: TypeAlias = Pixel | Point | Box | Query


def as_target(target: Target | tuple[int | float, ...]) -> Target:
    """Two numbers are a pixel, three a point.

    Raises:
        Sr3dError: Another count of numbers.
    """
    if not isinstance(target, tuple):
        return target
    if len(target) == 2:
        return Pixel(u=float(target[0]), v=float(target[1]))
    if len(target) == 3:
        return Point(x=float(target[0]), y=float(target[1]), z=float(target[2]))
    raise Sr3dError("sr3d.zoom_into", "target", target, "a pixel (u, v), a point (x, y, z), a Box or a Query")


def parse_target(target: str | None, point: str | None, box: str | None, query: str | None) -> Target:
    """The one place that the command line asks for.

    Args:
        target: Two numbers, separated by commas: a pixel.
        point: Three numbers.
        box: Six numbers, lower and upper corner.
        query: Words.

    Raises:
        Sr3dError: None or several, or another count of numbers.
    """
    given = {"--target": target, "--point": point, "--box": box, "--query": query}
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        raise Sr3dError("sr3d zoom", "target", " ".join(names) or "none", "one of --target, --point, --box, --query")
    if query is not None:
        return Query(text=query)
    option = names[0]
    count = {"--target": 2, "--point": 3, "--box": 6}[option]
    values = numbers(given[option], option, float) or []
    if len(values) != count:
        raise Sr3dError("sr3d zoom", option, given[option], f"{count} numbers separated by commas")
    if option == "--target":
        return Pixel(u=values[0], v=values[1])
    if option == "--point":
        return Point(x=values[0], y=values[1], z=values[2])
    return Box(lower=(values[0], values[1], values[2]), upper=(values[3], values[4], values[5]))


def locate(target: Pixel | Point | Box, first: Cameras, drawn: Rendering) -> Float[Tensor, 3]:
    """World point on the surface that the first view shows at the target, float64.

    Args:
        target: Where to.
        first: One camera, world frame.
        drawn: What it sees: alpha and depth. [1, H, W]

    Raises:
        Sr3dError: A pixel outside the image, a target behind the camera or outside its frame, a box without any
            visible surface inside, or nothing to be seen there.
    """
    if isinstance(target, Box):
        return _in_box(target, first, drawn)
    if isinstance(target, Point):
        return _at_point(target, first, drawn)
    if not (0 <= target.u <= first.width and 0 <= target.v <= first.height):
        expected = f"a pixel of the first view, {first.width} x {first.height}"
        raise Sr3dError("sr3d.zoom_into", "target", (target.u, target.v), expected)
    depth = depth_at(first, drawn, target.u, target.v)
    if depth is None:
        found = f"nothing at pixel {(target.u, target.v)}"
        raise Sr3dError("sr3d.zoom_into", "target", found, "a pixel that shows a surface")
    camera = first.to(torch.float64)
    pixel = torch.tensor([target.u, target.v, 1.0], dtype=torch.float64)
    cam = torch.linalg.inv(camera.K[0]) @ pixel * depth
    return camera.cam_to_world[0, :3, :3] @ cam + camera.positions[0]


def target_point(gaussians: Gaussians, cameras: Cameras, target: tuple[float, float]) -> Float[Tensor, 3]:
    """World point that the first view shows at a pixel: on the pixel's ray, at the median depth of 3×3 pixels.

    Args:
        gaussians: [N]
        cameras: The first is used.
        target: Pixel (u, v).

    Raises:
        Sr3dError: The pixel is outside the image, or the Gaussians show nothing there.
    """
    first = cameras.index([0])
    return locate(Pixel(u=target[0], v=target[1]), first, render(gaussians, first)).to(gaussians.means.dtype)


def depth_at(first: Cameras, drawn: Rendering, u: float, v: float) -> float | None:
    """Median depth of 3×3 pixels, of those that show a surface; None where none does."""
    column, row = min(int(u), first.width - 1), min(int(v), first.height - 1)
    window = (0, slice(max(row - _WINDOW, 0), row + _WINDOW + 1), slice(max(column - _WINDOW, 0), column + _WINDOW + 1))
    depths = drawn.depth[window][drawn.alpha[window] > SOLID]
    return float(depths.median()) if len(depths) else None


def _at_point(target: Point, first: Cameras, drawn: Rendering) -> Float[Tensor, 3]:
    """The point itself, if the first view shows it."""
    point = torch.tensor([target.x, target.y, target.z], dtype=torch.float64)
    words = f"({target.x:g}, {target.y:g}, {target.z:g})"
    if not bool(torch.isfinite(point).all()):
        raise Sr3dError("sr3d.zoom_into", "target", words, "finite coordinates")
    pixels, depths = first.to(torch.float64).project(point[None])
    (u, v), depth = pixels[0, 0].tolist(), float(depths[0, 0])
    if depth <= 0:
        raise Sr3dError("sr3d.zoom_into", "target", f"{words}, behind the first camera", "a point in front of it")
    if not (0 <= u <= first.width and 0 <= v <= first.height):
        found = f"{words}, outside the first view (pixel {u:.1f}, {v:.1f})"
        raise Sr3dError("sr3d.zoom_into", "target", found, f"a point in its frame, {first.width} x {first.height}")
    surface = depth_at(first, drawn, u, v)
    if surface is None or abs(surface / depth - 1) > _BEHIND:
        found = (
            f"{words}, on empty space" if surface is None else f"{words}, {depth:.4g} away; a surface at {surface:.4g}"
        )
        raise Sr3dError("sr3d.zoom_into", "target", found, "a point on a surface that the first view shows")
    return point


def _in_box(target: Box, first: Cameras, drawn: Rendering) -> Float[Tensor, 3]:
    """The visible surface point inside that is nearest to the box's middle."""
    lower, upper = (torch.tensor(corner, dtype=torch.float64) for corner in (target.lower, target.upper))
    words = f"{tuple(target.lower)} to {tuple(target.upper)}"
    if not bool((torch.isfinite(lower) & torch.isfinite(upper) & (lower < upper)).all()):
        raise Sr3dError("sr3d.zoom_into", "box", words, "finite corners, the lower one first")
    points = first.to(torch.float64).unproject(drawn.depth.double())[0]
    inside = ((points >= lower) & (points <= upper)).all(dim=-1) & (drawn.alpha[0] > SOLID) & (drawn.depth[0] > 0)
    if not bool(inside.any()):
        raise Sr3dError("sr3d.zoom_into", "box", f"{words}, empty", "a box with a surface that the first view shows")
    found = points[inside]
    return found[(found - (lower + upper) / 2).norm(dim=-1).argmin()]
