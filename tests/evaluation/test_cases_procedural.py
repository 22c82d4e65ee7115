"""Cases of procedural worlds: what a world shows, inputs at the ends of a path, a zoom about a pixel."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sr3d import Cameras, Scene, Sr3dError
from sr3d.coarse import CoarseConfig
from sr3d.datasets.batch import make_batch
from sr3d.datasets.layout import CLASSES
from sr3d.datasets.world import World
from sr3d.evaluation.case import Case, Task
from sr3d.evaluation.cases.procedural import mean_brightness, open_procedural, photograph_world
from sr3d.evaluation.data_config import ProceduralData, WorldEntry
from sr3d.evaluation.methods import MethodOptions
from sr3d.evaluation.methods.bicubic import Bicubic
from sr3d.zoom.measure import resample

TABLE, ROOM = WorldEntry(seed=3, kind="table"), WorldEntry(seed=5, kind="room")
SIZE, LOW = 32, 8
CENTER = (3.0, 4.0)


@pytest.fixture(scope="module")
def checks() -> list[float]:
    return [mean_brightness(world, 5, SIZE) for world in (TABLE, ROOM)]


@pytest.fixture(scope="module")
def views() -> Scene:
    """All five views of the table, as the world itself draws them."""
    world = World.generate(3, "table")
    return world.render(world.sample_cameras(5, SIZE, SIZE))


@pytest.fixture(scope="module")
def between(checks: list[float]) -> Case:
    return open_procedural(ProceduralData(worlds=[TABLE, ROOM], checks=checks, size=SIZE), 4).load(0)


@pytest.fixture(scope="module")
def zoom(checks: list[float]) -> Case:
    data = ProceduralData(
        worlds=[TABLE], checks=checks[:1], size=SIZE, targets=1, levels=[4, 16], centers=[list(CENTER)]
    )
    return open_procedural(data, 4).load(0)


def blocks(images: Tensor, side: int) -> Tensor:
    """Mean of side x side pixels. [V, H, W, 3]"""
    count, height, width, _ = images.shape
    return images.reshape(count, height // side, side, width // side, side, 3).mean(dim=(2, 4))


def same(a: Scene, b: Scene) -> None:
    for name in ("images", "depths", "labels"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=1e-7)
    same_cameras(a.posed(), b.posed())


def same_cameras(a: Cameras, b: Cameras) -> None:
    assert (a.width, a.height) == (b.width, b.height)
    torch.testing.assert_close(a.K, b.K)
    torch.testing.assert_close(a.world_to_cam, b.world_to_cam)


def test_inputs_are_the_reduced_ends_of_the_path_and_targets_lie_between(between: Case, views: Scene) -> None:
    assert (between.name, between.scene, between.factor) == ("table-3", "table-3", 4)
    assert between.context is not None and between.truth is not None and between.reduced is not None
    torch.testing.assert_close(between.context.images, blocks(views.images[[0, 4]], 4))
    torch.testing.assert_close(between.reduced.images, blocks(views.images[1:4], 4))
    torch.testing.assert_close(between.truth.images, views.images[1:4])
    expected = make_batch(views, [0, 4], [1, 2, 3], 4)
    same(between.context, expected.context)
    same(between.truth, expected.target)
    same_cameras(between.cameras, views.posed().index([1, 2, 3]))
    same_cameras(between.context.posed(), views.posed().index([0, 4]).resized(LOW, LOW))
    assert between.frames == ["view 1", "view 2", "view 3"] and between.levels == [1, 1, 1]
    assert between.center is None and between.classes == list(CLASSES[1:])


def test_the_list_of_cases_says_what_there_is_without_drawing(checks: list[float]) -> None:
    data = ProceduralData(worlds=[TABLE, ROOM], checks=[0.0, 0.0], size=SIZE, targets=2)
    cases = open_procedural(data, 4)
    assert cases.names == cases.scenes == ["table-3", "room-5"] and cases.views == 4
    assert cases.index["worlds"] == [{"seed": 3, "kind": "table"}, {"seed": 5, "kind": "room"}]
    other = open_procedural(replace(data, checks=checks), 4)
    assert cases.digest == open_procedural(replace(data), 4).digest != other.digest
    two, one = (replace(data, checks=checks, targets=n) for n in (2, 1))
    assert open_procedural(two, 4).load(1).frames == ["view 1", "view 3"]
    assert open_procedural(one, 4).load(1).frames == ["view 2"]
    with pytest.raises(Sr3dError, match="32x32 with factor 5; expected a multiple"):
        open_procedural(one, 5).load(0)


def test_a_generator_that_has_changed_is_noticed(checks: list[float], views: Scene) -> None:
    assert checks[0] == pytest.approx(float(views.images[0].double().mean()), abs=1e-6)
    data = ProceduralData(worlds=[TABLE, ROOM], checks=[checks[0] + 0.001, checks[1] + 0.01], size=SIZE)
    assert len(photograph_world(data, 0)) == 5
    found = rf"world 5: mean of the first view: found {checks[1]:.4f}; expected {checks[1] + 0.01:.4f}, as the index"
    with pytest.raises(Sr3dError, match=found):
        open_procedural(data, 4).load(1)


def test_a_zoom_stays_on_its_pixel(zoom: Case, views: Scene) -> None:
    assert zoom.context is not None and zoom.center == CENTER
    assert zoom.levels == [4, 16] and zoom.frames == ["4x", "16x"]
    first = zoom.context.posed().index([0])
    same_cameras(first, views.posed().index([0]).resized(LOW, LOW))
    assert (zoom.cameras.width, zoom.cameras.height) == (LOW, LOW)
    torch.testing.assert_close(zoom.cameras.focal, first.focal * torch.tensor([4.0, 16.0]))
    torch.testing.assert_close(zoom.cameras.world_to_cam, first.world_to_cam.expand(2, 4, 4))
    ray = torch.linalg.inv(first.K[0]) @ torch.tensor([*CENTER, 1.0])
    point = first.cam_to_world[0, :3, :3] @ (1.7 * ray) + first.positions[0]
    pixels, depth = zoom.cameras.project(point[None])
    torch.testing.assert_close(pixels[:, 0], torch.tensor([CENTER, CENTER]), atol=1e-3, rtol=0)
    torch.testing.assert_close(depth[:, 0], torch.tensor([1.7, 1.7]))


def test_the_truth_of_a_zoom_is_drawn_at_its_own_magnification(zoom: Case, views: Scene) -> None:
    assert zoom.truth is not None and zoom.truth.depths is not None and zoom.truth.labels is not None
    same(zoom.truth, World.generate(3, "table").render(zoom.cameras))
    # At 4x about (3, 4) the pixels are those of the full-size view from (9, 12) on.
    window = (slice(12, 20), slice(9, 17))
    assert views.depths is not None and views.labels is not None
    torch.testing.assert_close(zoom.truth.depths[0], views.depths[0][window], atol=1e-5, rtol=0)
    assert torch.equal(zoom.truth.labels[0], views.labels[0][window])
    off, moved = ((views.images[0].roll(s, 1)[window] - zoom.truth.images[0]).abs().mean() for s in (0, 1))
    assert float(off) < 0.5 * float(moved)


def test_bicubic_of_a_zoom_enlarges_the_input(zoom: Case) -> None:
    assert zoom.context is not None and zoom.reduced is not None
    first = zoom.context.posed().index([0])
    assert torch.equal(zoom.reduced.images, zoom.context.images[[0, 0]])
    task = Task(
        name=zoom.name, scene=zoom.scene, given=zoom.context, factor=4, cameras=zoom.cameras, config=CoarseConfig(),
        zoom=(CENTER, 16), reduced=zoom.reduced,
    )  # fmt: skip
    made = Bicubic(MethodOptions()).make(task).images
    assert made is not None
    for i in range(2):
        expected = resample(zoom.context.images[0], first, first.zoomed([4.0, 16.0][i], CENTER))
        torch.testing.assert_close(made[i], expected)
