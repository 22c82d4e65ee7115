"""The network that a training starts from."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch

from sr3d.errors import Sr3dError
from sr3d.models.config import SuperResolverConfig
from sr3d.models.registry import create_model, list_models
from sr3d.models.resolver import SuperResolver
from sr3d.training.conditions import ConditionConfig
from sr3d.training.losses import LossConfig


def starting_network(
    network: SuperResolverConfig | str, condition: ConditionConfig | None, loss: LossConfig, seed: int
) -> SuperResolver:
    """Untrained, from a config or the name of a size; or trained, from a file or a name on the hub.

    Features that no loss looks at stay as they are, with a warning: processes that train together would wait for
    gradients that never come.

    Args:
        network: Config, size, file or name.
        condition: What it is told; its config notes the name of the CLIP model, for whoever uses the network later.
        loss: Weights.
        seed: Of untrained weights.

    Raises:
        Sr3dError: No such network, or it was trained on embeddings of another CLIP model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if not isinstance(network, str):
            made = SuperResolver(network)
        else:
            made = create_model(network) if network in list_models() else SuperResolver.from_pretrained(network)
    told = made.config.conditioning
    if told is not None and condition is not None:
        if told.model not in ("", condition.name):
            expected = f"{told.model}, whose embeddings the network was trained on"
            raise Sr3dError("config", "model.condition.name", condition.name, expected)
        made.config = replace(made.config, conditioning=replace(told, model=condition.name))
    if made.semantics is not None and not loss.semantic:
        warnings.warn("model.network.semantics stays as it is: model.loss.semantic is 0", stacklevel=2)
        made.semantics.requires_grad_(False)
    return made.train()
