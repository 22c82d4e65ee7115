from __future__ import annotations

import copy
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lod_scenes import camera, plane_forest, surfels

import sr3d
from sr3d import Sr3dError
from sr3d.gaussians import Gaussians, Lod
from sr3d.lod import Forest


def same(a: Gaussians, b: Gaussians) -> bool:
    fields = ["means", "quats", "scales", "opacities", "sh"]
    lods = ["native", "coarser", "finer", "level"]
    return all(torch.equal(getattr(a, f), getattr(b, f)) for f in fields) and all(
        torch.equal(getattr(a.lod, f), getattr(b.lod, f)) for f in lods
    )


def roots(n: int = 8) -> Gaussians:
    g = torch.Generator().manual_seed(0)
    centers = torch.rand(n, 3, generator=g, dtype=torch.float64)
    return surfels(centers, torch.full((n,), 0.1, dtype=torch.float64), g)


def with_lod(gaussians: Gaussians, **fields: float) -> Gaussians:
    lod = replace(gaussians.lod, **{k: torch.full_like(gaussians.lod.native, v) for k, v in fields.items()})
    return replace(gaussians, lod=lod)


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("lod", lambda: replace(roots(), lod=None)),
        ("gaussians", lambda: roots().index(slice(0, 0))),
        ("lod.native", lambda: with_lod(roots(), native=0.0)),
        ("lod.native", lambda: with_lod(roots(), native=math.nan)),
        ("lod.native", lambda: with_lod(roots(), native=-1.0)),
        ("lod.coarser", lambda: with_lod(roots(), coarser=0.05)),
        ("lod.coarser", lambda: with_lod(roots(), coarser=math.nan)),
        ("lod.finer", lambda: with_lod(roots(), finer=0.2)),
        ("lod.finer", lambda: with_lod(roots(), finer=-1.0)),
        ("means", lambda: replace(roots(), means=roots().means * math.nan)),
        (
            "lod.level",
            lambda: replace(roots(), lod=replace(roots().lod, level=torch.full((8,), -1, dtype=torch.int32))),
        ),
    ],
)
def test_gaussians_that_make_no_forest(field: str, bad: object) -> None:
    with pytest.raises(Sr3dError) as error:
        Forest.from_gaussians(bad())
    assert error.value.field == field
    forest = Forest.from_gaussians(roots())
    if field in ("lod", "gaussians", "lod.native", "means"):
        children = bad()
        with pytest.raises(Sr3dError) as error:
            forest.append(children, torch.zeros(len(children), dtype=torch.int64))
        assert error.value.field == field


@pytest.mark.parametrize("field", ["quats", "scales", "opacities", "sh"])
def test_values_that_cannot_be(field: str) -> None:
    bad = roots()
    getattr(bad, field)[3] = -0.5 if field in ("scales", "opacities") else math.nan
    with pytest.raises(Sr3dError, match="row 3") as error:
        Forest.from_gaussians(bad)
    assert error.value.field == field


def test_footprints_that_disagree_along_a_link() -> None:
    level = torch.tensor([0, 1], dtype=torch.int32)
    g = roots(2)
    links = torch.tensor([-1, 0])

    def lod(coarser: float, finer: float) -> Lod:
        native = torch.tensor([0.1, 0.05])
        sides = torch.tensor([math.inf, coarser]), torch.tensor([finer, 0.0])
        return Lod(native=native, coarser=sides[0], finer=sides[1], level=level)

    Forest.from_gaussians(replace(g, lod=lod(0.1, 0.05)), links)
    for field, wrong in (("lod.coarser", lod(math.inf, 0.05)), ("lod.finer", lod(0.1, 0.0))):
        with pytest.raises(Sr3dError, match="link of row 1") as error:
            Forest.from_gaussians(replace(g, lod=wrong), links)
        assert error.value.field == field


def test_levels_with_a_gap() -> None:
    g = with_lod(roots(), coarser=0.2)
    gap = replace(g.lod, level=torch.tensor([0] * 4 + [2] * 4, dtype=torch.int32))
    with pytest.raises(Sr3dError, match="consecutive"):
        Forest.from_gaussians(replace(g, lod=gap))


def test_a_level_too_wide_for_its_footprints() -> None:
    """Two metres apart at 10⁻⁸: float32 offsets cannot say where anything is. One by one they fit."""
    forest = Forest.from_gaussians(roots(2))
    far = replace(roots(2), means=torch.tensor([[0.0, 0, 0], [0, 0, 2]]).double())
    far = with_lod(far, native=1e-8)
    with pytest.raises(Sr3dError, match="append those far apart one by one"):
        forest.append(far, torch.tensor([0, 1]))
    for row in range(2):
        forest = forest.append(far.index(slice(row, row + 1)), torch.tensor([row]))
    assert [level.origin[2].item() for level in forest.levels[1:]] == [0, 2]


def test_magnification_does_not_hang_on_the_first_row() -> None:
    mixed = replace(roots(), lod=Lod.roots(torch.tensor([0.01] + [1.0] * 7)))
    forest = Forest.from_gaussians(mixed).append(with_lod(roots(), native=0.005), torch.arange(8))
    assert forest.magnification == pytest.approx(200)


def test_copies_compare_by_identity_and_are_not_mapped(tmp_path: Path) -> None:
    forest = plane_forest(2).save(tmp_path / "a.sr3d")
    for copied in (copy.deepcopy(forest), forest.to("cpu")):
        assert copied != forest and hash(copied) != hash(forest) and copied.source is None
        for file in sorted((tmp_path / "a.sr3d").glob("*.safetensors")):
            assert file.stat().st_size > 4096
        assert same(copied.gaussians(), forest.gaussians())
    os.truncate(sorted((tmp_path / "a.sr3d").glob("*.safetensors"))[0], 4096)
    assert len(copied.gaussians()) == len(forest)  # a copy does not read the file any more
    with pytest.raises(Sr3dError, match="changed while it was open"):
        forest.gaussians()


def test_links_that_lead_nowhere_or_in_circles() -> None:
    g = with_lod(roots(), coarser=0.2)
    for parents, words in (([8] * 8, "dangling"), ([-2] * 8, "dangling"), ([1, 0] * 4, "circles")):
        with pytest.raises(Sr3dError, match=words) as error:
            Forest.from_gaussians(g, torch.tensor(parents))
        assert error.value.field == "parents"


def test_children_that_do_not_fit() -> None:
    forest = Forest.from_gaussians(roots())
    fine = with_lod(roots(), native=0.05)
    rows = torch.arange(8)
    cases = [
        ("parents", fine, rows + 1, "dangling"),
        ("parents", fine, rows[:4], r"\(4,\)"),
        ("lod.native", with_lod(roots(), native=0.1), rows, "its parent's is 0.1"),
        ("sh", replace(fine, sh=fine.sh.repeat(1, 4, 1)), rows, "4 coefficients"),
        ("features", replace(fine, features=torch.ones(8, 2)), rows, "width 2"),
    ]
    for field, children, parents, words in cases:
        with pytest.raises(Sr3dError, match=words) as error:
            forest.append(children, parents)
        assert error.value.field == field
    longer = forest.append(fine, rows)
    with pytest.raises(Sr3dError, match="has children"):
        longer.append(fine, rows)
    mixed = torch.tensor([0, 1, 2, 3, 8, 9, 10, 11])
    with pytest.raises(Sr3dError, match=r"has children|of levels"):
        longer.append(with_lod(roots(), native=0.01), mixed)


def test_a_parent_stays_until_its_last_child_is_there() -> None:
    forest = Forest.from_gaussians(roots())
    natives = torch.linspace(0.01, 0.05, 8)
    children = replace(roots(), lod=Lod.roots(natives))
    lod = forest.append(children, torch.tensor([0] * 6 + [3, 3])).gaussians().lod
    assert lod.finer[[0, 3]].tolist() == pytest.approx([natives[0].item(), natives[6].item()])
    assert (lod.finer[[1, 2, 4, 5, 6, 7]] == 0).all()


def test_a_forest_with_bad_rows_is_refused_when_they_are_drawn() -> None:
    forest = plane_forest(1)
    forest.levels[0].lod.native[5] = math.nan
    with pytest.raises(Sr3dError, match="row 5"):
        sr3d.render(forest, camera())


def test_render_refuses_what_a_forest_has_not() -> None:
    forest, view = plane_forest(1), camera()
    with pytest.raises(Sr3dError, match="features"):
        sr3d.render(forest, view, features=True)
    with pytest.raises(Sr3dError, match="offsets"):
        sr3d.render(forest, view, offsets=[0, len(forest)])
    posed = replace(view, world_to_cam=view.world_to_cam.requires_grad_())
    with pytest.raises(Sr3dError, match="gradients"):
        sr3d.render(forest, posed)
    with torch.no_grad():
        assert sr3d.render(forest, posed).alpha.mean() > 0.5
