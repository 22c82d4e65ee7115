"""CLIP: one embedding of an image or of a text, in a space that both share."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import AutoTokenizer, CLIPModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from sr3d.errors import Sr3dError


class Frozen(nn.Module):
    """Always in evaluation mode."""

    def train(self, mode: bool = True) -> Frozen:
        """Stays in evaluation mode."""
        super().train(False)
        return self


class ImageEncoder(Frozen):
    """CLIP's embedding of whole images, float32, without gradients.

    Args:
        name: CLIP model of the Hugging Face hub, or a folder that holds one.

    Attributes:
        width: Channels E of an embedding.

    Raises:
        Sr3dError: The model cannot be had, or is none.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        model = clip_model(name)
        self.vision, self.projection = model.vision_model, model.visual_projection
        self.size, self.width = self.vision.config.image_size, self.projection.out_features
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n e"]:
        """Embeddings of length 1 of what CLIP was trained to see: the middle square, at the model's own size.

        Args:
            images: RGB in [0, 1].
        """
        size, (height, width) = self.size, images.shape[-2:]
        rows, columns = (max(size, round(side * size / min(height, width))) for side in (height, width))
        pixels = resized(images, rows, columns)
        top, left = (rows - size) // 2, (columns - size) // 2
        seen = self.vision(normalised(pixels[..., top : top + size, left : left + size]))
        return unit(self.projection(seen.pooler_output))


class TextEncoder(Frozen):
    """CLIP's embedding of texts, float32, without gradients.

    Args:
        name: CLIP model of the Hugging Face hub, or a folder that holds one, with its tokenizer.

    Attributes:
        width: Channels E of an embedding.

    Raises:
        Sr3dError: The model or its tokenizer cannot be had, or is none.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        model, self._tokenizer = clip_model(name), _pretrained(AutoTokenizer, name)
        self.text, self.projection = model.text_model, model.text_projection
        self.width = self.projection.out_features
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, texts: list[str]) -> Float[Tensor, "n e"]:
        """Embeddings of length 1 of one text or more; what is too long for the model is cut off."""
        limits: Any = {"truncation": True, "max_length": self.text.config.max_position_embeddings}
        tokens = self._tokenizer(texts, padding=True, return_tensors="pt", **limits).to(self.projection.weight.device)
        read = self.text(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return unit(self.projection(read.pooler_output))


def clip_model(name: str) -> Any:
    """A CLIP model with all its weights, float32.

    Args:
        name: Of the Hugging Face hub, or of a folder.

    Raises:
        Sr3dError: It cannot be had, is none, or lacks weights.
    """
    model, found = _pretrained(CLIPModel, name, output_loading_info=True, dtype=torch.float32)
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise Sr3dError(name, "weights", f"{len(missing)} missing, such as {missing[0]}", "those of a CLIP model")
    return model


def resized(images: Float[Tensor, "n 3 h w"], rows: int, columns: int) -> Float[Tensor, "n 3 r c"]:
    """Images in [0, 1] at another size (bicubic), float32."""
    return interpolate(images.float(), (rows, columns), mode="bicubic", antialias=True).clamp(0, 1)


def normalised(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """Images in [0, 1] as CLIP's image encoder takes them."""
    mean, std = (images.new_tensor(values)[:, None, None] for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (images - mean) / std


def unit(vectors: Float[Tensor, "*n e"]) -> Float[Tensor, "*n e"]:
    """Of length 1."""
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-8)


def _pretrained(kind: Any, name: str, **options: Any) -> Any:
    """From a folder or the hub's cache, else from the hub."""
    expected = "a folder of a CLIP model with its tokenizer, or its name on the Hugging Face hub and a network"
    try:
        if not Path(name).is_dir():
            with contextlib.suppress(OSError):
                return kind.from_pretrained(name, local_files_only=True, **options)
        return kind.from_pretrained(name, **options)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise Sr3dError(name, "CLIP model", str(error).splitlines()[0], expected) from None
