"""Offset head: features of a child to the residuals of its Gaussian; zero-initialised, so it starts at the scaffold."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sr3d.gaussians import Gaussians, quat_multiply, quat_to_matrix
from sr3d.rendering.sh import SH_C0, sh_basis


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
    """SR3R Eq. 6-7: ΔG from features, added in activated-safe spaces (logit, log, rotation vector, parent's frame).

    Args:
        config: Sizes and bounds.
        inputs: Channels of the features.
        sh_coefficients: Of the colour, (degree + 1)².
        snap: Whether children can follow the depth of a geometry branch.
        semantics: Channels of the semantic feature; 0 for none.
    """

    def __init__(
        self, config: HeadConfig, inputs: int, sh_coefficients: int, snap: bool = False, semantics: int = 0
    ) -> None:
        super().__init__()
        self.config = config
        self.mlp = nn.Sequential(
            nn.Linear(inputs, config.width),
            nn.GELU(),
            nn.Linear(config.width, config.width),
            nn.GELU(),
        )
        self.sizes = [3, 1, 3, 3, 1, 3 * sh_coefficients, int(snap), semantics]
        self.out = nn.Linear(config.width, sum(self.sizes))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: Float[Tensor, "b n c"]) -> Float[Tensor, "b n r"]:
        """Residuals before they are bounded; those of several rounds are added up."""
        raw: Tensor = self.out(self.mlp(features))
        return raw.float()

    def apply_to(
        self,
        scaffold: Gaussians,
        raw: Float[Tensor, "b n r"],
        rays: Float[Tensor, "b n 3"],
        axes: Float[Tensor, "b 3 3"],
        snap: Float[Tensor, "b n"] | None = None,
    ) -> tuple[Gaussians, dict[str, Tensor]]:
        """The scaffold plus residuals, and the residuals (see `sr3d.models.prediction.Prediction`).

        Args:
            scaffold: Children before learning, with level-of-detail fields. [B, N]
            raw: Of `forward`.
            rays: Unit direction, world frame, in which a child may slide.
            axes: World-to-camera rotation of the mean camera, in whose axes the features are: bands of the colour
                residual above 0 are predicted there.
            snap: How far along the ray the surface of the geometry branch lies, world units.
        """
        c = self.config
        assert scaffold.lod is not None
        offset, slide, scale, turn, opacity, sh, follow, semantic = raw.split(self.sizes, dim=-1)
        footprint = scaffold.lod.coarser
        position = c.position_bound * torch.tanh(offset)
        along = c.ray_bound * torch.tanh(slide[..., 0])
        if snap is not None:
            along = along + torch.tanh(follow[..., 0]) * snap / footprint
        log_scale = c.scale_bound * torch.tanh(scale)
        angle = c.angle_bound * torch.tanh(turn)
        color = _to_world(c.color_bound * torch.tanh(sh).unflatten(-1, (-1, 3)), axes)
        # A product of 3x3 matrices written as a sum: batched matrix products of this size are slow on CPUs.
        step = (quat_to_matrix(scaffold.quats) * position[..., None, :]).sum(dim=-1) + along[..., None] * rays
        fine = replace(
            scaffold,
            means=scaffold.means + footprint[..., None] * step,
            quats=quat_multiply(scaffold.quats, _small_rotation(angle)),
            scales=scaffold.scales * torch.exp(log_scale),
            opacities=_shift_logit(scaffold.opacities, opacity[..., 0]),
            sh=scaffold.sh + color / SH_C0,
            features=semantic if semantic.shape[-1] else scaffold.features,
        )
        residuals = {
            "position": position,
            "slide": along,
            "log_scale": log_scale,
            "angle": angle,
            "logit_opacity": opacity[..., 0],
            "color": color[..., 0, :],
        }
        return fine, residuals


def _to_world(sh: Float[Tensor, "b n k 3"], axes: Float[Tensor, "b 3 3"]) -> Float[Tensor, "b n k 3"]:
    """Coefficients of the same colours in world axes: those that agree in many directions, solved by least squares."""
    k = sh.shape[-2]
    if k == 1:
        return sh
    # Points of a Fibonacci sphere.
    steps = torch.arange(64, dtype=sh.dtype, device=sh.device) + 0.5
    z, angle = 1 - steps / 32, math.pi * (1 + 5**0.5) * steps
    across = (1 - z.square()).sqrt()
    directions = torch.stack([across * angle.cos(), across * angle.sin(), z], dim=-1)
    degree = math.isqrt(k) - 1
    world, own = sh_basis(directions, degree), sh_basis(directions @ axes.mT, degree)
    matrix = torch.linalg.solve(world.mT @ world, world.mT @ own)
    return torch.einsum("bij,bnjc->bnic", matrix, sh)


def _shift_logit(opacities: Tensor, shift: Tensor) -> Tensor:
    """sigmoid(logit(o) + shift), written so that a shift of 0 changes no bit and an opacity of 0 stays 0."""
    growth = torch.expm1(shift.clamp(-10, 10))
    return opacities + opacities * (1 - opacities) * growth / (1 + opacities * growth)


def _small_rotation(vector: Tensor) -> Tensor:
    """wxyz quaternion (not normalised) of the rotation by about |vector| radians; the identity for 0."""
    return torch.cat([torch.ones_like(vector[..., :1]), 0.5 * vector], dim=-1)
