"""Decoder: attention within and across views, then dense feature maps at low and high resolution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(kw_only=True)
class DecoderConfig:
    """Sizes of the decoder.

    Attributes:
        blocks: Blocks of attention within a view and across views.
        heads: Attention heads; must divide the token width.
        width: Channels of the convolutions at low resolution.
        convolutions: Residual blocks of two convolutions at low resolution.
        fine: Channels of the high-resolution feature map.
    """

    blocks: int = 1
    heads: int = 4
    width: int = 48
    convolutions: int = 4
    fine: int = 16


class ViewBlock(nn.Module):
    """Self-attention inside a view, cross-attention to the tokens of all views, MLP; pre-norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.within = nn.MultiheadAttention(width, heads, batch_first=True)
        self.across = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Float[Tensor, "b v t d"]) -> Float[Tensor, "b v t d"]:
        """Tokens of V views to tokens of V views; the order of the views does not matter."""
        b, v, t, d = tokens.shape
        x = self.norms[0](tokens).flatten(0, 1)
        tokens = tokens + self.within(x, x, x, need_weights=False)[0].reshape(b, v, t, d)
        x = self.norms[1](tokens).reshape(b, v * t, d)
        tokens = tokens + self.across(x, x, x, need_weights=False)[0].reshape(b, v, t, d)
        return tokens + self.mlp(self.norms[2](tokens))


class ConvBlock(nn.Module):
    """Two convolutions with a residual path, as in EDSR (no normalisation: it harms super-resolution)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, padding_mode="replicate"),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1, padding_mode="replicate"),
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Same shape."""
        return x + self.body(x)


class Decoder(nn.Module):
    """Tokens and per-pixel evidence to feature maps."""

    def __init__(self, config: DecoderConfig, token_width: int, evidence: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.blocks = nn.ModuleList(ViewBlock(token_width, config.heads) for _ in range(config.blocks))
        self.from_tokens = nn.Linear(token_width, config.width)
        self.stem = nn.Conv2d(evidence * factor**2, config.width, 1)
        self.body = nn.Sequential(*(ConvBlock(config.width) for _ in range(config.convolutions)))
        self.low = nn.Conv2d(config.width, config.fine, 1)
        self.expand = nn.Conv2d(config.width, config.fine * factor**2, 3, padding=1, padding_mode="replicate")
        self.polish = nn.Conv2d(config.fine + evidence, config.fine, 3, padding=1, padding_mode="replicate")

    def forward(
        self, tokens: Float[Tensor, "b v t d"], grid: tuple[int, int], evidence: Float[Tensor, "b v c h w"]
    ) -> tuple[Float[Tensor, "b v f hl wl"], Float[Tensor, "b v f h w"]]:
        """Low-resolution and high-resolution feature maps.

        Args:
            tokens: From the refinement, row-major.
            grid: Rows and columns of the tokens.
            evidence: Per-pixel inputs at high resolution (height and width multiples of `factor`).
        """
        for block in self.blocks:
            tokens = block(tokens)
        b, v = tokens.shape[:2]
        pixels = evidence.flatten(0, 1)
        low = nn.functional.pixel_unshuffle(pixels, self.factor)
        context = self.from_tokens(tokens).flatten(0, 1).transpose(1, 2).unflatten(2, grid)
        context = nn.functional.interpolate(context, size=low.shape[-2:], mode="bilinear", align_corners=False)
        low = self.body(self.stem(low) + context)
        high = nn.functional.pixel_shuffle(self.expand(low), self.factor)
        high = nn.functional.gelu(self.polish(torch.cat([high, pixels], dim=1)))
        return self.low(low).unflatten(0, (b, v)), high.unflatten(0, (b, v))
