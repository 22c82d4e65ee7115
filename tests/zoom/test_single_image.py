from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from sr3d.cameras import Cameras
from sr3d.datasets.world import World
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.rendering import render
from sr3d.scene import Scene
from sr3d.training.metrics import COVERED_ALPHA, psnr
from sr3d.zoom.providers import AuxiliaryViews, DepthGuess, MonocularDepth, Segmenter
from sr3d.zoom.single_image import (
    Started,
    background_depth,
    exif_focal,
    hidden_depth,
    sharp_edges,
    start_from_image,
    world_depth,
)

WIDTH, HEIGHT = 64, 48


class TrueDepth(MonocularDepth):
    """Knows the answer."""

    name: ClassVar[str] = "true"

    def __init__(self, depth: torch.Tensor) -> None:
        super().__init__()
        self.depth = depth

    def guess(self, image, focal):
        return DepthGuess(depth=self.depth, kind="metric")


class MeanColor(AuxiliaryViews):
    """Gives unknown pixels the mean colour of the known ones."""

    name: ClassVar[str] = "mean"

    def fill(self, images, known, cameras, prompt, seed):
        return torch.stack([torch.where(k[..., None], i, i[k].mean(0)) for i, k in zip(images, known)])


class Halves(Segmenter):
    """Left and right of a column."""

    name: ClassVar[str] = "halves"

    def __init__(self, column: int, width: int = WIDTH) -> None:
        super().__init__()
        self.column, self.width = column, width

    def segments(self, image):
        return (torch.arange(self.width) >= self.column).long().expand(image.shape[0], self.width)

    def find(self, image, words):
        raise Sr3dError(self.name, "words", words, "none")


@dataclass(kw_only=True)
class Case:
    """A start from a rendered photograph, and the world's own pictures of the orbit."""

    started: Started
    roots: Gaussians
    truth: Scene


@pytest.fixture(scope="module")
def photograph() -> tuple[World, Scene]:
    world = World.generate(3, "table")
    return world, world.render(world.sample_cameras(1, WIDTH, HEIGHT))


def start(photograph: tuple[World, Scene]) -> Started:
    scene = photograph[1]
    fov = 2 * math.degrees(math.atan(WIDTH / 2 / float(scene.cameras.K[0, 0, 0])))
    depth = TrueDepth(scene.depths[0])
    return start_from_image(scene.images[0], depth=depth, auxiliary=MeanColor(), segmenter=None, fov_degrees=fov)


@pytest.fixture(scope="module")
def case(photograph) -> Case:
    world, scene = photograph
    started = start(photograph)
    orbit = started.auxiliary.cameras
    moved = replace(orbit, world_to_cam=orbit.world_to_cam @ scene.cameras.world_to_cam)
    roots = started.gaussians.index(slice(0, WIDTH * HEIGHT))
    return Case(started=started, roots=roots, truth=world.render(moved))


def test_the_photograph_is_drawn_again(case):
    scene = case.started.scene
    assert torch.equal(scene.cameras.world_to_cam[0], torch.eye(4))
    drawn = render(case.started.gaussians, scene.cameras, median_depth=True)
    assert float(psnr(drawn.rgb, scene.images)[0]) > 25
    assert (drawn.alpha > 0.95).float().mean() > 0.999
    assert ((drawn.median_depth / scene.depths - 1).abs() < 0.05).float().mean() > 0.9


def test_the_orbit_has_no_holes_and_what_was_seen_is_not_worse(case):
    path = case.started.auxiliary.cameras
    before, after = render(case.roots, path), render(case.started.gaussians, path)
    covered = before.alpha > COVERED_ALPHA
    share = covered.float().mean(dim=(1, 2))
    assert ((share > 0.7) & (share < 0.9)).all()
    assert ((after.alpha > COVERED_ALPHA).float().mean(dim=(1, 2)) > 0.999).all()
    old, new = (psnr(drawn.rgb, case.truth.images, covered) for drawn in (before, after))
    assert (new > old).all()
    whole = [psnr(drawn.rgb, case.truth.images) for drawn in (before, after)]
    assert (whole[1] > whole[0] + 5).all()


def test_filled_depth_is_near_the_truth(case):
    hidden = render(case.roots, case.started.auxiliary.cameras).alpha < 0.5
    error = (case.started.auxiliary.depths / case.truth.depths - 1).abs()[hidden]
    assert error.median() < 0.04


def test_added_surfels_are_behind_what_the_photograph_shows(case):
    scene, count = case.started.scene, len(case.roots)
    added = case.started.gaussians.index(slice(count, None))
    assert len(added) > 500
    pixels, z = scene.cameras.project(added.means)
    column, row = pixels[0].floor().long().unbind(-1)
    inside = (column >= 0) & (column < WIDTH) & (row >= 0) & (row < HEIGHT)
    assert inside.any()
    assert (z[0, inside] > 0.999 * scene.depths[0, row[inside], column[inside]]).all()
    alone, together = (render(g, scene.cameras).rgb for g in (case.roots, case.started.gaussians))
    assert (alone - together).abs().mean() < 3e-4


def test_surfels_are_roots_and_views_are_what_is_drawn(case):
    lod, views = case.started.gaussians.lod, case.started.auxiliary
    assert torch.isinf(lod.coarser).all() and (lod.finer == 0).all() and (lod.level == 0).all()
    drawn = render(case.started.gaussians, views.cameras)
    assert (psnr(drawn.rgb, views.images) > 24).all()
    assert len(case.started.notes) == 2 + len(views)


def test_two_starts_agree(case, photograph):
    again = start(photograph)
    for field in ("means", "quats", "scales", "opacities", "sh"):
        assert torch.equal(getattr(again.gaussians, field), getattr(case.started.gaussians, field))
    assert torch.equal(again.auxiliary.images, case.started.auxiliary.images)


def test_kinds_of_depth_become_bounded_and_median_one():
    z = torch.linspace(1, 4, 99).expand(20, 99)
    assert torch.equal(world_depth(DepthGuess(depth=z, kind="metric")), z)
    for guess in (DepthGuess(depth=z * 3, kind="relative"), DepthGuess(depth=0.7 / z, kind="inverse")):
        torch.testing.assert_close(world_depth(guess), (z / z.median()).clamp(z[0, 0] / 2.5, z[0, -1] / 2.5))
    sky = DepthGuess(depth=torch.linspace(1e-4, 1, 99).expand(20, 99), kind="inverse")
    found = world_depth(sky)
    assert float(found.median()) == pytest.approx(1)
    assert float(found.max() / found.min()) == pytest.approx(8, rel=1e-3)
    assert (found.diff(dim=1) <= 0).all()


def ramp() -> torch.Tensor:
    """A wall at depth 1 and another at depth 2, blurred into each other over five pixels."""
    depth = torch.ones(12, 40)
    depth[:, 20:] = 2.0
    depth[:, 18:23] = 1 / torch.linspace(1, 0.5, 7)[1:-1]
    return depth


def test_ramps_at_edges_go_and_slopes_stay():
    sharp = sharp_edges(ramp(), None, 3)
    assert set(sharp.unique().tolist()) == {1.0, 2.0}
    assert (sharp[:, 17] == 1).all() and (sharp[:, 23] == 2).all()
    floor = 1 / torch.linspace(1, 0.2, 40).expand(12, 40)
    torch.testing.assert_close(sharp_edges(floor, None, 3), floor)
    steps = torch.rand(12, 40, generator=torch.Generator().manual_seed(0)).round() + 1 + 0.4 * torch.eye(12, 40)
    sharp = sharp_edges(steps, None, 3)
    assert (sharp >= steps.min()).all() and (sharp <= steps.max()).all()


@pytest.mark.parametrize("column", [19, 22])
def test_segments_say_where_an_edge_is(column):
    sharp = sharp_edges(ramp(), Halves(column, 40).segments(ramp()), 3)
    assert (sharp[:, :column] == 1).all() and (sharp[:, column:] == 2).all()


def side_view(shift: float) -> Cameras:
    """64 x 48 pixels, moved to the right."""
    K = torch.tensor([[60.0, 0, WIDTH / 2], [0, 60.0, HEIGHT / 2], [0, 0, 1]])
    pose = torch.eye(4)
    pose[0, 3] = -shift
    return Cameras(world_to_cam=pose[None], K=K[None], width=WIDTH, height=HEIGHT)


def test_holes_get_the_farther_side():
    depth = torch.full((HEIGHT, WIDTH), 4.0)
    depth[10:30, 10:20] = 2.0
    depth[10:30, 20:30] = 0.0
    depth[:, -5:] = 0.0
    filled = background_depth(depth, side_view(0.5), torch.zeros(3))
    assert (filled[10:30, 10:20] == 2).all()
    filled[10:30, 10:20] = 4
    assert (filled == 4).all()


def test_points_move_until_they_are_hidden():
    seen = Scene(
        images=torch.zeros(1, HEIGHT, WIDTH, 3), cameras=side_view(0), depths=torch.full((1, HEIGHT, WIDTH), 3.0)
    )
    where = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    where[20] = True
    moved = hidden_depth(torch.full((HEIGHT, WIDTH), 2.0), where, side_view(0.5), seen)
    assert (moved[~where] == 2).all()
    # At depth 2 column u shows a point of column u + 15 of the photograph; two more than its 64 count.
    assert (moved[20, -13:] == 2).all()
    assert ((moved[20, :40] >= 3) & (moved[20, :40] < 3 * 1.02)).all()


def test_focal_length_of_a_file(tmp_path, photograph):
    image = Image.fromarray((photograph[1].images[0].numpy() * 255).astype(np.uint8))
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 35
    image.save(tmp_path / "castle.jpg", exif=exif)
    image.save(tmp_path / "plain.png")
    assert exif_focal(tmp_path / "plain.png") is None
    # 35 mm on a diagonal of 43.27 mm; the photograph's diagonal is 80 pixels.
    assert exif_focal(tmp_path / "castle.jpg") == pytest.approx(35 / 43.2666 * 80)
    providers = {"depth": TrueDepth(torch.ones(HEIGHT, WIDTH)), "auxiliary": MeanColor(), "segmenter": Halves(30)}
    found = start_from_image(tmp_path / "castle.jpg", **providers, views=1)
    assert found.scene.name == "castle" and len(found.auxiliary) == 1
    assert float(found.scene.cameras.focal[0]) == pytest.approx(64.716, abs=1e-2)
    plain = start_from_image(tmp_path / "plain.png", **providers, views=1, fov_degrees=90.0)
    assert float(plain.scene.cameras.focal[0]) == pytest.approx(32, abs=1e-3)


class Broken(TrueDepth, AuxiliaryViews):
    """Answers what it is told; dies where that is None."""

    name: ClassVar[str] = "broken"

    def guess(self, image, focal):
        return DepthGuess(depth=self.answer(), kind="inverse")

    def fill(self, images, known, cameras, prompt, seed):
        return self.answer().expand(*images.shape[:1], *self.answer().shape)

    def answer(self) -> torch.Tensor:
        if self.depth is None:
            raise RuntimeError("out of memory")
        return self.depth


@pytest.mark.parametrize(
    ("kind", "answer", "field"),
    [
        ("depth", torch.ones(HEIGHT, WIDTH - 1), "depth size"),
        ("depth", torch.full((HEIGHT, WIDTH), math.nan), "depth"),
        ("depth", torch.zeros(HEIGHT, WIDTH), "depth"),
        ("depth", None, "depth"),
        ("auxiliary", torch.ones(HEIGHT, WIDTH - 1, 3), "image size"),
        ("auxiliary", torch.full((HEIGHT, WIDTH, 3), math.nan), "colours"),
        ("auxiliary", None, "views"),
        ("segmenter", None, "size"),
    ],
)
def test_bad_providers(photograph, kind, answer, field):
    providers = {"depth": TrueDepth(torch.ones(HEIGHT, WIDTH)), "auxiliary": MeanColor(), "segmenter": None}
    providers[kind] = Halves(3, WIDTH - 1) if kind == "segmenter" else Broken(answer)
    with pytest.raises(Sr3dError) as caught:
        start_from_image(photograph[1].images[0], **providers)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"image": torch.full((9, 9, 3), 2.0)}, "image"),
        ({"image": torch.zeros(4, 9, 3)}, "image"),
        ({"image": "missing.jpg"}, "file"),
        ({"fov_degrees": 0.0}, "fov_degrees"),
        ({"fov_degrees": math.nan}, "fov_degrees"),
        ({"views": 0}, "views"),
        ({"degrees": 60.0}, "degrees"),
    ],
)
def test_bad_input(change, field):
    good = {"image": torch.zeros(9, 9, 3), "depth": TrueDepth(torch.ones(9, 9)), "auxiliary": MeanColor()}
    arguments = {**good, "segmenter": None, **change}
    with pytest.raises(Sr3dError) as caught:
        start_from_image(arguments.pop("image"), **arguments)
    assert caught.value.field == field
