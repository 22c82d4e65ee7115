"""The compressed `.ply` of PlayCanvas (SuperSplat, splat-transform) → Gaussians.

Gaussians come in chunks of 256, the last one shorter. Element `chunk` has the bounds of positions, log-scales and, in
newer files, colours; element `vertex` has four words of 32 bits per Gaussian, most significant bits first:

    packed_position, packed_scale  11, 10, 11 bits for x, y, z, from the chunk's least (0) to its largest (all ones)
    packed_color                   8 bits each for red, green, blue between the chunk's bounds (without them 0 and 1),
                                   and opacity, which is no logit
    packed_rotation                2 bits: which of w, x, y, z is left out, the largest and positive one; 10 bits for
                                   each of the others in that order, from -1/√2 to 1/√2

Colours are 0.5 + C0 · f_dc. The optional element `sh` has bytes f_rest_0, ... in the order of the 3DGS `.ply`: 0 is -4,
255 is 4, any other byte b is 8 · ((b + 0.5) / 256 - 0.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians

_CHUNK = 256
_C0 = 0.28209479177387814  # basis function of SH degree 0
_COLORS = {"min_r", "min_g", "min_b", "max_r", "max_g", "max_b"}
_PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")


def is_compressed(elements: dict[str, np.ndarray]) -> bool:
    """Whether the elements are those of a compressed `.ply`: a vertex has a packed property."""
    return not set(_PACKED).isdisjoint(elements["vertex"].dtype.names or ())


def unpack(path: Path, elements: dict[str, np.ndarray]) -> Gaussians:
    """Decode a compressed `.ply`.

    Args:
        path: Named in errors.
        elements: Structured array of every element of the file.

    Returns:
        Gaussians with activated values, float32; quaternions wxyz of norm 1.

    Raises:
        Sr3dError: An element or a property is missing or of another type, counts do not match, or a bound is NaN,
            infinite, the wrong way round, or too large.
    """
    if "chunk" not in elements:
        raise Sr3dError(path, "elements", sorted(elements), "an element 'chunk'")
    chunks = elements["chunk"]
    words = _columns(path, "vertex", elements["vertex"], _PACKED, np.uint32)
    count, expected = len(words), -(-len(words) // _CHUNK)
    if len(chunks) != expected:
        found = f"{len(chunks)} rows"
        raise Sr3dError(path, "element chunk", found, f"{expected}, one for {_CHUNK} of {count} vertices")
    position, scale = _parts(words[:, 0], (11, 10, 11)), _parts(words[:, 2], (11, 10, 11))
    color = _parts(words[:, 3], (8, 8, 8, 8))
    means = _between(path, chunks, ("x", "y", "z"), position)
    log_scales = _between(path, chunks, ("scale_x", "scale_y", "scale_z"), scale)
    colors = color[:, :3]
    if _COLORS & set(chunks.dtype.names or ()):
        colors = _between(path, chunks, ("r", "g", "b"), colors)
    sh = torch.cat([torch.from_numpy((colors - 0.5) / _C0)[:, None], _higher(path, elements, count)], dim=1).float()
    scales = torch.from_numpy(log_scales).exp().float()
    for field, values in (("scale", scales), ("color", sh[:, 0])):
        bad = ~torch.isfinite(values).all(-1)
        if bad.any():
            found_bad = f"{int(bad.sum())} bad of {count}, first is number {int(bad.nonzero()[0, 0])}"
            raise Sr3dError(path, field, found_bad, "bounds that float32 can hold")
    return Gaussians(
        means=torch.from_numpy(means).float(),
        quats=_quaternions(words[:, 1]),
        scales=scales,
        opacities=torch.from_numpy(color[:, 3]).float(),
        sh=sh,
    )


def _columns(
    path: Path, element: str, rows: np.ndarray, names: Sequence[str], kind: type[np.generic]
) -> npt.NDArray[Any]:
    """Properties of one type, side by side. [rows, names]"""
    missing = [name for name in names if name not in (rows.dtype.names or ())]
    if missing:
        raise Sr3dError(path, element, f"no property {', '.join(missing)}", "the properties of a compressed ply")
    for name in names:
        if rows.dtype[name].newbyteorder("=") != np.dtype(kind):
            raise Sr3dError(path, f"{element} {name}", f"type {rows.dtype[name].name}", f"type {np.dtype(kind).name}")
    return np.stack([rows[name].astype(kind) for name in names], axis=1)


def _parts(words: npt.NDArray[np.uint32], bits: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Bit fields of 32-bit words, the most significant first, as numbers from 0 to 1. [N, fields]"""
    shifts = np.cumsum((0, *bits[:0:-1]))[::-1].astype(np.uint32)
    largest = np.array([(1 << b) - 1 for b in bits], np.uint32)
    return (words[:, None] >> shifts & largest) / largest.astype(np.float64)


def _between(
    path: Path, chunks: np.ndarray, names: Sequence[str], share: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Where a share between the chunks' bounds lies. [N, 3]"""
    bounds = _columns(
        path, "chunk", chunks, [f"{side}_{name}" for side in ("min", "max") for name in names], np.float32
    )
    low, high = bounds[:, :3].astype(np.float64), bounds[:, 3:].astype(np.float64)
    # Written so that NaN fails.
    bad = ~(np.isfinite(low) & np.isfinite(high) & (low <= high))
    if bad.any():
        row, axis = np.argwhere(bad)[0]
        found = f"{low[row, axis]:g} to {high[row, axis]:g} in chunk {row}"
        raise Sr3dError(path, f"min_{names[axis]}, max_{names[axis]}", found, "finite, min <= max")
    chunk = np.arange(len(share)) // _CHUNK
    return low[chunk] * (1 - share) + high[chunk] * share


def _quaternions(words: npt.NDArray[np.uint32]) -> Tensor:
    """Unit quaternions wxyz, the dropped component put back. [N, 4]"""
    others = (_parts(words << np.uint32(2), (10, 10, 10, 2))[:, :3] - 0.5) * np.sqrt(2)
    largest = np.sqrt(np.maximum(0, 1 - (others**2).sum(axis=1)))
    place = (words >> np.uint32(30)).astype(np.int64)
    quats = np.empty((len(words), 4))
    for dropped in range(4):
        rows = place == dropped
        quats[rows] = np.insert(others[rows], dropped, largest[rows], axis=1)
    # Only words that no writer makes, with nothing left for the largest component, are not of norm 1 yet.
    return torch.nn.functional.normalize(torch.from_numpy(quats), dim=-1).float()


def _higher(path: Path, elements: dict[str, np.ndarray], count: int) -> Tensor:
    """Coefficients of degree 1 and above, none without an element `sh`. [N, K - 1, 3]"""
    if "sh" not in elements:
        return torch.empty(count, 0, 3, dtype=torch.float64)
    rows = elements["sh"]
    size = len(rows.dtype.names or ())
    if size not in (9, 24, 45):
        raise Sr3dError(path, "sh", f"{size} properties", "9, 24 or 45 (SH degree 1 to 3)")
    if len(rows) != count:
        raise Sr3dError(path, "element sh", f"{len(rows)} rows", f"{count}, as many as vertices")
    levels = (np.arange(256) + 0.5) / 256
    levels[[0, 255]] = 0, 1
    codes = _columns(path, "sh", rows, [f"f_rest_{i}" for i in range(size)], np.uint8)
    return torch.from_numpy((levels[codes] - 0.5) * 8).unflatten(-1, (3, size // 3)).transpose(-1, -2)
