"""What a level is told before it is made: words, an embedding, and pixels that other networks propose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.coarse import enlarge
from sr3d.errors import Sr3dError
from sr3d.lod import Forest
from sr3d.scene import Scene
from sr3d.zoom.frontier import Visible, photograph_forest, visible
from sr3d.zoom.guidance import guide, scene_feature
from sr3d.zoom.makers import LevelMaker
from sr3d.zoom.path import zoom_centers
from sr3d.zoom.providers.base import (
    Editor,
    ImageSuperResolution,
    MonocularDepth,
    Segmenter,
    VisionLanguage,
    ask,
    check_images,
)
from sr3d.zoom.providers.language import Silent


@dataclass(kw_only=True)
class Guides:
    """Words, and networks that propose; every part may be left out.

    Attributes:
        prompt: What the user says about the target.
        edit: What the user asks the editor for, at the last level.
        vlm: Looks at the coarse and the zoomed view.
        sr: Enlarges the frames.
        editor: Changes the enlarged first frame; what it inserts becomes Gaussians of their own.
        depth: Of what was inserted.
        segmenter: Finds what words name, and parts whose depth is registered together.
        encoder: Embeddings of texts, for queries in the semantic features of the scene. [n] texts → [n, E]
        pictures: Keep what the contact sheet shows.
    """

    prompt: str | None = None
    edit: str | None = None
    vlm: VisionLanguage | None = None
    sr: ImageSuperResolution | None = None
    editor: Editor | None = None
    depth: MonocularDepth | None = None
    segmenter: Segmenter | None = None
    encoder: Callable[[list[str]], Tensor] | None = None
    pictures: bool = False


@dataclass(kw_only=True)
class Told:
    """What came of it.

    Attributes:
        words: About the target, "" without.
        embedding: For a network with conditioning.
        enlarged: Frames at the level's resolution, without what was inserted. [K, fh, fw, 3]
        picture: The first one with it, for eyes and for what is made of it. [fh, fw, 3]
        inserted: Where. [fh, fw]
    """

    words: str = ""
    embedding: Float[Tensor, " e"] | None = None
    enlarged: Float[Tensor, "k fh fw 3"] | None = None
    picture: Float[Tensor, "fh fw 3"] | None = None
    inserted: Bool[Tensor, "fh fw"] | None = None


def look(
    guides: Guides | None,
    forest: Forest,
    seen: Visible,
    frames: Cameras,
    views: Scene,
    maker: LevelMaker,
    embedding: Float[Tensor, " e"] | None,
    last: bool,
    seed: int,
) -> Told:
    """Ask everybody who has something to say about a level.

    Args:
        guides: None: nobody.
        forest: So far.
        seen: What the frames see of it.
        frames: World frame, float64. [K]
        views: The frames at low resolution. [K, h, w, 3]
        maker: Of the level.
        embedding: Used where there are no guides.
        last: Whether this is the level that an edit is meant for.
        seed: Of providers.

    Raises:
        Sr3dError: A provider fails, or returns what nobody can use.
    """
    if guides is None:
        return Told(embedding=embedding)
    coarse = views.images[0]
    if guides.vlm is not None and guides.vlm.name != "none":
        wider = _wider(frames, seen, maker.factor)
        coarse = photograph_forest(visible(forest, wider, seen.origin), wider)[0]
    feature = None
    if seen.gaussians.features is not None and seen.gaussians.features.any():
        drawn = seen.draw(frames.index([0]), features=True)
        assert drawn.features is not None
        feature = scene_feature(drawn.features[0], drawn.alpha[0])
    said = guide(
        maker.network,
        prompt=guides.prompt,
        vlm=guides.vlm or Silent(),
        coarse=coarse,
        zoomed=views.images[0],
        scene_feature=feature,
    )
    told = Told(words=said.words, embedding=said.embedding)
    if guides.sr is not None:
        told.enlarged = _enlarged(guides.sr, views.images, maker.factor, said.words, seed)
        told.picture = told.enlarged[0]
    if guides.editor is not None and guides.edit and last:
        _edit(told, guides.editor, guides.edit, views.images, maker.factor, seed)
    return told


def _wider(frames: Cameras, seen: Visible, factor: int) -> Cameras:
    """The first frame before the last step of magnification."""
    first = frames.index([0])
    centers, _ = zoom_centers(seen.origin, first)
    return first.zoomed(1 / factor, centers)


def _enlarged(
    sr: ImageSuperResolution, images: Float[Tensor, "k h w 3"], factor: int, words: str, seed: int
) -> Float[Tensor, "k fh fw 3"]:
    """Checked frames of a provider."""
    found = ask(sr, "enlarging", lambda: sr.enlarge(images, factor, words, seed))
    k, h, w = images.shape[:3]
    return check_images(sr, found, (k, h * factor, w * factor, 3))


def _edit(told: Told, editor: Editor, words: str, images: Float[Tensor, "k h w 3"], factor: int, seed: int) -> None:
    """Let an editor change the first enlarged frame; what it inserts is kept apart."""
    enlarged = enlarge(images, factor) if told.enlarged is None else told.enlarged
    found = ask(editor, "editing", lambda: editor.edit(enlarged[0], words, None, seed))
    picture = check_images(editor, found.image, tuple(enlarged.shape[1:]))
    if tuple(found.inserted.shape) != tuple(enlarged.shape[1:3]):
        expected = tuple(enlarged.shape[1:3])
        raise Sr3dError(f"editor provider {editor.name}", "inserted", tuple(found.inserted.shape), expected)
    behind = picture.clone()
    behind[found.inserted] = enlarged[0][found.inserted]
    told.enlarged = enlarged.clone()
    told.enlarged[0] = behind
    told.picture, told.inserted = picture, found.inserted
