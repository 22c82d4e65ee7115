"""Decoder: attention within and across views, then dense maps of features, texture and depth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, pixel_shuffle, pixel_unshuffle
from torch.utils.checkpoint import checkpoint

from sr3d.errors import Sr3dError

_SLOW = 0.1  # factor on what the decoder decides itself

CELL = 4  # pixels per side of a cell of the grid on which the convolutions work, whatever the factor


@dataclass(kw_only=True)
class DecoderConfig:
    """Sizes of the decoder.

    Attributes:
        blocks: Blocks of attention within a view and across views.
        heads: Attention heads; must divide the token width.
        width: Channels of the convolutions, on a grid of a quarter of the high resolution.
        convolutions: Residual blocks of two convolutions there.
        fine: Channels of the high-resolution feature map.
        texture_bound: Largest change of a colour of the upsampled views, 0..1.
    """

    blocks: int = 1
    heads: int = 4
    width: int = 48
    convolutions: int = 4
    fine: int = 16
    texture_bound: float = 0.5


@dataclass(kw_only=True)
class Maps:
    """What the decoder knows of V views at high resolution. Sums over the rounds of a recurrence.

    Attributes:
        features: None where nothing reads them. [B, V, F, H, W]
        texture: Residual colours before they are bounded. [B, V, 3, H, W]
        trust: Logarithm by which a pixel's colour counts more than those of other views. [B, V, 1, H, W]
        depth: Residual log-depth before it is bounded; None without a geometry branch. [B, V, 1, H, W]
    """

    features: Float[Tensor, "b v f h w"] | None
    texture: Float[Tensor, "b v 3 h w"]
    trust: Float[Tensor, "b v 1 h w"]
    depth: Float[Tensor, "b v 1 h w"] | None

    def cropped(self, height: int, width: int) -> Maps:
        """The first rows and columns."""
        return Maps(
            features=None if self.features is None else self.features[..., :height, :width],
            texture=self.texture[..., :height, :width],
            trust=self.trust[..., :height, :width],
            depth=None if self.depth is None else self.depth[..., :height, :width],
        )


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
    """Two convolutions with a residual path that see their input at unit size; the path itself keeps its size.

    Without normalisation, as in EDSR, the gains of many blocks multiply, and a training can collapse at once.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width, 1, 1))
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, padding_mode="replicate"),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1, padding_mode="replicate"),
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Same shape."""
        size = x.float().square().mean(dim=1, keepdim=True).add(1e-6).rsqrt()
        return x + self.body(x * size * self.gain)


class Decoder(nn.Module):
    """Tokens and per-pixel evidence to maps.

    Args:
        config: Sizes.
        token_width: Of the encoder.
        patch: Pixels per side of a token.
        evidence: Channels of the per-pixel inputs.
        matches: Channels of the geometry branch's cost volume; 0 without one.
        dense: Whether feature maps at high resolution are needed.

    Raises:
        Sr3dError: `heads` does not divide the token width.
    """

    def __init__(
        self, config: DecoderConfig, token_width: int, patch: int, evidence: int, matches: int = 0, dense: bool = True
    ) -> None:
        super().__init__()
        if token_width % config.heads:
            expected = f"a divisor of the token width {token_width}"
            raise Sr3dError("config", "model.network.decoder.heads", config.heads, expected)
        self.checkpointing, self.patch = False, patch
        self.blocks = nn.ModuleList(ViewBlock(token_width, config.heads) for _ in range(config.blocks))
        self.from_tokens = nn.Linear(token_width, config.width)
        self.stem = nn.Conv2d(evidence * CELL**2, config.width, 3, padding=1, padding_mode="replicate")
        self.from_matches = nn.Conv2d(matches, config.width, 1) if matches else None
        self.body = nn.ModuleList(ConvBlock(config.width) for _ in range(config.convolutions))
        self.features = nn.Conv2d(config.width, config.fine * CELL**2, 1) if dense else None
        self.texture = _zeros(nn.Conv2d(config.width, 3 * CELL**2, 3, padding=1, padding_mode="replicate"))
        self.trust = _zeros(nn.Conv2d(config.width, CELL**2, 1))
        self.depth = _zeros(nn.Conv2d(config.width, CELL**2, 3, padding=1)) if matches else None

    def attend(self, tokens: Float[Tensor, "b v t d"]) -> Float[Tensor, "b v t d"]:
        """Attention within and across views."""
        for block in self.blocks:
            tokens = self._run(block, tokens)
        return tokens

    def forward(
        self,
        tokens: Float[Tensor, "b v t d"],
        grid: tuple[int, int],
        evidence: Float[Tensor, "b v c h w"],
        matches: Float[Tensor, "b v k hc wc"] | None,
    ) -> Maps:
        """Maps at high resolution.

        Args:
            tokens: After `attend`, row-major.
            grid: Rows and columns of the tokens.
            evidence: Per-pixel inputs; height and width are multiples of 4.
            matches: Cost volume on the grid of cells.
        """
        b, v = tokens.shape[:2]
        x = self.stem(pixel_unshuffle(evidence.flatten(0, 1), CELL))
        context = self.from_tokens(tokens).flatten(0, 1).transpose(1, 2).unflatten(2, grid)
        x = x + self._on_cells(context.float(), x.shape[-2], x.shape[-1])
        if self.from_matches is not None and matches is not None:
            x = x + self.from_matches(matches.flatten(0, 1))
        for block in self.body:
            x = self._run(block, x)

        def large(layer: nn.Conv2d) -> Tensor:
            return pixel_shuffle(layer(x), CELL).float().unflatten(0, (b, v))

        def slow(layer: nn.Conv2d) -> Tensor:
            # Hundreds of inputs go into one colour: the optimiser's steps, equal for all weights, would shake it.
            return _SLOW * large(layer)

        return Maps(
            features=None if self.features is None else large(self.features),
            texture=slow(self.texture),
            trust=slow(self.trust),
            depth=None if self.depth is None else slow(self.depth),
        )

    def _on_cells(self, context: Tensor, height: int, width: int) -> Tensor:
        """Maps of tokens at the cells. Tokens reach beyond an image whose sides are no multiples of theirs."""
        large = interpolate(context, scale_factor=self.patch / CELL, mode="bilinear", recompute_scale_factor=False)
        short = (0, max(0, width - large.shape[-1]), 0, max(0, height - large.shape[-2]))
        return pad(large, short, mode="replicate")[..., :height, :width]

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(block, x, use_reentrant=False) if self.checkpointing and self.training else block(x)
        return out


def _zeros(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with weights that start at zero."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
