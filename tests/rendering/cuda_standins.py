"""gsplat 1.5's stages in plain PyTorch, with its argument checks and its kernels' semantics, so that the code around
them runs without a GPU. What the kernels assume without a check (int64 ids, float32 data, N > 0) is asserted."""

from __future__ import annotations

import gsplat
import pytest
import torch
from gsplat.cuda._torch_impl import _fully_fused_projection, _isect_offset_encode, _quat_scale_to_covar_preci
from torch import Tensor

_ALPHA_MIN = 1 / 255


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `gsplat` run on tensors in CPU memory."""
    for stage in (
        fully_fused_projection,
        isect_tiles,
        isect_offset_encode,
        rasterize_to_pixels,
        rasterize_to_indices_in_range,
    ):
        monkeypatch.setattr(gsplat, stage.__name__, stage)


def fully_fused_projection(
    means: Tensor,
    covars: Tensor | None,
    quats: Tensor,
    scales: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    eps2d: float = 0.3,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    packed: bool = False,
    sparse_grad: bool = False,
    calc_compensations: bool = False,
    camera_model: str = "pinhole",
    opacities: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    n, c = len(means), len(viewmats)
    assert packed and covars is None and opacities is not None and camera_model == "pinhole" and radius_clip == 0
    assert n > 0, "the kernel's launcher divides by N"
    _check({(n, 3): means, (n, 4): quats}, torch.float32)
    _check({(n, 3): scales, (n,): opacities, (c, 4, 4): viewmats, (c, 3, 3): Ks}, torch.float32)
    assert not opacities.requires_grad, "their gradient would be dropped"
    covariances, _ = _quat_scale_to_covar_preci(quats, scales, compute_preci=False)
    _, means2d, depths, conics, compensations = _fully_fused_projection(
        means, covariances, viewmats, Ks, width, height, eps2d, near_plane, far_plane, calc_compensations
    )
    a, b, d = conics.unbind(-1)
    opacity = opacities if compensations is None else opacities * compensations.detach()
    extent = (2 * (opacity / _ALPHA_MIN).clamp_min(1).log()).sqrt().clamp_max(3.33)
    variances = torch.stack([d, a], dim=-1) / (a * d - b * b)[..., None]
    radii = (extent[..., None] * variances.sqrt()).ceil().detach()
    valid = (depths >= near_plane) & (depths <= far_plane) & (opacity >= _ALPHA_MIN) & (radii > 0).any(dim=-1)
    size = torch.tensor([width, height])
    valid &= ((means2d + radii > 0) & (means2d - radii < size)).all(dim=-1)
    camera, row = valid.nonzero().unbind(1)
    packed_values = [t[camera, row] for t in (means2d, depths, conics)]
    scale = None if compensations is None else compensations[camera, row]
    return torch.zeros_like(camera), camera, row, radii[camera, row].int(), *packed_values, scale


def isect_tiles(
    means2d: Tensor,
    radii: Tensor,
    depths: Tensor,
    tile_size: int,
    tile_width: int,
    tile_height: int,
    sort: bool = True,
    segmented: bool = False,
    packed: bool = False,
    n_images: int | None = None,
    image_ids: Tensor | None = None,
    gaussian_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    nnz = len(means2d)
    assert packed and sort and not segmented and n_images is not None
    assert image_ids is not None and gaussian_ids is not None
    _check({(nnz, 2): means2d, (nnz,): depths}, torch.float32)
    _check({(nnz, 2): radii}, torch.int32)
    _check({(nnz,): image_ids}, torch.int64)
    _check({(nnz,): gaussian_ids}, torch.int64)
    assert n_images.bit_length() + (tile_width * tile_height).bit_length() <= 32
    limit = torch.tensor([tile_width, tile_height])
    means2d, reach = means2d.detach() / tile_size, radii / tile_size
    first = torch.minimum((means2d - reach).floor().clamp_min(0), limit).long()
    last = torch.minimum((means2d + reach).ceil().clamp_min(0), limit).long()
    size = (last - first) * (radii > 0).all(dim=-1, keepdim=True)
    counts = size.prod(dim=-1)
    of = torch.repeat_interleave(torch.arange(nnz), counts)
    within = torch.arange(len(of)) - (counts.cumsum(0) - counts)[of]
    y, x = first[of, 1] + within // size[of, 0], first[of, 0] + within % size[of, 0]
    # The kernel takes the depth's bits as they are, zero-extended.
    bits = depths.detach().contiguous().view(torch.int32).long() & 0xFFFFFFFF
    bit_count = (tile_width * tile_height).bit_length()
    ids = (image_ids[of] << (32 + bit_count)) | ((y * tile_width + x) << 32) | bits[of]
    ids, order = torch.sort(ids, stable=True)
    return counts.int(), ids, of[order].int()


def isect_offset_encode(isect_ids: Tensor, n_images: int, tile_width: int, tile_height: int) -> Tensor:
    assert isect_ids.dtype == torch.int64
    return _isect_offset_encode(isect_ids, n_images, tile_width, tile_height)


def rasterize_to_pixels(
    means2d: Tensor,
    conics: Tensor,
    colors: Tensor,
    opacities: Tensor,
    image_width: int,
    image_height: int,
    tile_size: int,
    isect_offsets: Tensor,
    flatten_ids: Tensor,
    backgrounds: Tensor | None = None,
    masks: Tensor | None = None,
    packed: bool = False,
    absgrad: bool = False,
) -> tuple[Tensor, Tensor]:
    nnz, channels = len(means2d), colors.shape[-1]
    assert packed and backgrounds is None and masks is None and not absgrad
    assert nnz > 0 and 0 < channels <= 32
    _check({(nnz, 2): means2d, (nnz, 3): conics, (nnz,): opacities}, torch.float32)
    _check({(nnz, channels): colors}, torch.float32)
    tiles = _tiles(image_width, image_height, tile_size, isect_offsets, flatten_ids)
    images, alphas = [], []
    for left, top, members in tiles:
        weights, _ = _weights(means2d, conics, opacities, tile_size, left, top, members, None)
        images.append((weights @ colors[members]).unflatten(0, (tile_size, tile_size)))
        alphas.append(weights.sum(dim=-1).unflatten(0, (tile_size, tile_size))[..., None])
    across, down = isect_offsets.shape[-1], isect_offsets.shape[-2]

    def assembled(parts: list[Tensor]) -> Tensor:
        whole = torch.stack(parts).unflatten(0, (-1, down, across)).transpose(2, 3).flatten(1, 2).flatten(2, 3)
        return whole[:, :image_height, :image_width].reshape(*isect_offsets.shape[:-2], image_height, image_width, -1)

    return assembled(images), assembled(alphas)


def rasterize_to_indices_in_range(
    range_start: int,
    range_end: int,
    transmittances: Tensor,
    means2d: Tensor,
    conics: Tensor,
    opacities: Tensor,
    image_width: int,
    image_height: int,
    tile_size: int,
    isect_offsets: Tensor,
    flatten_ids: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    n = len(means2d)
    assert range_start == 0 and len(flatten_ids) <= range_end * tile_size**2 < 2**40 and range_end < 2**32
    _check({(image_height, image_width): transmittances, (n, 2): means2d}, torch.float32)
    _check({(n, 3): conics, (n,): opacities}, torch.float32)
    assert isect_offsets.ndim == 2 and isect_offsets.min() >= 0
    splats, pixels = [], []
    for left, top, members in _tiles(image_width, image_height, tile_size, isect_offsets, flatten_ids):
        before = torch.zeros(tile_size, tile_size)
        inside = transmittances[top : top + tile_size, left : left + tile_size]
        before[: inside.shape[0], : inside.shape[1]] = inside
        _, drawn = _weights(means2d, conics, opacities, tile_size, left, top, members, before.flatten())
        at, which = drawn.nonzero().unbind(1)
        splats.append(members[which])
        pixels.append((top + at // tile_size) * image_width + left + at % tile_size)
    pixel, order = torch.sort(torch.cat(pixels), stable=True)
    return torch.cat(splats)[order], pixel, torch.zeros_like(pixel)


def _check(expected: dict[tuple[int, ...], Tensor], dtype: torch.dtype) -> None:
    for shape, tensor in expected.items():
        assert tuple(tensor.shape) == shape and tensor.dtype == dtype, (shape, dtype, tensor.shape, tensor.dtype)


def _tiles(width: int, height: int, size: int, offsets: Tensor, order: Tensor) -> list[tuple[int, int, Tensor]]:
    """Left, top and members, near to far, of every tile of every image."""
    assert offsets.dtype == order.dtype == torch.int32
    down, across = offsets.shape[-2:]
    assert down * size >= height and across * size >= width
    ends = [*offsets.flatten().tolist(), len(order)]
    return [
        (t % across * size, t // across % down * size, order[ends[t] : ends[t + 1]].long())
        for t in range(len(ends) - 1)
    ]


def _weights(
    means2d: Tensor,
    conics: Tensor,
    opacities: Tensor,
    size: int,
    left: int,
    top: int,
    members: Tensor,
    before: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Weight, and whether it is composited, of the members at the pixels of a tile. [size², M]"""
    pixel = torch.arange(size * size)
    d = means2d[members] - torch.stack([left + pixel % size + 0.5, top + pixel // size + 0.5], dim=-1)[:, None]
    a, b, c = conics[members].unbind(-1)
    sigma = 0.5 * (a * d[..., 0] ** 2 + c * d[..., 1] ** 2) + b * d[..., 0] * d[..., 1]
    alpha = (opacities[members] * torch.exp(-sigma)).clamp_max(0.999)
    skipped = (sigma < 0) | (alpha < _ALPHA_MIN)
    alpha = torch.where(skipped, torch.zeros_like(alpha), alpha)
    start = torch.ones(size * size) if before is None else before
    through = torch.cat([start[:, None], 1 - alpha], dim=1).cumprod(dim=1)
    # One that would leave 1e-4 or less is not drawn, and nothing behind it.
    drawn = (through[:, 1:] > 1e-4) & ~skipped
    return torch.where(drawn, alpha * through[:, :-1], torch.zeros_like(alpha)), drawn
