"""The zoom loop: at every level what the frame of that magnification shows is split into finer Gaussians."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.coarse import CoarseConfig, coarse_gaussians
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.lod import Forest
from sr3d.models import SuperResolver, with_lod
from sr3d.scene import Scene
from sr3d.zoom.agreement import RejectConfig
from sr3d.zoom.aim import aim
from sr3d.zoom.frontier import visible
from sr3d.zoom.level import Guides, Step, ZoomLevel, grow, level_zero_record, padded_to
from sr3d.zoom.makers import LevelMaker, Predictor
from sr3d.zoom.path import zoom_centers
from sr3d.zoom.target import Target, as_target
from sr3d.zoom.viewpoints import neighbours

MAX_GAUSSIANS = 4_000_000
_ROUNDING = 2.0**-24  # of float32, relative


@dataclass(kw_only=True)
class ZoomConfig:
    """How a zoom is made.

    Attributes:
        views: Most frames of a level: the first view, and its nearest neighbours that see the target.
        reject: When children that other views contradict fade; None: never.
        trust: Share of what the network adds to its scaffold that counts where a level is made from drawings of the
            level before, 0 to 1: detail that is guessed on top of guesses overshoots. On eight procedural validation
            worlds 0, 0.25, 0.5 and 1 gained 1.91, 1.90, 1.87 and 1.83 dB at 16×, and 1.19, 1.11, 1.12 and 0.90 at 64×.
        max_gaussians: Largest level.
        seed: Of providers.
    """

    views: int = 4
    reject: RejectConfig | None = field(default_factory=RejectConfig)
    trust: float = 0.25
    max_gaussians: int = MAX_GAUSSIANS
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("views", "max_gaussians"):
            if getattr(self, name) < 1:
                raise Sr3dError("sr3d.zoom_into", name, getattr(self, name), "1 or more")
        if not 0 <= self.trust <= 1:
            raise Sr3dError("sr3d.zoom_into", "trust", self.trust, "0 to 1")


@torch.no_grad()
def zoom_into(
    scene: Scene | Gaussians | Forest,
    target: Target | tuple[int | float, ...],
    factor: int,
    *,
    network: SuperResolver | None = None,
    maker: LevelMaker | None = None,
    coarse: CoarseConfig | Gaussians | None = None,
    cameras: Cameras | None = None,
    embedding: Float[Tensor, " e"] | None = None,
    guides: Guides | None = None,
    config: ZoomConfig | None = None,
    on_level: Callable[[ZoomLevel], None] | None = None,
) -> Gaussians:
    """Add levels of detail around a target, by forward passes of one network (WonderZoom A1).

    Level 0 is the coarse scene. Level l = 1 .. log_f(factor), f being the maker's factor, splits every level l − 1
    Gaussian inside a frame at magnification fˡ⁻¹ about the target. That is all such a frame shows, so between fˡ⁻¹ and
    fˡ every visible parent has its children, and the pair cross-fades without a border. The network sees the given
    images at level 1 and drawings of the forest so far after that. Stored Gaussians never change, except that
    `lod.finer` of a parent is set to the footprint of its children.

    Args:
        scene: Posed views; or Gaussians in the world frame [N] or a forest, together with `cameras`. What carries
            levels already is extended: what was split before is not split again, so a second target makes a branch.
        target: Pixel (u, v) of the first view, pixel centres at +0.5; world point (x, y, z); `Box`; or `Query`.
        factor: Magnification up to which detail is added; a positive power of the maker's factor.
        network: Makes every level (`Predictor`); used as it is, on its own device.
        maker: Takes its place: `Untrained`, `Optimiser`.
        coarse: Coarse stage of a `Scene`, or what it has made of it; by default its depths where it has them, else
            plane-sweep stereo.
        cameras: Views of given Gaussians, at the resolution that their detail is good for. [C]
        embedding: What a network with conditioning is told at every level; `guides` decide it where they are given.
        guides: Words, and networks that propose pixels.
        config: Frames, checks and limits.
        on_level: Called after every level, level 0 included.

    Returns:
        All levels, with `lod`, in the order of their levels.

    Raises:
        Sr3dError: The factor is no power of the maker's, the target cannot be found (see `aim`), Gaussians come
            without cameras, a level would exceed `max_gaussians`, the scene cannot be used (see `coarse_gaussians`,
            `SuperResolver.refine`), or a provider fails.
    """
    if maker is None:
        if network is None:
            raise Sr3dError("sr3d.zoom_into", "network, maker", "neither", "one of them")
        maker = Predictor(network)
    config = config or ZoomConfig()
    levels = count_levels(factor, maker.factor)
    images = scene.images if isinstance(scene, Scene) else None
    views, forest = plant(scene, cameras, coarse, maker.network)
    point = aim(as_target(target), forest, views, maker.network, guides)
    check_reach(views, point, factor)
    for level in range(1, levels + 1):
        step = next_step(forest, level, views, images if level == 1 else None, point, maker, config, level == levels)
        if level == 1 and on_level is not None:
            on_level(level_zero_record(forest, views))
        forest, record = grow(forest, step, maker, config.reject, guides, embedding, config.seed)
        if on_level is not None:
            on_level(record)
    return forest.gaussians()


def count_levels(factor: int, step: int) -> int:
    """The l with stepˡ = factor.

    Raises:
        Sr3dError: There is none above 0.
    """
    level, reached = 0, 1
    while reached < factor and step > 1:
        level, reached = level + 1, reached * step
    if level == 0 or reached != factor:
        expected = f"a positive power of the network's {step}: {step}, {step**2}, {step**3}, ..."
        raise Sr3dError("sr3d.zoom_into", "factor", factor, expected)
    return level


def plant(
    scene: Scene | Gaussians | Forest,
    cameras: Cameras | None,
    coarse: CoarseConfig | Gaussians | None,
    network: SuperResolver,
) -> tuple[Cameras, Forest]:
    """The views, and a forest of level 0 or of what Gaussians carry, with room for the network's colours and features.

    Raises:
        Sr3dError: Gaussians come without cameras, or the scene cannot be used (see `coarse_gaussians`).
    """
    if isinstance(scene, Scene):
        views = scene.posed()
        if isinstance(coarse, Gaussians):
            gaussians = coarse
        else:
            chosen = coarse or CoarseConfig(source="sweep" if scene.depths is None else "depth")
            gaussians = coarse_gaussians(scene, chosen)
    elif cameras is None:
        raise Sr3dError("sr3d.zoom_into", "cameras", "none", "the views of the given Gaussians")
    elif isinstance(scene, Forest):
        return cameras.to("cpu"), scene.to("cpu")
    else:
        views, gaussians = cameras, scene
    return views.to("cpu"), Forest.from_gaussians(padded_to(with_lod(gaussians, views).to("cpu"), network))


def next_step(
    forest: Forest,
    level: int,
    views: Cameras,
    images: Float[Tensor, "v h w 3"] | None,
    point: Float[Tensor, 3],
    maker: LevelMaker,
    config: ZoomConfig,
    last: bool,
) -> Step:
    """What a level will be made from: the zoomed frames, and what they see.

    Args:
        forest: So far.
        level: To be made, from 1 on.
        views: All cameras, the first one shown. [V]
        images: What they photographed, where this level is made from photographs. [V, h, w, 3]
        point: Target, world frame, float64.
        maker: Of the level.
        config: Number of frames and largest level.
        last: Whether no further level is asked for.

    Raises:
        Sr3dError: The level would be too large.
    """
    magnification = float(maker.factor ** (level - 1))
    exact = views.to(torch.float64)
    centers, _ = zoom_centers(point, exact)
    chosen = neighbours(exact, point, config.views)
    frames = exact.index(chosen).zoomed(magnification, centers[chosen])
    step = Step(
        level=level,
        magnification=magnification,
        frames=frames,
        images=None if images is None else images[chosen].cpu(),
        seen=visible(forest, frames, point),
        point=point,
        last=last,
        trust=1.0 if images is not None else config.trust,
    )
    fresh, children = int(step.fresh.sum()), maker.children
    if fresh * children > config.max_gaussians:
        found = f"level {level} needs {fresh * children:,} Gaussians ({fresh:,} parents, {children} children each)"
        expected = f"at most {config.max_gaussians:,}: reduce the views or take fewer of them, or raise max_gaussians"
        raise Sr3dError("sr3d.zoom_into", "max_gaussians", found, expected)
    return step


def check_reach(views: Cameras, point: Float[Tensor, 3], factor: int) -> None:
    """Raise where the network, which computes in float32, could not tell neighbouring pixels apart.

    Args:
        views: The first one is zoomed. [V]
        point: Target, world frame, float64.
        factor: Final magnification.

    Raises:
        Sr3dError: An eighth of a pixel of the last level is less than a rounding error of its distance.
    """
    away = (views.positions[0].double() - point).norm()
    pixel = away / (views.focal[0].double() * factor)
    if float(away * _ROUNDING) > float(pixel) / 8:
        most = 1 / (8 * _ROUNDING * float(views.focal[0]))
        raise Sr3dError("sr3d.zoom_into", "factor", factor, f"{most:,.0f} or less: float32 has no digits for more")
