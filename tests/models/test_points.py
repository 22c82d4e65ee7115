from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sr3d import Sr3dError
from sr3d.lod.curve import hilbert_keys
from sr3d.models import points as points_module
from sr3d.models.points import PointsConfig, PointTransformer
from sr3d.models.serialize import BITS, Curve, hilbert, morton, order, torch_hilbert

KINDS: list[Curve] = ["hilbert", "hilbert-transposed", "morton", "morton-transposed"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def cloud(batch: int, n: int, seed: int = 0, channels: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and points on a wavy surface."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.rand(2, batch, n, generator=generator)
    points = torch.stack([x - 0.5, y - 0.5, 1 + 0.1 * torch.sin(9 * x) * torch.cos(7 * y)], dim=-1)
    return torch.randn(batch, n, channels, generator=generator), points


def transformer(inputs: int = 5, **arguments: Any) -> PointTransformer:
    torch.manual_seed(0)
    return PointTransformer(PointsConfig(**({"width": 16, "heads": 2, "window": 8} | arguments)), inputs)


def test_morton_codes_bit_by_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    cells = torch.randint(0, 1 << BITS, (2, 50, 3), generator=generator)
    cells[0, 0], cells[0, 1] = 0, (1 << BITS) - 1
    expected = [
        [
            sum(((int(p[axis]) >> bit) & 1) << (3 * bit + 2 - axis) for bit in range(BITS) for axis in range(3))
            for p in row
        ]
        for row in cells
    ]
    assert morton(cells).tolist() == expected


def test_hilbert_codes_match_the_kernel_and_walk_through_faces() -> None:
    cells = torch.randint(0, 1 << BITS, (2, 300, 3), generator=torch.Generator().manual_seed(0))
    expected = np.stack([hilbert_keys(row.numpy()) for row in cells])
    assert np.array_equal(hilbert(cells).numpy(), expected)
    assert np.array_equal(torch_hilbert(cells).numpy(), expected)
    side = torch.arange(16)
    cube = torch.cartesian_prod(side, side, side)[None]
    codes = hilbert(cube)[0]
    assert torch.equal(codes.sort().values, torch.arange(16**3))
    assert torch.equal(cube[0, codes.argsort()].diff(dim=0).abs().sum(dim=1), torch.ones(16**3 - 1, dtype=torch.long))


@every_kind
def test_order_follows_the_codes(kind: Curve) -> None:
    _, points = cloud(2, 200)
    cell = 0.01
    permutation, inverse = order(points, cell, kind)
    places = torch.arange(200).expand(2, -1)
    assert torch.equal(permutation.gather(1, inverse), places) and torch.equal(inverse.gather(1, permutation), places)
    cells = torch.round((points - points.amin(dim=1, keepdim=True)) / cell).long()
    if kind.endswith("transposed"):
        cells = cells[..., [1, 0, 2]]
    codes = (hilbert if kind.startswith("hilbert") else morton)(cells)
    assert torch.equal(codes.gather(1, permutation), codes.sort(dim=1).values)


@every_kind
def test_order_does_not_depend_on_the_input_order_even_inside_cells(kind: Curve) -> None:
    _, points = cloud(1, 300)
    shuffle = torch.randperm(300, generator=torch.Generator().manual_seed(2))
    for cell in (1e-4, 0.3):
        first, second = order(points, cell, kind)[0][0], order(points[:, shuffle], cell, kind)[0][0]
        assert torch.equal(points[0, first], points[0, shuffle][second])


@every_kind
def test_masked_points_come_last_and_move_nothing(kind: Curve) -> None:
    _, points = cloud(1, 100)
    mask = torch.rand(1, 100, generator=torch.Generator().manual_seed(3)) > 0.4
    points[~mask] = torch.tensor([-50.0, 3.0, torch.nan])
    permutation, _ = order(points, 1e-3, kind, mask)
    count = int(mask.sum())
    assert mask[0, permutation[0, :count]].all()
    expected, _ = order(points[mask][None], 1e-3, kind)
    assert torch.equal(points[0, permutation[0, :count]], points[mask][expected[0]])


def test_far_outliers_do_not_flatten_the_curve() -> None:
    _, points = cloud(1, 100)
    alone, _ = order(points, 1e-4, "morton")
    outlier = torch.cat([points, torch.full((1, 1, 3), -1e9)], dim=1)
    codes, _ = order(outlier, 1e-4, "morton")
    steps = outlier[0, codes[0]][1:].diff(dim=0).norm(dim=-1).mean()
    assert steps < 1.5 * points[0, alone[0]].diff(dim=0).norm(dim=-1).mean() and codes[0, 0] == 100


@every_kind
def test_neighbours_along_the_curve_are_neighbours_in_space(kind: Curve) -> None:
    _, points = cloud(1, 1024)
    permutation, _ = order(points, 1e-4, kind)
    windows = points[0, permutation[0]].unflatten(0, (-1, 32))
    radius = (windows - windows.mean(dim=1, keepdim=True)).norm(dim=-1).mean()
    assert radius < 0.15  # of a surface of 1 × 1; a square of 32 of the 1024 points has 0.07, a random draw 0.38


def reference(model: PointTransformer, features: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """One cloud, window by window, head by head."""
    config = model.config
    x = model.embed(features)
    for i, block in enumerate(model.blocks):
        permutation, _ = order(points[None], config.cell, config.orders[i % len(config.orders)])
        out = x.clone()
        for window in permutation[0].split(config.window):
            offset = points[window] - points[window].mean(dim=0)
            radius = offset.square().sum(dim=-1).mean().clamp_min(1e-12).sqrt()
            size = (radius.log() / 4).expand(len(window), 1)
            y = block.norms[0](x[window]) + block.place(torch.cat([offset / radius, size], dim=-1))
            q, k, v = block.qkv(y).chunk(3, dim=-1)
            heads = []
            for head in range(config.heads):
                part = slice(head * config.width // config.heads, (head + 1) * config.width // config.heads)
                scores = q[:, part] @ k[:, part].T / (config.width // config.heads) ** 0.5
                heads.append(scores.softmax(dim=-1) @ v[:, part])
            out[window] = x[window] + block.out(torch.cat(heads, dim=-1))
        x = out + block.mlp(block.norms[1](out))
    return features + model.scale * model.project(model.norm(x))


@pytest.mark.parametrize("n", [1, 5, 8, 16, 21])
def test_matches_an_obvious_reference(n: int) -> None:
    model, (features, points) = transformer(blocks=5, mlp_ratio=1.5).eval(), cloud(2, n)
    model.scale.data.fill_(1.0)
    expected = torch.stack([reference(model, f, p) for f, p in zip(features, points)])
    assert torch.allclose(model(features, points), expected, atol=1e-5)
    assert torch.allclose(model(features, points, torch.ones(2, n, dtype=torch.bool)), expected, atol=1e-5)


def test_starts_close_to_identity_and_trains_everything() -> None:
    model, (features, points) = transformer(), cloud(1, 100)
    change = (model(features, points) - features).abs().mean()
    assert 1e-4 < change < 0.02
    gradients = []
    for enabled in (False, True):
        model.set_checkpointing(enabled)
        model.zero_grad()
        model(features, points).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 1e-6, name
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*gradients))


def test_order_of_the_points_does_not_matter() -> None:
    model, (features, points) = transformer(blocks=4), cloud(2, 101)
    model.scale.data.fill_(1.0)
    shuffle = torch.randperm(101, generator=torch.Generator().manual_seed(2))
    shuffled = model(features[:, shuffle], points[:, shuffle])
    assert torch.allclose(shuffled, model(features, points)[:, shuffle], atol=1e-5)


def test_masked_points_change_nothing() -> None:
    """Two clouds of different sizes in one padded batch are what they are alone."""
    model, (features, points) = transformer(blocks=4), cloud(2, 90)
    model.scale.data.fill_(1.0)
    mask = torch.rand(2, 90, generator=torch.Generator().manual_seed(3)) > torch.tensor([[0.2], [0.7]])
    alone = [model(f[m][None], p[m][None])[0] for f, p, m in zip(features, points, mask)]
    features[~mask], points[~mask] = torch.nan, torch.nan
    features.requires_grad_(True)
    out = model(features, points, mask)
    for i in range(2):
        assert torch.allclose(out[i, mask[i]], alone[i], atol=1e-5)
    assert out[~mask].isnan().all()  # passed through
    out[mask].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert features.grad is not None and features.grad.isfinite().all() and not features.grad[~mask].any()


def test_a_moved_cloud_gives_the_same_result() -> None:
    model, (features, points) = transformer(), cloud(1, 120)
    model.scale.data.fill_(1.0)
    moved = points + torch.tensor([0.25, -0.5, 2.0])
    # Rounding may move points across the borders of windows, rarely.
    change = (model(features, moved) - model(features, points)).abs().amax(dim=-1)
    assert (change < 1e-3).float().mean() > 0.95


def test_neighbours_are_heard_and_far_points_are_not() -> None:
    model, (features, points) = transformer(blocks=1, orders=["hilbert"]), cloud(1, 64)
    model.scale.data.fill_(1.0)
    permutation, _ = order(points, model.config.cell, "hilbert")
    changed = features.clone()
    changed[0, permutation[0, 9]] += 1
    change = (model(changed, points) - model(features, points)).abs().amax(dim=-1)[0, permutation[0]]
    assert (change[8:16] > 1e-5).all() and not change[:8].any() and not change[16:].any()


def test_many_windows_are_cut_into_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (features, points) = transformer(), cloud(2, 75)
    expected = model(features, points)
    monkeypatch.setattr(points_module, "_MOST", 4)
    assert torch.allclose(model(features, points), expected, atol=1e-6)


def test_no_mask_reaches_the_attention_when_all_points_count(monkeypatch: pytest.MonkeyPatch) -> None:
    masks, attend = [], torch.nn.functional.scaled_dot_product_attention

    def spy(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_mask: torch.Tensor | None) -> torch.Tensor:
        masks.append(attn_mask)
        return attend(q, k, v, attn_mask=attn_mask)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    transformer()(*cloud(1, 75))
    assert masks == [None] * 4  # flash attention takes none


@pytest.mark.parametrize("key, value", [("heads", 3), ("window", 0), ("orders", []), ("cell", 0.0)])
def test_impossible_configs(key: str, value: Any) -> None:
    with pytest.raises(Sr3dError, match=rf"config: model\.network\.points\.{key}: found"):
        transformer(**{key: value})
