"""Point attention: Gaussians exchange features with their neighbours along space-filling curves."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sr3d.errors import Sr3dError
from sr3d.models.serialize import Curve, order

_KEY = "model.network.points"
_START = 1e-2  # weight of what the transformer adds, before training
_MOST = 1 << 15  # windows in one call of attention: its GPU kernels take less than 2^16


def _curves() -> list[Curve]:
    return ["hilbert", "hilbert-transposed", "morton", "morton-transposed"]


@dataclass(kw_only=True)
class PointsConfig:
    """Sizes of the point transformer.

    Attributes:
        blocks: Blocks of attention and MLP.
        width: Channels inside.
        heads: Attention heads; must divide `width`.
        window: Points that attend to each other.
        mlp_ratio: Hidden channels of the MLP in multiples of `width`.
        orders: Curves that the blocks follow in turns.
        cell: Edge of the curves' cells, in input pixels at the mean depth; below the distance of neighbouring points.
    """

    blocks: int = 2
    width: int = 64
    heads: int = 4
    window: int = 128
    mlp_ratio: float = 2.0
    orders: list[Curve] = field(default_factory=_curves)
    cell: float = 1 / 32


class PointTransformer(nn.Module):
    """Serialised-window attention (Wu et al. 2024, Point Transformer V3) in plain torch.

    Points are put in the order of a space-filling curve and attend within windows of neighbours along it. Where PTv3
    has a sparse convolution, here every point is told where it lies in its window, so that the result depends on which
    points share a window but not on their order in it.
    """

    def __init__(self, config: PointsConfig, inputs: int) -> None:
        """Build for features of `inputs` channels.

        Raises:
            Sr3dError: Heads do not divide the width, or there is no curve or an empty window.
        """
        super().__init__()
        if config.width % config.heads:
            raise Sr3dError("config", f"{_KEY}.heads", config.heads, f"a divisor of width {config.width}")
        if config.window < 1:
            raise Sr3dError("config", f"{_KEY}.window", config.window, "≥ 1")
        if not config.cell > 0:
            raise Sr3dError("config", f"{_KEY}.cell", config.cell, "> 0")
        if not config.orders:
            raise Sr3dError("config", f"{_KEY}.orders", "none", "at least one curve")
        self.config = config
        self.checkpointing = False
        self.embed = nn.Linear(inputs, config.width)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width)
        self.project = nn.Linear(config.width, inputs)
        self.scale = nn.Parameter(torch.full((inputs,), _START))

    def set_checkpointing(self, enabled: bool) -> None:
        """Compute the activations of the blocks again in the backward pass instead of keeping them."""
        self.checkpointing = enabled

    def forward(
        self, features: Float[Tensor, "b n c"], points: Float[Tensor, "b n 3"], mask: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b n c"]:
        """Features plus what neighbours add to them.

        Args:
            features: One vector for each point.
            points: Positions (see `sr3d.models.describe.places`). Get no gradient through the order.
            mask: Points that count; None: all. The others are seen by nobody and keep their features.
        """
        x = self.embed(features if mask is None else torch.where(mask[..., None], features, 0.0))
        curves = self.config.orders
        orders = {kind: order(points, self.config.cell, kind, mask) for kind in curves[: len(self.blocks)]}
        for i, block in enumerate(self.blocks):
            permutation, inverse = orders[curves[i % len(curves)]]
            arguments = (_take(x, permutation), _take(points, permutation))
            sorted_mask = None if mask is None else mask.gather(1, permutation)
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, *arguments, sorted_mask, use_reentrant=False)
            else:
                x = block(*arguments, sorted_mask)
            x = _take(x, inverse)
        added = self.scale * self.project(self.norm(x))
        return features + (added if mask is None else torch.where(mask[..., None], added, 0.0))


class _Block(nn.Module):
    """Attention inside windows, MLP; pre-norm."""

    def __init__(self, config: PointsConfig) -> None:
        super().__init__()
        width, hidden = config.width, int(config.width * config.mlp_ratio)
        self.window, self.heads = config.window, config.heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.place = nn.Sequential(nn.Linear(4, width), nn.GELU(), nn.Linear(width, width))
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(
        self, x: Float[Tensor, "b n d"], points: Float[Tensor, "b n 3"], mask: Bool[Tensor, "b n"] | None
    ) -> Float[Tensor, "b n d"]:
        """Points in the order of a curve, those that do not count at the end."""
        # Whole windows and what is left are separate calls: no padding, and without a mask none for the attention.
        n = x.shape[1]
        whole = n - n % self.window
        step = self.window * max(1, _MOST // len(x))
        parts = [slice(i, min(i + step, whole)) for i in range(0, whole, step)] + [slice(whole, n)] * (n > whole)
        added = [self._attend(x[:, p], points[:, p], None if mask is None else mask[:, p]) for p in parts]
        x = x + torch.cat(added, dim=1)
        return x + self.mlp(self.norms[1](x))

    def _attend(self, x: Tensor, points: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of [b, n, d] inside windows of min(n, window) points."""
        size = min(x.shape[1], self.window)
        count = x.shape[1] // size
        windows = points.unflatten(1, (count, size))
        seen = None if mask is None else mask.unflatten(1, (count, size))
        place = self.place(_places(windows, seen)).flatten(1, 2)
        qkv = self.qkv(self.norms[0](x) + place).view(-1, size, 3, self.heads, x.shape[2] // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        keys = None
        if seen is not None:
            # A window in which nothing counts attends to all of itself: its result is dropped, but must be finite.
            keys = (seen | ~seen.any(dim=-1, keepdim=True)).view(-1, 1, 1, size)
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=keys)
        return self.out(y.transpose(1, 2).reshape(x.shape))


def _places(points: Float[Tensor, "b w k 3"], mask: Bool[Tensor, "b w k"] | None) -> Float[Tensor, "b w k 4"]:
    """Where each point lies in its window, in multiples of the window's radius, and the logarithm of that radius."""
    weights = torch.ones_like(points[..., :1]) if mask is None else mask[..., None].to(points.dtype)
    points = torch.where(weights > 0, points, 0.0)
    total = weights.sum(dim=2, keepdim=True).clamp_min(1)
    offset = (points - points.sum(dim=2, keepdim=True) / total) * weights
    radius = (offset.square().sum(dim=(2, 3), keepdim=True) / total).clamp_min(1e-12).sqrt()
    size = radius.log().expand_as(weights) / 4
    return torch.cat([offset / radius, size], dim=-1)


def _take(x: Float[Tensor, "b n c"], indices: Tensor) -> Float[Tensor, "b n c"]:
    """Rows of each batch element in another order."""
    rows = indices + torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
    return x.flatten(0, 1).index_select(0, rows.flatten()).view_as(x)
