"""Geometry branch: depth of the input views from how well their features agree along the viewing rays."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sr3d.cameras import Cameras
from sr3d.models.gather import sample


@dataclass(kw_only=True)
class GeometryConfig:
    """Cost volume around the depth of the coarse scene.

    Attributes:
        hypotheses: Depths that are compared on either side of the coarse one.
        step: Distance of neighbouring depths, in cells of parallax (see `sr3d.models.decoder.CELL`).
        features: Channels that are compared.
        reach: Largest distance of the outermost depth, and of the predicted depth, as a logarithm.
        bound: Largest distance that a Gaussian moves to the predicted surface, as a share of its depth: where that is
            another surface, a long way there opens a hole.
    """

    hypotheses: int = 4
    step: float = 0.35
    features: int = 16
    reach: float = 0.25
    bound: float = 0.5


class Geometry(nn.Module):
    """Compares features of the views along each ray; the decoder regularises the result over the image.

    As in MVSplat and DepthSplat the evidence is a cost volume, here of a few depths around the coarse one, and the
    network that reads it is the decoder's.
    """

    def __init__(self, config: GeometryConfig, evidence: int, cell: int) -> None:
        super().__init__()
        self.config, self.cell = config, cell
        self.features = nn.Sequential(
            nn.Conv2d(evidence * cell**2, config.features, 3, padding=1, padding_mode="replicate"),
            nn.GELU(),
            nn.Conv2d(config.features, config.features, 3, padding=1, padding_mode="replicate"),
        )

    @property
    def channels(self) -> int:
        """Channels of `forward`'s result."""
        return 2 * self.config.hypotheses + 3

    def forward(
        self,
        pixels: Float[Tensor, "b v c h w"],
        cameras: Cameras,
        surface: Float[Tensor, "b v hl wl"],
    ) -> Float[Tensor, "b v k hl wl"]:
        """Agreement with the other views at every depth.

        Args:
            pixels: Evidence at high resolution; height and width are multiples of the cell.
            cameras: At the size of `surface`, the decoder's grid.
            surface: z-depth of the coarse scene at the centres of the grid's pixels, 0 where it has none.

        Returns:
            Mean correlation at each of 2·hypotheses + 1 depths, nearest first; the share of the other views whose frame
            the surface lies in (hidden or not); and the distance between depths, as a share of `reach`.
        """
        b, v = surface.shape[:2]
        maps = nn.functional.pixel_unshuffle(pixels.flatten(0, 1), self.cell)
        maps = self.features(maps).float().unflatten(0, (b, v))
        maps = maps / maps.square().mean(dim=2, keepdim=True).add(1e-4).sqrt()
        with torch.autocast(maps.device.type, enabled=False):
            return self._compare(maps, cameras, surface.float())

    def _compare(
        self, maps: Float[Tensor, "b v f h w"], cameras: Cameras, surface: Float[Tensor, "b v h w"]
    ) -> Float[Tensor, "b v k h w"]:
        c, (v, h, w) = self.config, surface.shape[1:]
        depth = torch.where(surface > 0, surface, torch.ones_like(surface))
        step = self._steps(depth, cameras).clamp_max(c.reach / c.hypotheses)
        others = 1 - torch.eye(v, device=surface.device)[None, :, :, None]
        size = torch.tensor([w, h], dtype=surface.dtype, device=surface.device)
        scores = []
        for k in range(-c.hypotheses, c.hypotheses + 1):
            points = cameras.unproject(depth * torch.exp(k * step)).flatten(1, 3)
            pixels, z = cameras.project(points)
            uv = pixels / size
            inside = ((z > 0) & (uv > 0).all(dim=-1) & (uv < 1).all(dim=-1)).unflatten(-1, (v, h * w))
            seen = inside * others * (surface > 0).flatten(2)[:, None]  # [b, from, to, h·w]
            uv = torch.where(inside.flatten(2)[..., None], uv, torch.full_like(uv, 0.5))
            there = sample(maps, uv).unflatten(-1, (v, h * w))  # [b, from, f, to, h·w]
            score = (there * maps.flatten(3).movedim(1, 2)[:, None]).mean(dim=2)
            count = seen.sum(dim=1)
            scores.append((score * seen).sum(dim=1) / count.clamp_min(1))
            if k == 0:
                share = count / max(v - 1, 1)
        scores += [share, (step / c.reach).flatten(2)]
        return torch.stack(scores, dim=2).unflatten(-1, (h, w))

    def _steps(self, depth: Float[Tensor, "b v h w"], cameras: Cameras) -> Float[Tensor, "b v h w"]:
        """Change of log-depth that moves a point by `step` pixels in the view where it moves most."""
        small = 1e-2
        here, _ = cameras.project(cameras.unproject(depth).flatten(1, 3))
        there, z = cameras.project(cameras.unproject(depth * (1 + small)).flatten(1, 3))
        moved = torch.where(z > 0, (there - here).norm(dim=-1), 0).amax(dim=1).reshape_as(depth)
        return self.config.step * small / moved.clamp_min(1e-6)
