"""What a level is told: whose words come first, and features that go on to the children."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from jaxtyping import Float
from tiny_networks import perturbed, sloped_scene, tiny_config
from torch import Tensor

from sr3d import Gaussians, Scene, Sr3dError, SuperResolver
from sr3d.models.conditioning import ConditioningConfig
from sr3d.models.semantics import SemanticsConfig
from sr3d.training.clip_model import TextEncoder
from sr3d.zoom.guidance import QUESTION, Guidance, guide, inherit_features, scene_feature
from sr3d.zoom.providers import VisionLanguage
from sr3d.zoom.providers.language import Silent

COARSE, ZOOMED = torch.zeros(4, 6, 3), torch.ones(5, 3, 3)
FEATURE = torch.tensor([0.0, 0.6, 0.0, 0.0, 0.8, 0.0])


class Talker(VisionLanguage):
    """Says the same each time, and keeps what it was asked."""

    name: ClassVar[str] = "talker"

    def answer(self, images: list[Float[Tensor, "_ _ 3"]], question: str) -> str:
        self.seen, self.question = images, question
        return "oak, grain"


class Dead(VisionLanguage):
    name: ClassVar[str] = "dead"

    def answer(self, images: list[Float[Tensor, "_ _ 3"]], question: str) -> str:
        raise RuntimeError("out of memory")


def network(conditioning: ConditioningConfig | None, embedding: int | None = 12) -> SuperResolver:
    """A network whose features have 6 channels, if they have a map to embeddings."""
    semantics = None if embedding is None else SemanticsConfig(width=6, embedding=embedding)
    return SuperResolver(replace(tiny_config(), conditioning=conditioning, semantics=semantics))


@pytest.fixture(scope="module")
def reader(clip: Path) -> SuperResolver:
    """A network that reads words, and whose features are mapped to the space of its embeddings."""
    config = replace(tiny_config(), semantics=SemanticsConfig(width=6, embedding=12))
    return SuperResolver(replace(config, conditioning=ConditioningConfig(embedding=12, model=str(clip))))


def told(network: SuperResolver, prompt: str | None, vlm: VisionLanguage, feature: Tensor | None = FEATURE) -> Guidance:
    return guide(network, prompt=prompt, vlm=vlm, coarse=COARSE, zoomed=ZOOMED, scene_feature=feature)


@pytest.mark.parametrize(
    ("prompt", "vlm", "words", "source"),
    [
        ("a table", Talker, "a table, oak, grain", "prompt"),
        ("  a table ", Silent, "a table", "prompt"),
        (None, Talker, "oak, grain", "vlm"),
        (" ", Talker, "oak, grain", "vlm"),
        (None, Silent, "", "scene"),
    ],
)
def test_the_prompt_comes_before_the_models_words_before_the_scene(
    prompt: str | None, vlm: type[VisionLanguage], words: str, source: str, reader: SuperResolver, clip: Path
) -> None:
    found = told(reader, prompt, vlm())
    assert (found.words, found.source) == (words, source)
    assert reader.semantics is not None
    mapped = reader.semantics.to_embedding(FEATURE).detach()
    expected = TextEncoder(str(clip))([words])[0] if words else mapped / mapped.norm()
    torch.testing.assert_close(found.embedding, expected)


def test_the_model_sees_the_coarse_view_first_and_is_asked_in_every_case(reader: SuperResolver) -> None:
    for prompt in (None, "a table"):
        talker = Talker()
        told(reader, prompt, talker)
        assert [x.shape for x in talker.seen] == [COARSE.shape, ZOOMED.shape]
        assert talker.question == QUESTION


@pytest.mark.parametrize("conditioning", [None, ConditioningConfig(embedding=12)])
def test_words_are_kept_for_providers_where_the_network_does_not_read(conditioning: ConditioningConfig | None) -> None:
    deaf = network(conditioning)
    for prompt, words, source in (("a table", "a table, oak, grain", "prompt"), (None, "oak, grain", "vlm")):
        found = told(deaf, prompt, Talker())
        assert (found.words, found.source, found.embedding) == (words, source, None)


@pytest.mark.parametrize(
    ("conditioning", "embedding", "feature"),
    [
        (12, 12, None),
        (12, 12, torch.zeros(6)),
        (12, 12, torch.ones(7)),
        (12, 8, FEATURE),
        (12, None, FEATURE),
        (None, 12, FEATURE),
    ],
    ids=["no feature", "nothing drawn", "features of another network", "another space", "no map", "no conditioning"],
)
def test_nothing_is_told_where_the_scene_says_nothing_in_the_networks_space(
    conditioning: int | None, embedding: int | None, feature: Tensor | None
) -> None:
    config = None if conditioning is None else ConditioningConfig(embedding=conditioning)
    found = told(network(config, embedding), None, Silent(), feature)
    assert (found.words, found.source, found.embedding) == ("", "none", None)


def test_a_model_that_dies_is_named(reader: SuperResolver) -> None:
    with pytest.raises(Sr3dError, match="vlm provider dead: words: found out of memory; expected an answer"):
        told(reader, "a table", Dead())


def test_the_features_of_a_drawing_are_weighted_by_alpha_whatever_their_length() -> None:
    features, alpha = torch.zeros(2, 2, 3), torch.tensor([[1.0, 0.5], [0.5, 0.0]])
    features[0, 0, 0], features[0, 1, 1], features[1, 0, 1], features[1, 1, 2] = 7.0, 0.3, 0.1, 9.0
    torch.testing.assert_close(scene_feature(features, alpha), torch.tensor([0.5, 0.5, 0.0]).sqrt())
    assert not scene_feature(features, torch.zeros(2, 2)).any()
    assert not scene_feature(torch.zeros(2, 2, 3), alpha).any()


def level(variant: str, width: int | None) -> tuple[Gaussians, Gaussians, Tensor]:
    """Parents with random features, and children that a network makes of them."""
    gaussians, images, cameras = sloped_scene(1, 1)
    parents = gaussians[0]
    if width is not None:
        parents = replace(
            parents, features=torch.randn(len(parents), width, generator=torch.Generator().manual_seed(0))
        )
    views = Scene(name="slope", images=images[0], cameras=cameras[0])
    return parents, *perturbed(variant).refine(parents, views, 2)


@pytest.mark.parametrize("given", [True, False], ids=["as the network makes them", "as an optimisation leaves them"])
def test_children_inherit_features_to_the_bit(given: bool) -> None:
    parents, children, links = level("inplane", 5)
    assert parents.features is not None and len(children) > len(parents)
    found = inherit_features(children if given else replace(children, features=None), parents, links)
    assert torch.equal(found.features, parents.features[links])
    assert torch.equal(found.means, children.means)
    grandchildren = torch.arange(len(children)).repeat_interleave(2)
    second = inherit_features(replace(children.index(grandchildren), features=None), found, grandchildren)
    assert torch.equal(second.features, parents.features[links[grandchildren]])


def test_predicted_features_refine_those_of_the_parents() -> None:
    parents, children, links = level("full", 6)
    assert parents.features is not None and children.features is not None
    assert (children.features - parents.features[links]).abs().max() > 0.1
    assert inherit_features(children, parents, links) is children


def test_features_of_another_width_are_not_mixed_with_the_scenes() -> None:
    parents, children, links = level("full", 5)
    assert parents.features is not None
    assert torch.equal(inherit_features(children, parents, links).features, parents.features[links])


@pytest.mark.parametrize(("variant", "width"), [("inplane", None), ("full", 6)])
def test_a_scene_without_features_gets_none_but_those_of_a_network(variant: str, width: int | None) -> None:
    parents, children, links = level(variant, None)
    found = inherit_features(children, parents, links).features
    assert (None if found is None else found.shape[-1]) == width
