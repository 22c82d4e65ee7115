"""The one public rendering function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.lod import FadeMode, fade, visibility
from sr3d.rendering import constants as const

Backend = Literal["auto", "cpu", "cuda", "reference"]


@dataclass(kw_only=True)
class Rendering:
    """Images of C views.

    Attributes:
        rgb: Colour over the background; not clamped above. [..., C, H, W, 3]
        alpha: 1 − transmittance. [..., C, H, W]
        depth: Expected z-depth in world units, 0 where alpha is 0. [..., C, H, W]
        features: Alpha-weighted sum of features. [..., C, H, W, D]
    """

    rgb: Float[Tensor, "*batch c h w 3"]
    alpha: Float[Tensor, "*batch c h w"]
    depth: Float[Tensor, "*batch c h w"]
    features: Float[Tensor, "*batch c h w d"] | None = None


def choose_backend(device: torch.device | str) -> tuple[Backend, str]:
    """The backend that `auto` takes for tensors on `device`, and the reason in words."""
    if torch.device(device).type == "cuda":
        return "cuda", "the Gaussians are on a CUDA device: gsplat"
    if torch.cuda.is_available():
        return "cpu", "the Gaussians are in CPU memory: Numba rasteriser (move them to 'cuda' for gsplat)"
    return "cpu", "no CUDA device: Numba rasteriser"


def render(
    gaussians: Gaussians,
    cameras: Cameras,
    *,
    background: Float[Tensor, 3] | None = None,
    features: bool = False,
    antialias: bool = False,
    lod: bool | FadeMode = True,
    backend: Backend = "auto",
) -> Rendering:
    """Draw Gaussians into every camera: EWA splatting with gsplat 1.5's conventions, one pass for all channels.

    Gradients flow to means, quats, scales, opacities, sh, features and `cameras.world_to_cam`.

    Args:
        gaussians: N Gaussians, world frame. Batch axes [...] must equal those of the cameras.
        cameras: C views per batch element, OpenCV frame, K in pixels.
        background: Colour behind everything, black if None. [3]
        features: Also draw `gaussians.features`.
        antialias: Compensate opacity for the 0.3 px² screen-space low-pass (gsplat's antialiased mode).
        lod: Cross-fade levels of detail where `gaussians.lod` is there. True means "minimax"; "linear" is the papers'.
        backend: "auto" takes gsplat for CUDA tensors, the Numba rasteriser else.

    Returns:
        Images of every view, in the dtype of `gaussians.means`.

    Raises:
        Sr3dError: Batch axes disagree, `features` is asked of Gaussians that have none, the background has
            another shape, SH has a count that is no square up to 16, K has skew, or the backend cannot run here.
    """
    _check(gaussians, cameras, background, features)
    chosen = choose_backend(gaussians.means.device)[0] if backend == "auto" else backend
    rasterize = _backend(chosen, gaussians.means.device)
    batch = gaussians.means.shape[:-2]
    poses = cameras.world_to_cam.to(gaussians.means)
    K = cameras.K.to(gaussians.means)
    opacities = _opacities(gaussians, poses, K, lod)

    def flat(t: Tensor) -> Tensor:
        return t.reshape(batch.numel(), *t.shape[len(batch) :])

    image, alpha = rasterize(
        flat(gaussians.means),
        flat(gaussians.quats),
        flat(gaussians.scales),
        flat(opacities),
        flat(gaussians.sh),
        flat(gaussians.features) if features and gaussians.features is not None else None,
        flat(poses),
        flat(K),
        cameras.width,
        cameras.height,
        antialias,
    )
    image, alpha = image.reshape(*batch, *image.shape[1:]), alpha.reshape(*batch, *alpha.shape[1:])
    rgb, depth = image[..., :3], image[..., 3]
    if background is not None:
        rgb = rgb + (1 - alpha[..., None]) * background.to(rgb)
    return Rendering(
        rgb=rgb,
        alpha=alpha,
        depth=torch.where(alpha > 0, depth / alpha.clamp_min(1e-10), torch.zeros_like(depth)),
        features=image[..., 4:] if features else None,
    )


def _opacities(gaussians: Gaussians, poses: Tensor, K: Tensor, lod: bool | FadeMode) -> Float[Tensor, "*batch c n"]:
    """Opacity of every Gaussian in every view, level of detail applied. [..., C, N]"""
    opacities = gaussians.opacities[..., None, :].expand(*poses.shape[:-2], len(gaussians))
    if gaussians.lod is None or not lod:
        return opacities
    depth = torch.einsum("...cj,...nj->...cn", poses[..., 2, :3], gaussians.means) + poses[..., 2, 3, None]
    footprint = depth.clamp_min(const.NEAR) / (K[..., 0, 0] * K[..., 1, 1]).sqrt()[..., None]
    fields = gaussians.lod.map(lambda t: t[..., None, :])
    return fade(opacities, visibility(fields, footprint), "minimax" if lod is True else lod)


def _backend(name: str, device: torch.device) -> Callable[..., tuple[Tensor, Tensor]]:
    if name == "cpu":
        if device.type != "cpu":
            raise Sr3dError("sr3d.render", "backend", f"'cpu' for tensors on {device}", "tensors in CPU memory")
        from sr3d.rendering import cpu

        return cpu.rasterize
    if name == "cuda":
        if device.type != "cuda":
            raise Sr3dError("sr3d.render", "backend", f"'cuda' for tensors on {device}", "tensors on a CUDA device")
        from sr3d.rendering import cuda

        return cuda.rasterize
    if name == "reference":
        from sr3d.rendering import reference

        return reference.rasterize
    raise Sr3dError("sr3d.render", "backend", repr(name), "'auto', 'cpu', 'cuda' or 'reference'")


def _check(gaussians: Gaussians, cameras: Cameras, background: Tensor | None, features: bool) -> None:
    where = "sr3d.render"
    if gaussians.means.shape[:-2] != cameras.K.shape[:-3]:
        found = f"Gaussians {tuple(gaussians.means.shape[:-2])}, cameras {tuple(cameras.K.shape[:-3])}"
        raise Sr3dError(where, "batch axes", found, "the same")
    if gaussians.sh.shape[-2] not in (1, 4, 9, 16):
        raise Sr3dError(where, "sh", f"{gaussians.sh.shape[-2]} coefficients", "1, 4, 9 or 16 (degree 0 to 3)")
    if cameras.K[..., 0, 1].any():
        raise Sr3dError(where, "K", "skew", "K[..., 0, 1] = 0")
    if features and gaussians.features is None:
        raise Sr3dError(where, "features", "none in the Gaussians", "Gaussians with features, or features=False")
    if background is not None and tuple(background.shape) != (3,):
        raise Sr3dError(where, "background", f"shape {tuple(background.shape)}", "shape (3,)")
