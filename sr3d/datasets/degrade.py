"""Full-resolution views to low-resolution ones: exact reductions, and what cameras and files do to pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, no_type_check

import cv2
import numba
import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from PIL import Image
from torch import Tensor

from sr3d.errors import Sr3dError

Filter = Literal["area", "bilinear", "bicubic", "lanczos"]
_PIL = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
_REDUCTIONS: tuple[Filter, ...] = ("area", "bilinear", "bicubic")
_GAMMA = 2.2


@dataclass(kw_only=True)
class DegradeConfig:
    """How inputs are made from full-resolution views.

    "realistic" is a chain after BSRGAN (Zhang et al. 2021) and Real-ESRGAN (Wang et al. 2021): blur, reduction (by
    area, bilinear or bicubic, drawn), sensor noise, JPEG. All ranges are drawn from evenly; 0 turns a part off. The
    papers' ranges repair damaged pictures from the web; the defaults here are what a phone or a video camera does.

    Attributes:
        method: "area": mean over the area of the larger pixel. "bicubic" (a = −0.5) and "lanczos" (3 lobes): with
            antialiasing, as Pillow and MATLAB's imresize do it (at borders Pillow cuts the filter, MATLAB mirrors the
            image). "realistic": the chain; the attributes below belong to it.
        blur: Standard deviation of a Gaussian along each of two axes at a random angle, low-resolution pixels.
        shot_noise: Standard deviation of photon noise at white, linear light in 0..1: 1/√(photons at white). At other
            values it grows with the square root of the light.
        read_noise: Standard deviation of noise that does not depend on the light, linear light in 0..1.
        jpeg: Quality, 1 to 100; colour at half resolution (4:2:0).
        jpeg_rounds: How often the picture is saved as JPEG, each time with another quality.
        per_view: Draw for every view, not once for the clip. Off: views of one place come from one camera with one
            setting. Noise itself always differs between views.

    Raises:
        Sr3dError: A range is out of range, or its higher end comes first.
    """

    method: Literal["area", "bicubic", "lanczos", "realistic"] = "area"
    blur: tuple[float, float] = (0.2, 0.8)
    shot_noise: tuple[float, float] = (0.01, 0.05)
    read_noise: tuple[float, float] = (0.0, 0.003)
    jpeg: tuple[int, int] = (60, 95)
    jpeg_rounds: tuple[int, int] = (1, 2)
    per_view: bool = False

    def __post_init__(self) -> None:
        limits = {
            "blur": (0, 100),
            "shot_noise": (0, 1),
            "read_noise": (0, 1),
            "jpeg": (1, 100),
            "jpeg_rounds": (0, 10),
        }
        for name, (least, most) in limits.items():
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                expected = f"[lowest, highest] within {least} to {most}"
                raise Sr3dError("sr3d.datasets.DegradeConfig", name, f"[{low}, {high}]", expected)


@dataclass(kw_only=True)
class _Settings:
    """One draw from the ranges of a `DegradeConfig`."""

    sigmas: tuple[float, float]
    angle: float
    reduction: Filter
    shot_noise: float
    read_noise: float
    qualities: list[int]


def low_size(width: int, height: int, factor: int | float) -> tuple[int, int]:
    """Width and height divided by `factor`, rounded, at least 1.

    Raises:
        Sr3dError: `factor` is below 1 or not finite.
    """
    if not 1 <= factor < math.inf:
        raise Sr3dError("sr3d.datasets.low_size", "factor", factor, "a finite number of 1 or more")
    return max(1, round(width / factor)), max(1, round(height / factor))


def degrade(
    images: Float[Tensor, "v h w 3"], size: tuple[int, int], config: DegradeConfig, seed: int
) -> Float[Tensor, "v small_h small_w 3"]:
    """Views as a camera of fewer pixels would have taken them.

    Args:
        images: RGB in [0, 1].
        size: Width and height of the result, at most those of `images`.
        config: Method and strengths.
        seed: Of all random draws, 0 or more; used by "realistic" only. View i depends on (seed, i) and not on how many
            other views there are.

    Raises:
        Sr3dError: `size` is larger than the images or below 1, or `seed` is negative.
    """
    height, width = images.shape[1:3]
    if not (1 <= size[0] <= width and 1 <= size[1] <= height):
        raise Sr3dError("sr3d.datasets.degrade", "size", f"{size[0]}x{size[1]}", f"1x1 to {width}x{height}")
    if seed < 0:
        raise Sr3dError("sr3d.datasets.degrade", "seed", seed, "0 or more")
    if config.method != "realistic":
        return resample(images, size, config.method)
    shared = _draw(config, np.random.default_rng([seed, 0]))
    views = []
    for i, image in enumerate(images.cpu().numpy()):
        rng = np.random.default_rng([seed, 1 + i])
        settings = _draw(config, rng) if config.per_view else shared
        views.append(_photograph(image, size, settings, rng))
    return torch.from_numpy(np.stack(views)).to(images.device)


def resample(images: Float[Tensor, "v h w 3"], size: tuple[int, int], method: Filter) -> Float[Tensor, "v h2 w2 3"]:
    """Images at another size, clipped to [0, 1].

    Args:
        images: RGB in [0, 1].
        size: Width and height of the result. "area" is for reductions; the others also enlarge.
        method: Filter; all are antialiased.
    """
    width, height = size
    factor = images.shape[2] // width
    if method == "area" and images.shape[1:3] == (height * factor, width * factor):
        return block_mean(images, factor)
    views = [_resample(image, size, method) for image in images.cpu().numpy()]
    return torch.from_numpy(np.stack(views)).to(images.device)


def block_mean(
    images: Float[Tensor, "*batch h w 3"] | UInt8[Tensor, "*batch h w 3"], factor: int
) -> Float[Tensor, "*batch small_h small_w 3"]:
    """Mean over blocks of factor × factor pixels, in [0, 1] also of 8-bit images; `factor` divides the size."""
    if not images.is_floating_point() and images.device.type == "cpu":
        flat = images.reshape(-1, *images.shape[-3:]).contiguous().numpy()
        out = np.empty((len(flat), images.shape[-3] // factor, images.shape[-2] // factor, 3), np.float32)
        _block_means(flat, factor, out)
        return torch.from_numpy(out).reshape(*images.shape[:-3], *out.shape[1:])
    # Whole rows first: long runs of memory are summed many times faster than pixels of three numbers.
    whole = images if images.is_floating_point() else images.float() / 255
    rows = whole.flatten(-2).unflatten(-2, (-1, factor)).sum(-2)
    pixels = rows.unflatten(-1, (-1, factor, 3)).unbind(-2)
    return torch.stack([sum(p[..., c] for p in pixels) / factor**2 for c in range(3)], dim=-1)


@numba.njit(cache=True)
@no_type_check
def _block_means(images, factor, out):
    """Of 8-bit images [V, H, W, 3]: sums of whole rows, which the compiler vectorises, then of their pixels."""
    views, height, width, _ = out.shape
    row = np.empty(width * factor * 3, np.int32)
    scale = np.float32(factor * factor * 255)
    for v in range(views):
        for y in range(height):
            row[:] = 0
            for i in range(factor):
                line = images[v, y * factor + i].reshape(-1)
                for k in range(len(row)):
                    row[k] += line[k]
            for x in range(width):
                for c in range(3):
                    total = row[x * factor * 3 + c]
                    for j in range(1, factor):
                        total += row[(x * factor + j) * 3 + c]
                    out[v, y, x, c] = np.float32(total) / scale


def _resample(
    image: Float32[np.ndarray, "h w 3"], size: tuple[int, int], method: Filter
) -> Float32[np.ndarray, "h2 w2 3"]:
    if method == "area":
        return cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA).reshape(*size[::-1], 3)
    channels = [Image.fromarray(image[..., c]).resize(size, _PIL[method]) for c in range(3)]
    return np.stack([np.asarray(c) for c in channels], axis=-1).clip(0, 1)


def _draw(config: DegradeConfig, rng: np.random.Generator) -> _Settings:
    rounds = int(rng.integers(config.jpeg_rounds[0], config.jpeg_rounds[1] + 1))
    return _Settings(
        sigmas=(rng.uniform(*config.blur), rng.uniform(*config.blur)),
        angle=rng.uniform(0, math.pi),
        reduction=_REDUCTIONS[int(rng.integers(len(_REDUCTIONS)))],
        shot_noise=rng.uniform(*config.shot_noise),
        read_noise=rng.uniform(*config.read_noise),
        qualities=[int(rng.integers(config.jpeg[0], config.jpeg[1] + 1)) for _ in range(rounds)],
    )


def _photograph(
    image: Float32[np.ndarray, "h w 3"], size: tuple[int, int], settings: _Settings, rng: np.random.Generator
) -> Float32[np.ndarray, "small_h small_w 3"]:
    scale = (image.shape[1] / size[0], image.shape[0] / size[1])
    if max(settings.sigmas) > 0:
        image = cv2.filter2D(image, -1, _kernel(settings, scale), borderType=cv2.BORDER_REFLECT)
    image = _noisy(_resample(image, size, settings.reduction).clip(0, 1), settings, rng)
    for quality in settings.qualities:
        image = _compressed(image, quality)
    return image


def _kernel(settings: _Settings, scale: tuple[float, float]) -> Float32[np.ndarray, "k k"]:
    """The Gaussian in pixels of the large image, which are `scale` times finer."""
    c, s = math.cos(settings.angle), math.sin(settings.angle)
    # A Gaussian without any width has no inverse; a thousandth of a pixel is none.
    axes = np.diag(scale) @ np.array([[c, -s], [s, c]]) @ np.diag(np.maximum(settings.sigmas, 1e-3))
    covariance = axes @ axes.T
    radius = math.ceil(3 * math.sqrt(covariance.diagonal().max()))
    v, u = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    offsets = np.stack([u, v], axis=-1)
    distance = np.einsum("hwi,ij,hwj->hw", offsets, np.linalg.inv(covariance), offsets)
    kernel = np.exp(-distance / 2)
    return (kernel / kernel.sum()).astype(np.float32)


def _noisy(
    image: Float32[np.ndarray, "h w 3"], settings: _Settings, rng: np.random.Generator
) -> Float32[np.ndarray, "h w 3"]:
    """Photon and read noise, added to linear light as the sensor does."""
    light = image.astype(np.float64) ** _GAMMA
    if settings.shot_noise > 0:
        photons = settings.shot_noise**-2
        light = rng.poisson(light * photons) / photons
    light += settings.read_noise * rng.standard_normal(light.shape)
    return (light.clip(0, 1) ** (1 / _GAMMA)).astype(np.float32)


def _compressed(image: Float32[np.ndarray, "h w 3"], quality: int) -> Float32[np.ndarray, "h w 3"]:
    """Through a JPEG file with colour at half resolution."""
    pixels = (image * 255).round().astype(np.uint8)
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x221111]
    file = cv2.imencode(".jpg", np.ascontiguousarray(pixels[..., ::-1]), options)[1]
    return np.asarray(cv2.imdecode(file, cv2.IMREAD_COLOR_RGB), np.float32) / np.float32(255)
