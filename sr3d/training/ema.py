"""Exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sr3d.training.sharding import shared_like


class Ema:
    """A float32 shadow of the trainable parameters: shadow ← d · shadow + (1 − d) · parameter after every step.

    The decay d = min(decay, (1 + n) / (10 + n)) grows with the number n of updates, so that the random weights of the
    start are soon forgotten. Shadows live where the parameters live; of sharded parameters each process averages its
    part.

    Args:
        network: Whose weights are averaged.
        decay: In [0, 1).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.decay, self.updates = network, decay, 0
        self.shadow: dict[str, Tensor] = {}
        self.reset()

    def reset(self) -> None:
        """Take the network's present weights as the average."""
        self.shadow = {name: p.detach().clone().float() for name, p in self._parameters().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the network's present weights; call once after every optimiser step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        parameters = self._parameters()
        shadows = [self._near(name, p) for name, p in parameters.items()]
        torch._foreach_lerp_(shadows, [p.detach().float() for p in parameters.values()], 1 - decay)

    def load(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Take averaged weights from a checkpoint.

        Args:
            state: Weights of the whole network by name, as `network.state_dict()` gives them.
            updates: How often they had been updated.
        """
        self.updates = updates
        parameters = self._parameters()
        self.shadow = {n: shared_like(state[n].detach().clone().float(), parameters[n]) for n in self.shadow}

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Give the network the averaged weights; its own return at the end of the block."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange averaged and present weights; a second call undoes the first."""
        for name, p in self._parameters().items():
            own = p.detach().clone()
            p.copy_(self._near(name, p))
            self.shadow[name] = own.float()

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.network.named_parameters() if p.requires_grad}

    def _near(self, name: str, parameter: Tensor) -> Tensor:
        """The shadow, on the device of its parameter."""
        self.shadow[name] = self.shadow[name].to(parameter.device)
        return self.shadow[name]
