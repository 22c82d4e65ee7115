from __future__ import annotations

import inspect
import math

import pytest
import torch

from sr3d import Cameras, Gaussians, Sr3dError, render
from sr3d.lod import MINIMAX_LAMBDA, Lod, fade, visibility


def lod(native: float, coarser: float = math.inf, finer: float = 0.0) -> Lod:
    one = torch.ones(1, dtype=torch.float64)
    return Lod(native=native * one, coarser=coarser * one, finer=finer * one, level=one.int())


def at(s: torch.Tensor | float, **fields: float) -> torch.Tensor:
    s = torch.as_tensor(s, dtype=torch.float64)
    return visibility(lod(**fields), s.reshape(-1, 1))[:, 0]


S = torch.logspace(-4, 2, 601, dtype=torch.float64)


def test_visibility_follows_its_definition():
    """native 1, parent at 8, children at 1/4, written out."""
    expected = []
    for s in S.tolist():
        if s >= 8 or s <= 0.25:
            expected.append(0.0)
        elif s >= 1:
            expected.append(math.log(8 / s) / math.log(8))
        else:
            expected.append(math.log(s / 0.25) / math.log(1 / 0.25))
    torch.testing.assert_close(at(S, native=1, coarser=8, finer=0.25), torch.tensor(expected, dtype=torch.float64))


def wonderzoom_eq3(s_render: float, s_native: float, s_parent: float | None, s_child: float | None) -> float:
    """WonderZoom Eq. 3, case by case."""
    if s_parent is None and s_render >= s_native:
        return 1.0
    if s_parent is not None and s_parent >= s_render >= s_native:
        return (math.log(s_parent) - math.log(s_render)) / (math.log(s_parent) - math.log(s_native))
    if s_child is not None and s_native >= s_render >= s_child:
        return (math.log(s_render) - math.log(s_child)) / (math.log(s_native) - math.log(s_child))
    if s_child is None and s_render <= s_native:
        return 1.0
    return 0.0


@pytest.mark.parametrize("parent", [None, 3.0, 4.0])
@pytest.mark.parametrize("child", [None, 0.25, 0.9])
def test_wonderzoom_equation_3(parent, child):
    expected = [wonderzoom_eq3(s, 1.0, parent, child) for s in S.tolist()]
    found = at(S, native=1, coarser=parent or math.inf, finer=child or 0.0)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)
    # Eq. 2: the rendered opacity.
    torch.testing.assert_close(
        fade(torch.full_like(found, 0.7), found, "linear"), 0.7 * torch.tensor(expected).double(), atol=1e-6, rtol=0
    )


def test_wonderzoom_equation_4():
    """Surfels of adjacent levels at one place: their weights sum to one."""
    between = S[(S >= 0.25) & (S <= 1)]
    parent, child = at(between, native=1, finer=0.25), at(between, native=0.25, coarser=1)
    torch.testing.assert_close(parent + child, torch.ones_like(parent), atol=1e-12, rtol=0)


def test_gaussianzoom_equation_9():
    """w = max(0, 1 − |log_s(ψ'/ψ)|) with s = 4, ψ = d / f (Eq. 8), and its rule at the first and the last layer."""
    weight = (1 - (torch.log(S / 0.02) / math.log(4)).abs()).clamp_min(0)
    torch.testing.assert_close(at(S, native=0.02, coarser=0.08, finer=0.005), weight, atol=1e-12, rtol=0)
    first = torch.where(S >= 0.02, 1.0, weight)
    torch.testing.assert_close(at(S, native=0.02, finer=0.005), first, atol=1e-12, rtol=0)
    last = torch.where(S <= 0.02, 1.0, weight)
    torch.testing.assert_close(at(S, native=0.02, coarser=0.08), last, atol=1e-12, rtol=0)


def test_the_papers_opacity_reaches_the_image():
    """One Gaussian seen at ratios around its footprint: alpha in its centre is o·w, or f(w) by default."""
    for backend in ("reference", "cpu"):
        for ratio in (0.3, 0.5, 1.0, 1.7, 3.9, 4.1):
            w = max(0.0, 1 - abs(math.log(ratio, 4)))
            depth = 2.0
            gaussians = Gaussians(
                means=torch.tensor([[0.0, 0, depth]]),
                quats=torch.tensor([[1.0, 0, 0, 0]]),
                scales=torch.full((1, 3), 0.4),
                opacities=torch.tensor([0.8]),
                sh=torch.zeros(1, 1, 3),
                lod=lod(depth / 20 / ratio, 4 * depth / 20 / ratio, 0.25 * depth / 20 / ratio),
            )
            K = torch.tensor([[[20.0, 0, 8.5], [0, 20, 8.5], [0, 0, 1]]])
            view = Cameras(world_to_cam=torch.eye(4)[None], K=K, width=17, height=17)
            seen = [render(gaussians, view, lod=m, backend=backend).alpha[0, 8, 8].item() for m in ("linear", True)]
            assert seen[0] == pytest.approx(0.8 * w, abs=1e-5)
            minimax = (1 - (1 - MINIMAX_LAMBDA * 0.8) ** w) / MINIMAX_LAMBDA
            assert seen[1] == pytest.approx(minimax if w < 1 else 0.8, abs=1e-5)


def test_visibility_at_the_nodes():
    found = at([0.25, 1.0, 8.0], native=1, coarser=8, finer=0.25)
    assert found.tolist() == [0, 1, 0]
    assert at([2.0], native=1, coarser=4, finer=0.25).item() == pytest.approx(0.5)
    assert at([0.5], native=1, coarser=4, finer=0.25).item() == pytest.approx(0.5)


def test_no_neighbour_no_fade():
    """A root never fades when seen from afar, and what was never densified never fades when seen close."""
    assert (at(S, native=1) == 1).all()
    root = at(S, native=1, finer=0.25)
    assert (root[S >= 1] == 1).all() and (root[S <= 0.25] == 0).all()
    leaf = at(S, native=1, coarser=8)
    assert (leaf[S <= 1] == 1).all() and (leaf[S >= 8] == 0).all()


@pytest.mark.parametrize("ratio", [1.5, 4.0, 64.0])
def test_parent_and_child_sum_to_one(ratio):
    parent = at(S, native=1, finer=1 / ratio)
    child = at(S, native=1 / ratio, coarser=1)
    torch.testing.assert_close(parent + child, torch.ones_like(S), atol=1e-12, rtol=0)
    between = (1 / ratio < S) & (S < 1)
    assert ((parent[between] > 0) & (parent[between] < 1)).all()


def test_a_chain_of_levels_sums_to_one():
    """Grandparent, parent and child: at most two are visible at any footprint."""
    levels = [at(S, native=1, finer=0.25), at(S, native=0.25, coarser=1, finer=0.05), at(S, native=0.05, coarser=0.25)]
    weights = torch.stack(levels)
    torch.testing.assert_close(weights.sum(0), torch.ones_like(S), atol=1e-12, rtol=0)
    assert ((weights > 0).sum(0) <= 2).all()


def test_neighbours_of_equal_footprint_stay_finite():
    footprint = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    out = visibility(lod(1, coarser=1, finer=1), footprint)
    out.sum().backward()
    assert out.tolist() == [0, 0, 0] and torch.isfinite(footprint.grad).all()


def test_visibility_over_views_equals_each_view():
    g = torch.Generator().manual_seed(0)
    native = torch.rand(5, generator=g) + 0.5
    fields = Lod(native=native, coarser=4 * native, finer=native / 3, level=torch.zeros(5, dtype=torch.int32))
    footprint = torch.rand(3, 5, generator=g) * 4
    both = visibility(fields.map(lambda t: t[None, :]), footprint)
    for i in range(3):
        assert torch.equal(both[i], visibility(fields, footprint[i]))


def composite(o: torch.Tensor, a: torch.Tensor, kernel: torch.Tensor, mode: str) -> torch.Tensor:
    """Error of parent over child, both of opacity o, against the single Gaussian they stand for."""
    parent, child = fade(o, a, mode) * kernel, fade(o, 1 - a, mode) * kernel
    return parent + child - parent * child - o * kernel


GRID = torch.linspace(0, 1, 201, dtype=torch.float64)


@pytest.mark.parametrize(("mode", "worst"), [("minimax", 0.0865), ("linear", 0.25)])
def test_worst_error_of_the_pair(mode, worst):
    """Over all kernel values and visibilities, for opaque Gaussians; others err less."""
    a, kernel = GRID[:, None], GRID[None, :]
    error = composite(torch.ones((), dtype=torch.float64), a, kernel, mode).abs().max().item()
    assert worst - 0.001 < error <= worst
    for o in (0.9, 0.5, 0.1):
        assert composite(torch.tensor(o, dtype=torch.float64), a, kernel, mode).abs().max() < error


def test_minimax_is_the_best_lambda():
    """The worst error of the same family is larger for any other λ."""

    def worst(lam: float) -> float:
        f = lambda a: (1 - (1 - lam) ** a) / lam  # noqa: E731
        parent, child = f(GRID)[:, None] * GRID, f(1 - GRID)[:, None] * GRID
        return (parent + child - parent * child - GRID).abs().max().item()

    best = worst(MINIMAX_LAMBDA)
    assert best < worst(MINIMAX_LAMBDA - 0.01) and best < worst(MINIMAX_LAMBDA + 0.01)


@pytest.mark.parametrize("o", [0.0, 0.3, 0.9, 1.0])
def test_minimax_is_exact_at_kernel_zero_and_lambda(o):
    o = torch.tensor(o, dtype=torch.float64)
    for kernel in (0.0, MINIMAX_LAMBDA):
        error = composite(o, GRID, torch.tensor(kernel, dtype=torch.float64), "minimax")
        assert error.abs().max() < 1e-15


@pytest.mark.parametrize("mode", ["minimax", "linear"])
def test_full_visibility_returns_the_opacity_bit_for_bit(mode):
    o = torch.rand(10000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fade(o, torch.ones_like(o), mode), o)
    assert not fade(o, torch.zeros_like(o), mode).any()


@pytest.mark.parametrize("mode", ["minimax", "linear"])
def test_fade_grows_with_visibility_within_bounds(mode):
    for o in (0.01, 0.5, 1.0):
        faded = fade(torch.tensor(o, dtype=torch.float64), GRID, mode)
        assert (faded.diff() > 0).all() and faded[0] == 0 and faded[-1] == o


def test_unknown_mode():
    """As users meet it: the type checks of the tests, which would refuse the word first, are taken off."""
    with pytest.raises(Sr3dError, match="mode: found 'cubic'"):
        inspect.unwrap(fade)(torch.ones(1), torch.ones(1), "cubic")


@pytest.mark.parametrize("mode", ["minimax", "linear"])
def test_gradients_are_finite_everywhere(mode):
    """Both sides with and without a neighbour, on the nodes, beyond them, and at opacities 0 and 1."""
    native = torch.ones(4)
    fields = Lod(
        native=native,
        coarser=torch.tensor([math.inf, 4.0, math.inf, 4.0]),
        finer=torch.tensor([0.0, 0.0, 0.25, 0.25]),
        level=torch.zeros(4, dtype=torch.int32),
    )
    for s in (1e-6, 0.25, 0.5, 1.0, 2.0, 4.0, 1e6):
        for o in (0.0, 0.5, 1.0):
            footprint = torch.full((4,), s, requires_grad=True)
            opacity = torch.full((4,), o, requires_grad=True)
            out = fade(opacity, visibility(fields, footprint), mode)
            out.sum().backward()
            assert torch.isfinite(out).all()
            assert torch.isfinite(footprint.grad).all() and torch.isfinite(opacity.grad).all()
            no_neighbour = footprint.grad[0]
            assert no_neighbour == 0


def test_gradient_of_the_fade_is_the_derivative():
    a = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64, requires_grad=True)
    o = torch.tensor([0.3, 1.0, 0.99], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(fade, (o, a))
    s = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: visibility(lod(1, 4, 0.25), s), (s,))


def test_containers():
    a = Lod.roots(torch.tensor([1.0, 2.0]))
    assert torch.isinf(a.coarser).all() and not a.finer.any() and a.level.dtype == torch.int32 and not a.level.any()
    b = Lod.cat([a, a.map(lambda t: t + 1)])
    assert b.native.tolist() == [1, 2, 2, 3] and b.level.tolist() == [0, 0, 1, 1]
    assert b.index(torch.tensor([3, 0])).native.tolist() == [3, 1]
    stacked = b.map(lambda t: t.reshape(2, 2))
    assert stacked[1].native.tolist() == [2, 3]
    assert b.to("meta").level.device.type == "meta"
