"""Which blocks a frame has to visit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int
from numba import njit
from torch import Tensor

from sr3d.lod import Forest
from sr3d.rendering import constants as const

_PIXELS = const.SIGMA_EXTENT * math.sqrt(const.EPS2D) + 1.0  # what the low-pass and rounding add to a splat's reach


@dataclass(kw_only=True, frozen=True)
class Frustum:
    """What one view can see, in NumPy and float64.

    Attributes:
        rotation: World to camera. [3, 3]
        shift: World to camera. [3]
        planes: The frustum's sides as rows (nx, ny, nz, w), camera frame: a Gaussian of largest standard deviation r
            can show where n·p ≥ −w·r. [4, 4]
        focal: √(fx·fy), pixels.
        near: z-depth below which nothing is drawn, world units.
    """

    rotation: Float[np.ndarray, "3 3"]
    shift: Float[np.ndarray, 3]
    planes: Float[np.ndarray, "4 4"]
    focal: float
    near: float

    @staticmethod
    def of(
        world_to_cam: Float[Tensor, "4 4"], K: Float[Tensor, "3 3"], width: int, height: int, near: float
    ) -> Frustum:
        """The frustum of a camera (OpenCV axes, pixels), conservative for every Gaussian that the renderer draws."""
        pose, lens = (t.detach().double().cpu().contiguous().numpy() for t in (world_to_cam, K))
        return Frustum(
            rotation=np.ascontiguousarray(pose[:3, :3]),
            shift=np.ascontiguousarray(pose[:3, 3]),
            planes=_planes(lens, width, height),
            focal=math.sqrt(lens[0, 0] * lens[1, 1]),
            near=near,
        )


def visible_blocks(forest: Forest, level: int, frustum: Frustum, lod: bool = True) -> Int[Tensor, " v"]:
    """Blocks of a level that can leave a mark on an image: in the frustum, and in their interval of footprints.

    Conservative: what it leaves out has no pixel with an alpha of 1/255. On CPU one compiled pass over the table; on
    CUDA the same arithmetic in torch, on the device.

    Args:
        forest: With B blocks at this level.
        level: Index into `forest.levels`.
        frustum: Of the view.
        lod: Heed the footprints.

    Returns:
        Block numbers counted from the level's first, ascending. [V]
    """
    blocks, finest = forest.levels[level].blocks, forest.finest[level]
    shift = (frustum.rotation * forest.origins[level]).sum(axis=1) + frustum.shift
    view = frustum.rotation, shift, frustum.planes, frustum.focal, frustum.near
    table = blocks.lower, blocks.upper, blocks.reach, finest, blocks.coarsest
    if finest.device.type != "cpu":
        return torch_visible(*table, *view, lod)
    out = np.empty(len(finest), np.int64)
    count = _visible(*(t.numpy() for t in table), *view, lod, out)
    return torch.from_numpy(out[:count])


def _planes(K: Float[np.ndarray, "3 3"], width: int, height: int) -> Float[np.ndarray, "4 4"]:
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    left, right, top, bottom = cx / fx, (width - cx) / fx, cy / fy, (height - cy) / fy
    # The Jacobian stretches a Gaussian by at most √(1 + u²), u the largest slope at which it is evaluated.
    wide = max(abs(left), abs(right)) + const.EWA_MARGIN * 0.5 * width / fx
    high = max(abs(top), abs(bottom)) + const.EWA_MARGIN * 0.5 * height / fy
    across, along = const.SIGMA_EXTENT * math.sqrt(1 + wide**2), const.SIGMA_EXTENT * math.sqrt(1 + high**2)
    pad_x, pad_y = _PIXELS / fx, _PIXELS / fy
    return np.array(
        [
            [1, 0, left + pad_x, across],
            [-1, 0, right + pad_x, across],
            [0, 1, top + pad_y, along],
            [0, -1, bottom + pad_y, along],
        ],
        np.float64,
    )


@njit(nogil=True, cache=True)
@no_type_check
def _visible(lower, upper, reach, finest, coarsest, rotation, shift, planes, focal, near, lod, out):
    """Write the visible blocks to `out` and return their number."""
    count = 0
    for b in range(reach.shape[0]):
        c0, c1, c2 = (
            0.5 * (np.float64(lower[b, 0]) + upper[b, 0]),
            0.5 * (np.float64(lower[b, 1]) + upper[b, 1]),
            0.5 * (np.float64(lower[b, 2]) + upper[b, 2]),
        )
        h0, h1, h2 = upper[b, 0] - c0, upper[b, 1] - c1, upper[b, 2] - c2
        z = rotation[2, 0] * c0 + rotation[2, 1] * c1 + rotation[2, 2] * c2 + shift[2]
        deep = abs(rotation[2, 0]) * h0 + abs(rotation[2, 1]) * h1 + abs(rotation[2, 2]) * h2
        if z + deep < near:
            continue
        if lod and not ((z + deep) / focal > finest[b] and max(z - deep, near) / focal < coarsest[b]):
            continue
        x = rotation[0, 0] * c0 + rotation[0, 1] * c1 + rotation[0, 2] * c2 + shift[0]
        y = rotation[1, 0] * c0 + rotation[1, 1] * c1 + rotation[1, 2] * c2 + shift[1]
        inside = True
        for k in range(4):
            n0, n1, n2, w = planes[k, 0], planes[k, 1], planes[k, 2], planes[k, 3]
            spread = (
                abs(n0 * rotation[0, 0] + n1 * rotation[1, 0] + n2 * rotation[2, 0]) * h0
                + abs(n0 * rotation[0, 1] + n1 * rotation[1, 1] + n2 * rotation[2, 1]) * h1
                + abs(n0 * rotation[0, 2] + n1 * rotation[1, 2] + n2 * rotation[2, 2]) * h2
            )
            if n0 * x + n1 * y + n2 * z + spread < -w * reach[b]:
                inside = False
        if inside:
            out[count] = b
            count += 1
    return count


def torch_visible(
    lower: Float[Tensor, "b 3"],
    upper: Float[Tensor, "b 3"],
    reach: Float[Tensor, " b"],
    finest: Float[Tensor, " b"],
    coarsest: Float[Tensor, " b"],
    rotation: Float[np.ndarray, "3 3"],
    shift: Float[np.ndarray, 3],
    planes: Float[np.ndarray, "4 4"],
    focal: float,
    near: float,
    lod: bool,
) -> Int[Tensor, " v"]:
    """The test of `visible_blocks` in torch: what CUDA runs, and the reference of the compiled pass.

    Args:
        lower: Block table, see `sr3d.lod.Blocks`; on any device. [B, 3]
        upper: [B, 3]
        reach: [B]
        finest: [B]
        coarsest: [B]
        rotation: World to camera.
        shift: The level's origin in the camera frame.
        planes: Rows (nx, ny, nz, w); a splat of radius r can show where n·p ≥ −w·r.
        focal: √(fx·fy), pixels.
        near: World units.
        lod: Heed the footprints.

    Returns:
        Ascending block numbers. [V]
    """
    R, t, sides = (torch.from_numpy(a).to(lower.device) for a in (rotation, shift, planes))
    center, half = 0.5 * (lower.double() + upper.double()), 0.5 * (upper.double() - lower.double())
    cam = center @ R.T + t
    z, deep = cam[:, 2], half @ R[2].abs()
    keep = z + deep >= near
    if lod:
        keep &= ((z + deep) / focal > finest) & ((z - deep).clamp_min(near) / focal < coarsest)
    normals = sides[:, :3]
    spread = half @ (normals @ R).abs().T
    keep &= ~(cam @ normals.T + spread < -sides[:, 3] * reach.double()[:, None]).any(dim=1)
    return keep.nonzero()[:, 0]
