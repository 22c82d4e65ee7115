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
        model: Name of the CLIP model whose embeddings the network learned on; training writes it.
    """

    embedding: int = 512
    model: str = ""


class Conditioner(nn.Module):
    """Scale and shift of all tokens by a learned function of an embedding, or of a learned one where there is none."""

    def __init__(self, config: ConditioningConfig, width: int) -> None:
        """Build for tokens of `width` channels.

        Raises:
            Sr3dError: No length.
        """
        super().__init__()
        if config.embedding < 1:
            raise Sr3dError("config", "model.network.conditioning.embedding", config.embedding, "≥ 1")
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
            if has_embedding is None:
                has_embedding = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
            known = torch.where(has_embedding[:, None], embedding, known)
        scale, shift = self.mlp(known)[:, None, None].chunk(2, dim=-1)
        return tokens * (1 + scale) + shift
