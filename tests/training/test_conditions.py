"""Embeddings that a network is conditioned on: of clips, in training and validation, never in checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from training_run import fit, small_batches, small_module, small_network
from transformers import AutoTokenizer, CLIPModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from sr3d import Gaussians, Scene, Sr3dError, SuperResolver
from sr3d.coarse import CoarseConfig
from sr3d.datasets.batch import Batch
from sr3d.evaluation.case import Task
from sr3d.evaluation.methods import MethodOptions
from sr3d.evaluation.methods.predictor import Predictor
from sr3d.models.conditioning import ConditioningConfig
from sr3d.training.clip_model import ImageEncoder, TextEncoder
from sr3d.training.conditions import ConditionConfig, Embedder, prompt_embedding
from sr3d.training.evaluate import embedder_of
from sr3d.training.module import SuperResolverModule
from sr3d.training.samples import draw_told


def batch_of(worlds: Path, texts: list[str], views: int = 2) -> Batch:
    """The first clips of the training worlds, one for each text."""
    return replace(small_batches(worlds, 1, clips=2, views=views)[0], texts=texts)


def told(clip: Path, kind: str = "text", drop: float = 0.0, **options: Any) -> SuperResolverModule:
    """A module whose network is at work on what it is told, not close to its start."""
    network = small_network(conditioning=ConditioningConfig(embedding=12))
    module = small_module(network, condition=ConditionConfig(kind=kind, name=str(clip), drop=drop), **options)
    own = module.network
    assert own.head is not None and own.conditioner is not None and own.decoder.texture is not None
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for layer in (own.head.out, own.decoder.texture, own.conditioner.mlp[-1]):
            nn.init.normal_(layer.weight, std=0.1)
    return module


def embeds(clip: Path, **inputs: Any) -> Any:
    """What the whole CLIP model says."""
    inputs = {"pixel_values": torch.zeros(1, 3, 32, 32), "input_ids": torch.tensor([[0, 1]])} | inputs
    with torch.no_grad():
        return CLIPModel.from_pretrained(clip).eval()(**inputs)


def pixels(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(v)[:, None, None] for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (images - mean) / std


def test_the_middle_view_of_every_clip_is_seen(worlds: Path, clip: Path) -> None:
    embedder, batch = Embedder(ConditionConfig(kind="image", name=str(clip))), batch_of(worlds, [], views=3)
    embeddings, known = embedder(batch)
    assert embedder.width == 12 and known.tolist() == [True, True]
    # As it was given to the network, not at full resolution: nobody has that afterwards.
    small = interpolate(batch.context.images[:, 1].movedim(-1, 1), (32, 32), mode="bicubic", antialias=True).clamp(0, 1)
    expected = embeds(clip, pixel_values=pixels(small)).image_embeds
    torch.testing.assert_close(embeddings, expected, atol=2e-3, rtol=0)
    full = embeds(clip, pixel_values=pixels(batch.high.images[:, 1].movedim(-1, 1))).image_embeds
    assert (embeddings - full).abs().max() > 5e-3
    assert (embeddings[0] - embeddings[1]).abs().max() > 1e-3, "another clip, another embedding"
    again, _ = embedder(batch)
    assert torch.equal(again, embeddings)


def test_the_middle_square_of_an_image_is_seen(clip: Path) -> None:
    encoder, wide = ImageEncoder(str(clip)), torch.rand(1, 3, 32, 47, generator=torch.Generator().manual_seed(0))
    expected = embeds(clip, pixel_values=pixels(wide[..., 7:39])).image_embeds
    torch.testing.assert_close(encoder(wide), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder(wide.mT), embeds(clip, pixel_values=pixels(wide.mT[:, :, 7:39])).image_embeds,
                               atol=1e-5, rtol=0)  # fmt: skip
    larger = nn.functional.interpolate(wide, scale_factor=3, mode="nearest")
    torch.testing.assert_close(encoder(larger), encoder(wide), atol=0.05, rtol=0)


def test_the_text_of_a_clip_is_read_where_it_has_one(worlds: Path, clip: Path) -> None:
    embedder = Embedder(ConditionConfig(kind="text", name=str(clip)))
    texts = ["a room with a chair and words that are far too many for this model", "table"]
    embeddings, known = embedder(batch_of(worlds, texts))
    tokenizer = AutoTokenizer.from_pretrained(clip)
    for text, embedding in zip(texts, embeddings):
        expected = embeds(clip, **tokenizer(text, return_tensors="pt", truncation=True, max_length=32)).text_embeds[0]
        torch.testing.assert_close(embedding, expected, atol=1e-5, rtol=0)
    assert known.all() and (embeddings[0] - embeddings[1]).abs().max() > 1e-3
    some, known = embedder(batch_of(worlds, [" \n", "table"]))
    assert known.tolist() == [False, True] and not some[0].any()
    torch.testing.assert_close(some[1], embeddings[1], atol=1e-5, rtol=0)
    with pytest.warns(UserWarning, match="clips without text: the network is told nothing about them") as said:
        for nothing in ([], ["", ""]):
            none, known = embedder(batch_of(worlds, nothing))
            assert none.shape == (2, 12) and known.tolist() == [False, False]
    assert len(said) == 1


@pytest.mark.parametrize("kind", ["image", "text"])
def test_an_embedder_is_frozen_and_of_full_precision(kind: str, worlds: Path, clip: Path, tmp_path: Path) -> None:
    CLIPModel.from_pretrained(clip).half().save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(clip).save_pretrained(tmp_path)
    embedder = Embedder(ConditionConfig(kind=kind, name=str(tmp_path))).train()
    assert not any(m.training for m in embedder.modules())
    assert not any(p.requires_grad or p.dtype != torch.float32 for p in embedder.parameters())
    embeddings, _ = embedder(batch_of(worlds, ["a", "b"]))
    assert embeddings.dtype == torch.float32 and not embeddings.requires_grad


def predicted(module: SuperResolverModule, batch: Batch, folder: Path) -> Tensor:
    """Means of the Gaussians that the first training step saw. [B, N, 3]"""
    fit(module, [batch], folder)
    assert module.step is not None
    return module.step.prediction.gaussians.means


def test_every_clip_of_a_training_step_is_told_its_own_text(worlds: Path, clip: Path, tmp_path: Path) -> None:
    def step(texts: list[str], drop: float = 0.0) -> Tensor:
        return predicted(told(clip, drop=drop, warmup_steps=0), batch_of(worlds, texts), tmp_path)

    first, other, half, none = step(["chair", "table"]), step(["chair", "door"]), step(["chair", ""]), step([])
    for means in (other, half):
        torch.testing.assert_close(means[0], first[0], atol=1e-6, rtol=0)
        assert (means[1] - first[1]).abs().max() > 1e-4
    torch.testing.assert_close(half[1], none[1], atol=1e-6, rtol=0)
    assert (half[0] - none[0]).abs().max() > 1e-4
    # Which clips are dropped depends on seed, step and number of the clip alone.
    share = next(s for s in (0.1, 0.3, 0.5, 0.7, 0.9) if draw_told(2, s, 0, 0, 0).tolist() == [True, False])
    torch.testing.assert_close(step(["chair", "table"], drop=1 - share), half, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_validation_tells_the_network_what_training_does(kind: str, worlds: Path, clip: Path) -> None:
    # Nothing is dropped in validation.
    module, batch = told(clip, kind, drop=0.999).eval(), batch_of(worlds, ["chair", ""])
    with torch.no_grad():
        found = module.validation_step(batch, 0)["depth"].gaussians
        low = batch.context
        none = module.network(found["coarse"], low.images, low.posed())
        embedding, known = Embedder(ConditionConfig(kind=kind, name=str(clip)))(batch)
        expected = [
            module.network.predict(found["coarse"], low.images, low.posed(), embedding=embedding).gaussians.means[i]
            if known[i] else none.means[i] for i in range(2)
        ]  # fmt: skip
    torch.testing.assert_close(found["sr3d"].means, torch.stack(expected), atol=1e-6, rtol=0)
    changed = (found["sr3d"].means - none.means).abs().amax(dim=(1, 2)) > 1e-4
    assert changed.tolist() == [True, kind == "image"]


@pytest.mark.parametrize("kind", ["image", "text"])
def test_evaluation_tells_the_network_what_it_was_trained_on(
    kind: str, worlds: Path, clip: Path, tmp_path: Path
) -> None:
    network, views = told(clip).network.eval(), batch_of(worlds, ["chair"])
    network.save_pretrained(tmp_path / "net.safetensors")
    cameras, depths = views.context.posed()[0], views.context.depths
    assert depths is not None
    low = Scene(images=views.context.images[0], cameras=cameras, depths=depths[0])
    task = Task(name="a", scene="a", given=low, factor=network.config.factor, cameras=cameras, config=CoarseConfig())
    task.text = "chair"
    options = MethodOptions(checkpoint=str(tmp_path / "net.safetensors"), factor=network.config.factor)
    untold, told_method = (Predictor(replace(options, condition=c)).make(task).gaussians for c in (None, kind))
    embedding, _ = Embedder(ConditionConfig(kind=kind, name=str(clip)))(views)
    expected, _ = network.refine(task.coarse, low, network.config.factor, embedding[0])
    assert isinstance(told_method, Gaussians) and isinstance(untold, Gaussians)
    torch.testing.assert_close(told_method.means, expected.means, atol=1e-6, rtol=0)
    assert (told_method.means - untold.means).abs().max() > 1e-4
    for config, words in ((None, "without conditioning"), (ConditioningConfig(embedding=12), "names no CLIP model")):
        with pytest.raises(Sr3dError, match=f"sr3d eval: --condition: found image, a network.*{words}"):
            embedder_of(SuperResolver(small_network(conditioning=config)), "image")


def test_the_network_learns_from_it_and_a_checkpoint_holds_no_clip_model(
    worlds: Path, clip: Path, tmp_path: Path
) -> None:
    module = told(clip, learning_rate=0.01)
    before = {k: v.clone() for k, v in module.network.state_dict().items()}
    frozen = {k: v.clone() for k, v in module.embedder.state_dict().items()}
    trainer = fit(module, [batch_of(worlds, ["chair", ""])] * 3, tmp_path)
    for name in ("conditioner.none", "conditioner.mlp.1.weight"):
        assert not torch.equal(module.network.state_dict()[name], before[name]), name
    assert all(torch.equal(v, frozen[k]) for k, v in module.embedder.state_dict().items())
    path = tmp_path / "a.ckpt"
    trainer.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    assert content["state_dict"].keys() == {f"network.{k}" for k in before}
    assert content["ema_state"].keys() == before.keys()
    assert SuperResolver.from_pretrained(path).config.conditioning == ConditioningConfig(embedding=12, model=str(clip))
    resumed = told(clip)
    resumed.load_state_dict(content["state_dict"])
    assert torch.equal(resumed.network.conditioner.none, module.network.conditioner.none)


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize(
    ("embedding", "condition", "message"),
    [
        (None, "text", r"model\.condition: found text; expected null, or a network with model\.network\.conditioning"),
        (12, None, r"model\.network\.conditioning: found .* the embeddings that it learns on \(model\.condition\)"),
        (6, "image", r"conditioning\.embedding: found 6; expected 12, as of the CLIP model \(model\.condition\.name\)"),
    ],
)
def test_network_and_condition_have_to_agree(
    embedding: int | None, condition: str | None, message: str, pretrained: bool, clip: Path, tmp_path: Path
) -> None:
    network: Any = small_network(conditioning=embedding and ConditioningConfig(embedding=embedding))
    if pretrained:
        SuperResolver(network).save_pretrained(tmp_path / "network")
        network = str(tmp_path / "network")
    with pytest.raises(Sr3dError, match=message):
        small_module(network, condition=condition and ConditionConfig(kind=condition, name=str(clip)))


def test_a_trained_network_keeps_its_clip_model(clip: Path, tmp_path: Path) -> None:
    def started(stored: str, name: Path) -> SuperResolver:
        config = small_network(conditioning=ConditioningConfig(embedding=12, model=stored))
        SuperResolver(config).save_pretrained(tmp_path / "network")
        network: Any = str(tmp_path / "network")
        return small_module(network, condition=ConditionConfig(kind="image", name=str(name))).network

    for stored in ("", str(clip)):
        assert started(stored, clip).config.conditioning == ConditioningConfig(embedding=12, model=str(clip))
    with pytest.raises(Sr3dError, match=rf"model\.condition\.name: found {tmp_path}; expected {clip}, whose"):
        started(str(clip), tmp_path)


def test_a_prompt_is_read_by_the_model_that_the_network_learned_on(clip: Path) -> None:
    network = told(clip).network
    embedding = prompt_embedding(network, "chair")
    torch.testing.assert_close(embedding, TextEncoder(str(clip))(["chair"])[0])
    with pytest.raises(Sr3dError, match="--prompt: found 'chair', a network without conditioning; expected none, or"):
        prompt_embedding(SuperResolver(small_network()), "chair")


def test_clips_are_told_about_whichever_process_has_them() -> None:
    everything = draw_told(400, 0.75, seed=3, step=7, first=0)
    assert 0.68 < everything.float().mean() < 0.82
    assert torch.equal(everything, torch.cat([draw_told(200, 0.75, 3, 7, first) for first in (0, 200)]))
    assert not any(torch.equal(everything, draw_told(400, 0.75, *other)) for other in ((4, 7, 0), (3, 8, 0), (3, 7, 1)))
    assert draw_told(400, 1.0, 0, 0, 0).all()


@pytest.mark.parametrize("drop", [-0.1, 1.0])
def test_a_share_that_leaves_nothing_to_learn(drop: float, clip: Path) -> None:
    with pytest.raises(Sr3dError, match=rf"model\.condition\.drop: found {drop}; expected at least 0 and below 1"):
        told(clip, drop=drop)


def test_a_clip_model_that_is_not_there(tmp_path: Path) -> None:
    network = small_network(conditioning=ConditioningConfig(embedding=12))
    with pytest.raises(Sr3dError, match=f"{tmp_path}: CLIP model: found"):
        small_module(network, condition=ConditionConfig(kind="text", name=str(tmp_path)))
