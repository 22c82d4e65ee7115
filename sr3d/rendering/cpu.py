"""The renderer on CPU: Numba kernels with a hand-written backward, float32, deterministic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from sr3d.rendering import _raster
from sr3d.rendering._project import BLOCK, TILE, project, project_backward
from sr3d.threads import share


def rasterize(
    means: Float[Tensor, "b n 3"],
    quats: Float[Tensor, "b n 4"],
    scales: Float[Tensor, "b n 3"],
    opacities: Float[Tensor, "b c n"],
    sh: Float[Tensor, "b n k 3"],
    features: Float[Tensor, "b n d"] | None,
    world_to_cam: Float[Tensor, "b c 4 4"],
    K: Float[Tensor, "b c 3 3"],
    width: int,
    height: int,
    antialias: bool,
) -> tuple[Float[Tensor, "b c h w channels"], Float[Tensor, "b c h w"]]:
    """See `sr3d.rendering.reference.rasterize`; computes in float32, returns the dtype of `means`."""
    extra = means.new_zeros(*means.shape[:2], 0) if features is None else features
    return _Rasterize.apply(
        means, quats, scales, opacities, sh, extra, world_to_cam, K, (width, height, bool(antialias))
    )


@dataclass
class _View:
    """What the backward pass of one view needs from the forward pass (see `_project` and `_raster.draw`)."""

    splats: np.ndarray
    boxes: np.ndarray
    start: np.ndarray
    members: np.ndarray
    transmittance: np.ndarray


def _draw(inputs: list[np.ndarray], b: int, c: int, size: tuple[int, int, bool], image: np.ndarray) -> _View:
    """Render view c of scene b into `image` [H, W, 4 + D]."""
    means, quats, scales, opacities, sh, features, poses, K = inputs
    width, height, antialias = size
    n, across, down = means.shape[1], -(-width // TILE), -(-height // TILE)
    splats, boxes = np.empty((n, 16), np.float32), np.empty((n, 4), np.int16)
    view = means[b], quats[b], scales[b], opacities[b, c], sh[b], poses[b, c], K[b, c]
    share(project, n // 2048, *view, width, height, antialias, splats, boxes)
    order = _raster.depth_order(boxes, splats.view(np.uint32))
    counts, bands = np.zeros(across * down, np.int64), min(torch.get_num_threads(), n // 4096, down)
    share(_raster.count_members, bands, boxes, across, down, counts)
    start = np.append(0, np.cumsum(counts))
    members, fill = np.empty(start[-1], np.int32), start[:-1].copy()
    share(_raster.fill_members, bands, boxes, order, across, down, fill, members)
    transmittance = np.empty((height, width), np.float32)
    share(_raster.draw, len(counts) // 4, splats, features[b], start, members, image, transmittance)
    return _View(splats, boxes, start, members, transmittance)


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        sh: Tensor,
        features: Tensor,
        world_to_cam: Tensor,
        K: Tensor,
        size: tuple[int, int, bool],
    ) -> tuple[Tensor, Tensor]:
        width, height, _ = size
        scenes, views = world_to_cam.shape[:2]
        tensors = (means, quats, scales, opacities, sh, features, world_to_cam, K)
        inputs = [_array(t) for t in tensors]
        image = np.empty((scenes, views, height, width, 4 + features.shape[-1]), np.float32)
        alpha = np.empty((scenes, views, height, width), np.float32)
        kept = []
        for b, c in np.ndindex(scenes, views):
            view = _draw(inputs, b, c, size, image[b, c])
            np.subtract(np.float32(1), view.transmittance, out=alpha[b, c])
            if any(ctx.needs_input_grad):
                kept.append(view)
        outputs = torch.from_numpy(image).to(means.dtype), torch.from_numpy(alpha).to(means.dtype)
        ctx.save_for_backward(*tensors, outputs[0])
        ctx.kept, ctx.size = kept, size
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_image: Tensor, g_alpha: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, image = ctx.saved_tensors
        means, quats, scales, opacities, sh, features, poses, K = inputs = [_array(t) for t in tensors]
        pixels = [_array(t) for t in (image, g_image, g_alpha)]
        need = ctx.needs_input_grad
        grads = [np.zeros_like(a) for a in inputs[:7]]
        learned = features.shape[-1] if need[5] else 0
        for (b, c), view in zip(np.ndindex(*poses.shape[:2]), ctx.kept):
            first = _raster.first_pairs(view.boxes)
            pair_grads = np.zeros((len(view.members), _raster.MOMENTS + learned), np.float32)
            share(
                _raster.draw_backward, len(view.start) // 4, view.splats, features[b], view.start, view.members,
                view.boxes, first, pixels[0][b, c], view.transmittance, pixels[1][b, c], pixels[2][b, c], pair_grads,
            )  # fmt: skip
            blocks = -(-means.shape[1] // BLOCK)
            g_pose = np.zeros((blocks if need[6] else 0, 12), np.float32)
            share(
                project_backward, blocks // 4, means[b], quats[b], scales[b], opacities[b, c], sh[b], poses[b, c],
                K[b, c], *ctx.size, first, pair_grads, *(g[b] for g in grads[:3]), grads[3][b, c], grads[4][b],
                grads[5][b], g_pose,
            )  # fmt: skip
            total = g_pose.sum(axis=0, dtype=np.float64)
            grads[6][b, c, :3, :3], grads[6][b, c, :3, 3] = total[:9].reshape(3, 3), total[9:]
        out = [torch.from_numpy(g).to(t.dtype) if n else None for g, t, n in zip(grads, tensors, need)]
        return (*out, None, None)


def _array(tensor: Tensor) -> np.ndarray:
    """The tensor as a C-ordered float32 array, without a copy where it already is one."""
    return tensor.detach().to(torch.float32).contiguous().numpy()
