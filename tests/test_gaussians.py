from __future__ import annotations

import math

import pytest
import torch

from sr3d import Cameras, Gaussians, Sr3dError, render
from sr3d.gaussians import matrix_to_quat, quat_multiply, quat_to_matrix
from sr3d.lod import Lod
from sr3d.rendering.sh import sh_to_rgb

FIELDS = ("means", "quats", "scales", "opacities", "sh", "features")


def make(*batch: int, n: int = 7, k: int = 16, dtype: torch.dtype = torch.float32) -> Gaussians:
    g = torch.Generator().manual_seed(sum(batch) + n + k)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*batch, n, *shape, generator=g, dtype=dtype)

    native = 0.01 + 0.01 * rand()
    return Gaussians(
        means=2 * rand(3) - 1,
        quats=2 * rand(4) - 1,
        scales=0.05 + 0.2 * rand(3),
        opacities=0.2 + 0.7 * rand(),
        sh=rand(k, 3) - 0.5,
        features=rand(2),
        lod=Lod(native=native, coarser=4 * native, finer=native / 4, level=torch.ones_like(native, dtype=torch.int32)),
    )


def same(a: Gaussians, b: Gaussians, **tolerance: float) -> None:
    for name in FIELDS:
        torch.testing.assert_close(getattr(a, name), getattr(b, name), **tolerance)
    for name in ("native", "coarser", "finer", "level"):
        torch.testing.assert_close(getattr(a.lod, name), getattr(b.lod, name), **tolerance)


def rotation(axis: tuple[float, float, float], angle: float) -> torch.Tensor:
    """Rodrigues' formula, float64."""
    x, y, z = torch.nn.functional.normalize(torch.tensor(axis, dtype=torch.float64), dim=0).tolist()
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    return torch.eye(3, dtype=torch.float64) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def similarity(scale: float = 1.7) -> torch.Tensor:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = scale * rotation((1, -2, 0.5), 1.1)
    matrix[:3, 3] = torch.tensor([0.3, -1.0, 2.0])
    return matrix


AXES = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (-1, 2, 3)]


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("angle", [0.0, 1e-4, 1.0, math.pi - 1e-4, math.pi, 4.0])
def test_quaternions_are_wxyz_and_turn_about_their_axis(axis, angle):
    unit = torch.nn.functional.normalize(torch.tensor(axis, dtype=torch.float64), dim=0)
    quat = torch.cat([torch.tensor([math.cos(angle / 2)], dtype=torch.float64), math.sin(angle / 2) * unit])
    expected = rotation(axis, angle)
    torch.testing.assert_close(quat_to_matrix(3.7 * quat), expected)
    back = matrix_to_quat(expected)
    torch.testing.assert_close(quat_to_matrix(back), expected)
    assert back[0] >= 0 and back.norm().item() == pytest.approx(1)


def test_quaternion_product_is_the_matrix_product():
    q = torch.randn(2, 50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(quat_to_matrix(quat_multiply(q[0], q[1])), quat_to_matrix(q[0]) @ quat_to_matrix(q[1]))


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize(
    "index", [slice(1, 5, 2), torch.tensor([6, 0, 0]), torch.tensor([True, False, True, False, False, True, False])]
)
def test_index_selects_gaussians(batch, index):
    g = make(*batch)
    out = g.index(index)
    assert torch.equal(out.means, g.means[..., index, :]) and torch.equal(out.sh, g.sh[..., index, :, :])
    assert torch.equal(out.opacities, g.opacities[..., index]) and torch.equal(out.features, g.features[..., index, :])
    assert torch.equal(out.lod.native, g.lod.native[..., index]) and len(out) == out.lod.level.shape[-1]


def test_getitem_takes_the_batch_first():
    g = make(3)
    assert torch.equal(g[1].means, g.means[1]) and torch.equal(g[-1].lod.level, g.lod.level[-1])
    assert torch.equal(g[1:].sh, g.sh[1:])
    assert torch.equal(g[1][-1].means, g.means[1, -1:]) and torch.equal(g[1][2].lod.native, g.lod.native[1, 2:3])
    assert torch.equal(g[0][2:4].quats, g.quats[0, 2:4])


@pytest.mark.parametrize("batch", [(), (2,)])
def test_split_and_cat_are_inverse(batch):
    g = make(*batch)
    parts = g.split([2, 0, 4, 1])
    assert [len(p) for p in parts] == [2, 0, 4, 1]
    same(Gaussians.cat(parts), g, rtol=0, atol=0)
    with pytest.raises(Sr3dError, match="sizes: found sum 6; expected 7"):
        g.split([2, 4])


def test_cat_pads_harmonics_with_zeros():
    a, b = make(k=1), make(k=9)
    out = Gaussians.cat([a, b])
    assert out.sh.shape == (14, 9, 3) and out.sh_degree == 2
    assert torch.equal(out.sh[:7, :1], a.sh) and not out.sh[:7, 1:].any() and torch.equal(out.sh[7:], b.sh)


def test_cat_refuses_mixtures():
    g = make()
    for field in ("features", "lod"):
        bare = Gaussians(**{name: getattr(g, name) for name in (*FIELDS, "lod") if name != field})
        with pytest.raises(Sr3dError, match=f"{field}: found in some parts only"):
            Gaussians.cat([g, bare])
    with pytest.raises(Sr3dError, match="parts: found none"):
        Gaussians.cat([])


def test_to_another_type_keeps_lod():
    g = make().to(torch.float64)
    assert all(getattr(g, name).dtype == torch.float64 for name in FIELDS)
    assert g.lod.native.dtype == torch.float32 and g.lod.level.dtype == torch.int32


@pytest.mark.parametrize(("k", "degree"), [(1, 0), (4, 1), (9, 2), (16, 3)])
def test_degree(k, degree):
    assert make(k=k).sh_degree == degree


@pytest.mark.parametrize("k", [1, 4, 9, 16])
def test_transform_turns_the_colour_function(k):
    """The colour seen along a turned direction is the colour that was seen along the direction."""
    g = make(k=k, dtype=torch.float64)
    matrix = similarity()
    turned = g.transform(matrix)
    generator = torch.Generator().manual_seed(1)
    directions = torch.nn.functional.normalize(torch.randn(7, 3, dtype=torch.float64, generator=generator), dim=-1)
    R = matrix[:3, :3] / 1.7
    torch.testing.assert_close(sh_to_rgb(turned.sh, directions @ R.T), sh_to_rgb(g.sh, directions), atol=1e-9, rtol=0)


def test_transform_moves_shapes_and_lod():
    g = make(dtype=torch.float64)
    matrix = similarity()
    out = g.transform(matrix)
    A, R = matrix[:3, :3], matrix[:3, :3] / 1.7
    torch.testing.assert_close(out.means, g.means @ A.T + matrix[:3, 3])
    torch.testing.assert_close(quat_to_matrix(out.quats), R @ quat_to_matrix(g.quats))
    torch.testing.assert_close(out.scales, 1.7 * g.scales)
    for name in ("native", "coarser", "finer"):
        torch.testing.assert_close(getattr(out.lod, name), 1.7 * getattr(g.lod, name))
    assert torch.equal(out.lod.level, g.lod.level) and torch.equal(out.features, g.features)


def test_transformed_scene_looks_the_same_from_the_transformed_camera():
    """Rendered with SH of degree 3, features and level of detail, in float64; depths grow with the scale."""
    g = make(n=12, dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64)
    pose[2, 3] = 4.0
    K = torch.tensor([[30.0, 0, 12.2], [0, 28, 7.9], [0, 0, 1]], dtype=torch.float64)
    # Footprints around 4 / 29 are inside the cross-fade: a lod that did not scale would show.
    g.lod = Lod(
        native=torch.full((12,), 0.12, dtype=torch.float64),
        coarser=torch.full((12,), 0.3, dtype=torch.float64),
        finer=torch.full((12,), 0.03, dtype=torch.float64),
        level=torch.zeros(12, dtype=torch.int32),
    )
    matrix = similarity()
    moved = torch.eye(4, dtype=torch.float64)
    R, t = matrix[:3, :3] / 1.7, matrix[:3, 3]
    moved[:3, :3] = pose[:3, :3] @ R.T
    moved[:3, 3] = 1.7 * pose[:3, 3] - moved[:3, :3] @ t
    before = render(
        g, Cameras(world_to_cam=pose[None], K=K[None], width=24, height=16), features=True, backend="reference"
    )
    after = render(
        g.transform(matrix),
        Cameras(world_to_cam=moved[None], K=K[None], width=24, height=16),
        features=True,
        backend="reference",
    )
    assert before.alpha.max() > 0.5
    for name in ("rgb", "alpha", "features"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name), atol=1e-6, rtol=0)
    torch.testing.assert_close(after.depth, 1.7 * before.depth, atol=1e-6, rtol=0)


def test_transform_of_a_batch_is_the_transform_of_each():
    g = make(2)
    out = g.transform(similarity().float())
    for i in range(2):
        same(out[i], g[i].transform(similarity().float()), rtol=1e-6, atol=1e-6)


def test_transforms_compose():
    g = make(dtype=torch.float64)
    a, b = similarity(1.7), similarity(0.4)
    twice, once = g.transform(a).transform(b), g.transform(b @ a)
    for name in ("means", "scales", "sh"):
        torch.testing.assert_close(getattr(twice, name), getattr(once, name))
    torch.testing.assert_close(quat_to_matrix(twice.quats), quat_to_matrix(once.quats))


@pytest.mark.parametrize(
    "diagonal", [(1.0, 1.0, -1.0), (1.0, 1.0, 1.01), (0.0, 0.0, 0.0), (math.nan, 1.0, 1.0), (math.inf, 1.0, 1.0)]
)
def test_transform_refuses_what_is_no_similarity(diagonal):
    matrix = torch.diag(torch.tensor([*diagonal, 1.0]))
    with pytest.raises(Sr3dError, match="matrix: found"):
        make().transform(matrix)


def test_transform_refuses_a_projective_matrix():
    matrix = torch.eye(4)
    matrix[3, 0] = 0.5
    with pytest.raises(Sr3dError, match="matrix: found"):
        make().transform(matrix)
