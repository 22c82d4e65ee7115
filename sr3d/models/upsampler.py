"""Upsamplers: the low-resolution views at the target resolution, before the network looks at them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sr3d.errors import Sr3dError

_KEY = "model.network.upsampler"
_HEADS = ("pixelshuffle", "pixelshuffle_aux", "pixelshuffledirect", "nearest+conv")


@dataclass(kw_only=True)
class UpsamplerConfig:
    """How the views are enlarged.

    Attributes:
        method: Interpolation, or the image super-resolution network Swin2SR.
        name: Swin2SR weights of transformers, by name (downloads them) or as a local folder; empty: random weights.
        options: Keys of transformers' `Swin2SRConfig` for a network without `name`.
        trainable: Train Swin2SR along; otherwise it stays as it is, in evaluation mode.
    """

    method: Literal["bilinear", "bicubic", "swin2sr"] = "bicubic"
    name: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    trainable: bool = False


class Upsampler(nn.Module):
    """Images enlarged by a whole factor.

    Attributes:
        config: What rebuilds this module around stored weights: `name` is replaced by the `options` it stands for.
    """

    def __init__(self, config: UpsamplerConfig) -> None:
        """Build, and load weights where `config.name` says so.

        Raises:
            Sr3dError: Weights that cannot be loaded, or options that Swin2SR does not have.
        """
        super().__init__()
        self.config = config
        self.checkpointing = False
        self.swin2sr: Any = None
        if config.method == "swin2sr":
            self.swin2sr, options = _swin2sr(config)
            self.config = replace(config, name="", options=options)
            self.swin2sr.requires_grad_(config.trainable)
            self.train()
        elif config.name or config.options:
            found = f"{config.name or config.options} with method {config.method!r}"
            raise Sr3dError("config", f"{_KEY}.{'name' if config.name else 'options'}", found, "method swin2sr")

    def train(self, mode: bool = True) -> Upsampler:
        """Like `nn.Module.train`, but a network that is not trained stays in evaluation mode."""
        return super().train(mode and self.config.trainable)

    def check(self, factor: int) -> None:
        """Raise unless images can be enlarged by `factor`.

        Raises:
            Sr3dError: Swin2SR enlarges by something that does not divide `factor`.
        """
        own = self.config.options["upscale"] if self.swin2sr is not None else 1
        if factor < 1 or factor % own:
            raise Sr3dError("config", f"{_KEY}.method", f"Swin2SR of {own}× for factor {factor}", "a divisor of it")

    def set_checkpointing(self, enabled: bool) -> None:
        """Compute the activations of Swin2SR again in the backward pass instead of keeping them."""
        self.checkpointing = enabled

    def forward(self, images: Float[Tensor, "n 3 h w"], factor: int) -> Float[Tensor, "n 3 H W"]:
        """Images in [0, 1] of H = factor · h, W = factor · w.

        Swin2SR is repeated while its own factor divides what is left; the rest is bicubic.

        Raises:
            Sr3dError: See `check`.
        """
        self.check(factor)
        if self.swin2sr is not None:
            own = self.config.options["upscale"]
            while factor > 1 and factor % own == 0:
                with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.trainable):
                    if self.checkpointing and torch.is_grad_enabled():
                        images = checkpoint(self._enlarge, images, use_reentrant=False)
                    else:
                        images = self._enlarge(images)
                factor //= own
        if factor == 1:
            return images.clamp(0, 1)
        mode = "bilinear" if self.config.method == "bilinear" else "bicubic"
        return nn.functional.interpolate(images, scale_factor=factor, mode=mode, align_corners=False).clamp(0, 1)

    def _enlarge(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 H W"]:
        """One pass of Swin2SR, which needs whole windows; in full precision: bfloat16 has fewer levels than a PNG."""
        h, w = images.shape[-2:]
        window, own = (self.config.options[key] for key in ("window_size", "upscale"))
        padded = nn.functional.pad(images, (0, -w % window, 0, -h % window), mode="replicate")
        with torch.autocast(images.device.type, enabled=False):
            return self.swin2sr(padded).reconstruction[..., : h * own, : w * own].clamp(0, 1)


def described(config: UpsamplerConfig) -> UpsamplerConfig:
    """The same network without weights to download or read: only what describes it is.

    Raises:
        Sr3dError: No such Swin2SR.
    """
    if not config.name:
        return config
    from transformers import Swin2SRConfig

    try:
        found = Swin2SRConfig.from_pretrained(config.name)
    except (OSError, ValueError) as error:
        reason = f"{config.name} ({str(error).splitlines()[0]})"
        raise Sr3dError("config", f"{_KEY}.name", reason, "a Swin2SR network") from None
    return replace(config, name="", options={option: getattr(found, option) for option in _options()})


def _options() -> list[str]:
    """Names of what describes a Swin2SR."""
    from transformers import Swin2SRConfig

    return sorted(Swin2SRConfig.__annotations__.keys() - {"model_type"})


def _swin2sr(config: UpsamplerConfig) -> tuple[Any, dict[str, Any]]:
    """Network and the options that describe it."""
    # Only this method needs transformers, whose import takes seconds.
    from huggingface_hub.errors import StrictDataclassError
    from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

    known = _options()
    key = f"{_KEY}.{'name' if config.name else 'options'}"
    for option in config.options:
        if option not in known:
            raise Sr3dError("config", f"{_KEY}.options", option, f"one of {', '.join(known)}")
    try:
        if config.name:
            model = Swin2SRForImageSuperResolution.from_pretrained(config.name, weights_only=True)
        else:
            model = Swin2SRForImageSuperResolution(Swin2SRConfig(**config.options))
    except (OSError, ValueError, TypeError, StrictDataclassError) as error:
        found = f"{config.name or config.options} ({str(error).splitlines()[0]})"
        raise Sr3dError("config", key, found, "a Swin2SR network") from None
    options = {option: getattr(model.config, option) for option in known}
    fixed = {"num_channels": 3, "num_channels_out": 3, "patch_size": 1}
    wrong = [f"{option} {options[option]}" for option, value in fixed.items() if options[option] != value]
    if wrong or options["upscale"] < 2 or options["upsampler"] not in _HEADS:
        found = ", ".join([*wrong, f"upscale {options['upscale']}", f"upsampler {options['upsampler']!r}"])
        raise Sr3dError("config", key, found, f"{fixed}, upscale ≥ 2, upsampler of {_HEADS}")
    return model, options
