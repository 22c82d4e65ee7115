"""Cross-view consistency: the difference of neighbouring views, warped into each other by drawn depth."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import grid_sample

from sr3d.cameras import Cameras
from sr3d.evaluation.metrics.base import Column, Observation, ViewMetric

_OPAQUE = 0.5  # alpha from which on depth means something
_AGREE = 0.01  # relative difference up to which two depths are of one surface


class WarpError(ViewMetric):
    """Mean absolute colour difference of views t and t + 1 over the pixels that both see (GaussianZoom, Eq. 5 and 6).

    Every pixel of one view is unprojected with its drawn depth and projected into the other one. It is seen there if
    the depth drawn at that place agrees with its own within 1 %: occluders and pixels outside drop out, both when t
    is warped into t + 1 and the other way round. `warp_overlap` is the share of pixels that are left; few of them
    make a small error easy. The last view has no value, nor has a pair without overlap.
    """

    columns = (
        Column(name="warp_error", title="warp error", better="lower", digits=4),
        Column(name="warp_overlap", title="warp overlap", better="higher"),
    )
    needs = ("depth",)

    def measure(self, seen: Observation) -> dict[str, Float[Tensor, " t"]]:
        """Error and overlap of every view with the next one."""
        assert seen.depth is not None
        error, overlap = (seen.rgb.new_full((len(seen.rgb),), torch.nan) for _ in range(2))
        depth = seen.depth if seen.alpha is None else torch.where(seen.alpha > _OPAQUE, seen.depth, 0.0)
        for i in range(len(seen.rgb) - 1):
            there = _differences(seen.rgb, depth, seen.cameras, i, i + 1)
            back = _differences(seen.rgb, depth, seen.cameras, i + 1, i)
            values = torch.cat([there, back])
            error[i] = values.mean()  # of nothing: NaN
            overlap[i] = len(values) / (2 * depth[i].numel())
        return {"warp_error": error, "warp_overlap": overlap}


def _differences(
    rgb: Float[Tensor, "t h w 3"], depth: Float[Tensor, "t h w"], cameras: Cameras, source: int, other: int
) -> Float[Tensor, " n"]:
    """Colour difference of every pixel of a view that another view sees as well."""
    points = cameras[[source]].unproject(depth[[source]])[0].reshape(-1, 3)
    pixels, far = (x[0] for x in cameras[[other]].project(points))
    known = (depth[source].flatten() > 0) & (far > 0) & _inside(pixels, cameras)
    size = pixels.new_tensor([cameras.width, cameras.height])
    grid = (2 * pixels[known] / size - 1)[None, None]
    layers = torch.cat([rgb[other], depth[other][..., None]], dim=-1).movedim(-1, 0)
    sampled = grid_sample(layers[None], grid, mode="bilinear", align_corners=False)[0, :, 0].T
    same = (sampled[:, 3] - far[known]).abs() <= _AGREE * far[known]
    return (sampled[same, :3] - rgb[source].reshape(-1, 3)[known][same]).abs().mean(dim=1)


def _inside(pixels: Float[Tensor, "n 2"], cameras: Cameras) -> Bool[Tensor, " n"]:
    """Between the centres of the outermost pixels."""
    x, y = pixels.unbind(dim=1)
    return (x >= 0.5) & (x <= cameras.width - 0.5) & (y >= 0.5) & (y <= cameras.height - 0.5)
