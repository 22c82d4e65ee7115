"""One Gaussian per pixel of posed views with depth."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.coarse.config import CoarseConfig
from sr3d.coarse.depth import estimate_depth
from sr3d.coarse.surface import enlarge, enlarge_depth, normals
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians, matrix_to_quat
from sr3d.lod import Lod
from sr3d.rendering import rgb_to_sh
from sr3d.scene import Scene


def coarse_gaussians(scene: Scene, config: CoarseConfig) -> Gaussians:
    """One Gaussian per pixel, without any training.

    Always V·H·W of them, in the order view, row, column, so that scenes of one size can be batched. Each is a disc on
    the surface of its pixel, round in its own view. Pixels without a depth get opacity 0 (and any position on their
    ray). Level of detail: roots whose native footprint is that of the pixel.

    Args:
        scene: Posed views [V, H, W, 3], or a batch of them [..., V, H, W, 3].
        config: Source of depth, and size and opacity of the Gaussians.

    Returns:
        Gaussians [..., V·H·W], world frame, SH degree 0.

    Raises:
        Sr3dError: No poses, or depth cannot be had (see `estimate_depth`).
    """
    if scene.images.ndim > 4:
        return _stack([coarse_gaussians(part, config) for part in _unbatch(scene)], scene)
    depth, _ = estimate_depth(scene, config)
    return pixel_gaussians(scene.images, scene.posed(), depth, config.sigma, config.opacity, config)


def upsampled_gaussians(scene: Scene, factor: int, config: CoarseConfig) -> Gaussians:
    """The same stage on bicubically enlarged views: the baseline that a trained network has to beat.

    Args:
        scene: Posed views [V, H, W, 3], or a batch of them [..., V, H, W, 3].
        factor: Enlargement, ≥ 1.
        config: Source of depth, its enlargement, and size and opacity of the Gaussians.

    Returns:
        Gaussians [..., V·factor·H·factor·W] in the order view, row, column, world frame, SH degree 0.

    Raises:
        Sr3dError: As `coarse_gaussians`; or the factor is under 1.
    """
    if factor < 1:
        raise Sr3dError("sr3d.coarse.upsampled_gaussians", "factor", factor, "1 or more")
    if scene.images.ndim > 4:
        return _stack([upsampled_gaussians(part, factor, config) for part in _unbatch(scene)], scene)
    depth, _ = estimate_depth(scene, config)
    cameras = scene.posed()
    images = enlarge(scene.images, factor)
    depth = enlarge_depth(depth, factor, config.enlargement, images)
    cameras = cameras.resized(cameras.width * factor, cameras.height * factor)
    return pixel_gaussians(images, cameras, depth, config.upsampled_sigma, config.upsampled_opacity, config)


def pixel_gaussians(
    images: Float[Tensor, "v h w 3"],
    cameras: Cameras,
    depth: Float[Tensor, "v h w"],
    sigma: float,
    opacity: float,
    config: CoarseConfig,
) -> Gaussians:
    """Discs on the surfaces that `depth` describes, one for each pixel.

    Args:
        images: Colours in [0, 1]. [V, H, W, 3]
        cameras: V views of that size.
        depth: z-depth, world units; pixels of depth 0 get opacity 0. [V, H, W]
        sigma: In-plane standard deviation in pixels.
        opacity: Of the others.
        config: Thickness and stretch.

    Returns:
        Gaussians [V·H·W] in the order view, row, column, world frame, SH degree 0, roots of a level of detail.
    """
    known = depth > 0
    # Unknown pixels still need a place: the typical depth keeps bounds of the scene sensible.
    stand_in = depth[known].median() if known.any() else torch.ones_like(depth[0, 0, 0])
    depth = torch.where(known, depth, stand_in)
    means = cameras.unproject(depth).to(images)
    axes, cosine = _frames(normals(depth, cameras), cameras)
    native = cameras.footprint(depth.flatten(1)).reshape_as(depth)
    across = sigma * native
    along = across / cosine.clamp_min(1 / config.max_stretch)
    scales = torch.stack([along, across, config.thickness * across], dim=-1)
    return Gaussians(
        means=means.reshape(-1, 3),
        quats=matrix_to_quat(axes).reshape(-1, 4).to(images),
        scales=scales.reshape(-1, 3).to(images),
        opacities=(known * opacity).reshape(-1).to(images),
        sh=rgb_to_sh(images).reshape(-1, 1, 3),
        lod=Lod.roots(native.reshape(-1).to(images)),
    )


def _frames(
    normal: Float[Tensor, "v h w 3"], cameras: Cameras
) -> tuple[Float[Tensor, "v h w 3 3"], Float[Tensor, "v h w"]]:
    """Right-handed axes (down the slope, across it, normal) as columns, and the cosine of normal and view ray."""
    _, rays = cameras.world_rays()
    cosine = -(normal * rays).sum(-1)
    slope = rays + cosine[..., None] * normal
    right = cameras.world_to_cam[:, None, None, 0, :3].expand_as(normal)
    right = right - (right * normal).sum(-1, keepdim=True) * normal
    # Seen head-on no direction is steepest: any tangent will do.
    tangent = F.normalize(torch.where(slope.norm(dim=-1, keepdim=True) > 1e-3, slope, right), dim=-1)
    return torch.stack([tangent, torch.linalg.cross(normal, tangent), normal], dim=-1), cosine


def _unbatch(scene: Scene) -> list[Scene]:
    """The scenes of a batch (all leading axes flattened)."""
    cameras = scene.posed()
    lead = scene.images.ndim - 4
    images = scene.images.flatten(0, lead - 1)
    poses, K = cameras.world_to_cam.flatten(0, lead - 1), cameras.K.flatten(0, lead - 1)
    depths = None if scene.depths is None else scene.depths.flatten(0, lead - 1)
    return [
        Scene(
            images=images[i],
            cameras=replace(cameras, world_to_cam=poses[i], K=K[i]),
            depths=None if depths is None else depths[i],
            points=scene.points,
            name=scene.name,
        )
        for i in range(len(images))
    ]


def _stack(parts: list[Gaussians], scene: Scene) -> Gaussians:
    """Gaussians of equal count under the leading axes of `scene`."""
    lead = scene.images.shape[:-4]

    def join(tensors: list[Tensor]) -> Tensor:
        return torch.stack(tensors).unflatten(0, lead)

    lods = [p.lod for p in parts if p.lod is not None]
    return Gaussians(
        means=join([p.means for p in parts]),
        quats=join([p.quats for p in parts]),
        scales=join([p.scales for p in parts]),
        opacities=join([p.opacities for p in parts]),
        sh=join([p.sh for p in parts]),
        lod=Lod.roots(join([lod.native for lod in lods])),
    )
