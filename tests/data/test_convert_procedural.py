"""The procedural world as a data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from captures import convert, decode
from sr3d_data.procedural import Procedural

from sr3d import Sr3dError
from sr3d.datasets.layout import CLASSES
from sr3d.datasets.procedural import world_seed
from sr3d.datasets.world import World

NOWHERE = Path("nowhere")


def test_worlds_are_those_of_their_seeds() -> None:
    clips, drops = convert(Procedural(scenes=2, views=3, size=24, seed=5), NOWHERE, "validation")
    for i, clip in enumerate(clips):
        world = World.generate(world_seed(5, i, "validation"))
        truth = world.render(world.sample_cameras(3, 24, 24))
        assert clip.name == clip.scene == truth.name and clip.metric
        for j, view in enumerate(clip.views):
            assert view.suffix == "png" and view.labels is None
            np.testing.assert_array_equal(decode(view.image), (truth.images[j] * 255).round().byte().numpy())
            np.testing.assert_array_equal(decode(view.semantics), truth.labels[j].numpy())
            np.testing.assert_allclose(
                decode(view.depth) * view.depth_unit, truth.depths[j].numpy(), atol=0.51 * view.depth_unit
            )
            np.testing.assert_array_equal(view.world_to_cam, truth.cameras.world_to_cam[j].double().numpy())
    assert len(clips) == 2 and not drops.scenes


def test_ids_name_the_same_classes_as_labels() -> None:
    (clip,), _ = convert(Procedural(scenes=1, views=1, size=32, kind="room"), NOWHERE, "train")
    assert ["unknown", *clip.classes] == list(CLASSES)
    ids = np.unique(decode(clip.views[0].semantics))
    assert "wall" in {clip.classes[i - 1] for i in ids if i}


def test_splits_share_no_world() -> None:
    converter = Procedural(scenes=3)
    parts = [{e.name for e in converter.entries(NOWHERE, split)} for split in ("train", "validation", "test")]
    assert [len(p) for p in parts] == [3, 3, 3] and len(set().union(*parts)) == 9
    assert {e.name for e in converter.entries(NOWHERE, "all")} == set().union(*parts)


def test_magnified_views_look_at_one_spot_through_a_longer_lens() -> None:
    (plain,), _ = convert(Procedural(scenes=1, views=3, size=32, seed=5), NOWHERE, "train")
    (close,), _ = convert(Procedural(scenes=1, views=3, size=32, seed=5, magnify=4.0), NOWHERE, "train")
    points = []
    for near, far in zip(close.views, plain.views):
        np.testing.assert_array_equal(near.world_to_cam, far.world_to_cam)
        np.testing.assert_allclose(near.K[:2, :2], 4 * far.K[:2, :2], rtol=1e-6)
        fixed = (near.K[:2, 2] - 4 * far.K[:2, 2]) / (1 - 4)  # the pixel that keeps its place
        ray = np.linalg.inv(far.K) @ [*fixed, 1]
        to_world = np.linalg.inv(near.world_to_cam)
        points.append((to_world[:3, 3], to_world[:3, :3] @ ray))
    # The rays meet: least squares of the point that is nearest to all of them.
    eyes, rays = (np.array(v) for v in zip(*points))
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    across = np.eye(3) - rays[:, :, None] * rays[:, None]
    point = np.linalg.solve(across.sum(0), (across @ eyes[:, :, None]).sum(0))[:, 0]
    assert np.abs(across @ (eyes - point)[:, :, None]).max() < 1e-4
    with pytest.raises(Sr3dError, match=r"magnify: found 0\.5"):
        Procedural(magnify=0.5).entries(NOWHERE, "train")


def test_options_of_clips() -> None:
    clips, _ = convert(Procedural(scenes=1, views=6, size=24), NOWHERE, "train", views=3, max_side=12)
    assert [len(c.views) for c in clips] == [3, 3] and clips[0].views[0].size == (12, 12)
    assert clips[0].scene == clips[1].scene and [c.name[-4:] for c in clips] == ["-000", "-001"]
    none, drops = convert(Procedural(scenes=1, views=2, size=12), NOWHERE, "train", min_views=3)
    assert not none and dict(drops.scenes) == {"fewer than 3 usable frames": 1}


@pytest.mark.parametrize(
    ("converter", "field"),
    [
        (Procedural(scenes=0), "scenes"),
        (Procedural(views=0), "views"),
        (Procedural(size=1), "size"),
        (Procedural(seed=-1), "arguments"),
    ],
)
def test_bad_options(converter: Procedural, field: str) -> None:
    with pytest.raises(Sr3dError) as caught:
        converter.entries(NOWHERE, "train")
    assert caught.value.field == field
