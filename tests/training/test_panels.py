from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sr3d import SuperResolver
from sr3d.coarse import CoarseConfig
from sr3d.datasets.batch import Batch, make_batch
from sr3d.datasets.world import World
from sr3d.figures import ERROR_RANGE, error_map
from sr3d.models.config import config_from_dict
from sr3d.training.evaluate import Drawn, draw_methods
from sr3d.training.panels import Row, Scale, Tile, clip_tiles, feature_colors, sheet, stacked, write_sheet
from sr3d.training.worst import scored

TINY = {
    "factor": 2,
    "scaffold": {"grid": 2},
    "encoder": {"options": {"embed_dim": 24, "depth": 1, "num_heads": 2}},
    "refinement": {"heads": 2},
    "decoder": {"blocks": 1, "heads": 2, "width": 16, "convolutions": 1, "fine": 8},
}


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    """Two clips, drawn by an untrained network with semantic features."""
    torch.manual_seed(0)
    network = SuperResolver(config_from_dict({**TINY, "semantics": {}})).eval()
    clips = []
    for seed in (1, 2):
        world = World.generate(seed, "room")
        clip = world.render(world.sample_cameras(4, 48, 32, baseline=0.2), samples=1)
        clips.append(make_batch(clip, [0, 3], [1, 2], 2))
    return draw_methods(network, Batch.stack(clips), CoarseConfig(source="depth"))


def without(drawn: Drawn, *, depths: bool = False, methods: tuple[str, ...] = (), features: bool = False) -> Drawn:
    batch, ours = drawn.batch, drawn.gaussians["sr3d"]
    if depths:
        batch = replace(batch, target=replace(batch.target, depths=None))
    return Drawn(
        batch,
        {m: r for m, r in drawn.renderings.items() if m not in methods},
        {**drawn.gaussians, "sr3d": replace(ours, features=None) if features else ours},
    )


def labels(tiles: list[Tile]) -> list[str]:
    return [t.label.split(" dB")[0].rsplit(" ", 1)[0] if "dB" in t.label else t.label for t in tiles]


def test_a_clip_shows_everything_in_order(drawn: Drawn) -> None:
    tiles = clip_tiles(drawn, scene=1, view=1)
    assert labels(tiles) == [
        "input", "coarse", "upsampled", "ours", "truth", "error", "depth", "true depth", "features"
    ]  # fmt: skip
    assert all(t.image.shape == (32, 48, 3) and t.image.min() >= 0 and t.image.max() <= 1 for t in tiles)
    by = dict(zip(labels(tiles), tiles))
    truth, ours = drawn.batch.target.images[1, 1], drawn.renderings["sr3d"].rgb[1, 1]
    assert torch.equal(by["truth"].image, truth) and torch.equal(by["ours"].image, ours.clamp(0, 1))
    assert torch.equal(by["input"].image[::2, ::2], drawn.batch.context.images[1, 0])
    assert torch.equal(by["error"].image, error_map(ours, truth))
    assert by["error"].scale == Scale("magma", 0.0, ERROR_RANGE)
    mse = (ours.clamp(0, 1) - truth).square().mean()
    assert by["ours"].label == f"ours {-10 * torch.log10(mse).item():.2f} dB"


def test_both_depths_share_the_range_of_the_truth(drawn: Drawn) -> None:
    tiles = {t.label: t for t in clip_tiles(drawn)}
    known = drawn.batch.target.depths[0, 0]
    near, far = np.quantile(known[known > 0].numpy(), [0.02, 0.98])
    assert tiles["depth"].scale == tiles["true depth"].scale
    np.testing.assert_allclose([tiles["depth"].scale.light, tiles["depth"].scale.dark], [near, far], rtol=2e-2)
    alone = {t.label: t for t in clip_tiles(without(drawn, depths=True))}
    assert "true depth" not in alone
    ours = drawn.renderings["sr3d"].depth[0, 0]
    np.testing.assert_allclose(alone["depth"].scale.light, np.quantile(ours[ours > 0].numpy(), 0.02), rtol=2e-2)


@pytest.mark.parametrize(
    ("missing", "gone"),
    [
        ({"methods": ("upsampled",)}, "upsampled"),
        ({"depths": True}, "true depth"),
        ({"features": True}, "features"),
        ({"methods": ("sr3d",)}, "error"),
    ],
)
def test_what_is_missing_is_left_out(drawn: Drawn, missing: dict[str, object], gone: str) -> None:
    found = labels(clip_tiles(without(drawn, **missing)))
    assert gone not in found and {"input", "coarse", "truth"} <= set(found)


def test_unknown_true_depth_is_no_depth(drawn: Drawn) -> None:
    target = replace(drawn.batch.target, depths=torch.zeros_like(drawn.batch.target.depths))
    empty = replace(drawn, batch=replace(drawn.batch, target=target))
    assert "true depth" not in labels(clip_tiles(empty))


def test_features_that_differ_get_colours_that_differ() -> None:
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(4, 16, generator=generator)
    regions = torch.arange(4).repeat_interleave(6)[:, None].expand(24, 10)
    features = centers[regions] + 0.01 * torch.randn(24, 10, 16, generator=generator)
    alpha = torch.full((24, 10), 0.8)
    alpha[:, 0] = 0.3
    colors = feature_colors(features * alpha[..., None], alpha)
    assert (colors[:, 0] == 0).all() and colors.min() >= 0 and colors.max() <= 1
    means = torch.stack([colors[regions[:, 0] == k, 1:].mean(dim=(0, 1)) for k in range(4)])
    spread = torch.stack([colors[regions[:, 0] == k, 1:].std(dim=(0, 1)).max() for k in range(4)])
    assert torch.pdist(means).min() > 0.4 and spread.max() < 0.1
    torch.testing.assert_close(feature_colors(2 * features, alpha), feature_colors(features, alpha))
    assert (feature_colors(features, torch.zeros(24, 10)) == 0).all()


def test_a_sheet_holds_every_picture_in_its_place() -> None:
    red, green = torch.tensor([1.0, 0, 0]).expand(20, 30, 3), torch.tensor([0.0, 1, 0]).expand(20, 30, 3)
    rows = [
        Row("first", [Tile("a", red), Tile("b", green, Scale("magma", 0.0, 1.0))]),
        Row("second", [Tile("c", green)]),
    ]
    page = sheet(rows, width=30)
    for color, count in (((255, 0, 0), 1), ((0, 255, 0), 2)):
        assert (page == color).all(axis=-1).sum() == count * 600
    reds, greens = (np.argwhere((page == c).all(axis=-1)) for c in ((255, 0, 0), (0, 255, 0)))
    assert greens[0][0] == reds[0][0] and greens[:, 1].max() > reds[:, 1].max()
    # The colour bar has the whole map, dark to light.
    assert (page < 10).all(axis=-1).any() and (page == (252, 253, 191)).all(axis=-1).any()
    twice = sheet(rows, width=60)
    assert (twice == (255, 0, 0)).all(axis=-1).sum() == 4 * 600
    joined = stacked([("x", page), ("y", twice)])
    assert joined.shape[1] == twice.shape[1] and (joined == (255, 0, 0)).all(axis=-1).sum() == 5 * 600


def test_a_page_is_written_as_it_is(tmp_path: Path) -> None:
    page = sheet([Row("", [Tile("a", torch.rand(8, 8, 3))])], width=0)
    write_sheet(tmp_path / "new" / "page.png", page)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / "page.png")), page)


def test_clips_are_scored_on_covered_pixels_against_upsampled(drawn: Drawn) -> None:
    ours, base = (drawn.metrics(m)["psnr_covered"].mean(dim=1) for m in ("sr3d", "upsampled"))
    both = scored(drawn, "depth")
    assert [c.gain for c in both] == pytest.approx((ours - base).tolist(), abs=1e-4)
    assert [(c.factor, c.source, c.dataset) for c in both] == [(2, "depth", "")] * 2 and both[0].scene != both[1].scene
    alone = scored(without(drawn, methods=("upsampled",)), "depth")
    assert [c.upsampled for c in alone] == [None, None]
    assert [c.gain for c in alone] == pytest.approx(ours.tolist(), abs=1e-4)
    empty = replace(drawn.renderings["coarse"], alpha=drawn.renderings["coarse"].alpha * 0)
    assert scored(replace(drawn, renderings={**drawn.renderings, "coarse": empty}), "depth") == [None, None]
