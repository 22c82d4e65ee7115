"""Semantics: a short feature on every Gaussian, and one shared linear map to the space of text embeddings."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(kw_only=True)
class SemanticsConfig:
    """Widths of the semantic features.

    Attributes:
        width: Channels on a Gaussian.
        embedding: Channels of the teacher's text and image embeddings.
    """

    width: int = 64
    embedding: int = 512


class Semantics(nn.Module):
    """The map from features, drawn or on Gaussians, to embeddings.

    Drawing is a weighted sum, so the map may come before it or after it: it is linear, without an offset.
    """

    def __init__(self, config: SemanticsConfig) -> None:
        super().__init__()
        self.config = config
        self.to_embedding = nn.Linear(config.width, config.embedding, bias=False)
