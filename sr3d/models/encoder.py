"""ViT encoder of the upsampled views and their camera rays."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

import timm
import torch
from jaxtyping import Float
from timm.layers import PatchEmbed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from sr3d.cameras import Cameras
from sr3d.errors import Sr3dError

RAY_CHANNELS = 6
# Options of timm that read another file.
PLACES = ("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
_KEY = "model.network.encoder"
_PLAIN = "vit_*, deit*_patch*, eva*_patch*"


@dataclass(kw_only=True)
class EncoderConfig:
    """Any vision transformer of timm, e.g. vit_small_patch14_dinov2 or vit_small_patch16_dinov3.

    Attributes:
        name: timm model name.
        pretrained: Start from timm's weights (downloads them); rays then weigh nothing in the first layer at first.
        frozen: Train only the first layer, which has to learn what rays are.
        options: Passed to `timm.create_model`; shrinks a model for CPUs, e.g. {embed_dim: 96, depth: 2, num_heads: 3}.
        mean: Of the three channels of an image, subtracted; None: as timm says for this model.
        std: Divisors of the channels after that, likewise.
    """

    name: str = "vit_tiny_patch16_224"
    pretrained: bool = False
    frozen: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    mean: list[float] | None = None
    std: list[float] | None = None


class Encoder(nn.Module):
    """Images and Plücker rays to tokens, one grid of tokens for each view.

    Attributes:
        config: What rebuilds this module around stored weights: nothing in it names another file.
        width: Channels of a token.
        patch: Pixels along the side of a token.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        """Build, and load weights where `config.pretrained` says so.

        Raises:
            Sr3dError: No such model, no vision transformer, bad options, or weights that cannot be loaded.
        """
        super().__init__()
        self.vit = _create(config)
        self.config = _alone(config, self.vit)
        if config.pretrained:
            _add_channels(self.vit, RAY_CHANNELS)
        self.width: int = self.vit.embed_dim
        self.patch: int = self.vit.patch_embed.patch_size[0]
        for name in ("mean", "std"):
            own = getattr(config, name)
            if own is not None and len(own) != 3:
                raise Sr3dError("config", f"{_KEY}.{name}", own, "three numbers, or null")
            values = torch.tensor(own or self.vit.pretrained_cfg[name], dtype=torch.float32)[:, None, None]
            self.register_buffer(name, values, persistent=False)
        if config.frozen:
            self.vit.requires_grad_(False)
            self.vit.patch_embed.requires_grad_(True)
            self.train()

    def train(self, mode: bool = True) -> Encoder:
        """Like `nn.Module.train`, but a frozen transformer stays in evaluation mode."""
        return super().train(mode and not self.config.frozen)

    def set_checkpointing(self, enabled: bool) -> None:
        """Compute the activations of the blocks again in the backward pass instead of keeping them."""
        self.vit.set_grad_checkpointing(enabled)

    def forward(self, images: Float[Tensor, "b v 3 h w"], rays: Float[Tensor, "b v 6 h w"]) -> Float[Tensor, "b v t d"]:
        """Tokens in row-major order of ceil(h / patch) × ceil(w / patch); prefix tokens are dropped."""
        x = torch.cat([(images - self.mean) / self.std, rays], dim=2).flatten(0, 1)
        tokens = self.vit.forward_features(x)[:, self.vit.num_prefix_tokens :]
        return tokens.unflatten(0, images.shape[:2])


def _create(config: EncoderConfig) -> VisionTransformer | Eva:
    """The transformer, for any size of image; for RGB alone where it brings trained weights."""
    if config.options.get("patch_drop_rate"):
        raise Sr3dError(
            "config", f"{_KEY}.options.patch_drop_rate", config.options["patch_drop_rate"], "0: all patches"
        )
    try:
        vit = timm.create_model(
            config.name,
            pretrained=config.pretrained,
            in_chans=3 if config.pretrained else 3 + RAY_CHANNELS,
            num_classes=0,
            global_pool="",
            dynamic_img_size=True,
            dynamic_img_pad=True,
            **config.options,
        )
    except (RuntimeError, TypeError, AssertionError, ValueError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if not timm.is_model(config.name):
            close = ", ".join(get_close_matches(config.name, timm.list_models(), n=4))
            raise Sr3dError(
                "config", f"{_KEY}.name", f"{config.name!r} ({reason})", f"a model of timm, as {close or _PLAIN}"
            ) from None
        if config.pretrained:
            found = f"no weights for {config.name} with options {config.options} ({reason})"
            raise Sr3dError("config", f"{_KEY}.pretrained", found, "weights that fit and can be loaded") from None
        if "dynamic_img" in reason:
            raise Sr3dError(
                "config", f"{_KEY}.name", config.name, f"a plain vision transformer of timm: {_PLAIN}"
            ) from None
        raise Sr3dError(
            "config", f"{_KEY}.options", f"{config.options} ({reason})", f"options of {config.name}"
        ) from None
    if not isinstance(vit, (VisionTransformer, Eva)) or not isinstance(vit.patch_embed, PatchEmbed):
        raise Sr3dError("config", f"{_KEY}.name", config.name, f"a plain vision transformer of timm: {_PLAIN}")
    return vit


def _alone(config: EncoderConfig, vit: VisionTransformer | Eva) -> EncoderConfig:
    """What builds the same transformer from timm alone: the settings that it had from elsewhere become its own."""
    if not config.options.keys() & set(PLACES) and not re.search(r"[:/\\]", config.name):
        return replace(config, pretrained=False)
    found, fixed = vit.pretrained_cfg, ("in_chans", "num_classes", "global_pool", "dynamic_img_size", "dynamic_img_pad")
    options = {k: v for k, v in vit._model_args.items() if k not in (*PLACES, *fixed)}
    options["img_size"] = list(vit.patch_embed.img_size)
    return replace(
        config,
        name=found["architecture"],
        pretrained=False,
        options=options,
        mean=config.mean or list(found["mean"]),
        std=config.std or list(found["std"]),
    )


def _add_channels(vit: VisionTransformer | Eva, channels: int) -> None:
    """Widen the first layer: the trained weights stay as they are, those of the new channels start at zero."""
    old = vit.patch_embed.proj
    new = nn.Conv2d(
        old.in_channels + channels, old.out_channels, old.kernel_size, old.stride, bias=old.bias is not None
    )
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.in_channels] = old.weight
    new.bias = old.bias
    vit.patch_embed.proj = new


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
    turn = mean_axes(cameras)
    directions = torch.einsum("bij,bvhwj->bvhwi", turn, directions)
    positions = torch.einsum("bij,bvj->bvi", turn, positions)
    moments = torch.linalg.cross(positions[:, :, None, None].expand_as(directions), directions)
    return torch.cat([directions, moments], dim=-1).permute(0, 1, 4, 2, 3)


def mean_axes(cameras: Cameras) -> Float[Tensor, "b 3 3"]:
    """World-to-camera rotation of an upright mean camera."""
    rotations = cameras.world_to_cam[..., :3, :3]
    # A pinch of the first camera keeps opposite cameras from cancelling out.
    down, forward = (rotations[..., i, :].mean(dim=1) + 1e-4 * rotations[:, 0, i] for i in (1, 2))
    forward = nn.functional.normalize(forward, dim=-1)
    right = nn.functional.normalize(torch.linalg.cross(down, forward), dim=-1)
    return torch.stack([right, torch.linalg.cross(forward, right), forward], dim=1)
