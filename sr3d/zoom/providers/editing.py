"""Images changed, or things put into them: not at all, from a file, or by a diffusion model."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from sr3d.errors import Sr3dError
from sr3d.io.images import read_image
from sr3d.zoom.providers.auxiliary import InpaintingNetwork
from sr3d.zoom.providers.base import Edit, Editor, refuse_argument

_CHANGED = 0.1  # difference in a channel that makes a pixel new; an autoencoder alone changes textures by half of it
_OPENING = np.ones((3, 3), np.uint8)  # what is narrower than this is no object
_WHOLE = 0.6  # share of noise over an image that may change everywhere: its layout stays


class NoEdit(Editor):
    """Leaves everything as it is."""

    name: ClassVar[str] = "none"

    def __init__(self, argument: str = "", device: str = "cpu") -> None:
        super().__init__(argument, device)
        refuse_argument(self)

    def edit(self, image: Float[Tensor, "h w 3"], prompt: str, mask: Bool[Tensor, "h w"] | None, seed: int) -> Edit:
        """See `Editor.edit`; the same image, without anything inserted."""
        return _unchanged(image)


class Paste(Editor):
    """`paste:FILE.png`, a picture with an alpha channel that is laid over the image: pixels of the user's own.

    It is a third as high as the mask, and in the middle of the mask's lowest third; without a mask a third as high as
    the image, and in its middle. What lies outside the mask or the image is cut off.
    """

    name: ClassVar[str] = "paste"

    def __init__(self, argument: str = "", device: str = "cpu") -> None:
        """Read the picture.

        Raises:
            Sr3dError: No file, a damaged one, or one without an alpha channel.
        """
        super().__init__(argument, device)
        if not argument:
            raise Sr3dError(f"{self.kind} provider {self.name}", "file", "no name", "paste:FILE.png")
        # Colours over black are already multiplied by alpha, so that scaling brings in none from transparent pixels.
        colours = torch.from_numpy(read_image(argument))
        with Image.open(Path(argument)) as picture:
            if not picture.has_transparency_data:
                raise Sr3dError(argument, "channels", picture.mode, "an alpha channel")
            alpha = torch.from_numpy(np.array(picture.convert("RGBA").getchannel("A"))) / 255
        self._picture = torch.cat([colours, alpha[..., None]], dim=-1)

    def edit(self, image: Float[Tensor, "h w 3"], prompt: str, mask: Bool[Tensor, "h w"] | None, seed: int) -> Edit:
        """See `Editor.edit`; the prompt is not read, and nothing is random. Inserted: alpha above a half."""
        if mask is not None and not bool(mask.any()):
            return _unchanged(image)
        row, column, height = _place(image, mask)
        rows = max(1, round(height / 3))
        columns = max(1, round(rows * self._picture.shape[1] / self._picture.shape[0]))
        scaled = interpolate(self._picture.movedim(-1, 0)[None], (rows, columns), mode="bilinear", antialias=True)
        layer = _laid(scaled[0].movedim(0, -1).to(image), image, round(row - rows / 2), round(column - columns / 2))
        if mask is not None:
            layer = layer * mask[..., None]
        alpha = layer[..., 3:]
        return Edit(image=(image * (1 - alpha) + layer[..., :3]).clamp(0, 1), inserted=alpha[..., 0] > 0.5)


class DiffusionEditor(Editor):
    """`diffusion:MODEL` or `diffusion:MODEL@STEPS`, see `InpaintingNetwork`.

    Inside a mask everything is drawn anew. Without a mask the image is drawn over, its layout kept.
    """

    name: ClassVar[str] = "diffusion"

    def __init__(self, argument: str = "", device: str = "cpu") -> None:
        super().__init__(argument, device)
        self._network = InpaintingNetwork(self)

    def edit(self, image: Float[Tensor, "h w 3"], prompt: str, mask: Bool[Tensor, "h w"] | None, seed: int) -> Edit:
        """See `Editor.edit`; the image outside the mask stays as it is, to the bit.

        Inserted: pixels a channel of which changed by more than 0.1, without specks narrower than 3 pixels.
        """
        if mask is not None and not bool(mask.any()):
            return _unchanged(image)
        allowed = torch.ones_like(image[..., 0], dtype=torch.bool) if mask is None else mask
        drawn = self._network(image, allowed, prompt, seed, _WHOLE if mask is None else 1.0)
        changed = ((drawn - image).abs().amax(dim=-1) > _CHANGED).cpu().numpy().astype(np.uint8)
        opened = torch.from_numpy(cv2.morphologyEx(changed, cv2.MORPH_OPEN, _OPENING))
        return Edit(image=drawn, inserted=opened.to(image.device) > 0)


def _unchanged(image: Float[Tensor, "h w 3"]) -> Edit:
    return Edit(image=image, inserted=torch.zeros_like(image[..., 0], dtype=torch.bool))


def _place(image: Float[Tensor, "h w 3"], mask: Bool[Tensor, "h w"] | None) -> tuple[float, float, int]:
    """Row and column of the middle of what is pasted, and three times its height, pixels."""
    if mask is None:
        return image.shape[0] / 2, image.shape[1] / 2, image.shape[0]
    rows, columns = mask.nonzero().unbind(dim=1)
    top, bottom = int(rows.min()), int(rows.max()) + 1
    low = rows + 1 > top + (bottom - top) * 2 / 3
    return top + (bottom - top) * 5 / 6, float((columns[low] + 0.5).mean()), bottom - top


def _laid(
    picture: Float[Tensor, "ph pw 4"], image: Float[Tensor, "h w 3"], top: int, left: int
) -> Float[Tensor, "h w 4"]:
    """The picture at its place in a transparent layer of the image's size."""
    height, width = image.shape[:2]
    layer = image.new_zeros(height, width, 4)
    first, start = max(0, -top), max(0, -left)
    part = picture[first : max(first, height - top), start : max(start, width - left)]
    layer[max(0, top) : max(0, top) + part.shape[0], max(0, left) : max(0, left) + part.shape[1]] = part
    return layer
