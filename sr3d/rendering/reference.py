"""The renderer in plain PyTorch, any floating type: slow, and obviously right."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sr3d.gaussians import quat_to_matrix
from sr3d.rendering import constants as const
from sr3d.rendering.sh import sh_to_rgb

# Pixel × Gaussian values held at a time; bounds memory, does not change results.
_CHUNK = 1 << 24


def covariances(quats: Float[Tensor, "*shape 4"], scales: Float[Tensor, "*shape 3"]) -> Float[Tensor, "*shape 3 3"]:
    """Σ = R S Sᵀ Rᵀ, world frame, world units². [..., 3, 3]"""
    M = quat_to_matrix(quats) * scales[..., None, :]
    return M @ M.transpose(-1, -2)


def project(
    means: Float[Tensor, "n 3"],
    covars: Float[Tensor, "n 3 3"],
    world_to_cam: Float[Tensor, "4 4"],
    K: Float[Tensor, "3 3"],
    width: int,
    height: int,
) -> tuple[Float[Tensor, "n 2"], Float[Tensor, "n 2 2"], Float[Tensor, " n"]]:
    """EWA projection of Gaussians in front of the camera.

    Returns:
        Pixel centres [N, 2], covariances in px² without the low-pass [N, 2, 2], z-depths in world units [N].
    """
    rotation = world_to_cam[:3, :3]
    cam = means @ rotation.T + world_to_cam[:3, 3]
    x, y, z = cam.unbind(-1)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    # Far outside the frame the linearisation explodes: gsplat evaluates it at the frame's border plus a margin.
    margin_x, margin_y = const.EWA_MARGIN * 0.5 * width / fx, const.EWA_MARGIN * 0.5 * height / fy
    tx = z * torch.minimum(torch.maximum(x / z, -(cx / fx + margin_x)), (width - cx) / fx + margin_x)
    ty = z * torch.minimum(torch.maximum(y / z, -(cy / fy + margin_y)), (height - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    J = torch.stack([fx / z, zero, -fx * tx / z**2, zero, fy / z, -fy * ty / z**2], dim=-1).unflatten(-1, (2, 3))
    covars2d = J @ rotation @ covars @ rotation.T @ J.transpose(-1, -2)
    means2d = torch.stack([fx * x / z + cx, fy * y / z + cy], dim=-1)
    return means2d, covars2d, z


def _rasterize_view(
    means: Tensor,
    covars: Tensor,
    opacities: Tensor,
    sh: Tensor,
    features: Tensor | None,
    world_to_cam: Tensor,
    K: Tensor,
    width: int,
    height: int,
    antialias: bool,
) -> tuple[Tensor, Tensor]:
    """One view: channels (rgb, depth, features) composited front to back [H, W, 4 + D], and alpha [H, W]."""
    depth_of_all = (means @ world_to_cam[2, :3] + world_to_cam[2, 3]).detach()
    order = torch.argsort(depth_of_all, stable=True)
    order = order[(depth_of_all[order] > const.NEAR) & (depth_of_all[order] < const.FAR)]
    means, covars, opacities, sh = means[order], covars[order], opacities[order], sh[order]

    means2d, covars2d, depths = project(means, covars, world_to_cam, K, width, height)
    blurred = covars2d + const.EPS2D * torch.eye(2, dtype=means.dtype, device=means.device)
    det = torch.linalg.det(blurred).clamp_min(1e-10)
    if antialias:
        opacities = opacities * (torch.linalg.det(covars2d) / det).clamp_min(const.RATIO_MIN).sqrt()
    camera = -world_to_cam[:3, :3].T @ world_to_cam[:3, 3]
    rgb = sh_to_rgb(sh, torch.nn.functional.normalize(means - camera, dim=-1))
    channels = [rgb, depths[:, None]] + ([] if features is None else [features[order]])
    values = torch.cat(channels, dim=-1)

    v, u = torch.meshgrid(
        torch.arange(height, dtype=means.dtype, device=means.device) + 0.5,
        torch.arange(width, dtype=means.dtype, device=means.device) + 0.5,
        indexing="ij",
    )
    images, alphas = [], []
    for pixels in torch.stack([u, v], dim=-1).reshape(-1, 2).split(max(1, _CHUNK // max(1, len(means)))):
        d = pixels[:, None] - means2d[None]  # [P, N, 2]
        quadratic = (
            blurred[:, 1, 1] * d[..., 0] ** 2
            - (blurred[:, 0, 1] + blurred[:, 1, 0]) * d[..., 0] * d[..., 1]
            + blurred[:, 0, 0] * d[..., 1] ** 2
        ) / det
        alpha = (opacities * torch.exp(-0.5 * quadratic)).clamp_max(const.ALPHA_MAX)
        alpha = torch.where(alpha < const.ALPHA_MIN, torch.zeros_like(alpha), alpha)
        after = torch.cumprod(1 - alpha, dim=-1)
        before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], dim=-1)
        weights = torch.where(after > const.TRANSMITTANCE_MIN, alpha * before, torch.zeros_like(alpha))
        images.append(weights @ values)
        alphas.append(weights.sum(dim=-1))
    return torch.cat(images).reshape(height, width, -1), torch.cat(alphas).reshape(height, width)


def rasterize(
    means: Float[Tensor, "b n 3"],
    quats: Float[Tensor, "b n 4"],
    scales: Float[Tensor, "b n 3"],
    opacities: Float[Tensor, "b c n"],
    sh: Float[Tensor, "b n k 3"],
    features: Float[Tensor, "b n d"] | None,
    world_to_cam: Float[Tensor, "b c 4 4"],
    K: Float[Tensor, "b c 3 3"],
    width: int,
    height: int,
    antialias: bool,
) -> tuple[Float[Tensor, "b c h w channels"], Float[Tensor, "b c h w"]]:
    """The contract of every backend: splat B scenes into C views each; differentiable in every tensor but `K`.

    Args:
        means: Centres, world frame. [B, N, 3]
        quats: wxyz, any norm > 0. [B, N, 4]
        scales: World units. [B, N, 3]
        opacities: One value per view, level of detail already applied. [B, C, N]
        sh: Spherical-harmonic colour. [B, N, K, 3]
        features: Further channels. [B, N, D]
        world_to_cam: OpenCV axes. [B, C, 4, 4]
        K: Pixels. [B, C, 3, 3]
        width: Pixels.
        height: Pixels.
        antialias: Scale opacity by the area that the 0.3 px² low-pass adds (gsplat's antialiased mode).

    Returns:
        Accumulated (alpha-weighted, no background) rgb, z-depth and features [B, C, H, W, 4 + D], and alpha
        [B, C, H, W].
    """
    covars = covariances(quats, scales)
    images, alphas = [], []
    for b in range(means.shape[0]):
        for c in range(K.shape[1]):
            image, alpha = _rasterize_view(
                means[b],
                covars[b],
                opacities[b, c],
                sh[b],
                None if features is None else features[b],
                world_to_cam[b, c],
                K[b, c],
                width,
                height,
                antialias,
            )
            images.append(image)
            alphas.append(alpha)
    shape = (means.shape[0], K.shape[1])
    return torch.stack(images).unflatten(0, shape), torch.stack(alphas).unflatten(0, shape)
