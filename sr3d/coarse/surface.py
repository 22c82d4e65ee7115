"""Slopes and normals of depth maps, and enlargement of images and depth maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.coarse.config import DepthEnlargement
from sr3d.errors import Sr3dError

# Neighbouring pixels whose inverse depths differ by more than this fraction lie on different surfaces.
JUMP = 0.08


def inverse(depth: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """1 / depth, and 0 where depth is 0 (unknown); the same function leads back."""
    return torch.where(depth > 0, 1 / depth.clamp_min(1e-30), torch.zeros_like(depth))


def slopes(inverse_depth: Float[Tensor, "v h w"]) -> tuple[Float[Tensor, "v h w"], Float[Tensor, "v h w"]]:
    """Change of inverse depth per pixel along u and along v.

    Inverse depth is linear over the image of a plane, so these are exact on planes. Neighbours that are unknown or
    across a jump are left out; a pixel with no neighbour left gets 0.
    """
    return _slope(inverse_depth, -1), _slope(inverse_depth, -2)


def _slope(q: Tensor, axis: int) -> Tensor:
    """Mean of the one-sided differences that stay on the surface; the smaller one where they disagree."""
    n = q.shape[axis]
    if n < 2:
        return torch.zeros_like(q)
    a, b = q.narrow(axis, 0, n - 1), q.narrow(axis, 1, n - 1)
    step = b - a
    same = (a > 0) & (b > 0) & (step.abs() <= JUMP * torch.minimum(a, b))
    pad_before, pad_after = ((1, 0), (0, 1)) if axis == -1 else ((0, 0, 1, 0), (0, 0, 0, 1))
    before, has_before = F.pad(step * same, pad_before), F.pad(same, pad_before)
    after, has_after = F.pad(step * same, pad_after), F.pad(same, pad_after)
    smaller = torch.where(before.abs() < after.abs(), before, after)
    # Two sides that differ by more than a quarter of a jump straddle a crease or an unmarked edge.
    agree = (before - after).abs() <= 0.25 * JUMP * q
    both = torch.where(agree, (before + after) / 2, smaller)
    return torch.where(has_before & has_after, both, before + after)


def normals(depth: Float[Tensor, "v h w"], cameras: Cameras) -> Float[Tensor, "v h w 3"]:
    """Unit surface normals facing the camera, world frame; the view direction where depth is 0.

    A plane with N·X = 1 in the camera frame has inverse depth q = N·K⁻¹p at pixel p = (u, v, 1), hence
    N = Kᵀ (q_u, q_v, q − u q_u − v q_v).
    """
    q = inverse(depth)
    q_u, q_v = slopes(q)
    K = cameras.K.to(q)
    u = torch.arange(cameras.width, dtype=q.dtype, device=q.device) + 0.5
    v = (torch.arange(cameras.height, dtype=q.dtype, device=q.device) + 0.5)[:, None]
    line = torch.stack([q_u, q_v, q - u * q_u - v * q_v], dim=-1)
    # Inverse depth may be 1e-6 or 1e6 (any world scale): normalised here by itself, away from float limits.
    line = line / torch.where(q > 0, q, torch.ones_like(q))[..., None]
    normal = -torch.einsum("vji,vhwj->vhwi", K, line)
    toward = -cameras.pixel_rays().to(q)
    normal = F.normalize(torch.where(q[..., None] > 0, normal, toward), dim=-1)
    return torch.einsum("vji,vhwj->vhwi", cameras.world_to_cam[:, :3, :3].to(q), normal)


def enlarge(images: Float[Tensor, "v h w 3"], factor: int) -> Float[Tensor, "v fh fw 3"]:
    """Bicubic enlargement by a whole factor, clamped to [0, 1]."""
    if factor == 1:
        return images
    nchw = images.movedim(-1, 1)
    large = F.interpolate(nchw, scale_factor=float(factor), mode="bicubic", align_corners=False, antialias=False)
    return large.clamp(0, 1).movedim(1, -1).contiguous()


def enlarge_depth(
    depth: Float[Tensor, "v h w"],
    factor: int,
    mode: DepthEnlargement = "edge",
    images: Float[Tensor, "v fh fw 3"] | None = None,
) -> Float[Tensor, "v fh fw"]:
    """Enlarge z-depth by a whole factor; 0 (unknown) stays 0 and is mixed into nothing.

    Args:
        depth: z-depth, world units, 0 where unknown. [V, H, W]
        factor: ≥ 1.
        mode: "nearest" repeats pixels. "bilinear" interpolates inverse depth, over edges too. "edge" continues the
            plane of the nearest pixel: exact on planes and sharp at edges, which lie on the low-resolution grid.
            "joint" chooses among the planes of the 3×3 nearest pixels by distance and by the colour of `images`, so
            that edges follow the image.
        images: Guide of "joint": the views at the enlarged size. [V, fH, fW, 3]

    Raises:
        Sr3dError: Unknown mode, or "joint" without images of the enlarged size.
    """
    height, width = depth.shape[1] * factor, depth.shape[2] * factor
    if mode == "nearest":
        return depth.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
    if mode == "bilinear":
        q = inverse(depth)[:, None]
        known = _bilinear((q > 0).to(q), factor)
        return inverse(torch.where(known > 0.5, _bilinear(q, factor) / known.clamp_min(0.5), 0))[:, 0]
    if mode == "edge":
        return inverse(_plane(depth, factor, 0, 0))
    if mode != "joint":
        raise Sr3dError("sr3d.coarse.enlarge_depth", "mode", repr(mode), "'nearest', 'bilinear', 'edge' or 'joint'")
    if images is None or tuple(images.shape[:3]) != (len(depth), height, width):
        found = "none" if images is None else tuple(images.shape)
        raise Sr3dError("sr3d.coarse.enlarge_depth", "images", found, (len(depth), height, width, 3))
    return _joint(depth, factor, images)


def _bilinear(x: Tensor, factor: int) -> Tensor:
    return F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)


def _offsets(size: int, factor: int, like: Tensor) -> Tensor:
    """Position of every enlarged pixel relative to the low-resolution pixel it lies in, in low-resolution pixels."""
    return ((torch.arange(factor, dtype=like.dtype, device=like.device) + 0.5) / factor - 0.5).repeat(size)


def _shift(x: Tensor, dy: int, dx: int) -> Tensor:
    """x[v, y + dy, x + dx] with the border repeated, for shifts of at most one."""
    h, w = x.shape[1:3]
    rows = (torch.arange(h, device=x.device) + dy).clamp(0, h - 1)
    cols = (torch.arange(w, device=x.device) + dx).clamp(0, w - 1)
    return x[:, rows][:, :, cols]


def _repeat(x: Tensor, factor: int) -> Tensor:
    return x.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)


def _plane(depth: Tensor, factor: int, dy: int, dx: int) -> Tensor:
    """Inverse depth of the plane of the low-resolution pixel (dy, dx) away, at every enlarged pixel; 0 if unknown."""
    q = inverse(depth)
    q_u, q_v = slopes(q)
    q, q_u, q_v = (_repeat(_shift(t, dy, dx), factor) for t in (q, q_u, q_v))
    v = _offsets(depth.shape[1], factor, q)[:, None] - dy
    u = _offsets(depth.shape[2], factor, q) - dx
    # A noisy slope must not carry the plane through the camera.
    return torch.where(q > 0, torch.maximum(q + u * q_u + v * q_v, 0.5 * q), 0)


def _joint(depth: Tensor, factor: int, images: Tensor, sigma_space: float = 0.6, sigma_color: float = 0.06) -> Tensor:
    """Mean of the planes that agree with the best of 3×3, weighted by distance and colour."""
    low = F.interpolate(images.movedim(-1, 1), scale_factor=1 / factor, mode="area").movedim(1, -1)
    planes, weights = [], []
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            plane = _plane(depth, factor, dy, dx)
            v = _offsets(depth.shape[1], factor, plane)[:, None] - dy
            u = _offsets(depth.shape[2], factor, plane) - dx
            color = (images - _repeat(_shift(low, dy, dx), factor)).square().mean(-1)
            weight = torch.exp(-(u**2 + v**2) / (2 * sigma_space**2) - color / (2 * sigma_color**2)) + 1e-12
            planes.append(plane)
            weights.append(torch.where(plane > 0, weight, 0))
    q, w = torch.stack(planes), torch.stack(weights)
    best = q.gather(0, w.argmax(0, keepdim=True))
    w = torch.where((q - best).abs() <= 0.25 * JUMP * best, w, 0)
    return inverse((q * w).sum(0) / w.sum(0).clamp_min(1e-12))
