"""Where a zoom goes, and where it cannot go."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sr3d import Cameras, Gaussians
from sr3d.coarse import CoarseConfig, coarse_gaussians
from sr3d.errors import Sr3dError
from sr3d.lod import Forest
from sr3d.models import SuperResolver
from sr3d.models.semantics import SemanticsConfig
from sr3d.rendering import render, rgb_to_sh
from sr3d.scene import Scene
from sr3d.zoom import zoom_into
from sr3d.zoom.aim import aim
from sr3d.zoom.guides import Guides
from sr3d.zoom.loop import ZoomConfig, plant
from sr3d.zoom.makers import Predictor
from sr3d.zoom.providers.base import Segmenter
from sr3d.zoom.providers.segmentation import Regions
from sr3d.zoom.session import Session
from sr3d.zoom.target import Box, Pixel, Point, Query, as_target, parse_target
from sr3d.zoom_verb import zoom

AXES = {"mug": 0, "chair": 1}
MAP = torch.linalg.qr(torch.randn(6, 2, generator=torch.Generator().manual_seed(0))).Q  # features to embeddings


def encoder(texts: list[str]) -> Float[Tensor, "n e"]:
    """Words that it knows along their axes, canonical phrases between, all others against both."""
    between, against = (MAP[:, 0] + MAP[:, 1]) / 2**0.5, -(MAP[:, 0] + MAP[:, 1]) / 2**0.5
    known = {**{word: MAP[:, axis] for word, axis in AXES.items()}, "elephant": against}
    return torch.stack([known.get(text, between) for text in texts])


class Finder(Segmenter):
    """Finds one pixel-sized thing in one of the views, or nothing."""

    name: ClassVar[str] = "finder"

    def __init__(self, view: int, rows: slice, columns: slice) -> None:
        super().__init__()
        self.view, self.rows, self.columns, self.asked = view, rows, columns, 0

    def segments(self, image: Float[Tensor, "h w 3"]) -> Int[Tensor, "h w"]:
        return torch.zeros(image.shape[:2], dtype=torch.int64)

    def find(self, image: Float[Tensor, "h w 3"], words: str) -> Bool[Tensor, "h w"]:
        mask = torch.zeros(image.shape[:2], dtype=torch.bool)
        mask[self.rows, self.columns] = self.asked == self.view
        self.asked += 1
        return mask


@pytest.fixture(scope="module")
def forest(table: Scene, doubler: SuperResolver) -> Forest:
    return plant(table, None, None, doubler)[1]


@pytest.fixture(scope="module")
def hollow(table: Scene, doubler: SuperResolver) -> Forest:
    """Nothing in the right third of the first view."""
    coarse = coarse_gaussians(table, CoarseConfig())
    pixels, _ = table.posed().index([0]).project(coarse.means)
    left = coarse.opacities * (pixels[0, :, 0] < 16)
    return plant(replace(coarse, opacities=left), table.posed(), None, doubler)[1]


@pytest.fixture(scope="module")
def reader(table: Scene, doubler: SuperResolver) -> tuple[SuperResolver, Forest]:
    """A network with semantics, and a forest whose features say: a mug in a corner of the first view, else chairs."""
    network = SuperResolver(replace(doubler.config, semantics=SemanticsConfig(width=2, embedding=6))).eval()
    assert network.semantics is not None
    network.semantics.to_embedding.weight.data = MAP.clone()
    coarse = coarse_gaussians(table, CoarseConfig())
    pixels, _ = table.posed().index([0]).project(coarse.means)
    mug = ((pixels[0] > 3) & (pixels[0] < 9)).all(dim=-1)
    features = torch.eye(2)[(~mug).long()]
    return network, plant(replace(coarse, features=features), table.posed(), None, network)[1]


def on_surface(table: Scene, forest: Forest, network: SuperResolver, pixel: tuple[float, float]) -> list[float]:
    target = Pixel(u=pixel[0], v=pixel[1])
    return aim(target, forest, table.posed(), network, None).tolist()


def moved(table: Scene, point: list[float], factor: float) -> Point:
    """Along the ray of the first camera."""
    eye = table.posed().positions[0].double()
    x, y, z = (eye + factor * (torch.tensor(point, dtype=torch.float64) - eye)).tolist()
    return Point(x=x, y=y, z=z)


def test_a_point_is_the_pixel_that_shows_it_to_the_bit(table, forest, doubler, target):
    x, y, z = on_surface(table, forest, doubler, target)
    zooms = [zoom_into(table, to, 4, network=doubler) for to in (target, (x, y, z), Point(x=x, y=y, z=z))]
    for name in ("means", "quats", "scales", "opacities", "sh"):
        assert torch.equal(getattr(zooms[0], name), getattr(zooms[1], name))
        assert torch.equal(getattr(zooms[0], name), getattr(zooms[2], name))


def test_a_pixel_is_on_its_ray_at_the_true_depth(table, forest, doubler):
    first = table.posed().index([0])
    for pixel in ((10.5, 13.5), (0.0, 0.0), (24.0, 24.0), (3.25, 20.75)):
        point = torch.tensor(on_surface(table, forest, doubler, pixel), dtype=torch.float64)
        uv, depth = first.to(torch.float64).project(point[None])
        assert torch.allclose(uv[0, 0], torch.tensor(pixel, dtype=torch.float64), atol=1e-5)
        row, column = min(int(pixel[1]), 23), min(int(pixel[0]), 23)
        window = table.depths[0, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        assert 0.98 * window.min() < depth[0, 0] < 1.02 * window.max()


def test_a_box_leads_to_the_surface_inside(table, forest, doubler):
    x, y, z = on_surface(table, forest, doubler, (10.5, 13.5))
    box = Box(lower=(x - 0.1, y - 0.1, z - 0.1), upper=(x + 0.1, y + 0.1, z + 0.1))
    found = aim(box, forest, table.posed(), doubler, None)
    assert (found - torch.tensor([x, y, z])).norm() < 0.05
    # A box with its middle before the surface: the nearest part of the surface that is inside.
    eye = table.posed().positions[0].tolist()
    corners = [sorted((a, b)) for a, b in zip(eye, (x, y, z))]
    large = Box(lower=tuple(a - 0.02 for a, _ in corners), upper=tuple(b + 0.02 for _, b in corners))
    found = aim(large, forest, table.posed(), doubler, None)
    assert all(a - 0.02 <= value <= b + 0.02 for (a, b), value in zip(corners, found.tolist()))


PIXELS = [(-0.5, 3.0), (3.0, 24.01), (25.0, 3.0), (math.nan, 3.0), (3.0, math.inf)]


@pytest.mark.parametrize("pixel", PIXELS)
def test_pixels_outside(table, forest, doubler, pixel):
    with pytest.raises(Sr3dError, match=r"target: found .*; expected a pixel of the first view, 24 x 24"):
        aim(Pixel(u=pixel[0], v=pixel[1]), forest, table.posed(), doubler, None)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_points_that_are_none(table, forest, doubler, value):
    with pytest.raises(Sr3dError, match="finite coordinates"):
        aim(Point(x=0.0, y=value, z=1.0), forest, table.posed(), doubler, None)


def test_points_that_the_first_view_does_not_show(table, forest, hollow, doubler):
    views = table.posed()
    shown = on_surface(table, forest, doubler, (20.5, 12.5))
    aside = views.index([0]).to(torch.float64)
    x, y, z = (aside.positions[0] + aside.cam_to_world[0, :3, :3] @ torch.tensor([5.0, 0, 1]).double()).tolist()
    cases = [
        (forest, moved(table, shown, -1.0), r"behind the first camera; expected a point in front of it"),
        (forest, moved(table, shown, 0.0), r"behind the first camera; expected a point in front of it"),
        (forest, Point(x=x, y=y, z=z), r"outside the first view \(pixel .*\); expected a point in its frame, 24 x 24"),
        (forest, moved(table, shown, 0.9), r"away; a surface at .*; expected a point on a surface"),
        (forest, moved(table, shown, 1.1), r"away; a surface at .*; expected a point on a surface"),
        (hollow, moved(table, shown, 1.0), r"on empty space; expected a point on a surface that the first view shows"),
    ]
    for scene, point, words in cases:
        with pytest.raises(Sr3dError, match=words):
            aim(point, scene, views, doubler, None)
    aim(moved(table, shown, 1.02), forest, views, doubler, None)


def test_a_pixel_on_empty_space(table, hollow, doubler):
    with pytest.raises(Sr3dError, match=r"nothing at pixel \(20\.5, 12\.5\); expected a pixel that shows a surface"):
        aim(Pixel(u=20.5, v=12.5), hollow, table.posed(), doubler, None)


def test_boxes_without_anything(table, forest, doubler):
    x, y, z = on_surface(table, forest, doubler, (10.5, 13.5))
    front = moved(table, [x, y, z], 0.5)
    low, high = (x - 0.1, y - 0.1, z - 0.1), (x + 0.1, y + 0.1, z + 0.1)
    inside_out = "finite corners, the lower one first"
    cases = [
        (Box(lower=(front.x, front.y, front.z), upper=(front.x + 0.01, front.y + 0.01, front.z + 0.01)), "empty; exp"),
        (Box(lower=high, upper=low), inside_out),
        (Box(lower=low, upper=(high[0], low[1], high[2])), inside_out),
        (Box(lower=low, upper=(math.inf, *high[1:])), inside_out),
        (Box(lower=(math.nan, *low[1:]), upper=high), inside_out),
    ]
    for box, words in cases:
        with pytest.raises(Sr3dError, match=rf"box: found .*{words}"):
            aim(box, forest, table.posed(), doubler, None)


def test_words_are_found_in_the_features_of_the_scene(table, reader):
    network, forest = reader
    point = aim(Query(text="mug"), forest, table.posed(), network, Guides(encoder=encoder))
    pixels, _ = table.posed().to(torch.float64).project(point[None])
    assert ((pixels[0, 0] > 2.5) & (pixels[0, 0] < 9.5)).all()
    elsewhere = aim(Query(text="chair"), forest, table.posed(), network, Guides(encoder=encoder))
    pixels, _ = table.posed().to(torch.float64).project(elsewhere[None])
    assert not ((pixels[0, 0] > 4) & (pixels[0, 0] < 8)).all()
    children = zoom_into(
        forest, Query(text="mug"), 4, network=network, cameras=table.posed(), guides=Guides(encoder=encoder)
    )
    # Children of a network that learned no features: at magnification 1 level 0 still answers.
    assert children.features is not None and int(children.lod.level.max()) == 2
    again = aim(Query(text="mug"), Forest.from_gaussians(children), table.posed(), network, Guides(encoder=encoder))
    pixels, _ = table.posed().to(torch.float64).project(again[None])
    assert ((pixels[0, 0] > 2.5) & (pixels[0, 0] < 9.5)).all()


def test_words_that_nobody_reads_or_that_match_nothing(table, forest, reader, doubler):
    network, featured = reader
    nobody = r"'mug', and nobody who reads words; expected a network with semantics and --text-model, or --segmenter"
    cases = [
        (forest, doubler, None, "mug", nobody),
        (forest, doubler, Guides(encoder=encoder), "mug", nobody),
        (featured, network, None, "mug", nobody),
        (featured, network, Guides(segmenter=Regions()), "mug", nobody),
        (featured, network, Guides(encoder=encoder), "elephant", r"'elephant', with a relevancy of at most 0\.\d+"),
        (featured, network, Guides(encoder=encoder), " ", r"query: found ' '; expected words"),
        (featured, network, Guides(encoder=lambda texts: encoder(texts)[:, :3]), "mug", r"text embedding: found 3 ch"),
        (forest, doubler, Guides(segmenter=Finder(9, slice(0), slice(0))), "mug", r"sees in none of 2 views"),
    ]
    for scene, net, guides, words, message in cases:
        with pytest.raises(Sr3dError, match=message):
            aim(Query(text=words), scene, table.posed(), net, guides)


def test_words_found_in_another_view_must_be_in_sight_of_the_first(table, forest, doubler):
    middle = Guides(segmenter=Finder(1, slice(10, 13), slice(10, 13)))
    point = aim(Query(text="mug"), forest, table.posed(), doubler, middle)
    pixels, _ = table.posed().to(torch.float64).project(point[None])
    assert torch.allclose(pixels[1, 0], torch.tensor([11.5, 11.5], dtype=torch.float64), atol=1e-5)
    poses = table.posed().world_to_cam.clone()
    poses[1] = torch.tensor([[-1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]]) @ poses[1]
    views = replace(table.posed(), world_to_cam=poses)
    behind = forest.gaussians()
    eye = views.positions[1]
    mirrored = replace(behind, means=2 * eye - behind.means)
    both = Forest.from_gaussians(Gaussians.cat([behind, mirrored]))
    hidden = Guides(segmenter=Finder(1, slice(10, 13), slice(10, 13)))
    with pytest.raises(Sr3dError, match=r"query: found 'mug' in view 1, at .*; expected something that the first view"):
        aim(Query(text="mug"), both, views, doubler, hidden)


def shell(camera: Cameras, radius: float) -> Gaussians:
    """Opaque Gaussians all around a camera."""
    directions = torch.nn.functional.normalize(torch.randn(400, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    n = len(directions)
    return Gaussians(
        means=camera.positions[0] + radius * directions,
        quats=torch.tensor([1.0, 0, 0, 0]).expand(n, 4).clone(),
        scales=torch.full((n, 3), radius / 8),
        opacities=torch.full((n,), 0.95),
        sh=rgb_to_sh(torch.full((n, 3), 0.5)),
    )


def test_a_camera_inside_a_surface(table, doubler):
    views = table.posed()
    coarse = replace(coarse_gaussians(table, CoarseConfig()), lod=None)
    closed = Gaussians.cat([coarse, shell(views.index([0]), 0.03)])
    with pytest.raises(Sr3dError, match=r"first camera: found inside a surface; expected a camera in free space"):
        zoom_into(closed, (10.5, 13.5), 4, network=doubler, cameras=views)
    assert render(closed, views.index([0]), near=1e-4).alpha.min() > 0.5


@pytest.mark.parametrize("factor", [-2, 0, 1, 3, 6, 12])
def test_factors_that_are_none(table, forest, doubler, tmp_path, factor):
    session = Session.create(tmp_path / "zoom", "a table", {}, table, forest)
    notes = (tmp_path / "zoom" / "zoom.json").read_bytes()
    message = rf"factor: found {factor}; expected a positive power of the network's 2: 2, 4, 8"
    with pytest.raises(Sr3dError, match=message):
        session.extend(Pixel(u=10.5, v=13.5), factor, Predictor(doubler), None, ZoomConfig())
    assert (tmp_path / "zoom" / "zoom.json").read_bytes() == notes and len(session.forest.levels) == 1


def test_a_target_that_is_refused_leaves_no_branch(table, forest, doubler, tmp_path):
    session = Session.create(tmp_path / "zoom", "a table", {}, table, forest)
    maker = Predictor(doubler)
    with pytest.raises(Sr3dError, match="24 x 24"):
        session.extend(Pixel(u=30.0, v=3.0), 4, maker, None, ZoomConfig())
    session = Session.open(tmp_path / "zoom")
    assert session.state.branches == [] and len(session.forest.levels) == 1


def test_what_the_command_line_asks_for():
    assert parse_target("120,80.5", None, None, None) == Pixel(u=120.0, v=80.5)
    assert parse_target(None, "0.1,-2,3e-1", None, None) == Point(x=0.1, y=-2.0, z=0.3)
    assert parse_target(None, None, "0,1,2,3,4,5", None) == Box(lower=(0.0, 1.0, 2.0), upper=(3.0, 4.0, 5.0))
    assert parse_target(None, None, None, "the mug") == Query(text="the mug")
    assert as_target((1.0, 2.0)) == Pixel(u=1.0, v=2.0) and as_target((1.0, 2.0, 3.0)) == Point(x=1.0, y=2.0, z=3.0)
    with pytest.raises(Sr3dError, match="a pixel"):
        as_target((1.0, 2.0, 3.0, 4.0))


ASKED = [
    ({}, "target: found none; expected one of --target, --point, --box, --query"),
    ({"target": "1,2", "query": "mug"}, "found --target --query; expected one of"),
    ({"target": "1,2,3"}, "--target: found 1,2,3; expected 2 numbers"),
    ({"point": "1,2"}, "--point: found 1,2; expected 3 numbers"),
    ({"box": "1,2,3,4,5"}, "--box: found 1,2,3,4,5; expected 6 numbers"),
    ({"point": "1,2,nan"}, "--point: found '1,2,nan'; expected finite numbers"),
    ({"target": "a,b"}, "--target: found 'a,b'; expected numbers"),
    ({"target": ""}, "--target: found ''; expected numbers"),
    ({"target": "1,2", "checkpoint": None}, "expected --checkpoint, and -o unless"),
    ({"target": "1,2", "output": None}, "expected --checkpoint, and -o unless"),
    ({"undo": 1}, r"zoom\.json: file: found FileNotFoundError"),
    ({"undo": -1}, r"zoom\.json: file: found FileNotFoundError"),
]


@pytest.mark.parametrize(("options", "message"), ASKED)
def test_wrong_command_lines(tmp_path: Path, options: dict[str, str], message: str) -> None:
    given = {"checkpoint": str(tmp_path / "none.safetensors"), "output": tmp_path / "out", **options}
    with pytest.raises(Sr3dError, match=message):
        zoom(tmp_path / "scene", **given)
    assert list(tmp_path.iterdir()) == []
