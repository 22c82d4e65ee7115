"""From a target to the world point that a zoom keeps in the middle."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.errors import Sr3dError
from sr3d.lod import Forest
from sr3d.models import SuperResolver
from sr3d.zoom.frontier import Visible, around, visible
from sr3d.zoom.guides import Guides
from sr3d.zoom.query import Found, find_text, find_words
from sr3d.zoom.target import Pixel, Point, Query, Target, locate
from sr3d.zoom.viewpoints import inside_surface


def aim(
    target: Target, forest: Forest, views: Cameras, network: SuperResolver, guides: Guides | None
) -> Float[Tensor, 3]:
    """World point of a target, float64: on a surface that the first view shows.

    Args:
        target: Where to.
        forest: So far.
        views: World frame. [V]
        network: Maps semantic features to the embeddings of words.
        guides: With an encoder of texts, or a segmenter that reads words, for a `Query`.

    Raises:
        Sr3dError: The first camera is inside a surface, the target cannot be found (see `locate`, `find_text`,
            `find_words`), or what words name best is in another view, where the first one does not show it.
    """
    origin = views.positions[0].double()
    seen = visible(forest, views, origin)
    first = views.index([0])
    if bool(inside_surface(seen.gaussians, around(first, origin))[0]):
        raise Sr3dError("sr3d.zoom_into", "first camera", "inside a surface", "a camera in free space")
    if not isinstance(target, Query):
        return locate(target, first, seen.draw(first))
    found = _found(target, seen, views, network, guides)
    camera = views.index([found.view])
    point = locate(Pixel(u=found.pixel[0], v=found.pixel[1]), camera, seen.draw(camera))
    if found.view > 0:
        x, y, z = point.tolist()
        try:
            locate(Point(x=x, y=y, z=z), first, seen.draw(first))
        except Sr3dError as error:
            where = f"{target.text!r} in view {found.view}, at {error.found}"
            raise Sr3dError("sr3d.zoom_into", "query", where, "something that the first view shows") from error
    return point


def _found(target: Query, seen: Visible, views: Cameras, network: SuperResolver, guides: Guides | None) -> Found:
    """Where the words are, in the scene's own semantic features, or by a segmenter that reads words."""
    if guides is not None and guides.segmenter is not None and guides.segmenter.name != "regions":
        images = seen.draw(views).rgb.clamp(0, 1)
        return find_words(guides.segmenter, images, target.text)
    knows = network.semantics is not None and seen.gaussians.features is not None
    if not knows or guides is None or guides.encoder is None:
        expected = "a network with semantics and --text-model, or --segmenter grounded-sam"
        raise Sr3dError("sr3d.zoom_into", "query", f"{target.text!r}, and nobody who reads words", expected)
    assert network.semantics is not None
    drawn = seen.draw(views, features=True)
    assert drawn.features is not None
    weight = network.semantics.to_embedding.weight.detach().cpu()
    return find_text(target.text, drawn.features, drawn.alpha, weight, guides.encoder)
