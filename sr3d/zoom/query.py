"""Where in the views words are: by the scene's own semantic features, or by a segmenter that reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import avg_pool2d

from sr3d.errors import Sr3dError
from sr3d.training.clip_model import unit
from sr3d.zoom.providers.base import Segmenter, ask
from sr3d.zoom.target import SOLID

CANONICAL = ("object", "things", "stuff", "texture")
_SHARPNESS = 10.0  # of the softmax between the query and a canonical phrase
_WINDOW = 1  # half side, in pixels, of the window over which relevancy is averaged: one pixel alone finds nothing


@dataclass(kw_only=True)
class Found:
    """Where something is.

    Attributes:
        view: Index of the view.
        pixel: (u, v) in that view, pixel centres at +0.5.
        relevancy: How well each pixel of that view fits, in 0..1. [H, W]
        mask: Pixels of it, in one piece around `pixel`. [H, W]
        score: How sure, in 0..1.
    """

    view: int
    pixel: tuple[float, float]
    relevancy: Float[Tensor, "h w"]
    mask: Bool[Tensor, "h w"]
    score: float


def find_text(
    query: str,
    features: Float[Tensor, "c h w d"],
    alphas: Float[Tensor, "c h w"],
    to_embedding: Float[Tensor, "e width"],
    encoder: Callable[[list[str]], Float[Tensor, "n e"]],
    *,
    threshold: float = 0.5,
) -> Found:
    """The place that the words fit best, of all that fit them better than they fit anything (LERF, Kerr et al. 2023).

    Relevancy is min_i exp(10 φ) / (exp(10 φ) + exp(10 φ_i)), with the cosines φ of a pixel's embedding with the words
    and φ_i with each of `CANONICAL` (LERF Eq. 2); 0.5 without a feature, 0 where alpha is not above 0.5. A pixel fits
    as well as it does itself, and at most as well as the mean of the 3 x 3 pixels around it.

    Args:
        query: Words.
        features: As drawn into C views.
        alphas: As drawn.
        to_embedding: Weight of `Semantics.to_embedding`.
        encoder: Texts to embeddings of length 1, in the space of `to_embedding` (`training.clip_model.TextEncoder`).
        threshold: Least relevancy; from 0.5 on, the words fit better than every canonical phrase.

    Returns:
        The pixel that fits best; its mask is all above the threshold that is connected with it.

    Raises:
        Sr3dError: No words, embeddings of another length, or nothing fits.
    """
    if not query.strip():
        raise Sr3dError("sr3d.zoom_into", "query", repr(query), "words")
    texts = encoder([query, *CANONICAL]).to(features)
    if texts.shape[-1] != to_embedding.shape[0] or features.shape[-1] != to_embedding.shape[1]:
        found = f"{texts.shape[-1]} channels for features of {features.shape[-1]}"
        expected = f"{to_embedding.shape[0]} for {to_embedding.shape[1]}, as the network maps them"
        raise Sr3dError("sr3d.zoom_into", "text embedding", found, expected)
    solid = alphas > SOLID
    relevancy = _relevancy(features, texts, to_embedding.detach().to(features)) * solid
    fit = torch.minimum(relevancy, _averaged(relevancy, solid))
    score = float(fit.max())
    if not score > threshold:
        found = f"{query!r}, with a relevancy of at most {score:.3f}"
        expected = f"words for something in sight, with a relevancy above {threshold:g}"
        raise Sr3dError("sr3d.zoom_into", "query", found, expected)
    view, row, column = (int(i) for i in torch.unravel_index(fit.argmax(), fit.shape))
    mask = _piece(relevancy[view] > threshold, row, column)
    return Found(view=view, pixel=(column + 0.5, row + 0.5), relevancy=relevancy[view], mask=mask, score=score)


def find_words(segmenter: Segmenter, images: Float[Tensor, "c h w 3"], words: str) -> Found:
    """The largest piece that a segmenter finds in any view, and its pixel that is farthest from its border.

    Args:
        segmenter: One that reads words.
        images: C views in [0, 1].
        words: Name something.

    Returns:
        Relevancy is 1 on all that was found in that view, the score the share of the view that the mask covers.

    Raises:
        Sr3dError: No words, the segmenter does not read, died or returned another size, or there is no such thing.
    """
    if not words.strip():
        raise Sr3dError("sr3d.zoom_into", "query", repr(words), "words")
    where, best = f"{segmenter.kind} provider {segmenter.name}", None
    for view, image in enumerate(images):
        mask = ask(segmenter, "words", partial(segmenter.find, image, words))
        if mask.shape != image.shape[:2]:
            raise Sr3dError(where, "mask size", tuple(mask.shape), tuple(image.shape[:2]))
        piece = _largest(view, mask.cpu())
        if piece is not None and (best is None or piece.score > best.score):
            best = piece
    if best is None:
        found = f"{words!r}, which {segmenter.name} sees in none of {len(images)} views"
        raise Sr3dError("sr3d.zoom_into", "query", found, "words for something in sight")
    return best


def _relevancy(
    features: Float[Tensor, "c h w d"], texts: Float[Tensor, "n e"], weight: Float[Tensor, "e d"]
) -> Float[Tensor, "c h w"]:
    """How much better than the others the first text fits."""
    # Cosines in the plane of the map's columns: the same, without embeddings of E channels for every pixel.
    basis, triangle = torch.linalg.qr(weight)
    cosines = unit(features @ triangle.mT) @ (texts @ basis).mT
    return torch.sigmoid(_SHARPNESS * (cosines[..., :1] - cosines[..., 1:])).amin(dim=-1)


def _averaged(values: Float[Tensor, "c h w"], solid: Bool[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
    """Mean over the solid pixels of a window, 0 where the middle one is not."""
    total, share = (avg_pool2d(x.to(values)[:, None], 2 * _WINDOW + 1, 1, _WINDOW)[:, 0] for x in (values, solid))
    return (total / share.clamp_min(1e-6)).where(solid, 0)


def _piece(mask: Bool[Tensor, "h w"], row: int, column: int) -> Bool[Tensor, "h w"]:
    """What is connected with a pixel, diagonally too."""
    _, pieces = cv2.connectedComponents(mask.byte().cpu().numpy(), connectivity=8)
    return torch.from_numpy(pieces == pieces[row, column]).to(mask.device)


def _largest(view: int, mask: Bool[Tensor, "h w"]) -> Found | None:
    """The largest piece, if there is one."""
    count, pieces, sizes, _ = cv2.connectedComponentsWithStats(mask.byte().numpy(), connectivity=8)
    if count == 1:
        return None
    piece = pieces == 1 + sizes[1:, cv2.CC_STAT_AREA].argmax()
    # The border of the image is a border of the piece.
    inside = cv2.distanceTransform(np.pad(piece, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    row, column = np.unravel_index(inside.argmax(), inside.shape)
    return Found(
        view=view,
        pixel=(float(column) + 0.5, float(row) + 0.5),
        relevancy=mask.float(),
        mask=torch.from_numpy(piece),
        score=float(piece.mean()),
    )
