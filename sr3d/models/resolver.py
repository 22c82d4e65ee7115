"""SuperResolver: low-resolution views and coarse Gaussians to fine Gaussians, in one forward pass."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sr3d.cameras import Cameras
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.lod import Lod
from sr3d.models.decoder import Decoder, DecoderConfig
from sr3d.models.encoder import Encoder, EncoderConfig, plucker_rays
from sr3d.models.gather import GatherConfig, Sight, fuse, locate, sample
from sr3d.models.head import HeadConfig, OffsetHead
from sr3d.models.refinement import Refinement, RefinementConfig
from sr3d.models.scaffold import ScaffoldConfig, child_slots, split_gaussians
from sr3d.rendering import render, rgb_to_sh
from sr3d.rendering.sh import SH_C0
from sr3d.scene import Scene

_SLOT_WIDTH = 8
_COARSE_CHANNELS = 5  # rgb, log-depth, alpha
_EVIDENCE = 3 + _COARSE_CHANNELS + 4  # upsampled rgb, the coarse scene, what the other views show (difference, seen)
_GEOMETRY = 14  # per-child numbers beside features, see `_describe`


@dataclass(kw_only=True)
class SuperResolverConfig:
    """The whole network; travels with every checkpoint.

    Attributes:
        factor: Ratio of the resolutions, per side.
        sh_degree: Degree of the colour residual, 0 to 3; lower-degree coarse colour is padded.
        scaffold: Split of the parents.
        gather: Occlusion test and choice of views.
        encoder: Vision transformer.
        refinement: Cross-attention with the coarse scene.
        decoder: Attention across views and feature maps.
        head: Residuals.
    """

    factor: int = 4
    sh_degree: int = 0
    scaffold: ScaffoldConfig = field(default_factory=ScaffoldConfig)
    gather: GatherConfig = field(default_factory=GatherConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    refinement: RefinementConfig = field(default_factory=RefinementConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    head: HeadConfig = field(default_factory=HeadConfig)


@dataclass(kw_only=True)
class _Views:
    """What the network knows of V views at high resolution."""

    images: Float[Tensor, "b v 3 h w"]
    cameras: Cameras
    surface: Float[Tensor, "b v h w"]
    coarse: Float[Tensor, "b v 5 h w"]
    unit: Float[Tensor, " b"]


class SuperResolver(nn.Module):
    """ViT network that predicts residual offsets for a scaffold of densified Gaussians (SR3R Eq. 1-7).

    An untrained network returns the scaffold exactly. Any number of views ≥ 1; any source of coarse Gaussians.
    """

    def __init__(self, config: SuperResolverConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder)
        width = self.encoder.width
        self.refinement = Refinement(config.refinement, width, self.encoder.patch, _COARSE_CHANNELS)
        self.decoder = Decoder(config.decoder, width, _EVIDENCE, config.factor)
        self.slots = nn.Embedding(config.scaffold.children, _SLOT_WIDTH)
        inputs = 3 * config.decoder.fine + _GEOMETRY + _SLOT_WIDTH
        self.head = OffsetHead(config.head, inputs, (config.sh_degree + 1) ** 2)

    def forward(self, coarse: Gaussians, images: Float[Tensor, "b v h w 3"], cameras: Cameras) -> Gaussians:
        """Fine Gaussians of B scenes.

        Args:
            coarse: M Gaussians for each scene, with level-of-detail fields. [B, M]
            images: Low-resolution views in [0, 1]. [B, V, h, w, 3]
            cameras: Their cameras at low resolution. [B, V]

        Returns:
            [B, M · children], with `lod` linking them to their parents.

        Raises:
            Sr3dError: Shapes disagree, or the coarse scene has no level of detail or too high an SH degree.
        """
        _check_inputs(coarse, images, cameras, self.config)
        views = self._prepare(coarse.detach(), images, cameras)
        scaffold, sight = self._scaffold(coarse, views)
        rays = plucker_rays(views.cameras, views.unit)
        tokens = self.refinement(self.encoder(views.images, rays), views.coarse)
        patch = self.encoder.patch
        grid = (-(-views.cameras.height // patch), -(-views.cameras.width // patch))
        low, high = self.decoder(tokens, grid, torch.cat([views.images, views.coarse, _other_views(views)], dim=2))

        fine = sample(high, sight.uv)
        seen = sight.visible / sight.visible.sum(dim=1, keepdim=True).clamp_min(1)
        slots = self.slots(child_slots(len(coarse), self.config.scaffold.children, low.device))
        features = torch.cat(
            [
                fuse(fine, sight.weights),
                fuse(fine, seen),
                fuse(sample(low, sight.uv), sight.weights),
                _describe(scaffold, sight, seen, views),
                slots.T.expand(len(scaffold.means), -1, -1),
            ],
            dim=1,
        ).mT
        assert scaffold.lod is not None
        away = scaffold.means[:, None] - views.cameras.positions[:, :, None]
        towards = (away * (sight.weights / away.norm(dim=-1).clamp_min(1e-9))[..., None]).sum(dim=1)
        return self.head(features, scaffold, scaffold.lod.coarser, nn.functional.normalize(towards, dim=-1))

    def scaffold(self, coarse: Gaussians, images: Float[Tensor, "b v h w 3"], cameras: Cameras) -> Gaussians:
        """What `forward` returns before any learning; arguments as there."""
        _check_inputs(coarse, images, cameras, self.config)
        return self._scaffold(coarse, self._prepare(coarse.detach(), images, cameras))[0]

    def upscale(self, coarse: Gaussians, views: Scene, factor: int = 4) -> Gaussians:
        """Fine Gaussians of one scene, without gradients.

        Args:
            coarse: M Gaussians, world frame. Without `lod`, they count as made for the resolution of `views`. [M]
            views: V posed low-resolution views.
            factor: Ratio of the resolutions; must be the one the network was trained for.

        Returns:
            [M · children], with `lod` linking them to their parents.

        Raises:
            Sr3dError: Another factor, unposed views, or coarse Gaussians with batch axes.
        """
        if factor != self.config.factor:
            raise Sr3dError("SuperResolver.upscale", "factor", factor, f"{self.config.factor}, as trained")
        if coarse.means.ndim != 2:
            raise Sr3dError("SuperResolver.upscale", "coarse", f"shape {tuple(coarse.means.shape)}", "[M, 3]")
        cameras = views.posed()
        device = self.slots.weight.device
        coarse, cameras = with_lod(coarse, cameras).to(device), cameras.to(device)
        batched = replace(cameras, world_to_cam=cameras.world_to_cam[None], K=cameras.K[None])
        with torch.no_grad():
            fine = self(_unsqueeze(coarse), views.images[None].to(device), batched)
        return fine[0]

    @staticmethod
    def from_pretrained(name_or_path: str | Path) -> SuperResolver:
        """Rebuild a network from a checkpoint alone (see `sr3d.models.checkpoint.load_network`)."""
        from sr3d.models.checkpoint import load_network

        return load_network(name_or_path)

    def save_pretrained(self, path: str | Path) -> None:
        """Write weights and config to one `.safetensors` file (see `sr3d.models.checkpoint.save_network`)."""
        from sr3d.models.checkpoint import save_network

        save_network(self, path)

    def _prepare(self, coarse: Gaussians, images: Tensor, cameras: Cameras) -> _Views:
        """Upsample the views and draw the coarse scene into them."""
        f = self.config.factor
        large = cameras.resized(cameras.width * f, cameras.height * f)
        channels_first = images.movedim(-1, 2)
        upsampled = nn.functional.interpolate(
            channels_first.flatten(0, 1), scale_factor=f, mode="bicubic", align_corners=False
        ).clamp(0, 1)
        with torch.no_grad():
            drawn = render(coarse, large, lod=False)
        unit = (drawn.depth.flatten(1).sum(1) / (drawn.depth > 0).flatten(1).sum(1).clamp_min(1)).clamp_min(1e-9)
        relative = torch.where(
            drawn.depth > 0, torch.log(drawn.depth.clamp_min(1e-9) / unit[:, None, None, None]), 0.0
        ).clamp(-3, 3)
        stack = torch.cat([drawn.rgb, relative[..., None], drawn.alpha[..., None]], dim=-1).movedim(-1, 2)
        return _Views(
            images=upsampled.unflatten(0, images.shape[:2]),
            cameras=large,
            surface=torch.where(drawn.alpha > 0.5, drawn.depth, 0.0),
            coarse=stack,
            unit=unit,
        )

    def _scaffold(self, coarse: Gaussians, views: _Views) -> tuple[Gaussians, Sight]:
        k = (self.config.sh_degree + 1) ** 2
        coarse = replace(coarse, sh=nn.functional.pad(coarse.sh, (0, 0, 0, k - coarse.sh.shape[-2])))
        f = self.config.factor
        small = views.cameras.resized(views.cameras.width // f, views.cameras.height // f)
        children = split_gaussians(coarse, self.config.scaffold, f, small)
        colors = 0.5 + SH_C0 * children.sh[..., 0, :]
        blurred = nn.functional.avg_pool2d(views.images.flatten(0, 1), f).unflatten(0, views.images.shape[:2])
        sight = locate(children.means, colors, views.cameras, views.surface, blurred, self.config.gather)
        if self.config.scaffold.recolor:
            color = fuse(sample(views.images, sight.uv), sight.weights).mT
            seen = (sight.weights.sum(dim=1) > 0)[..., None]
            dc = torch.where(seen, rgb_to_sh(color)[..., 0, :], children.sh[..., 0, :])
            children = replace(children, sh=torch.cat([dc[..., None, :], children.sh[..., 1:, :]], dim=-2))
        return children, sight


def with_lod(gaussians: Gaussians, cameras: Cameras) -> Gaussians:
    """Gaussians as they are where they have `lod`, else as roots made for the sharpest of `cameras` that sees them.

    Args:
        gaussians: [N]
        cameras: [C]
    """
    if gaussians.lod is not None:
        return gaussians
    _, depth = cameras.project(gaussians.means)
    # A Gaussian behind every camera still needs a finite footprint.
    footprint = cameras.footprint(torch.where(depth > 0, depth, torch.inf)).amin(dim=-2)
    fallback = cameras.footprint(depth.abs().clamp_min(1e-6)).amin(dim=-2)
    return replace(gaussians, lod=Lod.roots(torch.where(torch.isfinite(footprint), footprint, fallback)))


def _unsqueeze(gaussians: Gaussians) -> Gaussians:
    lod = gaussians.lod
    batched = gaussians._map(lambda t, axis: t[None])
    return replace(batched, lod=None if lod is None else lod.map(lambda t: t[None]))


def _other_views(views: _Views) -> Float[Tensor, "b v 4 h w"]:
    """Mean of what the other views show at each pixel's surface point, minus the pixel; and the share that sees it."""
    _, v, _, h, w = views.images.shape
    points = views.cameras.unproject(views.surface).flatten(1, 3)
    pixels, depth = views.cameras.project(points)
    uv = pixels / torch.tensor([w, h], dtype=points.dtype, device=points.device)
    inside = (depth > 0) & (uv > 0).all(dim=-1) & (uv < 1).all(dim=-1)
    uv = torch.where(inside[..., None], uv, torch.full_like(uv, 0.5))
    front = sample(views.surface[:, :, None], uv, mode="nearest")[:, :, 0]
    seen = inside & (front > 0) & ((depth / front.clamp_min(1e-9) - 1).abs() < 0.03)
    seen = seen.unflatten(-1, (v, h * w)) & ~torch.eye(v, dtype=torch.bool, device=uv.device)[None, :, :, None]
    seen = (seen & (views.surface.flatten(2) > 0)[:, None]).to(points.dtype)  # [b, from, to, h·w]
    colors = sample(views.images, uv).unflatten(-1, (v, h * w)).movedim(3, 2)  # [b, from, to, 3, h·w]
    count = seen.sum(dim=1)[:, :, None]
    mean = (colors * seen[:, :, :, None]).sum(dim=1) / count.clamp_min(1)
    # Where depth is wrong the views show different things: beyond a point, how different does not matter.
    difference = 0.2 * torch.tanh((mean - views.images.flatten(3)) / 0.2) * (count > 0)
    return torch.cat([difference, count / max(v - 1, 1)], dim=2).unflatten(-1, (h, w))


def _describe(scaffold: Gaussians, sight: Sight, seen: Tensor, views: _Views) -> Float[Tensor, "b 14 n"]:
    """What is known of each child besides image features; nothing here depends on the world's frame or unit."""
    assert scaffold.lod is not None
    colors = sample(views.images, sight.uv)
    own = (0.5 + SH_C0 * scaffold.sh[..., 0, :]).clamp(0, 1).mT
    opacity = torch.logit(scaffold.opacities.clamp(1e-3, 1 - 1e-3))
    size = torch.log((scaffold.scales.prod(dim=-1) / scaffold.lod.native**3).clamp(1e-9, 1e9)) / 3
    footprint = views.cameras.footprint(sight.depth.clamp_min(1e-9)) / scaffold.lod.native[:, None]
    zoom = (torch.log(footprint.clamp(1e-3, 1e3)) * sight.weights).sum(dim=1)
    numbers = [sight.visible.mean(dim=1), (sight.behind * seen).sum(dim=1), opacity / 4, size, zoom]
    return torch.cat(
        [fuse(colors, sight.weights) - own, fuse(colors, seen) - own, own, torch.stack(numbers, dim=1)], dim=1
    )


def _check_inputs(coarse: Gaussians, images: Tensor, cameras: Cameras, config: SuperResolverConfig) -> None:
    where = "SuperResolver"
    if coarse.lod is None:
        raise Sr3dError(where, "coarse.lod", "none", "Gaussians with native footprints (sr3d.lod.Lod.roots)")
    if coarse.sh_degree > config.sh_degree:
        raise Sr3dError(where, "coarse.sh", f"degree {coarse.sh_degree}", f"degree ≤ {config.sh_degree}")
    if tuple(images.shape[2:4]) != (cameras.height, cameras.width):
        found = f"images {tuple(images.shape[2:4])}, cameras {(cameras.height, cameras.width)}"
        raise Sr3dError(where, "images", found, "one height and width")
    if images.shape[:2] != cameras.K.shape[:2] or len(coarse.means) != len(images):
        found = f"images {tuple(images.shape[:2])}, cameras {tuple(cameras.K.shape[:2])}, scenes {len(coarse.means)}"
        raise Sr3dError(where, "views", found, "equal batch and view counts")
