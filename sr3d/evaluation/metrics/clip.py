"""CLIP score and CLIP-IQA: what CLIP thinks of a picture, with a text or without."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sr3d.errors import Sr3dError
from sr3d.evaluation.metrics.base import Column, MetricUnavailable, Observation, ViewMetric
from sr3d.evaluation.metrics.weights import cached, require_hub

_NAME = "openai/clip-vit-large-patch14"
_FILES = ("model.safetensors", "pytorch_model.bin")
_PROMPTS = ["Good photo.", "Bad photo."]
_SCALE = 100  # CLIP's learned inverse temperature


class _Clip(ViewMetric):
    """Embeddings of views and texts.

    Args:
        device: Where CLIP runs.
        name: CLIP model of the Hugging Face hub, or a folder that holds one.
    """

    def __init__(self, device: str = "cpu", name: str = _NAME) -> None:
        super().__init__(device)
        require_hub(name, _FILES)
        from sr3d.training.clip_model import ImageEncoder, TextEncoder

        try:
            self._image, self._text = ImageEncoder(name).to(device), TextEncoder(name).to(device)
        except Sr3dError as error:
            if cached(name, _FILES):
                raise
            raise MetricUnavailable(str(error)) from None

    def _cosines(self, seen: Observation, texts: list[str]) -> Float[Tensor, "t n"]:
        """Between every view and every text; one view at a time, so that no value depends on the others."""
        images = torch.cat([self._image(rgb.movedim(-1, 0)[None]) for rgb in seen.rgb])
        return images @ self._text(texts).T


class ClipScore(_Clip):
    """Cosine of the embeddings of view and description, as WonderZoom's Table 1 gives it (not times 100)."""

    columns = (Column(name="clip_score", title="CLIP score", better="higher", digits=4),)
    needs = ("text",)

    def measure(self, seen: Observation) -> dict[str, Float[Tensor, " t"]]:
        """CLIP score of every view: of its middle square, which is what CLIP looks at."""
        return {"clip_score": self._cosines(seen, [seen.text])[:, 0]}


class ClipIqa(_Clip):
    """CLIP-IQA (Wang et al. 2023): how much rather a view is a "Good photo." than a "Bad photo.", 0 to 1.

    By the same ViT-L/14 as the CLIP score. The paper's ResNet-50 without positions, and CLIP-IQA+ with learned
    prompts, come as TorchScript, which executes code when it is loaded: they give other numbers, and are not here.
    """

    columns = (Column(name="clip_iqa", title="CLIP-IQA (ViT-L/14)", better="higher", digits=4),)
    needs = ()

    def measure(self, seen: Observation) -> dict[str, Float[Tensor, " t"]]:
        """CLIP-IQA of every view."""
        return {"clip_iqa": (_SCALE * self._cosines(seen, _PROMPTS)).softmax(dim=-1)[:, 0]}
