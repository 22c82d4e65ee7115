"""Refinement: tokens of the views and tokens of the coarse scene, drawn into the same views, look at each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sr3d.errors import Sr3dError


@dataclass(kw_only=True)
class RefinementConfig:
    """Bidirectional cross-attention.

    Attributes:
        heads: Attention heads; must divide the token width.
        coarse_width: Channels of the tokens of the network that makes the coarse scene; 0: it offers none.
    """

    heads: int = 4
    coarse_width: int = 0


class Refinement(nn.Module):
    """SR3R Eq. 4: t = FC(concat(own ← coarse, coarse ← own)), here added to the encoder's tokens.

    The paper takes tokens of the network that made the coarse Gaussians. Tokens of the *rendered* coarse scene let any
    source be refined; those of the network are added to them where it offers any.

    Args:
        config: Sizes.
        width: Of a token.
        patch: Pixels per side of a token.
        drawn: Channels of what is drawn, with the rays, which say where a token lies.

    Raises:
        Sr3dError: `heads` does not divide the token width.
    """

    def __init__(self, config: RefinementConfig, width: int, patch: int, drawn: int) -> None:
        super().__init__()
        if width % config.heads:
            raise Sr3dError("config", "model.network.refinement.heads", config.heads, f"a divisor of width {width}")
        self.embed = nn.Conv2d(drawn, width, patch, stride=patch)
        self.embed_tokens = nn.Conv2d(config.coarse_width, width, 1) if config.coarse_width else None
        self.patch = patch
        self.norm_own, self.norm_coarse = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_own = nn.MultiheadAttention(width, config.heads, batch_first=True)
        self.to_coarse = nn.MultiheadAttention(width, config.heads, batch_first=True)
        self.join = nn.Linear(2 * width, width)

    def forward(
        self,
        tokens: Float[Tensor, "b v t d"],
        coarse: Float[Tensor, "b v c h w"],
        coarse_tokens: Float[Tensor, "b v k hc wc"] | None = None,
    ) -> Float[Tensor, "b v t d"]:
        """Tokens of each view attend to the coarse scene drawn into that view, and the other way round.

        Args:
            tokens: From the encoder.
            coarse: The coarse scene drawn at the encoder's resolution, and the rays.
            coarse_tokens: Maps of tokens over the views, of any resolution.
        """
        images = coarse.flatten(0, 1)
        short = [-images.shape[-1] % self.patch, -images.shape[-2] % self.patch]
        images = nn.functional.pad(images, (0, short[0], 0, short[1]))
        embedded = self.embed(images)
        if self.embed_tokens is not None and coarse_tokens is not None:
            offered = nn.functional.interpolate(coarse_tokens.flatten(0, 1), size=embedded.shape[-2:], mode="bilinear")
            embedded = embedded + self.embed_tokens(offered)
        drawn = self.norm_coarse(embedded.flatten(2).transpose(1, 2))
        own = self.norm_own(tokens.flatten(0, 1))
        from_coarse, _ = self.to_own(own, drawn, drawn, need_weights=False)
        from_own, _ = self.to_coarse(drawn, own, own, need_weights=False)
        joined = self.join(torch.cat([from_coarse, from_own], dim=-1))
        return tokens + joined.unflatten(0, tokens.shape[:2])
