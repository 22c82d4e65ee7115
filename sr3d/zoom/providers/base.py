"""Interfaces of the providers, how they load networks, and the checks that everything they return has to pass."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int, UInt8
from safetensors import SafetensorError
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.errors import Sr3dError

T = TypeVar("T")


@dataclass(kw_only=True)
class DepthGuess:
    """What a monocular network says about an image.

    Attributes:
        depth: Positive and finite everywhere. [H, W]
        kind: "metric": z-depth in metres. "relative": z-depth up to an unknown scale and shift. "inverse": 1 / z-depth
            up to an unknown scale and shift (Depth Anything).
    """

    depth: Float[Tensor, "h w"]
    kind: Literal["metric", "relative", "inverse"]


@dataclass(kw_only=True)
class Edit:
    """An edited image.

    Attributes:
        image: In [0, 1]. [H, W, 3]
        inserted: Pixels of newly inserted objects, which have a depth of their own. [H, W]
    """

    image: Float[Tensor, "h w 3"]
    inserted: Bool[Tensor, "h w"]


class Provider(ABC):
    """What all kinds share.

    Attributes:
        kind: "sr", "editor", "auxiliary", "depth", "segmenter" or "vlm".
        name: On the command line.
    """

    kind: ClassVar[str]
    name: ClassVar[str]

    def __init__(self, argument: str = "", device: str = "cpu") -> None:
        """Load what is needed.

        Args:
            argument: What follows the colon on the command line: a model of the Hugging Face hub, or a folder.
            device: Where networks run.

        Raises:
            Sr3dError: An argument that has no meaning here, or weights that cannot be had.
        """
        self.argument, self.device = argument, device


class ImageSuperResolution(Provider):
    """Enlarges images in two dimensions."""

    kind: ClassVar[str] = "sr"

    @abstractmethod
    def enlarge(
        self, images: Float[Tensor, "v h w 3"], factor: int, prompt: str, seed: int
    ) -> Float[Tensor, "v fh fw 3"]:
        """Images in [0, 1], `factor` times as large.

        Args:
            images: In [0, 1].
            factor: ≥ 2.
            prompt: Words about what they show, "" without.
            seed: Of everything random.
        """


class Editor(Provider):
    """Changes an image, or puts something into it, as words say."""

    kind: ClassVar[str] = "editor"

    @abstractmethod
    def edit(self, image: Float[Tensor, "h w 3"], prompt: str, mask: Bool[Tensor, "h w"] | None, seed: int) -> Edit:
        """An image of the same size.

        Args:
            image: In [0, 1].
            prompt: What is asked for.
            mask: Where changes are allowed; None: everywhere.
            seed: Of everything random.
        """


class AuxiliaryViews(Provider):
    """Fills what drawings from other places lack; a video model plugs in here: frames come in the order of a path."""

    kind: ClassVar[str] = "auxiliary"

    @abstractmethod
    def fill(
        self,
        images: Float[Tensor, "k h w 3"],
        known: Bool[Tensor, "k h w"],
        cameras: Cameras,
        prompt: str,
        seed: int,
    ) -> Float[Tensor, "k h w 3"]:
        """The same images, in which unknown pixels have colours; known ones stay as they are, to the bit.

        Args:
            images: In [0, 1], along a path; anything where unknown.
            known: Pixels that show the scene.
            cameras: Of the images.
            prompt: Words about the scene, "" without.
            seed: Of everything random.
        """


class MonocularDepth(Provider):
    """Depth from a single image."""

    kind: ClassVar[str] = "depth"

    @abstractmethod
    def guess(self, image: Float[Tensor, "h w 3"], focal: float) -> DepthGuess:
        """Depth at every pixel.

        Args:
            image: In [0, 1].
            focal: Focal length, pixels.
        """


class Segmenter(Provider):
    """Parts of an image."""

    kind: ClassVar[str] = "segmenter"

    @abstractmethod
    def segments(self, image: Float[Tensor, "h w 3"]) -> Int[Tensor, "h w"]:
        """Number of each pixel's segment, from 0 on without gaps; every pixel is in one."""

    @abstractmethod
    def find(self, image: Float[Tensor, "h w 3"], words: str) -> Bool[Tensor, "h w"]:
        """Pixels of what the words name; none where there is no such thing.

        Raises:
            Sr3dError: This segmenter does not read words.
        """


class VisionLanguage(Provider):
    """Looks at images and answers in words."""

    kind: ClassVar[str] = "vlm"

    @abstractmethod
    def answer(self, images: list[Float[Tensor, "_ _ 3"]], question: str) -> str:
        """One answer, without line breaks; the same every time (greedy decoding)."""


def refuse_argument(provider: Provider) -> None:
    """For providers that have nothing to choose.

    Raises:
        Sr3dError: There is an argument.
    """
    if provider.argument:
        where = f"{provider.kind} provider {provider.name}"
        raise Sr3dError(where, "argument", repr(provider.argument), f"{provider.name} alone")


def pretrained(provider: Provider, part: Any, model: str, **options: Any) -> Any:
    """What a class of transformers or diffusers reads from a folder or the hub's cache, else from the hub.

    Args:
        provider: Who asks.
        part: Class with a `from_pretrained`.
        model: Name on the Hugging Face hub, or a folder.
        options: Of `from_pretrained`.

    Raises:
        Sr3dError: It cannot be had, or is something else.
    """
    expected = "a folder of such a model, or its name on the Hugging Face hub and a network"
    try:
        if not Path(model).is_dir():
            with contextlib.suppress(OSError):
                return part.from_pretrained(model, local_files_only=True, **options)
        return part.from_pretrained(model, **options)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Sr3dError(f"{provider.kind} provider {provider.name}", model, reason, expected) from None


def network(provider: Provider, part: Any, model: str, **options: Any) -> Any:
    """A network of transformers with all its weights: frozen, float32, on the provider's device; runs no foreign code.

    Args:
        provider: Who asks.
        part: Class with a `from_pretrained`.
        model: Name on the Hugging Face hub, or a folder.
        options: Of `from_pretrained`.

    Raises:
        Sr3dError: It cannot be had, is something else, or lacks weights.
    """
    options |= {"weights_only": True, "output_loading_info": True, "dtype": torch.float32}
    found, report = pretrained(provider, part, model, **options)
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        reason = f"{len(missing)} weights missing, such as {missing[0]}"
        raise Sr3dError(f"{provider.kind} provider {provider.name}", model, reason, f"a whole {part.__name__}")
    return found.eval().requires_grad_(False).to(provider.device)


def eight_bit(image: Float[Tensor, "h w 3"]) -> UInt8[Tensor, "3 h w"]:
    """An image in [0, 1] as the image processors of transformers expect it: what all these networks were trained on."""
    return (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).movedim(-1, 0)


def ask(provider: Provider, action: str, run: Callable[[], T]) -> T:
    """Run a provider; whatever goes wrong in it becomes one clear error.

    Raises:
        Sr3dError: Its own, or it died (out of memory, a damaged file, a wrong size inside the network).
    """
    try:
        return run()
    except Sr3dError:
        raise
    except (RuntimeError, OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, ImportError) as error:
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise Sr3dError(f"{provider.kind} provider {provider.name}", action, reason[0], "an answer") from error


def check_images(provider: Provider, found: Float[Tensor, "*shape"], shape: tuple[int, ...]) -> Float[Tensor, "*shape"]:
    """Images of the expected shape, clamped to [0, 1].

    Raises:
        Sr3dError: Another shape, or values that are not finite.
    """
    where = f"{provider.kind} provider {provider.name}"
    if tuple(found.shape) != shape:
        raise Sr3dError(where, "image size", tuple(found.shape), shape)
    if not bool(torch.isfinite(found).all()):
        raise Sr3dError(where, "colours", "NaN or infinity", "finite numbers in 0..1")
    return found.clamp(0, 1)


def check_depth(provider: Provider, found: DepthGuess, shape: tuple[int, int]) -> DepthGuess:
    """A depth map of the expected shape.

    Raises:
        Sr3dError: Another shape, or values that are not finite and positive.
    """
    where = f"{provider.kind} provider {provider.name}"
    if tuple(found.depth.shape) != shape:
        raise Sr3dError(where, "depth size", tuple(found.depth.shape), shape)
    if not bool((torch.isfinite(found.depth) & (found.depth > 0)).all()):
        raise Sr3dError(where, "depth", "NaN, infinity, 0 or less", "finite numbers above 0")
    return found
