"""The one public rendering function."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.lod import FadeMode, Forest
from sr3d.rendering import constants as const
from sr3d.rendering.job import Raster, Splats, Views

Backend = Literal["auto", "cpu", "cuda", "reference"]


@dataclass(kw_only=True)
class Rendering:
    """Images of C views.

    Attributes:
        rgb: Colour over the background; not clamped above. [..., C, H, W, 3]
        alpha: 1 − transmittance. [..., C, H, W]
        depth: Expected z-depth in world units, 0 where alpha is 0. [..., C, H, W]
        features: Alpha-weighted sum of features. [..., C, H, W, D]
        median_depth: z-depth of the Gaussian that brings the transmittance to ½ or below, world units; 0 where none
            does. No gradient. [..., C, H, W]
        ids: Index of the Gaussian with the largest weight (of a forest: its row; of packed scenes: counted from the
            scene's first), the nearest of equals; −1 where nothing is drawn. [..., C, H, W]
    """

    rgb: Float[Tensor, "*batch c h w 3"]
    alpha: Float[Tensor, "*batch c h w"]
    depth: Float[Tensor, "*batch c h w"]
    features: Float[Tensor, "*batch c h w d"] | None = None
    median_depth: Float[Tensor, "*batch c h w"] | None = None
    ids: Int[Tensor, "*batch c h w"] | None = None


def choose_backend(device: torch.device | str) -> tuple[Backend, str]:
    """The backend that `auto` takes for tensors on `device`, and the reason in words."""
    if torch.device(device).type == "cuda":
        return "cuda", "the Gaussians are on a CUDA device: gsplat"
    if torch.cuda.is_available():
        return "cpu", "the Gaussians are in CPU memory: Numba rasteriser (move them to 'cuda' for gsplat)"
    return "cpu", "no CUDA device: Numba rasteriser"


def render(
    gaussians: Gaussians | Forest,
    cameras: Cameras,
    *,
    background: Float[Tensor, 3] | None = None,
    features: bool = False,
    antialias: bool = False,
    lod: bool | FadeMode = True,
    median_depth: bool = False,
    ids: bool = False,
    near: float | None = None,
    offsets: Sequence[int] | Int[Tensor, " scenes"] | None = None,
    backend: Backend = "auto",
) -> Rendering:
    """Draw Gaussians into every camera: EWA splatting with gsplat 1.5's conventions, one pass for all channels.

    Gradients flow to means, quats, scales, opacities, sh, features and `cameras.world_to_cam`, through the cross-fade
    too; a forest is drawn without gradients. Poses and K may be float64, and are used as such: together with a forest
    or float64 means, focal lengths up to 10⁹ pixels keep their precision.

    Args:
        gaussians: N Gaussians, world frame. Batch axes [...] must equal those of the cameras. Or a forest, of which
            only the blocks that the cameras see are visited.
        cameras: C views per batch element, OpenCV frame, K in pixels.
        background: Colour behind everything, black if None. [3]
        features: Also draw `gaussians.features`, any number of channels.
        antialias: Compensate opacity for the 0.3 px² screen-space low-pass (gsplat's antialiased mode).
        lod: Cross-fade levels of detail where they are there. True means "minimax"; "linear" is the papers'
            (WonderZoom Eq. 2-3, GaussianZoom Eq. 9); False draws all levels at once.
        median_depth: Also return the depth at which half of the light is stopped.
        ids: Also return which Gaussian contributes most to each pixel.
        near: z-depth below which nothing is drawn, world units. By default 0.01; for a forest 0.01 divided by the
            magnification of its finest level, so that a camera can move up to what was zoomed into.
        offsets: For scenes of different sizes: `gaussians` [N] are those of B scenes end to end, scene b being rows
            offsets[b] to offsets[b + 1], and the cameras have one batch axis [B, C]. [B + 1]
        backend: "auto" takes gsplat for CUDA tensors, the Numba rasteriser else.

    Returns:
        Images of every view, in the dtype of `gaussians.means`; of a forest float32 (float64 by the reference).

    Raises:
        Sr3dError: Batch axes or lengths disagree, footprints are NaN, not positive or out of order, K has no positive
            focal lengths, `features` is asked of Gaussians that have none, the background has
            another shape, SH has a count that is no square up to 16, K has skew, offsets do not cover the Gaussians,
            `near` is not positive, gradients are asked of a forest's cameras, a mapped file has changed, or the
            backend cannot run here.
    """
    if isinstance(gaussians, Forest):
        return _render_forest(gaussians, cameras, background, features, antialias, lod, median_depth, ids, near,
                              offsets, backend)  # fmt: skip
    _check(gaussians, cameras, background, features, near, lod, offsets)
    rasterize = _backend(backend, gaussians.means.device).rasterize
    batch = cameras.K.shape[:-3]
    # The batch axes of Gaussians and packed scenes are the same thing: rows end to end.
    size = batch.numel() if offsets is None else 1
    rows = gaussians if offsets is not None else _flat(gaussians, size * len(gaussians))
    ends = [len(gaussians) * b for b in range(size + 1)] if offsets is None else [int(o) for o in offsets]
    splats = Splats(
        means=rows.means,
        quats=rows.quats,
        scales=rows.scales,
        opacities=rows.opacities,
        sh=rows.sh,
        features=rows.features if features else None,
        lod=rows.lod,
        offsets=ends,
    )
    views = _views(cameras.to(splats.means.device), antialias, lod, const.NEAR if near is None else near,
                   median_depth or ids)  # fmt: skip
    return _finish(rasterize(splats, views), batch, background, features, median_depth, ids)


def _render_forest(
    forest: Forest,
    cameras: Cameras,
    background: Tensor | None,
    features: bool,
    antialias: bool,
    lod: bool | FadeMode,
    median_depth: bool,
    ids: bool,
    near: float | None,
    offsets: object,
    backend: Backend,
) -> Rendering:
    _check(forest.levels[0].gaussians, cameras, background, features, near, lod, None)
    if offsets is not None:
        raise Sr3dError("sr3d.render", "offsets", "given for a forest", "None")
    if torch.is_grad_enabled() and cameras.world_to_cam.requires_grad:
        found = "cameras that need gradients, for a forest"
        raise Sr3dError("sr3d.render", "cameras", found, "forest.gaussians(), or torch.no_grad()")
    if forest.source is not None:
        forest.source.check()
    device = forest.levels[0].parents.device
    chosen = _backend(backend, device)
    nearest = const.NEAR / max(1.0, forest.magnification) if near is None else near
    views = _views(cameras.to(device), antialias, lod, nearest, median_depth or ids)
    raster = chosen.rasterize_forest(forest, views, features)
    return _finish(raster, cameras.K.shape[:-3], background, features, median_depth, ids)


def _flat(gaussians: Gaussians, rows: int) -> Gaussians:
    """Batch axes merged into the axis of the Gaussians."""

    def merged(t: Tensor | None, trailing: int) -> Tensor | None:
        return None if t is None else t.reshape(rows, *t.shape[t.ndim - trailing :])

    g = gaussians
    return Gaussians(
        means=_some(merged(g.means, 1)),
        quats=_some(merged(g.quats, 1)),
        scales=_some(merged(g.scales, 1)),
        opacities=_some(merged(g.opacities, 0)),
        sh=_some(merged(g.sh, 2)),
        features=merged(g.features, 1),
        lod=None if g.lod is None else g.lod.map(lambda t: t.reshape(rows)),
    )


def _some(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def _views(cameras: Cameras, antialias: bool, lod: bool | FadeMode, near: float, inspect: bool) -> Views:
    scenes = cameras.K.shape[:-3].numel()
    return Views(
        world_to_cam=cameras.world_to_cam.reshape(scenes, len(cameras), 4, 4),
        K=cameras.K.reshape(scenes, len(cameras), 3, 3),
        width=cameras.width,
        height=cameras.height,
        antialias=antialias,
        near=float(near),
        fade="minimax" if lod is True else lod or None,
        inspect=inspect,
    )


def _finish(
    raster: Raster, batch: Sequence[int], background: Tensor | None, features: bool, median_depth: bool, ids: bool
) -> Rendering:
    """Batch axes back in place, expected depth, background."""

    def shaped(t: Tensor) -> Tensor:
        return t.reshape(*batch, *t.shape[1:])

    image, alpha = shaped(raster.image), shaped(raster.alpha)
    rgb, depth = image[..., :3], image[..., 3]
    if background is not None:
        rgb = rgb + (1 - alpha[..., None]) * background.to(rgb)
    return Rendering(
        rgb=rgb,
        alpha=alpha,
        depth=torch.where(alpha > 0, depth / alpha.clamp_min(1e-10), torch.zeros_like(depth)),
        features=image[..., 4:] if features else None,
        median_depth=shaped(_some(raster.median_depth)) if median_depth else None,
        ids=shaped(_some(raster.ids)) if ids else None,
    )


def _backend(backend: str, device: torch.device) -> ModuleType:
    """The module with `rasterize` and `rasterize_forest`."""
    name = choose_backend(device)[0] if backend == "auto" else backend
    if name not in ("cpu", "cuda", "reference"):
        raise Sr3dError("sr3d.render", "backend", repr(name), "'auto', 'cpu', 'cuda' or 'reference'")
    if name == "cpu" and device.type != "cpu":
        raise Sr3dError("sr3d.render", "backend", f"'cpu' for tensors on {device}", "tensors in CPU memory")
    if name == "cuda" and device.type != "cuda":
        raise Sr3dError("sr3d.render", "backend", f"'cuda' for tensors on {device}", "tensors on a CUDA device")
    return importlib.import_module(f"sr3d.rendering.{name}")


def _check(
    gaussians: Gaussians,
    cameras: Cameras,
    background: Tensor | None,
    features: bool,
    near: float | None,
    lod: object,
    offsets: Sequence[int] | Tensor | None,
) -> None:
    where = "sr3d.render"
    if lod not in (True, False, "minimax", "linear"):
        raise Sr3dError(where, "lod", repr(lod), "True, False, 'minimax' or 'linear'")
    if offsets is not None:
        kind = torch.as_tensor(offsets)
        if kind.ndim != 1 or kind.is_floating_point():
            raise Sr3dError(where, "offsets", f"{kind.dtype} of shape {tuple(kind.shape)}", "whole numbers [B + 1]")
    batch = gaussians.means.shape[:-2] if offsets is None else (len(offsets) - 1,)
    if batch != cameras.K.shape[:-3] or (offsets is not None and gaussians.means.ndim != 2):
        found = f"Gaussians {tuple(gaussians.means.shape[:-2])}, cameras {tuple(cameras.K.shape[:-3])}"
        expected = "the same" if offsets is None else f"Gaussians (), cameras {tuple(batch)}"
        raise Sr3dError(where, "batch axes", found, expected)
    count = gaussians.opacities.shape
    native = None if gaussians.lod is None else gaussians.lod.native
    for field, tensor in (("lod", native), ("features", gaussians.features)):
        if tensor is not None and tensor.shape[: len(count)] != count:
            raise Sr3dError(where, field, tuple(tensor.shape), f"{tuple(count)}, as the opacities")
    focal = torch.stack([cameras.K[..., 0, 0], cameras.K[..., 1, 1]])
    if not (torch.isfinite(cameras.K).all() and (focal > 0).all()):
        raise Sr3dError(where, "K", "NaN, infinity or a focal length <= 0", "finite, fx and fy > 0")
    if offsets is not None:
        ends = [int(o) for o in offsets]
        if len(ends) < 2 or ends[0] != 0 or ends[-1] != len(gaussians) or sorted(ends) != ends:
            raise Sr3dError(where, "offsets", ends, f"ascending from 0 to {len(gaussians)} (N)")
    if near is not None and not 0 < near < const.FAR:
        raise Sr3dError(where, "near", near, "a positive z-depth")
    if cameras.width < 1 or cameras.height < 1:
        raise Sr3dError(where, "width, height", (cameras.width, cameras.height), "1 or more pixels")
    if gaussians.sh.shape[-2] not in (1, 4, 9, 16):
        raise Sr3dError(where, "sh", f"{gaussians.sh.shape[-2]} coefficients", "1, 4, 9 or 16 (degree 0 to 3)")
    if cameras.K[..., 0, 1].any():
        raise Sr3dError(where, "K", "skew", "K[..., 0, 1] = 0")
    if features and gaussians.features is None:
        raise Sr3dError(where, "features", "none in the Gaussians", "Gaussians with features, or features=False")
    if background is not None and tuple(background.shape) != (3,):
        raise Sr3dError(where, "background", f"shape {tuple(background.shape)}", "shape (3,)")
