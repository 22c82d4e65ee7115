"""Text queries in a world whose answers are known."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sr3d import Cameras, Gaussians, Sr3dError
from sr3d.rendering import render, rgb_to_sh
from sr3d.zoom.providers import Segmenter
from sr3d.zoom.query import CANONICAL, find_text, find_words

SIZE = 20
WORDS = {"mug": 0, "chair": 1, "elephant": 2}  # their directions; canonical phrases lie between the first two
GENERATOR = torch.Generator().manual_seed(0)
MAP = torch.randn(7, 4, generator=GENERATOR)  # features of 4 channels to embeddings of 7


def feature(word: str, length: float = 1.0) -> Tensor:
    """Whose embedding points where the word does."""
    return length * torch.linalg.qr(MAP).R.inverse()[:, WORDS[word]]


def encoder(texts: list[str]) -> Float[Tensor, "n e"]:
    basis = torch.linalg.qr(MAP).Q.T
    between = (basis[0] + basis[1]) / 2**0.5
    return torch.stack([basis[WORDS[text]] if text in WORDS else between for text in texts])


def two_halves(view: int = 1, views: int = 3) -> tuple[Tensor, Tensor]:
    """A mug on the left of one view, six columns wide, a chair everywhere else; nothing in the first row."""
    features = feature("chair", 3.0).expand(views, SIZE, SIZE, 4).clone()
    features[view, :, :6] = feature("mug", 0.2)
    alphas = torch.ones(views, SIZE, SIZE)
    alphas[:, 0] = 0.4
    return features, alphas


def relevancy(features: Tensor, query: str) -> Tensor:
    """LERF Eq. 2 as written, in float64."""
    embeddings = features.double() @ MAP.double().T
    cosines = embeddings / embeddings.norm(dim=-1, keepdim=True) @ encoder([query, *CANONICAL]).double().T
    powers = (10 * cosines).exp()
    return (powers[..., :1] / (powers[..., :1] + powers[..., 1:])).amin(dim=-1)


@pytest.mark.parametrize("view", [0, 2])
def test_words_find_their_half_to_the_pixel(view: int) -> None:
    features, alphas = two_halves(view)
    found = find_text("mug", features, alphas, MAP, encoder)
    mug = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    mug[1:, :6] = True
    assert found.view == view and torch.equal(found.mask, mug)
    u, v = found.pixel
    assert mug[int(v), int(u)] and (u % 1, v % 1) == (0.5, 0.5)
    expected = 1 / (1 + torch.tensor(10 * (0.5**0.5 - 1)).exp())
    assert found.score == pytest.approx(float(expected), abs=1e-6)
    torch.testing.assert_close(found.relevancy.double(), relevancy(features[view], "mug") * (alphas[view] > 0.5))
    again = find_text("mug", features, alphas, MAP, encoder)
    assert again.pixel == found.pixel and torch.equal(again.relevancy, found.relevancy)


def test_the_best_view_and_pixel_are_taken_and_only_what_is_connected_with_it() -> None:
    features, alphas = two_halves(1)
    features[2, 3:8, 12:17] = feature("mug") + 0.3 * feature("chair")
    features[2, 10:15, 2:7] = feature("mug") + 0.2 * feature("chair")
    features[1, :, :6] = feature("mug") + 0.35 * feature("chair")
    features[2, 12, 4] = feature("mug") + 0.1 * feature("chair")
    found = find_text("mug", features, alphas, MAP, encoder)
    mug = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    mug[10:15, 2:7] = True
    assert (found.view, found.pixel) == (2, (4.5, 12.5)) and torch.equal(found.mask, mug)


def test_a_lower_threshold_takes_in_what_fits_less() -> None:
    features, alphas = two_halves(1, views=2)
    features[1, :, 6:9] = feature("mug") + 0.6 * feature("chair")
    widths = [find_text("mug", features, alphas, MAP, encoder, threshold=t).mask.any(dim=0).sum() for t in (0.5, 0.1)]
    assert widths == [6, 9]


def test_something_absent_is_an_error_that_names_the_words_and_the_best_score() -> None:
    features, alphas = two_halves()
    best = float(relevancy(features, "elephant").max())
    message = rf"query: found 'elephant', with a relevancy of at most {best:.3f}; expected .* above 0\.5"
    with pytest.raises(Sr3dError, match=message):
        find_text("elephant", features, alphas, MAP, encoder)


def test_what_is_not_solid_or_a_single_pixel_is_not_found() -> None:
    features, alphas = two_halves()
    message = r"query: found 'mug', with a relevancy of at most 0\.\d{3}; expected"
    with pytest.raises(Sr3dError, match=message):
        find_text("mug", features, alphas.where(torch.arange(SIZE) >= 6, 0.5), MAP, encoder)
    features[1, :, :6] = feature("chair")
    features[1, 10, 10] = feature("mug")
    with pytest.raises(Sr3dError, match=message):
        find_text("mug", features, alphas, MAP, encoder)


def test_pixels_without_a_feature_fit_nothing() -> None:
    features, alphas = two_halves()
    with pytest.raises(Sr3dError, match=r"found 'mug', with a relevancy of at most 0\.500"):
        find_text("mug", torch.zeros_like(features), alphas, MAP, encoder)


@pytest.mark.parametrize("words", ["", "  "])
def test_no_words(words: str) -> None:
    features, alphas = two_halves()
    with pytest.raises(Sr3dError, match=rf"query: found '{words}'; expected words"):
        find_text(words, features, alphas, MAP, encoder)
    with pytest.raises(Sr3dError, match=rf"query: found '{words}'; expected words"):
        find_words(Masks([]), torch.zeros(1, 4, 4, 3), words)


@pytest.mark.parametrize(("rows", "columns"), [(7, 5), (6, 4)])
def test_embeddings_of_another_model(rows: int, columns: int) -> None:
    features, alphas = two_halves()
    message = rf"text embedding: found 7 channels for features of 4; expected {rows} for {columns}"
    with pytest.raises(Sr3dError, match=message):
        find_text("mug", features, alphas, torch.zeros(rows, columns), encoder)


def test_drawn_gaussians_are_found_where_they_are() -> None:
    """A wall two units away: left of the middle a mug, right of it a chair."""
    x, y = torch.meshgrid(torch.linspace(-1.5, 1.5, 31), torch.linspace(-1.5, 1.5, 31), indexing="xy")
    n = x.numel()
    left = x.flatten() < 0.01
    wall = Gaussians(
        means=torch.stack([x.flatten(), y.flatten(), torch.full((n,), 2.0)], dim=-1),
        quats=torch.tensor([1.0, 0, 0, 0]).expand(n, 4),
        scales=torch.tensor([0.05, 0.05, 0.01]).expand(n, 3),
        opacities=torch.full((n,), 0.9),
        sh=rgb_to_sh(torch.full((n, 3), 0.5)),
        features=torch.where(left[:, None], feature("mug"), feature("chair", 2.0)),
    )
    poses = torch.eye(4).repeat(2, 1, 1)
    poses[0, 0, 3], poses[1, 0, 3] = -0.9, 0.25  # the first camera sees little but the chair
    K = torch.tensor([[20.0, 0, 10], [0, 20, 10], [0, 0, 1]]).expand(2, 3, 3)
    cameras = Cameras(world_to_cam=poses, K=K, width=SIZE, height=SIZE)
    drawn = render(wall, cameras, features=True)
    assert drawn.features is not None
    found = find_text("mug", drawn.features, drawn.alpha, MAP, encoder)
    edge, _ = cameras.project(torch.tensor([[0.05, 0.0, 2.0]]))
    columns = torch.arange(SIZE) + 0.5
    mask = (columns < edge[1, 0, 0] - 0.75).expand(SIZE, SIZE)
    assert found.view == 1 and bool(found.mask[mask].all())
    assert not found.mask[:, columns > edge[1, 0, 0]].any()
    torch.testing.assert_close(found.relevancy.double(), relevancy(drawn.features[1], "mug"), atol=1e-5, rtol=0)


class Masks(Segmenter):
    """Finds what it is given, view by view."""

    name: ClassVar[str] = "masks"

    def __init__(self, masks: list[Tensor]) -> None:
        super().__init__()
        self.masks = list(masks)

    def segments(self, image: Float[Tensor, "h w 3"]) -> Int[Tensor, "h w"]:
        return torch.zeros(image.shape[:2], dtype=torch.int64)

    def find(self, image: Float[Tensor, "h w 3"], words: str) -> Bool[Tensor, "_ _"]:
        return self.masks.pop(0)


def masks(*boxes: tuple[slice, slice]) -> Tensor:
    out = torch.zeros(12, 16, dtype=torch.bool)
    for rows, columns in boxes:
        out[rows, columns] = True
    return out


IMAGES = torch.zeros(3, 12, 16, 3)
TALL, SMALL, CORNER = (slice(2, 11), slice(3, 8)), (slice(3, 5), slice(12, 14)), (slice(0, 5), slice(0, 7))


def test_the_largest_piece_of_all_views_and_its_middle() -> None:
    given = [masks(SMALL), masks(TALL, SMALL), masks()]
    found = find_words(Masks(given), IMAGES, "mug")
    assert found.view == 1 and torch.equal(found.mask, masks(TALL))
    assert found.pixel[0] == 5.5 and 4.5 <= found.pixel[1] <= 8.5
    assert found.score == pytest.approx(45 / 192)
    assert torch.equal(found.relevancy, given[1].float())


def test_the_border_of_the_image_is_a_border() -> None:
    found = find_words(Masks([masks(), masks(), masks(CORNER)]), IMAGES, "mug")
    assert found.view == 2 and found.pixel[1] == 2.5 and 2.5 <= found.pixel[0] <= 4.5


def test_words_that_no_view_shows() -> None:
    with pytest.raises(Sr3dError, match="query: found 'mug', which masks sees in none of 3 views; expected words"):
        find_words(Masks([masks()] * 3), IMAGES, "mug")


def test_a_segmenter_that_returns_another_size_or_dies() -> None:
    with pytest.raises(Sr3dError, match=r"segmenter provider masks: mask size: found \(4, 4\); expected \(12, 16\)"):
        find_words(Masks([torch.ones(4, 4, dtype=torch.bool)]), IMAGES, "mug")
    with pytest.raises(Sr3dError, match="segmenter provider masks: words: found pop from empty list"):
        find_words(Masks([]), IMAGES, "mug")
