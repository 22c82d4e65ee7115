"""Views from other places, where nothing is known of parts of them: filled by continuation, or by a diffusion model.

A video model plugs in as a third `AuxiliaryViews`, with one line in `registry.py`: `fill` receives the frames in the
order of a path with their masks and cameras, which is what video inpainting models take as a clip (and camera-driven
ones as trajectories), and returns the clip. Frames beyond what the model takes at once are given to it in overlapping
windows, the last frames of one being known in the next. The loop keeps the known pixels and tests the others against
each other, so that a model that forgets a place between two frames loses that place, not the scene.
"""

from __future__ import annotations

from typing import ClassVar

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from sr3d.cameras import Cameras
from sr3d.zoom.providers.base import AuxiliaryViews, Provider, refuse_argument
from sr3d.zoom.providers.super_resolution import load_pipeline, reflected

_INPAINTING = "stable-diffusion-v1-5/stable-diffusion-inpainting"
_RADIUS = 3  # pixels around an unknown one that it is continued from
_MULTIPLE = 64  # sides: the autoencoder reduces by 8, the U-Net by 8 more


class Inpaint(AuxiliaryViews):
    """Every frame continued from its own known pixels; invents nothing."""

    name: ClassVar[str] = "inpaint"

    def __init__(self, argument: str = "", device: str = "cpu") -> None:
        super().__init__(argument, device)
        refuse_argument(self)

    def fill(
        self,
        images: Float[Tensor, "k h w 3"],
        known: Bool[Tensor, "k h w"],
        cameras: Cameras,
        prompt: str,
        seed: int,
    ) -> Float[Tensor, "k h w 3"]:
        """See `AuxiliaryViews.fill` and `continued`; the prompt is not read, and nothing is random."""
        return continued(images, known)


class DiffusionInpaint(AuxiliaryViews):
    """`diffusion:MODEL` or `diffusion:MODEL@STEPS`, see `InpaintingNetwork`; frame by frame, with the same noise."""

    name: ClassVar[str] = "diffusion"

    def __init__(self, argument: str = "", device: str = "cpu") -> None:
        super().__init__(argument, device)
        self._network = InpaintingNetwork(self)

    def fill(
        self,
        images: Float[Tensor, "k h w 3"],
        known: Bool[Tensor, "k h w"],
        cameras: Cameras,
        prompt: str,
        seed: int,
    ) -> Float[Tensor, "k h w 3"]:
        """See `AuxiliaryViews.fill`; frames without unknown pixels are not drawn."""
        filled = continued(images, known)
        for i in (~known).flatten(1).any(dim=1).nonzero().flatten().tolist():
            filled[i] = self._network(filled[i], ~known[i], prompt, seed)
        return filled


class InpaintingNetwork:
    """A `StableDiffusionInpaintPipeline` of diffusers.

    Args:
        provider: Who needs it; its argument names the model.

    Raises:
        Sr3dError: See `load_pipeline`.
    """

    def __init__(self, provider: Provider) -> None:
        from diffusers import StableDiffusionInpaintPipeline

        self._pipeline, self._steps = load_pipeline(
            provider, StableDiffusionInpaintPipeline, _INPAINTING, requires_safety_checker=False
        )

    def __call__(
        self,
        image: Float[Tensor, "h w 3"],
        where: Bool[Tensor, "h w"],
        prompt: str,
        seed: int,
        strength: float = 1.0,
    ) -> Float[Tensor, "h w 3"]:
        """The image with other pixels where `where` says so, and the same pixels, to the bit, elsewhere.

        Images smaller than what the network was trained on are enlarged for it, and the result is reduced again.

        Args:
            image: In [0, 1].
            where: Pixels to draw.
            prompt: What they are to show, "" without.
            seed: Of the noise.
            strength: 1: what is there now is not looked at. Less: that share of the noise is put over it.
        """
        cell = self._pipeline.vae_scale_factor
        height, width = image.shape[:2]
        scale = max(1.0, self._pipeline.unet.config.sample_size * cell / min(height, width))
        size = (round(height * scale), round(width * scale))
        large = interpolate(image.movedim(-1, 0)[None], size, mode="bicubic", antialias=True).clamp(0, 1)
        mask = reflected(interpolate(where[None, None].to(image), size, mode="nearest-exact"), _MULTIPLE)
        # The pipeline samples one pixel of the mask per latent cell: narrow gaps would be missed.
        mask = interpolate(max_pool2d(mask, cell), scale_factor=cell)
        drawn = self._pipeline(
            prompt=prompt,
            image=reflected(large, _MULTIPLE),
            mask_image=mask,
            height=mask.shape[-2],
            width=mask.shape[-1],
            strength=strength,
            num_inference_steps=self._steps,
            generator=torch.Generator().manual_seed(seed),
            output_type="pt",
        ).images.to(image)
        drawn = interpolate(drawn[..., : size[0], : size[1]], (height, width), mode="bicubic", antialias=True)
        return torch.where(where[..., None], drawn[0].movedim(0, -1).clamp(0, 1), image)


def continued(images: Float[Tensor, "k h w 3"], known: Bool[Tensor, "k h w"]) -> Float[Tensor, "k h w 3"]:
    """Unknown pixels from the known ones around them (Navier-Stokes inpainting, Bertalmio et al. 2001).

    A frame of which nothing is known takes the mean colour of all that is known of the others, or grey.

    Args:
        images: In [0, 1]; anything where unknown.
        known: Pixels that stay as they are, to the bit.
    """
    colour = images[known].mean(dim=0) if bool(known.any()) else images.new_full((3,), 0.5)
    filled = torch.where(known[..., None], images, colour)
    gaps = known.flatten(1).any(dim=1) & ~known.flatten(1).all(dim=1)
    for i in gaps.nonzero().flatten().tolist():
        unknown = (~known[i]).cpu().numpy().astype(np.uint8)
        # Channel by channel, because OpenCV takes all three only in 8 bits; its edge weights are made for 0..255.
        channels = (filled[i].float() * 255).cpu().unbind(dim=-1)
        flows = [cv2.inpaint(c.contiguous().numpy(), unknown, _RADIUS, cv2.INPAINT_NS) for c in channels]
        flow = torch.from_numpy(np.stack(flows, axis=-1)).to(images) / 255
        filled[i] = torch.where(known[i][..., None], filled[i], flow.clamp(0, 1))
    return filled
