"""What the network returns besides the fine Gaussians: losses and dashboards look at it."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Float, Int
from torch import Tensor

from sr3d.gaussians import Gaussians


@dataclass(kw_only=True)
class Prediction:
    """Result of one forward pass over B scenes of V views.

    Attributes:
        gaussians: Fine Gaussians, world frame. [B, N]
        scaffold: The same Gaussians before learning. [B, N]
        parents: Index of the coarse Gaussian that each was split from; −1 for padding, whose opacity is 0. [B, N]
        images: Input views at high resolution as the texture branch sees them, in [0, 1]. [B, V, H, W, 3]
        depths: Their z-depth as the geometry branch sees it, world units, 0 where the coarse scene has none; None
            without that branch. [B, V, H, W]
        residuals: What was added to the scaffold, one entry for each kind: `position` along the principal axes
            [B, N, 3] and `slide` along the viewing ray [B, N], in parent footprints; `log_scale` [B, N, 3]; `angle`,
            radians [B, N, 3]; `logit_opacity` [B, N]; `color`, colour units [B, N, 3].
    """

    gaussians: Gaussians
    scaffold: Gaussians
    parents: Int[Tensor, "b n"]
    images: Float[Tensor, "b v h w 3"]
    depths: Float[Tensor, "b v h w"] | None = None
    residuals: dict[str, Tensor] = field(default_factory=dict)
