"""The CUDA backend against the reference: on stand-ins for gsplat's stages, and on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType

import cuda_standins
import gsplat
import pytest
import torch
from lod_scenes import camera, plane_forest, surfels

from sr3d.cameras import Cameras
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians, Lod
from sr3d.lod import BLOCK, Forest, Level
from sr3d.rendering import cpu, cuda, reference, rgb_to_sh
from sr3d.rendering.job import Raster, Splats, Views

NAMES = ["means", "quats", "scales", "opacities", "sh", "features", "world_to_cam"]
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def standins(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_standins.install(monkeypatch)


def views_of(cameras: Cameras, **options: object) -> Views:
    """Views of scenes [B, C], or of one scene [C]."""
    batched = cameras.K.ndim == 4
    given = {"antialias": False, "near": 0.01, "fade": None, "inspect": False, **options}
    return Views(
        world_to_cam=cameras.world_to_cam if batched else cameras.world_to_cam[None],
        K=cameras.K if batched else cameras.K[None],
        width=cameras.width,
        height=cameras.height,
        **given,
    )


def cat_cameras(parts: list[Cameras]) -> Cameras:
    return replace(
        parts[0],
        world_to_cam=torch.stack([p.world_to_cam for p in parts]),
        K=torch.stack([p.K for p in parts]),
    )


def faded_lod(gaussians: Gaussians, width: int) -> Lod:
    """Faded on both sides, and some not at all."""
    n = len(gaussians)
    native = gaussians.means[:, 2] / width
    spread = torch.linspace(0.6, 1.6, n, dtype=torch.float64)
    lod = Lod(native=native * spread, coarser=native * 2, finer=native * 0.4, level=torch.ones(n, dtype=torch.int32))
    lod.coarser[::5], lod.finer[::7] = torch.inf, 0
    return lod


@dataclass
class Case:
    """Packed scenes, float64, and how to draw them."""

    gaussians: Gaussians
    offsets: list[int]
    views: Views

    def splats(self, leaves: dict[str, torch.Tensor]) -> Splats:
        fields = {name: leaves.get(name) for name in NAMES[:-1]}
        return Splats(**fields, lod=self.gaussians.lod, offsets=self.offsets)

    def leaves(self) -> dict[str, torch.Tensor]:
        g = self.gaussians
        fields = [g.means, g.quats, g.scales, g.opacities, g.sh, g.features, self.views.world_to_cam]
        return {name: t for name, t in zip(NAMES, fields) if t is not None}

    def draw(self, backend: ModuleType, dtype: torch.dtype, device: str = "cpu", deep: bool = False) -> Raster:
        return self.with_gradients(backend, dtype, device, deep)[0]

    def with_gradients(
        self, backend: ModuleType, dtype: torch.dtype, device: str = "cpu", deep: bool = False
    ) -> tuple[Raster, dict[str, torch.Tensor]]:
        """What a backend draws, and gradients of a random sum of it. `deep` keeps poses, K and means in float64."""
        kept = ("means", "world_to_cam") if deep else ()
        leaves = {
            name: t.to(device, torch.float64 if name in kept else dtype).detach().clone().requires_grad_()
            for name, t in self.leaves().items()
        }
        splats = self.splats(leaves)
        if splats.lod is not None:
            splats = replace(splats, lod=splats.lod.to(device))
        K = self.views.K.to(device, torch.float64 if deep else dtype)
        out = backend.rasterize(splats, replace(self.views, world_to_cam=leaves["world_to_cam"], K=K))
        g = torch.Generator().manual_seed(0)
        images = [out.image, out.alpha]
        cotangents = [torch.randn(t.shape, generator=g, dtype=torch.float64).to(t) for t in images]
        grads = torch.autograd.grad(images, list(leaves.values()), cotangents)
        return out, {name: g.cpu().double() for name, g in zip(leaves, grads)}


def case(
    make: Callable,
    sizes: list[int],
    size: tuple[int, int] = (32, 24),
    *,
    views: int = 1,
    features: int = 0,
    degree: int = 0,
    antialias: bool = False,
    fade: str | None = None,
    inspect: bool = False,
) -> Case:
    parts, cameras, offsets = [], [], [0]
    for seed, n in enumerate(sizes):
        g, c = make(max(n, 1), size=size, views=views, features=features, degree=degree, seed=seed + n)
        parts.append(replace(g, lod=faded_lod(g, size[0]) if fade else None).index(slice(0, n)))
        cameras.append(c)
        offsets.append(offsets[-1] + n)
    options = {"antialias": antialias, "fade": fade, "inspect": inspect}
    return Case(Gaussians.cat(parts), offsets, views_of(cat_cameras(cameras), **options))


def assert_same(given: Case, out: Raster, grads: dict, expected: Raster, expected_grads: dict) -> None:
    torch.testing.assert_close(out.image.double().cpu(), expected.image.double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.alpha.double().cpu(), expected.alpha.double(), atol=1e-5, rtol=0)
    assert set(grads) == set(given.leaves())
    for name, e in expected_grads.items():
        assert e.abs().max() > 0.1, name
        error = (grads[name] - e).abs().max() / e.abs().max()
        assert error < 2e-4, (name, error)


CASES = [
    pytest.param([150], {"views": 2}, id="two views"),
    pytest.param([100], {"views": 2, "features": 3, "degree": 3}, id="sh and features"),
    pytest.param([60], {"features": 70, "size": (20, 20)}, id="more channels than one launch takes"),
    pytest.param([70], {"degree": 1, "antialias": True, "size": (17, 31), "features": 28}, id="antialiased"),
    pytest.param([60, 0, 25, 80], {"views": 2, "features": 2, "degree": 1}, id="packed scenes"),
    pytest.param([60, 90], {"views": 2, "fade": "minimax", "antialias": True, "features": 1}, id="minimax"),
    pytest.param([120], {"views": 2, "fade": "linear", "degree": 2}, id="linear"),
]


@pytest.mark.parametrize("deep", [False, True], ids=["float32", "float64 positions"])
@pytest.mark.parametrize(("sizes", "options"), CASES)
def test_image_and_gradients_are_the_references(
    standins: None, make: Callable, sizes: list[int], options: dict, deep: bool
) -> None:
    given = case(make, sizes, **options)
    expected = given.with_gradients(reference, torch.float64)
    assert_same(given, *given.with_gradients(cuda, torch.float32, deep=deep), *expected)


def test_returns_the_type_of_the_means(standins: None, make: Callable) -> None:
    given = case(make, [20], inspect=True)
    for deep, dtype in ((False, torch.float32), (True, torch.float64)):
        out = given.draw(cuda, torch.float32, deep=deep)
        assert out.image.dtype == out.alpha.dtype == out.median_depth.dtype == dtype and out.ids.dtype == torch.int64


@pytest.mark.parametrize("deep", [False, True], ids=["float32", "float64 positions"])
def test_packed_scenes_are_the_single_ones(standins: None, make: Callable, deep: bool) -> None:
    given = case(make, [60, 0, 25, 80], views=2, features=2, fade="minimax", inspect=True)
    packed = given.draw(cuda, torch.float32, deep=deep)
    for b, (first, last) in enumerate(zip(given.offsets, given.offsets[1:])):
        views = replace(given.views, world_to_cam=given.views.world_to_cam[b][None], K=given.views.K[b][None])
        single = Case(given.gaussians.index(slice(first, last)), [0, last - first], views)
        one = single.draw(cuda, torch.float32, deep=deep)
        for name in vars(one):
            found, expected = getattr(packed, name)[b], getattr(one, name)[0]
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert packed.image[1].abs().max() == 0 and (packed.ids[1] == -1).all() and packed.alpha[2].max() > 0.3


def test_one_launch_for_all_views_of_all_scenes(
    standins: None, monkeypatch: pytest.MonkeyPatch, make: Callable
) -> None:
    calls: list[str] = []
    for name in ("isect_tiles", "isect_offset_encode", "rasterize_to_pixels"):
        real = getattr(gsplat, name)
        monkeypatch.setattr(
            gsplat, name, lambda *a, _name=name, _real=real, **k: (calls.append(_name), _real(*a, **k))[1]
        )
    case(make, [30, 40, 20], views=2, features=70).draw(cuda, torch.float32)
    assert calls == ["isect_tiles", "isect_offset_encode", *["rasterize_to_pixels"] * 3]


@pytest.mark.parametrize("deep", [False, True], ids=["float32", "float64 positions"])
@pytest.mark.parametrize("sizes", [[0], [0, 0], [30]])
def test_nothing_to_draw(standins: None, make: Callable, sizes: list[int], deep: bool) -> None:
    given = case(make, sizes, views=2, features=3, inspect=True)
    given.gaussians.means[:, 2] -= 100
    out, grads = given.with_gradients(cuda, torch.float32, deep=deep)
    assert out.image.shape == (len(sizes), 2, 24, 32, 7) and out.image.abs().max() == 0 and out.alpha.max() == 0
    assert out.median_depth.abs().max() == 0 and (out.ids == -1).all()
    assert all(g.abs().sum() == 0 and g.shape == given.leaves()[name].shape for name, g in grads.items())


@pytest.mark.parametrize("faded", [False, True])
def test_a_far_level_of_detail_draws_nothing(standins: None, make: Callable, faded: bool) -> None:
    given = case(make, [30], fade="minimax", inspect=True)
    lod = given.gaussians.lod
    lod.native[:], lod.coarser[:], lod.finer[:] = 1e-6, 2e-6, 0.0
    views = given.views if faded else replace(given.views, fade=None)
    out = Case(given.gaussians, given.offsets, views).draw(cuda, torch.float32)
    assert (out.alpha.max() == 0) == faded


@pytest.mark.parametrize("chunk", [1 << 26, 1 << 12])
@pytest.mark.parametrize("deep", [False, True], ids=["float32", "float64 positions"])
def test_median_depth_and_ids_are_the_references(
    standins: None, monkeypatch: pytest.MonkeyPatch, make: Callable, deep: bool, chunk: int
) -> None:
    monkeypatch.setattr(cuda, "_INSPECTED", chunk)
    given = case(make, [150, 0, 60], (37, 21), views=2, inspect=True)
    given.gaussians.scales[::3] *= 4
    out, expected = given.draw(cuda, torch.float32, deep=deep), given.draw(reference, torch.float64)
    # A pixel whose transmittance comes within rounding of ½, or two weights within rounding of each other.
    assert (out.ids != expected.ids).float().mean() < 1e-3
    differ = (out.median_depth.double() - expected.median_depth).abs() > 1e-5
    assert differ.float().mean() < 1e-3
    assert (expected.median_depth > 0).float().mean() > 0.2 and out.ids[0].max() > 100 and out.ids[2].max() > 30


def test_median_depth_at_exactly_half_and_the_nearest_of_equal_weights(standins: None) -> None:
    z = torch.tensor([3.0, 2.0, 4.0])
    splats = Splats(
        means=torch.stack([0 * z, 0 * z, z], dim=-1),
        quats=torch.tensor([[1.0, 0, 0, 0]]).repeat(3, 1),
        scales=torch.full((3, 3), 0.1),
        opacities=torch.tensor([0.99, 0.5, 0.99]),
        sh=rgb_to_sh(torch.eye(3)),
        features=None,
        lod=None,
        offsets=[0, 3],
    )
    K = torch.tensor([[[20.0, 0, 8.5], [0, 20, 8.5], [0, 0, 1]]])
    views = views_of(Cameras(world_to_cam=torch.eye(4)[None], K=K, width=17, height=17), inspect=True)
    out = cuda.rasterize(splats, views)
    assert out.median_depth[0, 0, 8, 8] == 2 and out.ids[0, 0, 8, 8] == 1


def deep_forest(factor: float, features: int = 0, seed: int = 0) -> Forest:
    """A wall, and in front of one of its Gaussians a few dozen that fill the frame of `camera(factor)`.

    Their depths differ by less than what float32 tells apart.
    """
    g = torch.Generator().manual_seed(seed)
    forest = plane_forest(1, size=16, features=features)
    footprint = 4 / 32 / factor
    offsets = torch.rand(60, 3, generator=g, dtype=torch.float64) - 0.5
    centers = torch.tensor([0.3, -0.2, 4.0], dtype=torch.float64) + offsets * 32 * footprint
    native = torch.full((60,), footprint, dtype=torch.float64)
    children = surfels(centers, native, g, features=features)
    children = replace(children, scales=children.scales * 4)
    wall = forest.levels[0]
    parent = (wall.gaussians.means + wall.origin - centers[0]).square().sum(dim=-1).argmin()
    return forest.append(children, parent.repeat(60))


def two_views(first: Cameras, second: Cameras) -> Cameras:
    return replace(
        first, world_to_cam=torch.cat([first.world_to_cam, second.world_to_cam]), K=torch.cat([first.K, second.K])
    )


@pytest.mark.parametrize("dolly", [False, True])
@pytest.mark.parametrize("exponent", [12, 25])  # focal lengths of 1.3e5 and 1.07e9 pixels
def test_deep_zoom(standins: None, exponent: int, dolly: bool) -> None:
    factor = 2.0**exponent
    forest, cameras = deep_forest(factor, features=2), camera(factor, dolly=dolly)
    views = views_of(cameras, near=0.01 / factor, fade="minimax", inspect=True)
    out, expected = cuda.rasterize_forest(forest, views, True), reference.rasterize_forest(forest, views, True)
    assert expected.alpha.mean() > 0.5
    scale = torch.ones(6) if not dolly else torch.tensor([1.0, 1, 1, factor, 1, 1])
    torch.testing.assert_close(out.image.double() * scale, expected.image * scale, atol=2e-4, rtol=0)
    torch.testing.assert_close(out.alpha.double(), expected.alpha, atol=1e-4, rtol=0)
    assert (out.ids != expected.ids).float().mean() < 5e-3 and expected.ids.max() >= forest.starts[1]
    torch.testing.assert_close(out.median_depth.double(), expected.median_depth, atol=0, rtol=1e-5)


def test_deep_zoom_gradients(standins: None) -> None:
    forest = deep_forest(2.0**20, features=1)
    g = forest.gaussians(torch.float64)
    rows = slice(forest.starts[1], len(forest))
    given = Case(g.index(rows), [0, 60], views_of(camera(2.0**20), antialias=True, fade="minimax"))
    expected = given.with_gradients(reference, torch.float64)
    assert_same(given, *given.with_gradients(cuda, torch.float32, deep=True), *expected)


def test_infinite_splats_put_nothing_into_gradients(standins: None, make: Callable) -> None:
    given = case(make, [30], antialias=True, fade="minimax")
    given.gaussians.scales[3] = 1e25
    grads = given.with_gradients(cuda, torch.float32, deep=True)[1]
    assert all(g.isfinite().all() for g in grads.values())
    assert grads["scales"][3].abs().max() == 0 and grads["scales"].abs().max() > 0.1


@pytest.mark.parametrize("fade", [None, "minimax", "linear"])
def test_forest(standins: None, fade: str | None) -> None:
    forest = plane_forest(3, features=30, bumps=0.5)
    cameras = two_views(camera(1.5), camera(3.2))
    views = views_of(cameras, fade=fade, antialias=fade == "linear", inspect=True)
    out, expected = cuda.rasterize_forest(forest, views, True), reference.rasterize_forest(forest, views, True)
    torch.testing.assert_close(out.image.double(), expected.image, atol=1e-4, rtol=0)
    torch.testing.assert_close(out.alpha.double(), expected.alpha, atol=1e-4, rtol=0)
    assert (out.ids != expected.ids).float().mean() < 5e-3
    assert len(torch.unique(torch.bucketize(out.ids, torch.tensor(forest.starts), right=True))) >= 2
    bare = cuda.rasterize_forest(forest, replace(views, inspect=False), False)
    torch.testing.assert_close(bare.image, out.image[..., :4], atol=1e-5, rtol=0)
    assert bare.ids is None and bare.median_depth is None


def test_forest_visits_what_each_view_sees_only(standins: None, monkeypatch: pytest.MonkeyPatch) -> None:
    forest = plane_forest(3)
    cut: list[torch.Tensor] = []
    read: list[tuple[torch.Tensor, torch.Tensor]] = []
    visible, project = cuda.visible_blocks, cuda.project_exactly
    monkeypatch.setattr(cuda, "visible_blocks", lambda *a: (cut.append(visible(*a)), cut[-1])[1])
    monkeypatch.setattr(cuda, "project_exactly", lambda *a: (read.append((a[2], a[3])), project(*a))[1])
    cuda.rasterize_forest(forest, views_of(two_views(camera(8.0), camera(2.5)), fade="minimax"), False)
    touched = [k for k in range(3) if len(cut[2 * k]) + len(cut[2 * k + 1])]
    assert len(read) == len(touched) > 1
    assert any(len(cut[2 * k]) != len(cut[2 * k + 1]) for k in touched)
    for k, (view, row) in zip(touched, read):
        for c in range(2):
            expected = (cut[2 * k + c][:, None] * BLOCK + torch.arange(BLOCK)).flatten()
            assert row[view == c].tolist() == expected[expected < len(forest.levels[k])].tolist()


def test_forest_out_of_sight(standins: None) -> None:
    cameras = camera()
    cameras.world_to_cam[0, 2, 3] = -1000
    out = cuda.rasterize_forest(plane_forest(2, features=3), views_of(cameras, fade="minimax", inspect=True), True)
    assert out.image.shape == (1, 1, 32, 32, 7) and out.image.abs().max() == 0 and (out.ids == -1).all()


@pytest.mark.parametrize(("field", "value"), [("native", float("nan")), ("native", 0.0), ("coarser", 1e-9)])
def test_impossible_footprints_of_a_forest(standins: None, field: str, value: float) -> None:
    forest = plane_forest(2)
    levels: list[Level] = list(forest.levels)
    lod = levels[1].lod
    spoilt = {name: getattr(lod, name).clone() for name in ("native", "coarser", "finer")}
    spoilt[field][7] = value
    broken = replace(levels[1].gaussians, lod=Lod(**spoilt, level=lod.level))
    levels[1] = replace(levels[1], gaussians=broken)
    with pytest.raises(Sr3dError, match=r"level 1: footprints.*row 7"):
        cuda.rasterize_forest(Forest(levels=tuple(levels)), views_of(camera(2.0), fade="minimax"), False)


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("deep", [False, True], ids=["float32", "float64 positions"])
@pytest.mark.parametrize(("sizes", "options"), CASES)
def test_gpu_image_and_gradients_are_the_cpus(make: Callable, sizes: list[int], options: dict, deep: bool) -> None:
    given = case(make, sizes, **options)
    expected = given.with_gradients(cpu, torch.float32)
    assert_same(given, *given.with_gradients(cuda, torch.float32, "cuda", deep), *expected)


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("exponent", [0, 25])
def test_gpu_forest_is_the_cpus(exponent: int) -> None:
    forest, cameras = deep_forest(2.0**exponent, features=2), camera(2.0**exponent)
    views = views_of(cameras, fade="minimax", inspect=True)
    moved = replace(views, world_to_cam=views.world_to_cam.cuda(), K=views.K.cuda())
    out, expected = cuda.rasterize_forest(forest.to("cuda"), moved, True), cpu.rasterize_forest(forest, views, True)
    torch.testing.assert_close(out.image.cpu(), expected.image, atol=2e-4, rtol=0)
    torch.testing.assert_close(out.alpha.cpu(), expected.alpha, atol=1e-4, rtol=0)
    assert (out.ids.cpu() != expected.ids).float().mean() < 5e-3
    differ = (out.median_depth.cpu() - expected.median_depth).abs() > 1e-5 * expected.median_depth
    assert differ.float().mean() < 5e-3
