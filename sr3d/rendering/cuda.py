"""The renderer on CUDA: gsplat ≥ 1.5, < 1.6, packed, all views of a scene in one call, all channels in one pass.

Built from gsplat's stages and not from its `rasterization`, which knows one opacity per Gaussian for all views (level
of detail needs one per view) and three colour channels where it evaluates SH. Scenes are drawn one by one: gsplat
1.5's backward kernels sum gradients over a warp by camera and by Gaussian index only, so with batch axes a warp that
spans two scenes credits the second one's pose and Gaussians to the first.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sr3d.rendering import constants as const
from sr3d.rendering.sh import sh_to_rgb

_TILE = 16
_CHANNELS = 32  # per rasteriser launch: more do not fit in registers


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
    """See `sr3d.rendering.reference.rasterize`; computes in float32, returns the dtype of `means`."""
    dtype = means.dtype
    means, quats, scales, opacities, sh = (t.float() for t in (means, quats, scales, opacities, sh))
    world_to_cam, K, features = world_to_cam.float(), K.float(), None if features is None else features.float()
    images, alphas = [], []
    for b in range(means.shape[0]):
        image, alpha = _rasterize_scene(
            means[b],
            quats[b],
            scales[b],
            opacities[b],
            sh[b],
            None if features is None else features[b],
            world_to_cam[b],
            K[b],
            width,
            height,
            antialias,
        )
        images.append(image)
        alphas.append(alpha)
    return torch.stack(images).to(dtype), torch.stack(alphas).to(dtype)


def _rasterize_scene(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    sh: Tensor,
    features: Tensor | None,
    world_to_cam: Tensor,
    K: Tensor,
    width: int,
    height: int,
    antialias: bool,
) -> tuple[Tensor, Tensor]:
    """C views of one scene: channels (rgb, depth, features) [C, H, W, 4 + D], and alpha [C, H, W]."""
    import gsplat

    views, channels = len(K), 4 + (0 if features is None else features.shape[-1])
    if len(means) == 0:  # gsplat divides by N
        return means.new_zeros(views, height, width, channels), means.new_zeros(views, height, width)
    _, view, index, radii, means2d, depths, conics, compensations = gsplat.fully_fused_projection(
        means,
        None,
        quats,
        scales,
        world_to_cam.contiguous(),
        K.contiguous(),
        width,
        height,
        eps2d=const.EPS2D,
        near_plane=const.NEAR,
        far_plane=const.FAR,
        packed=True,
        calc_compensations=antialias,
        opacities=opacities.detach().amax(dim=0),
    )
    # From here on every row is one Gaussian in one view that sees it.
    opacity = opacities[view, index] * (compensations if antialias else 1)
    camera = -torch.einsum("cji,cj->ci", world_to_cam[:, :3, :3], world_to_cam[:, :3, 3])
    rgb = sh_to_rgb(sh[index], torch.nn.functional.normalize(means[index] - camera[view], dim=-1))
    values = torch.cat([rgb, depths[:, None]] + ([] if features is None else [features[index]]), dim=-1)
    across, down = -(-width // _TILE), -(-height // _TILE)
    _, tile_ids, order = gsplat.isect_tiles(
        means2d, radii, depths, _TILE, across, down, packed=True, n_images=views, image_ids=view, gaussian_ids=index
    )
    offsets = gsplat.isect_offset_encode(tile_ids, views, across, down).reshape(views, down, across)
    parts = [
        gsplat.rasterize_to_pixels(means2d, conics, part, opacity, width, height, _TILE, offsets, order, packed=True)
        for part in values.split(_CHANNELS, dim=-1)
    ]
    return torch.cat([image for image, _ in parts], dim=-1), parts[0][1][..., 0]
