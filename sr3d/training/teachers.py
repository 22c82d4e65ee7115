"""Frozen teachers of semantics: for every part of an image an embedding in a space that text shares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sr3d.errors import Sr3dError
from sr3d.training.clip_model import Frozen, TextEncoder, clip_model, normalised, resized, unit

_PROMPT = "a photo of a {}"
_TABLE = "embeddings"  # name of the tensor in a file of embeddings


@dataclass(kw_only=True)
class TeacherConfig:
    """Which teacher.

    Attributes:
        kind: "clip": dense features of a CLIP image encoder. "labels": one embedding for each class of the data.
        name: CLIP model of the Hugging Face hub, or a folder that holds one. "clip" needs its image encoder, "labels"
            its text encoder and tokenizer, unless there is a table.
        size: "clip": pixels of the shorter side of what the encoder sees.
        classes: "labels": names of the ids from 1 on, as the data set's shards have them.
        table: "labels": safetensors file, instead of names: tensor `embeddings` [K, E], row i for id i + 1.
        stride: "labels": pixels per side that share one embedding; more cost less memory.

    Raises:
        Sr3dError: A size is below 1, or "labels" has neither names nor a table, or both.
    """

    kind: Literal["clip", "labels"] = "clip"
    name: str = "openai/clip-vit-base-patch16"
    size: int = 336
    classes: list[str] = field(default_factory=list)
    table: str | None = None
    stride: int = 2

    def __post_init__(self) -> None:
        for name in ("size", "stride"):
            if getattr(self, name) < 1:
                raise Sr3dError("sr3d.training.TeacherConfig", name, getattr(self, name), "1 or more")
        if self.kind == "labels" and bool(self.classes) == (self.table is not None):
            found = "both" if self.classes else "neither"
            raise Sr3dError("sr3d.training.TeacherConfig", "classes, table", found, "one of them, for kind 'labels'")


class Teacher(Frozen, ABC):
    """Frozen: no gradients, always in evaluation mode.

    Attributes:
        width: Channels E of an embedding.
    """

    width: int

    @abstractmethod
    def forward(
        self, images: Float[Tensor, "n 3 h w"], labels: Int[Tensor, "n h w"] | None
    ) -> tuple[Float[Tensor, "n e fh fw"], Bool[Tensor, "n fh fw"]]:
        """Embeddings of equal parts of each image, and where they mean something.

        Args:
            images: RGB in [0, 1].
            labels: Class ids of the pixels, 0 for unknown; None where the data has none.
        """


class ClipTeacher(Teacher):
    """Patches of an image in the space of CLIP's text embeddings, without training (MaskCLIP, Zhou et al. 2022).

    The last layer's attention, which gathers the image into one token, is replaced by its values, projected: each
    patch keeps what it would have contributed.

    Args:
        name: CLIP model of the Hugging Face hub, or a folder that holds one.
        size: Pixels of the shorter side of what the encoder sees.

    Raises:
        Sr3dError: The model cannot be had, is none, or `size` is smaller than a patch.
    """

    def __init__(self, name: str, size: int = 336) -> None:
        super().__init__()
        model = clip_model(name)
        self.vision, self.projection = model.vision_model, model.visual_projection
        self.size, self.patch, self.width = size, self.vision.config.patch_size, self.projection.out_features
        if size < self.patch:
            raise Sr3dError(name, "size", size, f"{self.patch} or more, the size of a patch")
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(
        self, images: Float[Tensor, "n 3 h w"], labels: Int[Tensor, "n h w"] | None
    ) -> tuple[Float[Tensor, "n e fh fw"], Bool[Tensor, "n fh fw"]]:
        """One embedding of length 1 for each patch; all are valid."""
        height, width = images.shape[-2:]
        scale = self.size / min(height, width) / self.patch
        rows, columns = (max(1, round(side * scale)) for side in (height, width))
        pixels = normalised(resized(images, rows * self.patch, columns * self.patch))
        seen = self.vision(pixels, output_hidden_states=True, interpolate_pos_encoding=True)
        last = self.vision.encoder.layers[-1]
        values = last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(seen.hidden_states[-2][:, 1:])))
        tokens = unit(self.projection(self.vision.post_layernorm(values)))
        embeddings = tokens.unflatten(1, (rows, columns)).movedim(-1, 1)
        return embeddings, torch.isfinite(embeddings).all(dim=1)


class LabelTeacher(Teacher):
    """The embedding of each pixel's class.

    Args:
        table: Embeddings of the ids from 1 on. [K, E]
        stride: Pixels per side that share one embedding; valid where all of them are of one known class.
    """

    table: Tensor

    def __init__(self, table: Float[Tensor, "k e"], stride: int = 2) -> None:
        super().__init__()
        self.stride, self.width = stride, table.shape[1]
        self.register_buffer("table", unit(table.float()))

    @staticmethod
    def from_file(path: str | Path, stride: int = 2) -> LabelTeacher:
        """From a safetensors file with a tensor `embeddings` [K, E].

        Raises:
            Sr3dError: It cannot be read, or holds no such tensor of finite numbers.
        """
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise Sr3dError(path, "file", str(error).splitlines()[0], "a safetensors file of embeddings") from None
        table = tensors.get(_TABLE)
        if table is None or table.ndim != 2 or not table.is_floating_point() or not bool(torch.isfinite(table).all()):
            found = ", ".join(f"{k} {list(v.shape)}" for k, v in tensors.items()) or "nothing"
            raise Sr3dError(path, "tensors", found, f"finite numbers {_TABLE} [K, E]")
        return LabelTeacher(table, stride)

    @staticmethod
    def from_names(classes: list[str], name: str, stride: int = 2) -> LabelTeacher:
        """Names of the ids from 1 on, read by the text encoder of a CLIP model.

        Raises:
            Sr3dError: The model or its tokenizer cannot be had, or is none.
        """
        return LabelTeacher(TextEncoder(name)([_PROMPT.format(c) for c in classes]), stride)

    @torch.no_grad()
    def forward(
        self, images: Float[Tensor, "n 3 h w"], labels: Int[Tensor, "n h w"] | None
    ) -> tuple[Float[Tensor, "n e fh fw"], Bool[Tensor, "n fh fw"]]:
        """Embeddings of length 1 of blocks of `stride` × `stride` pixels; none is valid without labels."""
        step = min(self.stride, *images.shape[-2:])
        rows, columns = (side // step for side in images.shape[-2:])
        if labels is None:
            empty = images.new_zeros((len(images), self.width, rows, columns), dtype=torch.float32)
            return empty, torch.zeros_like(empty[:, 0], dtype=torch.bool)
        if images.shape[-2] % step or images.shape[-1] % step:
            found = f"{images.shape[-1]}x{images.shape[-2]}"
            raise Sr3dError("sr3d.training.LabelTeacher", "image size", found, f"a multiple of stride {step}")
        blocks = labels.unflatten(-1, (columns, step)).unflatten(-3, (rows, step))
        low, high = blocks.amin(dim=(-3, -1)), blocks.amax(dim=(-3, -1))
        valid = (low == high) & (low > 0) & (low <= len(self.table))
        embeddings = self.table[torch.where(valid, low - 1, 0)].movedim(-1, 1)
        return embeddings, valid


def load_teacher(config: TeacherConfig) -> Teacher:
    """The teacher that a config asks for.

    Raises:
        Sr3dError: See `ClipTeacher`, `LabelTeacher.from_file`, `LabelTeacher.from_names`.
    """
    if config.kind == "clip":
        return ClipTeacher(config.name, config.size)
    if config.table is not None:
        return LabelTeacher.from_file(config.table, config.stride)
    return LabelTeacher.from_names(config.classes, config.name, config.stride)
