"""Images enlarged in two dimensions: by interpolation, by Swin2SR, or by a diffusion model that reads a prompt."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from sr3d.errors import Sr3dError
from sr3d.models.upsampler import Upsampler, UpsamplerConfig
from sr3d.zoom.providers.base import ImageSuperResolution, Provider, pretrained, refuse_argument

_SWIN2SR = "caidas/swin2SR-classical-sr-x2-64"
_UPSCALER = "stabilityai/stable-diffusion-x4-upscaler"
_STEPS = 25  # of denoising, unless the argument says otherwise
_ROUNDS = 8  # of back-projection
_MULTIPLE = 8  # sides of what a U-Net with three reductions takes without rounding


class Bicubic(ImageSuperResolution):
    """Interpolation: sees nothing that is not there."""

    name: ClassVar[str] = "bicubic"

    def __init__(self, argument: str = "", device: str = "cpu") -> None:
        super().__init__(argument, device)
        refuse_argument(self)

    def enlarge(
        self, images: Float[Tensor, "v h w 3"], factor: int, prompt: str, seed: int
    ) -> Float[Tensor, "v fh fw 3"]:
        """See `ImageSuperResolution.enlarge`; the prompt is not read, and nothing is random."""
        return _one_by_one(Upsampler(UpsamplerConfig()), images, factor)


class Swin2SR(ImageSuperResolution):
    """`swin2sr:MODEL`, a Swin2SR of transformers, by default of 2×; repeated until the factor is reached."""

    name: ClassVar[str] = "swin2sr"

    def __init__(self, argument: str = "", device: str = "cpu") -> None:
        super().__init__(argument, device)
        model = argument or _SWIN2SR
        try:
            self._upsampler = Upsampler(UpsamplerConfig(method="swin2sr", name=model)).to(device).eval()
        except Sr3dError as error:
            raise Sr3dError(f"{self.kind} provider {self.name}", model, error.found, error.expected) from error

    def enlarge(
        self, images: Float[Tensor, "v h w 3"], factor: int, prompt: str, seed: int
    ) -> Float[Tensor, "v fh fw 3"]:
        """See `ImageSuperResolution.enlarge`; the prompt is not read, and nothing is random.

        Raises:
            Sr3dError: The network's own factor does not divide `factor`.
        """
        try:
            return _one_by_one(self._upsampler, images.to(self.device), factor).to(images)
        except Sr3dError as error:
            raise Sr3dError(f"{self.kind} provider {self.name}", "factor", error.found, error.expected) from error


class DiffusionUpscaler(ImageSuperResolution):
    """`diffusion:MODEL` or `diffusion:MODEL@STEPS`, a `StableDiffusionUpscalePipeline` of diffusers, by default of 4×.

    One link of a Chain-of-Zoom: the prompt, which the zoom asks anew of the vision-language model at every level, says
    what the details are; the loop over levels is the chain. The pipeline draws once at its own factor; the result is
    resized to what was asked for, and back-projected.
    """

    name: ClassVar[str] = "diffusion"

    def __init__(self, argument: str = "", device: str = "cpu") -> None:
        super().__init__(argument, device)
        from diffusers import StableDiffusionUpscalePipeline

        self._pipeline, self._steps = load_pipeline(self, StableDiffusionUpscalePipeline, _UPSCALER)

    def enlarge(
        self, images: Float[Tensor, "v h w 3"], factor: int, prompt: str, seed: int
    ) -> Float[Tensor, "v fh fw 3"]:
        """See `ImageSuperResolution.enlarge`; every image is drawn with the same noise, and see `back_projected`."""
        drawn = torch.cat([self._draw(image, factor, prompt, seed) for image in images])
        return back_projected(drawn.movedim(1, -1).to(images), images)

    def _draw(self, image: Float[Tensor, "h w 3"], factor: int, prompt: str, seed: int) -> Float[Tensor, "1 3 fh fw"]:
        """What the pipeline makes of one image."""
        height, width = image.shape[:2]
        padded = reflected(image.movedim(-1, 0)[None], _MULTIPLE)
        drawn = self._pipeline(
            prompt=prompt,
            image=padded,
            num_inference_steps=self._steps,
            generator=torch.Generator().manual_seed(seed),
            output_type="pt",
        ).images.float()
        own = drawn.shape[-1] // padded.shape[-1]
        size = (height * factor, width * factor)
        return interpolate(drawn[..., : own * height, : own * width], size, mode="bicubic", antialias=True).clamp(0, 1)


def back_projected(
    images: Float[Tensor, "v fh fw 3"], low: Float[Tensor, "v h w 3"], rounds: int = _ROUNDS
) -> Float[Tensor, "v fh fw 3"]:
    """Images changed until they reduce to `low` (iterative back-projection, Irani and Peleg 1991).

    Every round subtracts the enlarged low-resolution error, area(images) − low, and clamps to [0, 1]. The error is
    enlarged bicubically in the first half of the rounds, which leaves no blocks, and by repeating pixels in the second,
    which leaves no error except where values were clamped.

    Args:
        images: In [0, 1], of a multiple of the size of `low`.
        low: In [0, 1].
        rounds: 0 or more.
    """
    fine, inputs = images.movedim(-1, 1), low.movedim(-1, 1)
    for i in range(rounds):
        error = interpolate(fine, inputs.shape[-2:], mode="area") - inputs
        fine = (fine - interpolate(error, fine.shape[-2:], mode="bicubic" if 2 * i < rounds else "nearest")).clamp(0, 1)
    return fine.movedim(1, -1).contiguous()


def load_pipeline(provider: Provider, pipeline: Any, default: str, **options: Any) -> tuple[Any, int]:
    """A diffusers pipeline on the provider's device, and how many denoising steps it is to do.

    Args:
        provider: Its argument is `MODEL`, `MODEL@STEPS`, `@STEPS` or nothing; a model of the Hugging Face hub or a
            folder, of which only safetensors are read.
        pipeline: Class of diffusers.
        default: Model where the argument names none.
        options: Of `from_pretrained`.

    Raises:
        Sr3dError: Fewer than 2 steps, or see `pretrained`.
    """
    found = re.fullmatch(r"(.*?)(?:@(\d+))?", provider.argument, re.DOTALL)
    assert found is not None
    model, steps = found[1] or default, int(found[2] or _STEPS)
    if steps < 2:
        raise Sr3dError(f"{provider.kind} provider {provider.name}", "steps", steps, "2 or more")
    options |= {
        "use_safetensors": True,
        # It blackens whole pictures on a false alarm; what a scene shows is its owner's business.
        "safety_checker": None,
        "dtype": torch.float16 if torch.device(provider.device).type == "cuda" else torch.float32,
    }
    loaded = pretrained(provider, pipeline, model, **options).to(provider.device)
    loaded.set_progress_bar_config(disable=True)
    return loaded, steps


def reflected(images: Float[Tensor, "n c h w"], multiple: int) -> Float[Tensor, "n c ph pw"]:
    """Images continued to the right and below by reflection, as often as needed, to sides that are multiples."""
    height, width = images.shape[-2:]
    sides = ((0, 0), (0, 0), (0, -height % multiple), (0, -width % multiple))
    return torch.from_numpy(np.pad(images.cpu().numpy(), sides, mode="reflect")).to(images)


@torch.no_grad()
def _one_by_one(upsampler: Upsampler, images: Float[Tensor, "v h w 3"], factor: int) -> Float[Tensor, "v fh fw 3"]:
    """Images enlarged one after another: a network may need much memory."""
    return torch.cat([upsampler(image[None].movedim(-1, 1), factor) for image in images]).movedim(1, -1).contiguous()
