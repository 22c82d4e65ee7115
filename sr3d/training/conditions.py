"""What a network with conditioning is told about each clip: a CLIP embedding of one of its images, or of its text.

The network learns on `Embedder`. Afterwards any embedding of the same CLIP model serves, of a text:

    embedding = prompt_embedding(network, "a kitchen with a wooden table")
    fine, parents = network.refine(coarse, views, embedding=embedding)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from sr3d.datasets.batch import Batch
from sr3d.errors import Sr3dError
from sr3d.models.resolver import SuperResolver
from sr3d.training.clip_model import Frozen, ImageEncoder, TextEncoder


@dataclass(kw_only=True)
class ConditionConfig:
    """Which embedding.

    Attributes:
        kind: "image": of the middle one of the low-resolution input views, all that is there afterwards. "text": of
            the text that is stored with the clip; clips without one have none.
        name: CLIP model of the Hugging Face hub, or a folder that holds one. "text" needs its tokenizer, too.
        drop: Share of the clips of training that the network is told nothing about.
    """

    kind: Literal["image", "text"]
    name: str = "openai/clip-vit-base-patch16"
    drop: float = 0.1


def prompt_embedding(network: SuperResolver, prompt: str) -> Float[Tensor, " e"]:
    """Embedding of words about a scene, by the CLIP model that a network learned on.

    Args:
        network: With conditioning.
        prompt: Words.

    Raises:
        Sr3dError: The network has no conditioning, does not know its CLIP model, or that cannot be had.
    """
    return TextEncoder(clip_of(network, "sr3d", "--prompt", repr(prompt)))([prompt])[0]


def clip_of(network: SuperResolver, source: str, field: str, value: str) -> str:
    """Name of the CLIP model that a network learned on.

    Args:
        network: With conditioning.
        source: Of the error, like what follows.
        field: Asks for the model.
        value: Of it.

    Raises:
        Sr3dError: The network has no conditioning, or does not name its CLIP model.
    """
    config = network.config.conditioning
    if config is None or not config.model:
        found = "a network without conditioning" if config is None else "a network that names no CLIP model"
        raise Sr3dError(source, field, f"{value}, {found}", "none, or a network trained with model.condition")
    return config.model


class Embedder(Frozen):
    """The embedding of every clip; frozen, and no part of a checkpoint.

    Args:
        config: Which embedding.

    Attributes:
        width: Channels E of an embedding.

    Raises:
        Sr3dError: The model or its tokenizer cannot be had, or is none.
    """

    def __init__(self, config: ConditionConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ImageEncoder(config.name) if config.kind == "image" else TextEncoder(config.name)
        self.width, self._said = self.encoder.width, False

    def forward(self, batch: Batch) -> tuple[Float[Tensor, "b e"], Bool[Tensor, " b"]]:
        """Embeddings of length 1, and which clips have one; 0 for those without.

        Warns once, when no clip of a batch has a text.

        Args:
            batch: Of B clips, with floating-point images.
        """
        images, clips = batch.context.images, len(batch.context.images)
        if isinstance(self.encoder, ImageEncoder):
            middle = images[:, images.shape[1] // 2]
            return self.encoder(middle.movedim(-1, 1)), torch.ones(clips, dtype=torch.bool, device=images.device)
        texts = {i: text for i, text in enumerate(batch.texts) if text.strip()}
        embeddings = torch.zeros(clips, self.width, device=images.device)
        if texts:
            embeddings[list(texts)] = self.encoder(list(texts.values()))
        else:
            self._say_once()
        return embeddings, torch.tensor([i in texts for i in range(clips)], device=images.device)

    def _say_once(self) -> None:
        if not self._said:
            rank_zero_warn("clips without text: the network is told nothing about them")
        self._said = True
