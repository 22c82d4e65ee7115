"""Conditioning of the tokens on one text or image embedding of the scene."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sr3d.errors import Sr3dError


@dataclass(kw_only=True)
class ConditioningConfig:
    """Embedding that the network is told about.

    Attributes:
        embedding: Length of the embedding.
        drop: Share of the scenes of a training batch that are treated as if they had none.
    """

    embedding: int = 512
    drop: float = 0.1


class Conditioner(nn.Module):
    """Scale and shift of all tokens by a learned function of an embedding, or of a learned one where there is none."""

    def __init__(self, config: ConditioningConfig, width: int) -> None:
        """Build for tokens of `width` channels.

        Raises:
            Sr3dError: No length, or a share outside [0, 1].
        """
        super().__init__()
        if config.embedding < 1:
            raise Sr3dError("config", "model.network.conditioning.embedding", config.embedding, "≥ 1")
        if not 0 <= config.drop <= 1:
            raise Sr3dError("config", "model.network.conditioning.drop", config.drop, "0 to 1")
        self.config = config
        self.none = nn.Parameter(torch.randn(config.embedding))
        last = nn.Linear(width, 2 * width)
        # Close to no change at first; not zero, so that all layers learn from the first step on.
        nn.init.trunc_normal_(last.weight, std=1e-2)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(nn.LayerNorm(config.embedding), nn.Linear(config.embedding, width), nn.GELU(), last)

    def forward(
        self,
        tokens: Float[Tensor, "b v t d"],
        embedding: Float[Tensor, "n e"] | None = None,
        has_embedding: Bool[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "b v t d"]:
        """Conditioned tokens.

        In training, scenes lose their embedding at random, drawn from torch's global CPU generator.

        Args:
            tokens: T tokens of V views.
            embedding: One for each scene, n = b; None: no scene has one.
            has_embedding: Scenes that have one, where some do not; what `embedding` holds for the others is not used.

        Raises:
            Sr3dError: Another length, or another number of scenes.
        """
        known = self.none.expand(len(tokens), -1)
        if embedding is not None:
            expected = (len(tokens), self.config.embedding)
            if tuple(embedding.shape) != expected:
                raise Sr3dError("Conditioner", "embedding", f"shape {tuple(embedding.shape)}", f"{expected}")
            kept = torch.ones(len(tokens), dtype=torch.bool)
            if self.training and self.config.drop > 0:
                kept = torch.rand(len(tokens)) >= self.config.drop
            kept = kept.to(tokens.device)
            if has_embedding is not None:
                kept = kept & has_embedding
            known = torch.where(kept[:, None], embedding, known)
        scale, shift = self.mlp(known)[:, None, None].chunk(2, dim=-1)
        return tokens * (1 + scale) + shift
