"""Networks that propose pixels, depth, parts and words, at work in the loop: what they say arrives, what they break
does not."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.io import check_forest
from sr3d.lod import Forest
from sr3d.models import SuperResolver
from sr3d.rendering import Rendering, render
from sr3d.scene import Scene
from sr3d.zoom import zoom_into
from sr3d.zoom.guides import Guides
from sr3d.zoom.loop import ZoomConfig, plant
from sr3d.zoom.makers import Predictor, level_maker
from sr3d.zoom.providers.base import (
    DepthGuess,
    Edit,
    Editor,
    ImageSuperResolution,
    MonocularDepth,
    Segmenter,
    VisionLanguage,
)
from sr3d.zoom.providers.editing import Paste
from sr3d.zoom.session import Session
from sr3d.zoom.target import Pixel

Answer = Callable[..., Any]


class FakeSr(ImageSuperResolution):
    name: ClassVar[str] = "fake"

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer

    def enlarge(
        self, images: Float[Tensor, "v h w 3"], factor: int, prompt: str, seed: int
    ) -> Float[Tensor, "v fh fw 3"]:
        large = images.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        return self.answer(large)


class FakeEditor(Editor):
    name: ClassVar[str] = "fake"

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer

    def edit(self, image: Float[Tensor, "h w 3"], prompt: str, mask: Bool[Tensor, "h w"] | None, seed: int) -> Edit:
        inserted = torch.zeros(image.shape[:2], dtype=torch.bool)
        inserted[20:28, 20:28] = True
        return self.answer(Edit(image=image, inserted=inserted))


class FakeDepth(MonocularDepth):
    name: ClassVar[str] = "fake"

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer

    def guess(self, image: Float[Tensor, "h w 3"], focal: float) -> DepthGuess:
        return DepthGuess(depth=self.answer(torch.full(image.shape[:2], 2.0)), kind="metric")


class FakeSegmenter(Segmenter):
    name: ClassVar[str] = "fake"

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer

    def segments(self, image: Float[Tensor, "h w 3"]) -> Int[Tensor, "h w"]:
        return self.answer(torch.zeros(image.shape[:2], dtype=torch.int64))

    def find(self, image: Float[Tensor, "h w 3"], words: str) -> Bool[Tensor, "h w"]:
        return self.answer(torch.ones(image.shape[:2], dtype=torch.bool))


class FakeVlm(VisionLanguage):
    """Notes what it was shown."""

    name: ClassVar[str] = "fake"

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self._answer, self.shown = answer, []

    def answer(self, images: list[Float[Tensor, "_ _ 3"]], question: str) -> str:
        self.shown.append(images)
        return self._answer("level")


def dies(error: Exception) -> Answer:
    def answer(*_: Any) -> Any:
        raise error

    return answer


def not_a_number(values: Tensor) -> Tensor:
    return values.clone().index_fill_(0, torch.tensor([0]), torch.nan)


OUT_OF_MEMORY, NO_FILE = RuntimeError("CUDA out of memory"), OSError(5, "Input/output error")
FAILURES: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "sr, size": (lambda: {"sr": FakeSr(lambda x: x[:, 1:])}, r"sr provider fake: image size: found \(2, 47, 48, 3\)"),
    "sr, views": (lambda: {"sr": FakeSr(lambda x: x[:1])}, r"sr provider fake: image size: found \(1, 48, 48, 3\)"),
    "sr, NaN": (lambda: {"sr": FakeSr(not_a_number)}, r"sr provider fake: colours: found NaN or infinity"),
    "sr, dead": (lambda: {"sr": FakeSr(dies(OUT_OF_MEMORY))}, r"sr provider fake: enlarging: found CUDA out of mem"),
    "sr, file": (lambda: {"sr": FakeSr(dies(NO_FILE))}, r"sr provider fake: enlarging: found .*Input/output error"),
    "editor, size": (
        lambda: {"editor": FakeEditor(lambda e: Edit(image=e.image[1:], inserted=e.inserted[1:]))},
        r"editor provider fake: image size: found \(47, 48, 3\)",
    ),
    "editor, mask": (
        lambda: {"editor": FakeEditor(lambda e: setattr(e, "inserted", e.inserted[1:]) or e)},
        r"editor provider fake: inserted: found \(47, 48\)",
    ),
    "editor, NaN": (
        lambda: {"editor": FakeEditor(lambda e: Edit(image=not_a_number(e.image), inserted=e.inserted))},
        r"editor provider fake: colours: found NaN",
    ),
    "editor, dead": (
        lambda: {"editor": FakeEditor(dies(OUT_OF_MEMORY))},
        r"editor provider fake: editing: found CUDA out of memory",
    ),
    "no depth": (lambda: {"editor": FakeEditor(lambda e: e)}, r"depth provider: found none"),
    "depth, size": (
        lambda: {"editor": FakeEditor(lambda e: e), "depth": FakeDepth(lambda d: d[1:])},
        r"depth provider fake: depth size: found \(47, 48\)",
    ),
    "depth, NaN": (
        lambda: {"editor": FakeEditor(lambda e: e), "depth": FakeDepth(not_a_number)},
        r"depth provider fake: depth: found NaN, infinity, 0 or less",
    ),
    "depth, 0": (
        lambda: {"editor": FakeEditor(lambda e: e), "depth": FakeDepth(torch.zeros_like)},
        r"depth provider fake: depth: found NaN, infinity, 0 or less",
    ),
    "depth, dead": (
        lambda: {"editor": FakeEditor(lambda e: e), "depth": FakeDepth(dies(NO_FILE))},
        r"depth provider fake: depth: found .*Input/output error",
    ),
    "parts, size": (
        lambda: {
            "editor": FakeEditor(lambda e: e),
            "depth": FakeDepth(lambda d: d),
            "segmenter": FakeSegmenter(lambda s: s[1:]),
        },
        r"segmenter provider fake: segments: found \(47, 48\), from 0 on; expected \(48, 48\)",
    ),
    "parts, negative": (
        lambda: {
            "editor": FakeEditor(lambda e: e),
            "depth": FakeDepth(lambda d: d),
            "segmenter": FakeSegmenter(lambda s: s - 1),
        },
        r"segmenter provider fake: segments: found \(48, 48\), from -1 on",
    ),
    "parts, dead": (
        lambda: {
            "editor": FakeEditor(lambda e: e),
            "depth": FakeDepth(lambda d: d),
            "segmenter": FakeSegmenter(dies(OUT_OF_MEMORY)),
        },
        r"segmenter provider fake: segments: found CUDA out of memory",
    ),
    "words, dead": (lambda: {"vlm": FakeVlm(dies(OUT_OF_MEMORY))}, r"vlm provider fake: words: found CUDA out of mem"),
    "words, file": (lambda: {"vlm": FakeVlm(dies(NO_FILE))}, r"vlm provider fake: words: found .*Input/output error"),
}


@pytest.fixture(scope="module")
def folder(table: Scene, doubler: SuperResolver, target: tuple[float, float], tmp_path_factory: Any) -> Path:
    """A session with one level."""
    folder = tmp_path_factory.mktemp("session") / "zoom"
    session = Session.create(folder, "a table", {}, table, plant(table, None, None, doubler)[1])
    session.extend(Pixel(u=target[0], v=target[1]), 2, Predictor(doubler), None, ZoomConfig())
    return folder


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_provider_that_fails_is_named_and_leaves_what_is_there(folder, doubler, target, failure):
    made, message = FAILURES[failure]
    before = digests(folder)
    session = Session.open(folder)
    to = Pixel(u=target[0], v=target[1])
    with pytest.raises(Sr3dError, match=message):
        session.extend(to, 4, Predictor(doubler), Guides(edit="a mug", **made()), ZoomConfig())
    assert digests(folder) == before and len(session.forest.levels) == 2 == len(Session.open(folder).forest.levels)


def test_an_editor_is_not_asked_without_words_or_before_the_last_level(table, doubler, target):
    dead = FakeEditor(dies(OUT_OF_MEMORY))
    silent = zoom_into(table, target, 4, network=doubler, guides=Guides(editor=dead))
    plain = zoom_into(table, target, 4, network=doubler)
    assert torch.equal(silent.means, plain.means) and torch.equal(silent.sh, plain.sh)
    levels = []
    with pytest.raises(Sr3dError, match="editing"):
        guides = Guides(editor=dead, edit="a mug")
        zoom_into(table, target, 4, network=doubler, guides=guides, on_level=levels.append)
    assert [level.level for level in levels] == [0, 1]


def drawn(forest: Gaussians, table: Scene, magnification: float, target: tuple[float, float], size: int) -> Rendering:
    """The first view of a magnification about the target, `size` times as many pixels."""
    camera = table.posed().index([0]).zoomed(magnification, target)
    return render(forest, camera.resized(size * camera.width, size * camera.height), near=1e-3)


def blue(images: Tensor) -> Tensor:
    return 0.25 * images + 0.75 * torch.tensor([0.0, 0.0, 1.0])


def chequered(images: Tensor) -> Tensor:
    """Half of the contrast, and detail that reduces to nothing: colours of ± 0.25, coefficients of ± 0.89."""
    return images * 0.5 + 0.25 + 0.25 * CHEQUERS[..., None]


CHEQUERS = (-1.0) ** (torch.arange(48)[:, None] + torch.arange(48))


def test_pixels_of_a_provider_become_gaussians(table, doubler, target):
    """One that paints everything blue: what is seen at the resolution of the level, and hardly before."""
    maker = level_maker("scaffold", doubler)
    painted = zoom_into(table, target, 4, maker=maker, guides=Guides(sr=FakeSr(blue)))
    plain = zoom_into(table, target, 4, maker=maker)
    half = zoom_into(table, target, 2, maker=maker, guides=Guides(sr=FakeSr(blue)))
    changes = []
    for magnification in (1.0, 2.0, 4.0):
        own, other = (drawn(forest, table, magnification, target, 1).rgb for forest in (painted, plain))
        changes.append(float((own - other).abs().mean()))
    own, other = (drawn(forest, table, 2.0, target, 1).rgb for forest in (half, plain))
    assert (own - blue(other)).abs().mean() < 0.05
    assert changes[0] < changes[1] / 8 and 0.3 < changes[1] < changes[2]


def test_a_provider_adds_detail_and_does_not_change_what_was_there(table, doubler, target):
    """The predictor's level has to reduce to what it was made from: a tint is taken back, a pattern stays."""
    first = table.views([0])
    plain, tinted, patterned = (
        zoom_into(first, target, 2, network=doubler, guides=Guides(sr=FakeSr(paint) if paint else None))
        for paint in (None, blue, chequered)
    )
    seen = [drawn(forest, table, 1.0, target, 2).rgb[0] for forest in (plain, tinted, patterned)]
    for image in seen[1:]:
        assert (image - seen[0]).mean(dim=(0, 1)).abs().max() < 0.02
    contrast = []
    for forest in (plain, patterned):
        children = forest.index(forest.lod.level == 1)
        uv, _ = table.posed().index([0]).resized(48, 48).project(children.means)
        column, row = uv[0].long().clamp(0, 47).unbind(dim=-1)
        contrast.append(float((CHEQUERS[row, column] * children.sh[:, 0].mean(dim=-1)).mean()))
    assert abs(contrast[0]) < 0.01 and contrast[1] > 0.4


def test_words_of_every_level_are_noted(table, doubler, target, tmp_path):
    said = iter(["wood", "grain, varnish", ""])
    vlm = FakeVlm(lambda _: next(said))
    session = Session.create(tmp_path / "zoom", "a table", {}, table, plant(table, None, None, doubler)[1])
    to = Pixel(u=target[0], v=target[1])
    session.extend(to, 8, Predictor(doubler), Guides(vlm=vlm, prompt=" a board "), ZoomConfig())
    words = [level.words for level in Session.open(tmp_path / "zoom").state.levels]
    assert words == ["a board, wood", "a board, grain, varnish", "a board"]
    assert [len(images) for images in vlm.shown] == [2, 2, 2]
    # The coarse view is the frame before the last step: at level 1, as much again around the photograph.
    for coarse, zoomed in vlm.shown[1:]:
        middle = torch.nn.functional.avg_pool2d(zoomed.movedim(-1, 0), 2).movedim(0, -1)
        assert coarse.shape == zoomed.shape == (24, 24, 3)
        windows = coarse.unfold(0, 12, 1).unfold(1, 12, 1).movedim(2, -1)
        errors = (windows - middle).abs().mean(dim=(-3, -2, -1)).flatten()
        # The target keeps its pixel: (10.5, 13.5) of 24 is (5.25, 6.75) of 12.
        assert divmod(int(errors.argmin()), 13) in {(6, 5), (7, 5), (6, 6), (7, 6)}
        assert errors.min() < errors.median() / 4


SIDE = 16  # rows and columns of the pasted square, a third of the last frame's 48


@pytest.fixture(scope="module")
def mug(tmp_path_factory: Any) -> Paste:
    """A green square."""
    path = tmp_path_factory.mktemp("mug") / "mug.png"
    Image.new("RGBA", (8, 8), (0, 255, 0, 255)).save(path)
    return Paste(str(path))


@pytest.fixture(scope="module")
def inserted(table: Scene, doubler: SuperResolver, target: tuple[float, float], mug: Paste) -> dict[str, Any]:
    """A zoom to 4 with the square in the middle of the last frame, and one without; a level depth, in metres."""
    guides = Guides(editor=mug, edit="a mug", depth=FakeDepth(lambda depth: depth))
    grown: dict[str, Any] = {}
    for name, told in (("with", guides), ("without", None)):
        levels: list[Any] = []
        grown[name] = zoom_into(table, target, 4, network=doubler, guides=told, on_level=levels.append)
        grown[f"{name}, levels"] = levels
    return grown


def square(side: int, around: int = 0) -> Bool[Tensor, "n n"]:
    """Where it was pasted into a frame of 48 pixels, or a border more."""
    mask = torch.zeros(48, 48, dtype=torch.bool)
    low, high = 24 - side // 2 - around, 24 + side // 2 + around
    mask[low:high, low:high] = True
    return mask


def test_an_inserted_object_is_seen_where_and_when_it_was_put(inserted, table, target):
    there, without = (drawn(inserted[name], table, 2.0, target, 2) for name in ("with", "without"))
    green = (there.rgb[0, ..., 1] > 0.7) & (there.rgb[0, ..., 0] < 0.3)
    assert green[square(SIDE - 2)].all() and not green[~square(SIDE, 2)].any()
    # What is behind and beside keeps its colour.
    outside = ~square(SIDE, 3)
    assert (there.rgb[0][outside] - without.rgb[0][outside]).abs().mean() < 0.01
    last = inserted["with"].lod.level == 2
    own = inserted["with"].index(last)
    is_green = (own.sh[:, 0, 1] > 1) & (own.sh[:, 0, 0] < -1)
    assert int(is_green.sum()) == SIDE * SIDE
    behind = inserted["without"].index(inserted["without"].lod.level == 2)
    kept = own.index(~is_green)
    assert len(kept) == len(behind) and (kept.sh - behind.sh).abs().amax() < 1e-4


def test_an_inserted_object_stands_on_the_surface_and_before_it(inserted, table, target):
    there, without = (drawn(inserted[name], table, 2.0, target, 2) for name in ("with", "without"))
    mask = square(SIDE - 4)
    gap = (without.depth[0] - there.depth[0]) / without.depth[0]
    assert (gap[mask] > -0.01).all()
    # A level depth: it is upright, and touches what is below where that is nearest to the camera.
    assert gap[mask].min() < 0.03 and gap[24 + SIDE // 2 - 2, 18:30].min() < 0.03
    assert there.depth[0][mask].std() < 0.01 * there.depth[0][mask].mean()


def test_an_inserted_object_fades_out_with_the_level_it_is_of(inserted, table, target):
    forest, levels = inserted["with"], inserted["with, levels"]
    own = forest.lod.level == 2
    green = own & (forest.sh[:, 0, 1] > 1) & (forest.sh[:, 0, 0] < -1)
    rows = green.nonzero()[:, 0] - int((forest.lod.level < 2).sum())
    links = levels[2].links[rows]
    assert (forest.lod.level[links] == 1).all() and (links >= 0).all()
    assert torch.equal(forest.lod.coarser[green], forest.lod.native[links])
    shares = []
    for magnification in (1.0, 1.5, 2.0, 4.0):
        shown, other = (drawn(inserted[name], table, magnification, target, 1).rgb[0] for name in ("with", "without"))
        shares.append(float(((shown - other).abs().amax(dim=-1) > 0.1).float().mean()))
    # 16 pixels of 24 either way at magnification 4, and a blurred border.
    assert shares[0] == 0 and shares[1] < 0.02 and 0.42 < shares[3] < 0.62


def test_an_inserted_object_is_closed_when_the_zoom_goes_on(inserted, table, target):
    shown = drawn(inserted["with"], table, 4.0, target, 8).rgb[0]
    inside = shown[28:140, 52:164]
    assert (inside[..., 1] > 0.85).all() and (inside[..., 0] < 0.15).all()


def test_an_inserted_object_is_stored(table, doubler, target, mug, tmp_path):
    session = Session.create(tmp_path / "zoom", "a table", {}, table, plant(table, None, None, doubler)[1])
    guides = Guides(
        editor=mug, edit="a mug", depth=FakeDepth(lambda depth: depth),
        segmenter=FakeSegmenter(lambda parts: parts), pictures=True,
    )  # fmt: skip
    session.extend(Pixel(u=target[0], v=target[1]), 4, Predictor(doubler), guides, ZoomConfig())
    forest = Forest.load(tmp_path / "zoom" / "scene.sr3d")
    check_forest(forest)
    last = forest.levels[-1].gaussians
    assert int(((last.sh[:, 0, 1] > 1) & (last.sh[:, 0, 0] < -1)).sum()) == SIDE * SIDE
    guidance = session.pictures()[-1].guidance
    assert guidance is not None and (guidance[square(SIDE)] - torch.tensor([0.0, 1.0, 0.0])).abs().max() < 0.01
    assert session.pictures()[0].guidance is None
