"""What the network is told about a level: words about the zoomed part, and their embedding.

A vision-language model sees the coarse view and the zoomed one, as in Chain-of-Zoom and GaussianZoom; the scene's own
semantic feature takes the place of words where there are none. Features are handed down to every level, so that a
query finds there what it finds in the first one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from sr3d.gaussians import Gaussians
from sr3d.models.resolver import SuperResolver
from sr3d.training.clip_model import unit
from sr3d.training.conditions import prompt_embedding
from sr3d.zoom.providers.base import VisionLanguage, ask

# Two images, coarse first; short words, no sentences: they become a prompt of image super-resolution and of CLIP.
QUESTION = (
    "The first image is a view of a scene. The second image is a zoom into one part of the first image. "
    "What is the part in the second image made of? "
    "Answer with a short list of words, separated by commas: its materials, its parts, its texture."
)


@dataclass(kw_only=True)
class Guidance:
    """What is known about the zoomed part.

    Attributes:
        words: For providers, and for the report; "" without.
        embedding: What conditions the network, of length 1; None: nothing. [E]
        source: "prompt": the user's words, followed by those of the model where there are any. "vlm": the model's
            words. "scene": the scene's semantic feature. "none": nothing.
    """

    words: str
    embedding: Float[Tensor, " e"] | None
    source: Literal["none", "prompt", "vlm", "scene"]


def guide(
    network: SuperResolver,
    *,
    prompt: str | None,
    vlm: VisionLanguage,
    coarse: Float[Tensor, "h w 3"],
    zoomed: Float[Tensor, "zh zw 3"],
    scene_feature: Float[Tensor, " d"] | None,
) -> Guidance:
    """Words and embedding for one level: the user's prompt before the model's words before the scene's feature.

    A prompt is welcome without a network that reads words, too: providers read it. The embedding is None then. So it
    is where a network with conditioning does not name its CLIP model.

    Args:
        network: Makes the level.
        prompt: The user's words; None or "" for none.
        vlm: Asked `QUESTION` in every case.
        coarse: The view of the level before, in [0, 1].
        zoomed: The view that is to be refined, in [0, 1].
        scene_feature: Of `scene_feature`; None where the scene has no features. Used only where the network maps
            features of this width to embeddings of the length that it is conditioned on.

    Raises:
        Sr3dError: The model died, or the network's CLIP model cannot be had.
    """
    said = ask(vlm, "words", lambda: vlm.answer([coarse, zoomed], QUESTION))
    wanted = (prompt or "").strip()
    words = ", ".join(part for part in (wanted, said) if part)
    if not words:
        embedding = None if scene_feature is None else _scene_embedding(network, scene_feature)
        return Guidance(words="", embedding=embedding, source="none" if embedding is None else "scene")
    conditioning = network.config.conditioning
    reads = conditioning is not None and conditioning.model != ""
    embedding = prompt_embedding(network, words) if reads else None
    return Guidance(words=words, embedding=embedding, source="prompt" if wanted else "vlm")


def scene_feature(features: Float[Tensor, "h w d"], alpha: Float[Tensor, "h w"]) -> Float[Tensor, " d"]:
    """Mean direction of the features of a drawing, weighted by alpha: of length 1, or 0 where nothing has features.

    Their lengths mean nothing: networks learn them by the cosine.

    Args:
        features: As drawn.
        alpha: As drawn.
    """
    return unit((alpha[..., None] * unit(features)).sum(dim=(0, 1)))


def inherit_features(children: Gaussians, parents: Gaussians, links: Int[Tensor, " n"]) -> Gaussians:
    """Children with semantic features, if there are any.

    Children for which a network predicted features keep these: they refine those of the parents. Others take over
    their parent's, to the bit, and so do those with features of another width, which mean something else. Where the
    parents have none, nothing is added to them: they count as 0, which no query finds.

    Args:
        children: N Gaussians.
        parents: M Gaussians.
        links: Parent of each child.
    """
    if parents.features is None:
        return children
    own = children.features
    if own is not None and own.shape[-1] == parents.features.shape[-1]:
        return children
    return replace(children, features=parents.features[links])


def _scene_embedding(network: SuperResolver, feature: Float[Tensor, " d"]) -> Float[Tensor, " e"] | None:
    """In the space of the network's conditioning, of length 1; None where it has no such map, or nothing was drawn."""
    semantics, conditioning = network.semantics, network.config.conditioning
    if semantics is None or conditioning is None or not bool(feature.any()):
        return None
    sizes = semantics.config
    if (sizes.width, sizes.embedding) != (len(feature), conditioning.embedding):
        return None
    weight = semantics.to_embedding.weight.detach()
    return unit(weight @ feature.to(weight))
