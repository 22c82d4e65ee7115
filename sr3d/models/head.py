"""Offset head: features of a child to the residuals of its Gaussian; zero-initialised, so it starts at the scaffold."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sr3d.gaussians import Gaussians, quat_multiply, quat_to_matrix
from sr3d.rendering.sh import SH_C0


@dataclass(kw_only=True)
class HeadConfig:
    """Sizes and bounds of the residuals.

    Attributes:
        width: Hidden width.
        position_bound: Largest offset along a principal axis, in parent footprints.
        ray_bound: Largest offset along the viewing ray, in parent footprints.
        scale_bound: Largest change of a log-scale.
        angle_bound: Largest rotation, radians.
        color_bound: Largest change of a colour, 0..1: inputs unlike any in training must not paint blobs.
    """

    width: int = 64
    position_bound: float = 0.0625
    ray_bound: float = 2.0
    scale_bound: float = 1.5
    angle_bound: float = 0.5
    color_bound: float = 0.3


class OffsetHead(nn.Module):
    """SR3R Eq. 6-7: ΔG from features, added in activated-safe spaces (logit, log, rotation vector, parent's frame)."""

    def __init__(self, config: HeadConfig, inputs: int, sh_coefficients: int) -> None:
        super().__init__()
        self.config = config
        self.mlp = nn.Sequential(
            nn.Linear(inputs, config.width),
            nn.GELU(),
            nn.Linear(config.width, config.width),
            nn.GELU(),
        )
        self.sizes = [3, 1, 3, 3, 1, 3 * sh_coefficients]
        self.out = nn.Linear(config.width, sum(self.sizes))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        features: Float[Tensor, "b n c"],
        scaffold: Gaussians,
        footprint: Float[Tensor, "b n"],
        rays: Float[Tensor, "b n 3"],
    ) -> Gaussians:
        """The scaffold plus residuals.

        Args:
            features: Of every child. [B, N, C]
            scaffold: Children before learning. [B, N]
            footprint: Native footprint of the parent, world units. [B, N]
            rays: Unit direction, world frame, in which the child may slide. [B, N, 3]
        """
        c = self.config
        offset, slide, scale, turn, opacity, sh = self.out(self.mlp(features)).split(self.sizes, dim=-1)
        frame = quat_to_matrix(scaffold.quats)
        local = c.position_bound * torch.tanh(offset)
        # A product of 3x3 matrices written as a sum: batched matrix products of this size are slow on CPUs.
        step = (frame * local[..., None, :]).sum(dim=-1) + c.ray_bound * torch.tanh(slide) * rays
        return replace(
            scaffold,
            means=scaffold.means + footprint[..., None] * step,
            quats=quat_multiply(scaffold.quats, _small_rotation(c.angle_bound * torch.tanh(turn))),
            scales=scaffold.scales * torch.exp(c.scale_bound * torch.tanh(scale)),
            opacities=_shift_logit(scaffold.opacities, opacity[..., 0]),
            sh=scaffold.sh + c.color_bound / SH_C0 * torch.tanh(sh).unflatten(-1, (-1, 3)),
        )


def _shift_logit(opacities: Tensor, shift: Tensor) -> Tensor:
    """sigmoid(logit(o) + shift), written so that a shift of 0 changes no bit and an opacity of 0 stays 0."""
    growth = torch.expm1(shift.clamp(-10, 10))
    return opacities + opacities * (1 - opacities) * growth / (1 + opacities * growth)


def _small_rotation(vector: Tensor) -> Tensor:
    """wxyz quaternion (not normalised) of the rotation by about |vector| radians; the identity for 0."""
    return torch.cat([torch.ones_like(vector[..., :1]), 0.5 * vector], dim=-1)
