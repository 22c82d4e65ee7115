"""Space-filling curves: points in an order in which neighbours along the curve are neighbours in space."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sr3d.lod.curve import hilbert_keys

BITS = 21  # for each axis: 63 bits of an int64

Curve = Literal["morton", "morton-transposed", "hilbert", "hilbert-transposed"]


def morton(points: Int[Tensor, "b n 3"]) -> Int[Tensor, "b n"]:
    """Morton codes: the bits of x, y, z in turns, x first.

    Args:
        points: Cells, 0 to 2^21 - 1.
    """
    x, y, z = points.long().unbind(dim=-1)
    return (_spread(x) << 2) | (_spread(y) << 1) | _spread(z)


def hilbert(points: Int[Tensor, "b n 3"]) -> Int[Tensor, "b n"]:
    """Hilbert codes: consecutive codes are cells that share a face (Skilling, "Programming the Hilbert curve", 2004).

    Args:
        points: Cells, 0 to 2^21 - 1.
    """
    # What only has a shape (`sr3d.models.estimate`) is a subclass, and goes the way of CUDA.
    if type(points) is not Tensor or points.device.type != "cpu":
        return torch_hilbert(points)
    return torch.from_numpy(hilbert_keys(points.flatten(0, 1).numpy(), BITS)).view(points.shape[:2])


def torch_hilbert(points: Int[Tensor, "b n 3"]) -> Int[Tensor, "b n"]:
    """The same in torch: what CUDA runs, and the reference of the compiled one."""
    axes = list(points.long().unbind(dim=-1))
    for bit in range(BITS - 1, 0, -1):
        low = (1 << bit) - 1
        for i in range(3):
            # -1 where the bit is set: there the first axis is mirrored, elsewhere the two axes swap their low bits.
            chosen = -((axes[i] >> bit) & 1)
            swapped = (axes[0] ^ axes[i]) & low & ~chosen
            axes[0] = axes[0] ^ (swapped | (chosen & low))
            if i:
                axes[i] = axes[i] ^ swapped
    axes[1] = axes[1] ^ axes[0]
    axes[2] = axes[2] ^ axes[1]
    # Gray code: every bit of z decides about all lower ones.
    flips = axes[2] >> 1
    for shift in (1, 2, 4, 8, 16):
        flips = flips ^ (flips >> shift)
    return morton(torch.stack([axis ^ flips for axis in axes], dim=-1))


def order(
    points: Float[Tensor, "b n 3"], cell: float, kind: Curve, mask: Bool[Tensor, "b n"] | None = None
) -> tuple[Int[Tensor, "b n"], Int[Tensor, "b n"]]:
    """Order of the points along a curve, and its inverse; the order of the input does not matter.

    Args:
        points: Positions. Farther than 2^20 cells from the origin they count as lying at that distance.
        cell: Edge of the curve's cells, in units of `points`; anything below the distance of neighbouring points.
        kind: Curve; transposed ones run with x and y swapped.
        mask: Points that count; the others come last.

    Returns:
        Permutation p (the i-th point along the curve is point p[i]) and its inverse q: p[q] = q[p] = 0, 1, 2 …
    """
    far = 2.0 ** (BITS - 1) - 1
    scaled = (points.detach() / cell).clamp(-far, far)
    counted = scaled if mask is None else torch.where(mask[..., None], scaled, torch.inf)
    # Half a cell keeps regular grids of points away from the borders of cells, where rounding would decide.
    offset = scaled - counted.amin(dim=1, keepdim=True) + 0.5
    cells = offset.clamp(0, 2.0**BITS - 1).long()
    if kind.endswith("transposed"):
        cells, offset = cells[..., [1, 0, 2]], offset[..., [1, 0, 2]]
    codes = hilbert(cells) if kind.startswith("hilbert") else morton(cells)
    if mask is not None:
        codes = torch.where(mask, codes, torch.iinfo(torch.int64).max)
    # Points of one cell follow each other by their place in it, not by their place in the input.
    within = ((offset - cells) * offset.new_tensor([1.0, 0.7320508, 0.4142136])).sum(dim=-1)
    first = within.argsort(dim=1, stable=True)
    permutation = first.gather(1, codes.gather(1, first).argsort(dim=1, stable=True))
    places = torch.arange(points.shape[1], device=points.device).expand_as(permutation)
    return permutation, torch.empty_like(permutation).scatter_(1, permutation, places)


def _spread(x: Int[Tensor, "b n"]) -> Int[Tensor, "b n"]:
    """Two zeros between the 21 bits of a number."""
    for shift, keep in (
        (32, 0x1F00000000FFFF),
        (16, 0x1F0000FF0000FF),
        (8, 0x100F00F00F00F00F),
        (4, 0x10C30C30C30C30C3),
        (2, 0x1249249249249249),
    ):
        x = (x | (x << shift)) & keep
    return x
