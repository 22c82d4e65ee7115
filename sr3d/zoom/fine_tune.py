"""WonderZoom's own depth registration: a monocular network fine-tuned on the rendered depth of one image (Eq. 5)."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sr3d.errors import Sr3dError
from sr3d.zoom.providers import DepthGuess
from sr3d.zoom.registration import RegistrationConfig, register


@dataclass
class FineTuneConfig:
    """WonderZoom's settings.

    Attributes:
        steps: Of Adam.
        rate: Learning rate.
    """

    steps: int = 50
    rate: float = 1e-6


def fine_tune(
    network: nn.Module,
    image: Float[Tensor, "h w 3"],
    target: Float[Tensor, "h w"],
    valid: Bool[Tensor, "h w"],
    kind: Literal["metric", "relative", "inverse"] = "inverse",
    config: FineTuneConfig | None = None,
) -> tuple[DepthGuess, list[float]]:
    """Minimise the masked L1 between rendered depth and the network's depth (WonderZoom Eq. 5), then forget again.

    The network's answer is put into world units by the robust scale and shift of `sr3d.zoom.register`, found once
    before the first step. A copy is tuned: `network` stays as it is, to the bit.

    Args:
        network: Image [1, 3, H, W] in [0, 1] to positive depth of `kind`, [1, 1, H, W].
        image: RGB in [0, 1]. [H, W, 3]
        target: z-depth rendered from the scene, world units, 0 where unknown. [H, W]
        valid: Where the rendered depth is trusted. [H, W]
        kind: Of the network's answer, see `DepthGuess`.
        config: Steps and rate.

    Returns:
        Guess of kind "metric" in world units [H, W], and the loss in world units before each step and at the end.

    Raises:
        Sr3dError: As `register`; the network's answer has another size, or tuning made it not finite.
    """
    config = config or FineTuneConfig()
    # Tensors made under inference mode cannot be differentiated through: hence copies made outside of it.
    with torch.inference_mode(False), torch.enable_grad():
        tuned = deepcopy(network).requires_grad_(True)
        pixels = image.clone().movedim(-1, 0)[None]
        mask = valid & torch.isfinite(target) & (target > 0)
        wanted = target.clone()[mask]
        start = _answer(tuned, pixels, tuple(target.shape)).detach()
        fit = register(DepthGuess(depth=start, kind=kind), target, valid, config=RegistrationConfig(last="scale-shift"))
        # A line that crosses 0 has no depth there: nothing under a tenth of the nearest or over ten times the farthest.
        low, high = 0.1 * float(wanted.min()), 10 * float(wanted.max())

        def depth() -> Tensor:
            line = fit.scale * _answer(tuned, pixels, tuple(target.shape)) + fit.shift
            return 1 / line.clamp(1 / high, 1 / low) if kind == "inverse" else line.clamp(low, high)

        optimiser = torch.optim.Adam(tuned.parameters(), lr=config.rate)
        losses = []
        for _ in range(config.steps):
            loss = (depth()[mask] - wanted).abs().mean()
            losses.append(float(loss.detach()))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        final = depth().detach()
    losses.append(float((final[mask] - wanted).abs().mean()))
    if not bool(torch.isfinite(final).all()):
        raise Sr3dError("sr3d.zoom.fine_tune", "depth", "NaN", f"finite depth (a rate below {config.rate:g})")
    return DepthGuess(depth=final, kind="metric"), losses


def _answer(network: nn.Module, pixels: Tensor, shape: tuple[int, ...]) -> Tensor:
    """What the network says about the image. [H, W]"""
    found = network(pixels)
    if tuple(found.shape) != (1, 1, *shape):
        raise Sr3dError("sr3d.zoom.fine_tune", "answer of the network", tuple(found.shape), (1, 1, *shape))
    return found[0, 0]
