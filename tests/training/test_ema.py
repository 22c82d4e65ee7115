from __future__ import annotations

import torch
from torch import nn

from sr3d.training.ema import Ema


def _network(value: float) -> nn.Module:
    network = nn.Linear(2, 1)
    nn.init.constant_(network.weight, value)
    nn.init.zeros_(network.bias)
    return network


def test_the_average_follows_its_formula() -> None:
    network = _network(1.0)
    ema = Ema(network, 0.5)
    expected, values = 1.0, [2.0, -3.0, 5.0, 0.5, 4.0, 4.0, 1.0, 9.0, 7.0, 2.0]
    for n, value in enumerate(values, start=1):
        nn.init.constant_(network.weight, value)
        ema.update()
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
        torch.testing.assert_close(ema.shadow["weight"], torch.full((1, 2), expected))
    assert (1 + 1) / (10 + 1) < 0.5 < (1 + 10) / (10 + 10), "both regimes were seen"


def test_a_decay_near_one_keeps_small_changes_in_float32() -> None:
    network = _network(1.0).to(torch.bfloat16)
    ema = Ema(network, 0.9999)
    ema.updates = 10**6
    nn.init.constant_(network.weight, 1.5)
    for _ in range(100):
        ema.update()
    expected = 1.5 - 0.5 * 0.9999**100
    torch.testing.assert_close(ema.shadow["weight"], torch.full((1, 2), expected), rtol=1e-5, atol=0)


def test_swapped_weights_return() -> None:
    network = _network(1.0)
    ema = Ema(network, 0.9)
    nn.init.constant_(network.weight, 3.0)
    with ema.swapped():
        assert network.weight.tolist() == [[1.0, 1.0]]
    assert network.weight.tolist() == [[3.0, 3.0]]
    assert ema.shadow["weight"].tolist() == [[1.0, 1.0]]


def test_frozen_weights_are_not_averaged() -> None:
    network = _network(1.0)
    network.bias.requires_grad = False
    assert list(Ema(network, 0.9).shadow) == ["weight"]


def test_a_loaded_average_goes_on() -> None:
    first, second = (Ema(_network(v), 0.9) for v in (1.0, 8.0))
    for ema in (first, second):
        nn.init.constant_(ema.network.weight, 2.0)
    first.update()
    with first.swapped():
        state = {k: v.clone() for k, v in first.network.state_dict().items()}
    second.load(state, first.updates)
    for ema in (first, second):
        nn.init.constant_(ema.network.weight, -1.0)
        ema.update()
    assert torch.equal(first.shadow["weight"], second.shadow["weight"])
