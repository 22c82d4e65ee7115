from __future__ import annotations

import pytest
import torch

from sr3d import Sr3dError
from sr3d.models.conditioning import Conditioner, ConditioningConfig


def conditioner(drop: float = 0.1) -> Conditioner:
    torch.manual_seed(0)
    return Conditioner(ConditioningConfig(embedding=6, drop=drop), 8)


def inputs(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 2, 5, 8, generator=generator), torch.randn(batch, 6, generator=generator)


def test_scale_and_shift_of_all_tokens_of_a_scene() -> None:
    model, (tokens, embedding) = conditioner().eval(), inputs()
    scale, shift = model.mlp(embedding).chunk(2, dim=-1)
    out = model(tokens, embedding)
    for b in range(3):
        assert torch.allclose(out[b], tokens[b] * (1 + scale[b]) + shift[b], atol=1e-6)
    assert 1e-3 < (out - tokens).abs().max() < 0.3  # close to no change before training
    one_by_one = torch.cat([model(tokens[b : b + 1], embedding[b : b + 1]) for b in range(3)])
    assert torch.allclose(out, one_by_one, atol=1e-6)


def test_none_is_the_learned_embedding() -> None:
    model, (tokens, embedding) = conditioner().eval(), inputs()
    assert torch.equal(model(tokens), model(tokens, model.none.detach().expand(3, -1)))
    assert not torch.allclose(model(tokens), model(tokens, embedding), atol=1e-4)


def test_drops_scenes_in_training_only_and_repeats() -> None:
    model, (tokens, embedding) = conditioner(drop=0.25), inputs(400)
    known, unknown = model.eval()(tokens, embedding), model(tokens)
    model.train()
    torch.manual_seed(5)
    out = model(tokens, embedding)
    dropped = torch.tensor([torch.equal(a, b) for a, b in zip(out, unknown)])
    kept = torch.tensor([torch.equal(a, b) for a, b in zip(out, known)])
    assert torch.equal(dropped, ~kept)
    assert 0.18 < dropped.float().mean() < 0.32
    torch.manual_seed(5)
    assert torch.equal(model(tokens, embedding), out)
    assert not torch.equal(model(tokens, embedding), out)


def test_scenes_without_an_embedding_are_none_and_the_others_are_dropped_as_often() -> None:
    model, (tokens, embedding) = conditioner(drop=0.25), inputs(400)
    has = torch.arange(400) % 3 > 0
    embedding[~has] = torch.nan
    unknown, known = model(tokens), model.eval()(tokens, embedding, has)
    assert torch.equal(known[~has], unknown[~has]) and torch.isfinite(known).all()
    assert not any(torch.equal(a, b) for a, b in zip(known[has], unknown[has]))
    torch.manual_seed(5)
    out = model.train()(tokens, embedding, has)
    dropped = torch.tensor([torch.equal(a, b) for a, b in zip(out, unknown)])
    assert dropped[~has].all() and 0.17 < dropped[has].float().mean() < 0.33
    assert torch.equal(out[~dropped], known[~dropped])


@pytest.mark.parametrize("given", [True, False])
def test_every_parameter_receives_a_gradient(given: bool) -> None:
    model, (tokens, embedding) = conditioner(drop=1.0), inputs()
    model(tokens, embedding if given else None).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    model.zero_grad()
    model.eval()(tokens, embedding).square().sum().backward()
    # Also without need for it the learned embedding stays in the graph, as DDP wants.
    assert torch.equal(model.none.grad, torch.zeros(6))


@pytest.mark.parametrize("shape", [(3, 5), (2, 6), (3, 0)])
def test_wrong_embeddings(shape: tuple[int, int]) -> None:
    with pytest.raises(Sr3dError, match=r"Conditioner: embedding: found shape .*; expected \(3, 6\)"):
        conditioner()(inputs()[0], torch.zeros(shape))


@pytest.mark.parametrize("key, value", [("embedding", 0), ("drop", 1.5)])
def test_impossible_configs(key: str, value: float) -> None:
    with pytest.raises(Sr3dError, match=rf"model\.network\.conditioning\.{key}: found {value}"):
        Conditioner(ConditioningConfig(**{key: value}), 8)
