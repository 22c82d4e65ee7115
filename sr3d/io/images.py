"""Image, depth and label files; folders of plain images."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from sr3d.errors import Sr3dError
from sr3d.io.atomic import atomic

SUFFIXES = (".png", ".jpg", ".jpeg")


def list_images(folder: Path) -> list[Path]:
    """PNG and JPEG files of a folder in natural order (2.png before 10.png); hidden files are left out."""
    files = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file() and p.name[0] != "."]
    return sorted(files, key=lambda p: natural_key(p.name))


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key in which runs of digits compare as numbers."""
    parts = re.split(r"([0-9]+)", name)
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels from the header, as stored (EXIF orientation is not applied).

    Raises:
        Sr3dError: The file is missing or no image.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Sr3dError(path, "image", f"{type(error).__name__}: {error}", "a readable PNG or JPEG") from error


def read_image(path: str | Path, upright: bool = False) -> Float32[np.ndarray, "h w 3"]:
    """RGB in [0, 1] of a PNG or JPEG, 8 or 16 bits; grey is repeated, alpha is composited over black.

    Args:
        path: Image file.
        upright: Turn the image as its EXIF orientation says. Leave it off where intrinsics belong to the stored pixels.

    Raises:
        Sr3dError: The file is missing, damaged or no image.
    """
    path = Path(path)
    values: NDArray[np.float32]
    with _open(path) as image:
        if _is_16_bit_png(path):
            values = _read_16_bit(path)
        else:
            image = ImageOps.exif_transpose(image) if upright else image
            alpha = image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
            values = np.asarray(image.convert("RGBA" if alpha else "RGB"), dtype=np.float32) / np.float32(255)
    if values.shape[-1] == 4:
        values = values[..., :3] * values[..., 3:]
    return values


def read_integers(path: str | Path) -> NDArray[np.int64]:
    """Values of a single-channel integer image (depth, labels; palette indices are kept). [H, W]

    Raises:
        Sr3dError: The file is missing, damaged, or has several channels.
    """
    with _open(Path(path)) as image:
        if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
            raise Sr3dError(path, "channels", image.mode, "one channel of integers")
        return np.asarray(image).astype(np.int64)


def read_depth(path: str | Path, unit: float) -> Float32[np.ndarray, "h w"]:
    """z-depth in world units, 0 where unknown (not finite or not positive).

    Args:
        path: Integer PNG, or `.npy` of floats in world units.
        unit: World units per integer step of a PNG; `.npy` is taken as it is.

    Raises:
        Sr3dError: The file is missing, damaged, or no depth map.
    """
    path = Path(path)
    if path.suffix.lower() != ".npy":
        return (read_integers(path) * unit).astype(np.float32)
    try:
        depth = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise Sr3dError(path, "depth", f"{type(error).__name__}: {error}", "a .npy array of floats") from error
    shaped = isinstance(depth, np.ndarray) and depth.ndim in (2, 3) and depth.shape[2:] in ((), (1,)) and depth.size
    if not shaped:
        raise Sr3dError(path, "depth", f"shape {getattr(depth, 'shape', None)}", "shape (height, width)")
    if not np.issubdtype(depth.dtype, np.floating):
        raise Sr3dError(path, "depth", depth.dtype, "floats in world units")
    depth = depth.reshape(depth.shape[:2]).astype(np.float32)
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))


def write_image(path: str | Path, image: Float[Tensor, "h w 3"]) -> None:
    """Write an RGB image in [0, 1] (clamped) as 8-bit PNG or JPEG, by extension.

    Raises:
        Sr3dError: Unknown extension, NaN values, or the file cannot be written. `path` is then as it was.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise Sr3dError(path, "extension", repr(path.suffix), ", ".join(SUFFIXES))
    if not torch.isfinite(image).all():
        raise Sr3dError(path, "image", "NaN or inf", "finite values")
    values = (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    with atomic(path) as temporary:
        Image.fromarray(values).save(temporary, quality=95)


def _open(path: Path) -> Image.Image:
    """A fully decoded image: PIL decodes late, and damage shows only then."""
    if not os.path.isfile(path):
        raise Sr3dError(path, "file", "no such file", "an image")
    try:
        image = Image.open(path)
        image.load()
    except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError) as error:
        raise Sr3dError(path, "image", f"{type(error).__name__}: {error}", "a readable PNG or JPEG") from error
    return image


def _is_16_bit_png(path: Path) -> bool:
    with path.open("rb") as stream:
        head = stream.read(25)
    return head[:8] == b"\x89PNG\r\n\x1a\n" and head[24] == 16


def _read_16_bit(path: Path) -> NDArray[np.float32]:
    """PIL would cut 16-bit colour to 8 bits."""
    values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise Sr3dError(path, "image", "undecodable 16-bit PNG", "a readable PNG")
    values = values.astype(np.float32) / np.float32(65535)
    if values.ndim == 2:
        return np.repeat(values[..., None], 3, axis=-1)
    return values[..., [2, 1, 0, 3][: values.shape[-1]]]
