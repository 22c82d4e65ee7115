"""The renderer on CUDA: gsplat ≥ 1.5, < 1.6, packed, all views of all scenes in one call."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sr3d.rendering import constants as const


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
    """See `sr3d.rendering.reference.rasterize`; float32 only."""
    from gsplat import rasterization

    from sr3d.rendering.sh import sh_to_rgb

    views = world_to_cam.shape[1]
    camera = -torch.einsum("bcji,bcj->bci", world_to_cam[..., :3, :3], world_to_cam[..., :3, 3])
    directions = torch.nn.functional.normalize(means[:, None] - camera[:, :, None], dim=-1)
    # Colour is evaluated here because gsplat's SH path takes three channels only: features share this pass.
    colors = sh_to_rgb(sh[:, None].expand(-1, views, -1, -1, -1), directions)
    if features is not None:
        colors = torch.cat([colors, features[:, None].expand(-1, views, -1, -1)], dim=-1)
    # gsplat knows one opacity per Gaussian: with level of detail each view is a scene of its own.
    flat = lambda t: t[:, None].expand(-1, views, *t.shape[1:]).flatten(0, 1)  # noqa: E731
    image, alpha, _ = rasterization(
        flat(means),
        torch.nn.functional.normalize(flat(quats), dim=-1),
        flat(scales),
        opacities.flatten(0, 1),
        colors.flatten(0, 1)[:, None],
        world_to_cam.flatten(0, 1)[:, None],
        K.flatten(0, 1)[:, None],
        width,
        height,
        near_plane=const.NEAR,
        far_plane=const.FAR,
        eps2d=const.EPS2D,
        packed=True,
        render_mode="RGB+D",
        rasterize_mode="antialiased" if antialias else "classic",
    )
    image, alpha = image.reshape(-1, views, height, width, image.shape[-1]), alpha.reshape(-1, views, height, width)
    rgb, rest, depth = image[..., :3], image[..., 3:-1], image[..., -1:]
    return torch.cat([rgb, depth, rest], dim=-1), alpha
