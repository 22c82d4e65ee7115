"""The renderer in plain PyTorch, any floating type: slow, and obviously right."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sr3d.gaussians import Lod, quat_to_matrix
from sr3d.lod import Forest, fade, visibility
from sr3d.lod.checks import check_footprints
from sr3d.rendering import constants as const
from sr3d.rendering.job import Raster, Splats, Views
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


def rasterize(splats: Splats, views: Views) -> Raster:
    """The contract of every backend: splat B scenes into C views each; differentiable in every tensor but `K`.

    Computes in the wider of the types of means and poses; returns the type of the means.
    """
    if splats.lod is not None and views.fade is not None:
        check_footprints("sr3d.render", splats.lod)
    dtype = torch.promote_types(splats.means.dtype, views.world_to_cam.dtype)
    out = []
    for b, (first, last) in enumerate(zip(splats.offsets, splats.offsets[1:])):
        scene = [None if t is None else t[first:last].to(dtype) for t in _tensors(splats)]
        lod = None if splats.lod is None else splats.lod.index(slice(first, last))
        for c in range(views.K.shape[1]):
            out.append(_rasterize_view(scene, lod, views.world_to_cam[b, c].to(dtype), views.K[b, c].to(dtype), views))
    if not out:  # no views
        shape = (*views.K.shape[:2], views.height, views.width)
        channels = 4 + (0 if splats.features is None else splats.features.shape[-1])
        empty = splats.means.new_zeros(shape)
        ids = torch.zeros(shape, dtype=torch.int64, device=empty.device)
        return Raster(image=empty[..., None].expand(*shape, channels), alpha=empty, median_depth=empty, ids=ids)
    image, alpha, median, ids = (torch.stack(t).unflatten(0, views.K.shape[:2]) for t in zip(*out))
    image, alpha, median = (t.to(splats.means.dtype) for t in (image, alpha, median))
    return Raster(image=image, alpha=alpha, median_depth=median, ids=ids)


def rasterize_forest(forest: Forest, views: Views, features: bool) -> Raster:
    """All levels as one set of Gaussians in float64, none skipped. B = 1; `ids` are rows of the forest."""
    g = forest.gaussians(torch.float64)
    splats = Splats(
        means=g.means,
        quats=g.quats,
        scales=g.scales,
        opacities=g.opacities,
        sh=g.sh,
        features=g.features if features else None,
        lod=g.lod,
        offsets=[0, len(g)],
    )
    return rasterize(splats, views)


def _tensors(splats: Splats) -> list[Tensor | None]:
    return [splats.means, splats.quats, splats.scales, splats.opacities, splats.sh, splats.features]


def _rasterize_view(
    scene: list[Tensor | None], lod: Lod | None, world_to_cam: Tensor, K: Tensor, views: Views
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One view: channels (rgb, depth, features) composited front to back [H, W, 4 + D], alpha, median depth, ids."""
    means, quats, scales, opacities, sh = (_some(t) for t in scene[:5])
    features = scene[5]
    depth_of_all = (means @ world_to_cam[2, :3] + world_to_cam[2, 3]).detach()
    order = torch.argsort(depth_of_all, stable=True)
    order = order[(depth_of_all[order] > views.near) & (depth_of_all[order] < const.FAR)]
    means, opacities, sh = means[order], opacities[order], sh[order]
    covars = covariances(quats[order], scales[order])

    means2d, covars2d, depths = project(means, covars, world_to_cam, K, views.width, views.height)
    if lod is not None and views.fade is not None:
        footprint = depths / (K[0, 0] * K[1, 1]).sqrt()
        opacities = fade(opacities, visibility(lod.index(order), footprint), views.fade)
    blurred = covars2d + const.EPS2D * torch.eye(2, dtype=means.dtype, device=means.device)
    det = torch.linalg.det(blurred).clamp_min(1e-10)
    if views.antialias:
        opacities = opacities * (torch.linalg.det(covars2d) / det).clamp_min(const.RATIO_MIN).sqrt()
    camera = -world_to_cam[:3, :3].T @ world_to_cam[:3, 3]
    rgb = sh_to_rgb(sh, torch.nn.functional.normalize(means - camera, dim=-1))
    channels = [rgb, depths[:, None]] + ([] if features is None else [features[order]])
    values = torch.cat(channels, dim=-1)

    v, u = torch.meshgrid(
        torch.arange(views.height, dtype=means.dtype, device=means.device) + 0.5,
        torch.arange(views.width, dtype=means.dtype, device=means.device) + 0.5,
        indexing="ij",
    )
    parts = []
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
        parts.append((weights @ values, weights.sum(dim=-1), *_inspect(weights, depths, order)))
    image, alpha, median, ids = (torch.cat(t).unflatten(0, (views.height, views.width)) for t in zip(*parts))
    return image, alpha, median, ids


@torch.no_grad()
def _inspect(weights: Tensor, depths: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Median depth and id of every pixel from its weights, near to far. [P, N] → [P], [P]"""
    if weights.shape[1] == 0:
        return weights.new_zeros(len(weights)), torch.full((len(weights),), -1, device=weights.device)
    crossed = 1 - weights.cumsum(dim=1) <= 0.5
    median = torch.where(crossed.any(dim=1), depths[crossed.to(torch.uint8).argmax(dim=1)], 0)
    strongest, at = weights.max(dim=1)
    return median, torch.where(strongest > 0, order[at], -1)


def _some(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
