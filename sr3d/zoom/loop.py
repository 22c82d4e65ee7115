"""The zoom loop: at every level the network refines what the frame of that magnification shows."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.coarse import CoarseConfig, coarse_gaussians
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.lod import Lod
from sr3d.models import SuperResolver, with_lod
from sr3d.models.estimate import out_of_memory_explained
from sr3d.rendering import render
from sr3d.scene import Scene
from sr3d.zoom.path import zoom_centers

MAX_GAUSSIANS = 4_000_000
_WINDOW = 1  # half side, in pixels, of the window that gives the target's depth
_SOLID = 0.5  # alpha from which a pixel shows a surface
_REACH = 3.0  # standard deviations to which a Gaussian is drawn
_NEAR = 0.01
_COVER = 0.8  # least in-plane standard deviation of a new level, in its own pixels
_SAMPLES = 2  # per side of a pixel, of the drawings that the network refines


@dataclass(kw_only=True)
class ZoomLevel:
    """What one step of the loop did.

    Attributes:
        level: 0 for the coarse scene.
        parents: Gaussians that the frames of this level contain, of which those without children were split.
        gaussians: Gaussians that this level added.
        footprint: Median native footprint of this level, world units per pixel.
        cameras: Frames that were refined; for level 0 the input cameras.
        links: Index, in the result of `zoom_into`, of each added Gaussian's parent, −1 where it has none. [gaussians]
        seconds: Wall time.
    """

    level: int
    parents: int
    gaussians: int
    footprint: float
    cameras: Cameras
    links: Int[Tensor, " n"]
    seconds: float


@torch.no_grad()
def zoom_into(
    scene: Scene | Gaussians,
    target: tuple[float, float],
    factor: int,
    *,
    network: SuperResolver,
    coarse: CoarseConfig | Gaussians | None = None,
    cameras: Cameras | None = None,
    embedding: Float[Tensor, " e"] | None = None,
    max_gaussians: int = MAX_GAUSSIANS,
    on_level: Callable[[ZoomLevel], None] | None = None,
) -> Gaussians:
    """Add levels of detail around a pixel of the first view, by forward passes of one network (WonderZoom A1).

    Level 0 is the coarse scene. Level l = 1 .. log_f(factor), f being the network's factor, splits every level l − 1
    Gaussian inside a view's frame at magnification fˡ⁻¹ about the target. That is all such a frame shows, so between
    fˡ⁻¹ and fˡ every visible parent has its children, and the pair cross-fades without a border. The network sees the
    given images at level 1 and drawings of the forest so far after that. Stored Gaussians never change, except that
    `lod.finer` of a parent is set to the footprint of its children.

    Args:
        scene: Posed views, or Gaussians in the world frame [N] together with `cameras`. Gaussians that already carry
            levels are extended: what was split before is not split again.
        target: Pixel (u, v) of the first view, pixel centres at +0.5.
        factor: Magnification up to which detail is added; a positive power of the network's factor.
        network: Refines every level; used as it is, on its own device.
        coarse: Coarse stage of a `Scene`, or what it has made of it; by default its depths where it has them, else
            plane-sweep stereo.
        cameras: Views of given Gaussians, at the resolution that their detail is good for. [C]
        embedding: What a network with conditioning is told at every level (see `sr3d.training.conditions`).
        max_gaussians: Largest level.
        on_level: Called after every level, level 0 included.

    Returns:
        All levels, with `lod`, in the order of their levels.

    Raises:
        Sr3dError: The factor is no power of the network's, the target lies outside the first view or shows nothing,
            Gaussians come without cameras, a level would exceed `max_gaussians`, or the scene cannot be used (see
            `coarse_gaussians`, `SuperResolver.upscale`).
    """
    start = time.perf_counter()
    levels = _levels(factor, network.config.factor)
    device = next(network.parameters()).device
    views, forest = _level_zero(scene, cameras, coarse)
    frames = views.to(device)
    forest = with_lod(forest, views).to(device)
    images = scene.images.to(device) if isinstance(scene, Scene) else _draw(forest, frames)
    centers, inside = zoom_centers(target_point(forest, frames, target), frames)
    inside[0] = True  # by definition; a target on the very border may project a rounding error outside
    children = network.config.scaffold.children(network.config.factor)
    parents = _parents(forest, frames, 0)
    for level in range(1, levels + 1):
        # In-plane children tile the image as their parents did, so a level has as many as the first, or fewer.
        expected = len(parents) * (children / network.config.factor**2) ** (level - 1)
        _check_size(level, int(expected), children, max_gaussians)
    if on_level is not None:
        on_level(_summary(forest, 0, 0, frames, torch.full((len(forest),), -1), start))

    for level in range(1, levels + 1):
        start = time.perf_counter()
        if level > 1:
            magnification = float(network.config.factor ** (level - 1))
            frames = views.to(device).index(inside.nonzero()[:, 0]).zoomed(magnification, centers[inside])
            images = _draw(forest, frames)
            parents = _parents(forest, frames, level - 1)
            _check_size(level, len(parents), children, max_gaussians)
        forest, links = _refine(forest, parents, Scene(images=images, cameras=frames), network, embedding)
        if on_level is not None:
            on_level(_summary(forest, level, len(parents), frames, links, start))
    return forest


def target_point(gaussians: Gaussians, cameras: Cameras, target: tuple[float, float]) -> Float[Tensor, 3]:
    """World point that the first view shows at a pixel: on the pixel's ray, at the median depth of 3×3 pixels.

    Args:
        gaussians: [N]
        cameras: The first is used.
        target: Pixel (u, v).

    Raises:
        Sr3dError: The pixel is outside the image, or the Gaussians show nothing there.
    """
    u, v = target
    width, height = cameras.width, cameras.height
    if not (0 <= u <= width and 0 <= v <= height):
        raise Sr3dError("sr3d.zoom_into", "target", (u, v), f"a pixel of the first view, {width} x {height}")
    first = cameras.index([0])
    drawn = render(gaussians, first)
    column, row = min(int(u), width - 1), min(int(v), height - 1)
    window = (0, slice(max(row - _WINDOW, 0), row + _WINDOW + 1), slice(max(column - _WINDOW, 0), column + _WINDOW + 1))
    depths = drawn.depth[window][drawn.alpha[window] > _SOLID]
    if len(depths) == 0:
        raise Sr3dError("sr3d.zoom_into", "target", f"nothing at pixel {(u, v)}", "a pixel that shows a surface")
    pixel = torch.tensor([u, v, 1.0], dtype=first.K.dtype, device=first.K.device)
    cam = torch.linalg.inv(first.K[0]) @ pixel * depths.median()
    return first.cam_to_world[0, :3, :3] @ cam + first.positions[0]


def _levels(factor: int, step: int) -> int:
    """The l with stepˡ = factor."""
    level, reached = 0, 1
    while reached < factor and step > 1:
        level, reached = level + 1, reached * step
    if level == 0 or reached != factor:
        expected = f"a positive power of the network's {step}: {step}, {step**2}, {step**3}, ..."
        raise Sr3dError("sr3d.zoom_into", "factor", factor, expected)
    return level


def _level_zero(
    scene: Scene | Gaussians, cameras: Cameras | None, coarse: CoarseConfig | Gaussians | None
) -> tuple[Cameras, Gaussians]:
    if isinstance(scene, Scene):
        if isinstance(coarse, Gaussians):
            return scene.posed(), coarse
        config = coarse or CoarseConfig(source="sweep" if scene.depths is None else "depth")
        return scene.posed(), coarse_gaussians(scene, config)
    if cameras is None:
        raise Sr3dError("sr3d.zoom_into", "cameras", "none", "the views of the given Gaussians")
    return cameras, scene


def _draw(forest: Gaussians, cameras: Cameras) -> Float[Tensor, "c h w 3"]:
    """Images of the forest as a sensor would see it.

    The network must not take what shines through thin coverage for a darker surface, hence the division by alpha. Mean
    over a pixel of a larger drawing: the renderer's low-pass alone would blur the input of every level a little more.
    """
    large = cameras.resized(_SAMPLES * cameras.width, _SAMPLES * cameras.height)
    drawn = render(forest, large)
    rgb = (drawn.rgb / drawn.alpha.clamp_min(1e-3)[..., None]).clamp(0, 1)
    return torch.nn.functional.avg_pool2d(rgb.movedim(-1, 1), _SAMPLES).movedim(1, -1)


def _parents(forest: Gaussians, cameras: Cameras, level: int) -> Tensor:
    """Indices of the visible Gaussians of a level that reach into at least one frame. [P]"""
    lod = _lod(forest)
    return ((lod.level == level) & (forest.opacities > 0) & _in_frames(forest, cameras)).nonzero()[:, 0]


def _in_frames(gaussians: Gaussians, cameras: Cameras) -> Bool[Tensor, " n"]:
    """Whether a Gaussian, drawn to `_REACH` standard deviations, touches any frame."""
    pixels, depth = cameras.project(gaussians.means)
    reach = _REACH * gaussians.scales.amax(dim=-1) / cameras.footprint(depth.clamp_min(_NEAR)) + 1
    size = torch.tensor([cameras.width, cameras.height], dtype=pixels.dtype, device=pixels.device)
    near = ((pixels > -reach[..., None]) & (pixels < size + reach[..., None])).all(dim=-1)
    return (near & (depth > _NEAR)).any(dim=0)


def _refine(
    forest: Gaussians, parents: Tensor, views: Scene, network: SuperResolver, embedding: Tensor | None
) -> tuple[Gaussians, Int[Tensor, " n"]]:
    """The forest with children of those parents that have none yet, and the parent of each child."""
    lod = _lod(forest)
    fresh = lod.finer[parents] == 0
    if not fresh.any():
        return forest, parents[:0]
    # Parents that were split before take part: they hide what is behind them.
    with out_of_memory_explained("sr3d zoom", network.config, views.images):
        children, of = network.refine(forest.index(parents), views, network.config.factor, embedding)
    new = fresh[of]
    children, links = _covering(children.index(new)), parents[of[new]]
    # What has no children of its own is shown by those of another view's Gaussian: it fades out as they fade in.
    finer = lod.finer.index_copy(0, parents[fresh], lod.native[parents[fresh]] / network.config.factor)
    finer = finer.index_copy(0, links, _lod(children).native)
    return Gaussians.cat(_alike(replace(forest, lod=replace(lod, finer=finer)), children)), links


def _alike(forest: Gaussians, children: Gaussians) -> list[Gaussians]:
    """Both with features, zeros where there are none: coarse scenes have none, children of a semantic network do."""
    widths = [g.features.shape[-1] for g in (forest, children) if g.features is not None]
    if not widths:
        return [forest, children]
    return [
        g if g.features is not None else replace(g, features=g.means.new_zeros(*g.means.shape[:-1], widths[0]))
        for g in (forest, children)
    ]


def _covering(children: Gaussians) -> Gaussians:
    """Children at least `_COVER` pixels wide in their plane.

    A network learns Gaussians that are sharp at their own magnification, where the renderer's low-pass closes the gaps
    between them. A zoom goes on from there: what is thinner falls apart into a lattice with holes.
    """
    scales = children.scales
    wide = torch.maximum(scales, _COVER * _lod(children).native[..., None])
    thin = scales.argmin(dim=-1, keepdim=True)
    return replace(children, scales=wide.scatter(-1, thin, scales.gather(-1, thin)))


def _check_size(level: int, parents: int, children: int, limit: int) -> None:
    if parents * children > limit:
        found = f"level {level} needs {parents * children:,} Gaussians ({parents:,} parents, {children} children each)"
        expected = f"at most {limit:,}: reduce the views or take fewer of them, or raise max_gaussians"
        raise Sr3dError("sr3d.zoom_into", "max_gaussians", found, expected)


def _summary(forest: Gaussians, level: int, parents: int, cameras: Cameras, links: Tensor, start: float) -> ZoomLevel:
    lod = _lod(forest)
    native = lod.native[(lod.level == level) & (forest.opacities > 0)]
    return ZoomLevel(
        level=level,
        parents=parents,
        gaussians=int((lod.level == level).sum()),
        footprint=float(native.median()) if len(native) else float("nan"),
        cameras=cameras,
        links=links.cpu(),
        seconds=time.perf_counter() - start,
    )


def _lod(gaussians: Gaussians) -> Lod:
    assert gaussians.lod is not None
    return gaussians.lod
