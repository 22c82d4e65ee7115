from __future__ import annotations

import pytest
import torch

from sr3d import Sr3dError
from sr3d.models.conditioning import Conditioner, ConditioningConfig


def conditioner() -> Conditioner:
    torch.manual_seed(0)
    return Conditioner(ConditioningConfig(embedding=6), 8)


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


def test_scenes_without_an_embedding_are_none() -> None:
    model, (tokens, embedding) = conditioner(), inputs(40)
    has = torch.arange(40) % 3 > 0
    expected, unknown = model(tokens, embedding), model(tokens)
    embedding[~has] = torch.nan
    known = model(tokens, embedding, has)
    assert torch.equal(known[~has], unknown[~has]) and torch.equal(known[has], expected[has])
    assert not any(torch.equal(a, b) for a, b in zip(known[has], unknown[has]))


@pytest.mark.parametrize("given", [True, False])
def test_every_parameter_receives_a_gradient(given: bool) -> None:
    model, (tokens, embedding) = conditioner(), inputs()
    has = torch.zeros(3, dtype=torch.bool)
    model(tokens, embedding if given else None, has if given else None).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    model.zero_grad()
    model(tokens, embedding).square().sum().backward()
    # Also without need for it the learned embedding stays in the graph, as DDP wants.
    assert torch.equal(model.none.grad, torch.zeros(6))


@pytest.mark.parametrize("shape", [(3, 5), (2, 6), (3, 0)])
def test_wrong_embeddings(shape: tuple[int, int]) -> None:
    with pytest.raises(Sr3dError, match=r"Conditioner: embedding: found shape .*; expected \(3, 6\)"):
        conditioner()(inputs()[0], torch.zeros(shape))


def test_an_embedding_has_a_length() -> None:
    with pytest.raises(Sr3dError, match=r"model\.network\.conditioning\.embedding: found 0"):
        Conditioner(ConditioningConfig(embedding=0), 8)
