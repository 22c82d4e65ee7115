"""ViT encoder of the upsampled views and their camera rays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from sr3d.cameras import Cameras

RAY_CHANNELS = 6


@dataclass(kw_only=True)
class EncoderConfig:
    """Any vision transformer of timm.

    Attributes:
        name: timm model name.
        pretrained: Start from timm's weights (downloads them); the first layer is adapted to the extra channels.
        options: Passed to `timm.create_model`; shrinks a model for CPUs, e.g. {embed_dim: 96, depth: 2, num_heads: 3}.
    """

    name: str = "vit_tiny_patch16_224"
    pretrained: bool = False
    options: dict[str, Any] = field(default_factory=dict)


class Encoder(nn.Module):
    """Images and Plücker rays to tokens, one grid of tokens for each view."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.vit = timm.create_model(
            config.name,
            pretrained=config.pretrained,
            in_chans=3 + RAY_CHANNELS,
            num_classes=0,
            global_pool="",
            dynamic_img_size=True,
            dynamic_img_pad=True,
            **config.options,
        )
        self.width: int = self.vit.embed_dim
        self.patch: int = self.vit.patch_embed.patch_size[0]

    def forward(self, images: Float[Tensor, "b v 3 h w"], rays: Float[Tensor, "b v 6 h w"]) -> Float[Tensor, "b v t d"]:
        """Tokens in row-major order of ceil(h / patch) × ceil(w / patch); prefix tokens are dropped."""
        x = torch.cat([images * 2 - 1, rays], dim=2).flatten(0, 1)
        tokens = self.vit.forward_features(x)[:, self.vit.num_prefix_tokens :]
        return tokens.unflatten(0, images.shape[:2])


def plucker_rays(cameras: Cameras, unit: Float[Tensor, " b"]) -> Float[Tensor, "b v 6 h w"]:
    """Plücker coordinates (direction, moment) of every pixel's ray, relative to the mean camera.

    The world is moved to the mean camera position, turned to the mean camera's axes and scaled by `unit`, because the
    result must depend neither on the world's origin, axes and metre nor on the order of the views.

    Args:
        cameras: V views for each of B scenes. [B, V]
        unit: World length that becomes 1, e.g. the mean depth of the scene. [B]
    """
    positions = (cameras.positions - cameras.positions.mean(dim=1, keepdim=True)) / unit[:, None, None]
    _, directions = cameras.world_rays()
    turn = _mean_axes(cameras)
    directions = torch.einsum("bij,bvhwj->bvhwi", turn, directions)
    positions = torch.einsum("bij,bvj->bvi", turn, positions)
    moments = torch.linalg.cross(positions[:, :, None, None].expand_as(directions), directions)
    return torch.cat([directions, moments], dim=-1).permute(0, 1, 4, 2, 3)


def _mean_axes(cameras: Cameras) -> Float[Tensor, "b 3 3"]:
    """World-to-camera rotation of an upright mean camera."""
    rotations = cameras.world_to_cam[..., :3, :3]
    # A pinch of the first camera keeps opposite cameras from cancelling out.
    down, forward = (rotations[..., i, :].mean(dim=1) + 1e-4 * rotations[:, 0, i] for i in (1, 2))
    forward = nn.functional.normalize(forward, dim=-1)
    right = nn.functional.normalize(torch.linalg.cross(down, forward), dim=-1)
    return torch.stack([right, torch.linalg.cross(forward, right), forward], dim=1)
