"""SuperResolver: low-resolution views and coarse Gaussians to fine Gaussians, in one forward pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sr3d.cameras import Cameras
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.models.budget import home_views, plan_split
from sr3d.models.conditioning import Conditioner
from sr3d.models.config import SuperResolverConfig
from sr3d.models.consistency import consistent
from sr3d.models.decoder import CELL, Decoder, Maps
from sr3d.models.describe import DESCRIPTION, describe, places, to_surface
from sr3d.models.encoder import RAY_CHANNELS, Encoder, mean_axes, plucker_rays
from sr3d.models.gather import Sight, fuse, locate, normalised, sample
from sr3d.models.geometry import Geometry
from sr3d.models.head import OffsetHead
from sr3d.models.inputs import COARSE_CHANNELS, SHOWN_CHANNELS, Views, cells, exact, padded, prepare, with_lod
from sr3d.models.points import PointTransformer
from sr3d.models.prediction import Prediction
from sr3d.models.recurrence import low_resolution_error
from sr3d.models.refinement import Refinement
from sr3d.models.scaffold import Children, join, split_all, split_some, upper_bands
from sr3d.models.semantics import Semantics
from sr3d.models.upsampler import Upsampler
from sr3d.rendering import rgb_to_sh
from sr3d.rendering.sh import SH_C0
from sr3d.scene import Scene

_SLOTS = 4


class SuperResolver(nn.Module):
    """ViT network that predicts residual offsets for a scaffold of densified Gaussians (SR3R Eq. 1-7).

    An untrained network returns the scaffold exactly. Any number of views ≥ 1, any image size, any source of coarse
    Gaussians.
    """

    def __init__(self, config: SuperResolverConfig) -> None:
        super().__init__()
        self.upsampler, self.encoder = Upsampler(config.upsampler), Encoder(config.encoder)
        # Weights that these two load are stored with the network: it is rebuilt without them.
        self.config = config = replace(config, upsampler=self.upsampler.config, encoder=self.encoder.config)
        width, rounds = self.encoder.width, 1 + (config.recurrence.steps if config.recurrence else 0)
        evidence = SHOWN_CHANNELS + 3 * (rounds > 1)
        geometry, points, semantics = config.geometry, config.points, config.semantics
        self.conditioner = None if config.conditioning is None else Conditioner(config.conditioning, width)
        patch, refinement = self.encoder.patch, config.refinement
        drawn = COARSE_CHANNELS + RAY_CHANNELS
        self.refinement = None if refinement is None else Refinement(refinement, width, patch, drawn)
        self.geometry = None if geometry is None else Geometry(geometry, SHOWN_CHANNELS, CELL)
        matches = 0 if self.geometry is None else self.geometry.channels
        self.decoder = Decoder(config.decoder, width, patch, evidence, matches, dense=config.head is not None)
        inputs = 2 * config.decoder.fine + DESCRIPTION + _SLOTS
        self.points = None if points is None else PointTransformer(points, inputs)
        sh, semantic = (config.sh_degree + 1) ** 2, 0 if semantics is None else semantics.width
        head = config.head
        self.head = None if head is None else OffsetHead(head, inputs, sh, geometry is not None, semantic)
        self.semantics = None if semantics is None else Semantics(semantics)
        for f in (config.factor, *config.factors):
            self.upsampler.check(f)

    def forward(
        self,
        coarse: Gaussians,
        images: Float[Tensor, "b v h w 3"],
        cameras: Cameras,
        factor: int | None = None,
    ) -> Gaussians:
        """Fine Gaussians of B scenes: `predict` without what surrounds them. [B, N]"""
        return self.predict(coarse, images, cameras, factor=factor).gaussians

    def predict(
        self,
        coarse: Gaussians,
        images: Float[Tensor, "b v h w 3"],
        cameras: Cameras,
        *,
        factor: int | None = None,
        embedding: Float[Tensor, "b e"] | None = None,
        has_embedding: Bool[Tensor, " b"] | None = None,
        coarse_tokens: Float[Tensor, "b v c hc wc"] | None = None,
        enlarged: Float[Tensor, "b v H W 3"] | None = None,
    ) -> Prediction:
        """Fine Gaussians of B scenes, and what the branches of the network saw.

        Args:
            coarse: M Gaussians for each scene, with level-of-detail fields. [B, M]
            images: Low-resolution views in [0, 1]. [B, V, h, w, 3]
            cameras: Their cameras at low resolution. [B, V]
            factor: Ratio of the resolutions, one that the network is made for; its first one if None.
            embedding: Text or image embedding, for a network with conditioning. [B, E]
            has_embedding: Scenes that have one; all of them if None. [B]
            coarse_tokens: Of the network that made the coarse scene, row-major maps over each view, for a network
                with `refinement.coarse_width`.
            enlarged: The views at high resolution, from somebody else's image super-resolution; by default those of
                the network's own upsampler.

        Raises:
            Sr3dError: Shapes disagree, an embedding or tokens that the network has no use for or lacks, the coarse
                scene has no level of detail, too high an SH degree, or lies outside all views, or another factor.
        """
        views = self._prepare(coarse, images, cameras, self._checked(coarse, factor), enlarged)
        self._check_told(embedding, coarse_tokens)
        with exact(images):
            children, sight = self._scaffold(coarse, views)
            rays = plucker_rays(views.cameras, views.unit)
            shown = padded(views.shown(), CELL)
        tokens = self._tokens(views, rays, embedding, has_embedding, coarse_tokens)
        matches = None if self.geometry is None else self.geometry(shown, *cells(views, CELL))
        patch = self.encoder.patch
        grid = (-(-views.cameras.height // patch), -(-views.cameras.width // patch))
        rounds = 1 + (self.config.recurrence.steps if self.config.recurrence else 0)
        error, maps, raw = torch.zeros_like(views.images), None, None
        for i in range(rounds):
            evidence = shown if rounds == 1 else torch.cat([shown, padded(error, CELL)], dim=2)
            found = self.decoder(tokens, grid, evidence, matches)
            maps = _sum(maps, found.cropped(views.cameras.height, views.cameras.width))
            raw = self._residuals(maps, raw, children, sight, views)
            with exact(images):
                prediction = self._assemble(maps, raw, children, sight, views)
                if i + 1 < rounds:
                    error = self._error(prediction.gaussians, images, views)
        # What is corrected afterwards need not be right before: a network that learned with it would drift.
        if self.config.consistency is None or self.training:
            return prediction
        rounds, small = self.config.consistency.rounds, views.small
        with exact(images):
            fine = consistent(prediction.gaussians, images, small, views.factor, rounds)
            return replace(prediction, gaussians=fine)

    def set_checkpointing(self, enabled: bool) -> None:
        """Compute activations again in the backward pass instead of keeping them."""
        self.decoder.checkpointing = enabled
        for part in (self.upsampler, self.encoder, self.points):
            if part is not None:
                part.set_checkpointing(enabled)

    def scaffold(
        self, coarse: Gaussians, images: Float[Tensor, "b v h w 3"], cameras: Cameras, factor: int | None = None
    ) -> Gaussians:
        """What `forward` returns before any learning; arguments as for `predict`."""
        views = self._prepare(coarse, images, cameras, self._checked(coarse, factor), None)
        return self._scaffold(coarse, views)[0].gaussians

    def upscale(self, coarse: Gaussians, views: Scene, factor: int = 4) -> Gaussians:
        """Fine Gaussians of one scene, without gradients: `refine` without the parents. [N]"""
        return self.refine(coarse, views, factor)[0]

    def refine(
        self, coarse: Gaussians, views: Scene, factor: int = 4, embedding: Float[Tensor, " e"] | None = None
    ) -> tuple[Gaussians, Int[Tensor, " n"]]:
        """Fine Gaussians of one scene, with `lod` linking them to their parents, and the indices of these [N].

        Arguments and errors as for `predict_scene`.
        """
        found = self.predict_scene(coarse, views, factor, embedding)
        return found.gaussians[0], found.parents[0]

    def predict_scene(
        self,
        coarse: Gaussians,
        views: Scene,
        factor: int = 4,
        embedding: Float[Tensor, " e"] | None = None,
        enlarged: Float[Tensor, "v H W 3"] | None = None,
    ) -> Prediction:
        """`predict` for one scene, without gradients: a batch of 1.

        Args:
            coarse: M Gaussians, world frame. Without `lod`, they count as made for the resolution of `views`. [M]
            views: V posed low-resolution views.
            factor: Ratio of the resolutions; must be one the network was trained for.
            embedding: Text or image embedding, for a network with conditioning. [E]
            enlarged: The views at high resolution, where something else enlarges them (see `predict`).

        Raises:
            Sr3dError: Another factor, unposed views, coarse Gaussians with batch axes, or none in sight.
        """
        if coarse.means.ndim != 2:
            raise Sr3dError("SuperResolver.upscale", "coarse", f"shape {tuple(coarse.means.shape)}", "[M, 3]")
        cameras = views.posed()
        device = next(self.parameters()).device
        coarse, cameras = with_lod(coarse, cameras).to(device), cameras.to(device)
        batched = replace(cameras, world_to_cam=cameras.world_to_cam[None], K=cameras.K[None])
        about = None if embedding is None else embedding[None].to(device)
        large = None if enlarged is None else enlarged[None].to(device)
        images = views.images[None].to(device)
        with torch.no_grad():
            return self.predict(coarse.unsqueezed(), images, batched, factor=factor, embedding=about, enlarged=large)

    @staticmethod
    def from_pretrained(name_or_path: str | Path) -> SuperResolver:
        """Rebuild a network from a checkpoint alone (see `sr3d.models.checkpoint.load_network`)."""
        from sr3d.models.checkpoint import load_network

        return load_network(name_or_path)

    def save_pretrained(self, path: str | Path) -> None:
        """Write weights and config (see `sr3d.models.checkpoint.save_network`)."""
        from sr3d.models.checkpoint import save_network

        save_network(self, path)

    def _checked(self, coarse: Gaussians, factor: int | None) -> int:
        """The factor, if the network is made for it and for the colours of the coarse scene."""
        config = self.config
        f = config.factor if factor is None else factor
        if f not in (config.factor, *config.factors):
            expected = f"{config.factor}, as trained {config.factors or ''}".rstrip()
            raise Sr3dError("SuperResolver", "factor", f, expected)
        if coarse.sh_degree > config.sh_degree:
            raise Sr3dError("SuperResolver", "coarse.sh", f"degree {coarse.sh_degree}", f"degree ≤ {config.sh_degree}")
        return f

    def _check_told(self, embedding: Tensor | None, coarse_tokens: Tensor | None) -> None:
        """What nobody would read is a mistake, and so is what is missing."""
        if embedding is not None and self.conditioner is None:
            raise Sr3dError("SuperResolver", "embedding", "one", "none: the network has no conditioning")
        wanted = 0 if self.config.refinement is None else self.config.refinement.coarse_width
        given = 0 if coarse_tokens is None else coarse_tokens.shape[2]
        if given != wanted:
            expected = f"{wanted} (model.network.refinement.coarse_width)"
            raise Sr3dError("SuperResolver", "coarse_tokens", f"{given} channels", expected)

    # The two places where something is drawn: `sr3d.models.estimate` has its own, which draw nothing.
    def _prepare(self, coarse: Gaussians, images: Tensor, cameras: Cameras, factor: int, large: Tensor | None) -> Views:
        return prepare(coarse, images, cameras, factor, self.upsampler, large)

    def _error(self, fine: Gaussians, images: Tensor, views: Views) -> Float[Tensor, "b v 3 h w"]:
        return low_resolution_error(fine, images, views.cameras, views.factor)

    def _tokens(
        self,
        views: Views,
        rays: Float[Tensor, "b v 6 h w"],
        embedding: Float[Tensor, "b e"] | None,
        has_embedding: Bool[Tensor, " b"] | None,
        coarse_tokens: Float[Tensor, "b v c hc wc"] | None,
    ) -> Float[Tensor, "b v t d"]:
        """Of the encoder, told about the embedding and the coarse scene, after attention across views."""
        tokens = self.encoder(views.images, rays)
        if self.conditioner is not None:
            tokens = self.conditioner(tokens, embedding, has_embedding)
        if self.refinement is not None:
            tokens = self.refinement(tokens, torch.cat([views.coarse, rays], dim=2), coarse_tokens)
        out: Tensor = self.decoder.attend(tokens)
        return out

    def _scaffold(self, coarse: Gaussians, views: Views) -> tuple[Children, Sight]:
        """Children with the colours of the views, and where they are seen."""
        config = self.config.scaffold
        k = (self.config.sh_degree + 1) ** 2
        coarse = replace(coarse, sh=nn.functional.pad(coarse.sh, (0, 0, 0, k - coarse.sh.shape[-2])))
        small = views.small
        home = home_views(coarse, small)
        if config.budget is None:
            children = split_all(coarse, home, config, views.factor, small)
        else:
            children = self._within_budget(coarse, home, views)
        gaussians = children.gaussians
        upper = upper_bands(gaussians, children.home, small)
        colors = 0.5 + SH_C0 * gaussians.sh[..., 0, :] + upper
        blurred = nn.functional.avg_pool2d(views.images.flatten(0, 1), views.factor).unflatten(0, views.low.shape[:2])
        sight = locate(
            gaussians.means, colors, views.cameras, views.surface, blurred, children.home, self.config.gather
        )
        if config.recolor:
            color = fuse(sample(views.images, sight.uv), sight.weights).mT
            seen = (sight.weights.sum(dim=1) > 0)[..., None]
            dc = torch.where(seen, rgb_to_sh(color - upper)[..., 0, :], gaussians.sh[..., 0, :])
            sh = torch.cat([dc[..., None, :], gaussians.sh[..., 1:, :]], dim=-2)
            children = replace(children, gaussians=replace(gaussians, sh=sh))
        return children, sight

    def _within_budget(self, coarse: Gaussians, home: Tensor, views: Views) -> Children:
        config, factor, small = self.config.scaffold, views.factor, views.small
        grid, flat = config.grid or factor, config.flat(factor)
        assert config.budget is not None
        surface = nn.functional.interpolate(views.surface.flatten(0, 1)[:, None], size=views.low.shape[-2:])[:, 0]
        plan = plan_split(
            coarse,
            home,
            small,
            views.low,
            surface.unflatten(0, views.low.shape[:2]),
            int(config.budget * grid**2 * len(coarse)),
            grid,
            flat,
        )
        groups = ((plan.fine, grid, config.shrink), (plan.flat, flat, config.flat_shrink))
        return join([split_some(coarse, chosen, home, config, k, size, factor, small) for chosen, k, size in groups])

    def _residuals(
        self, maps: Maps, before: Tensor | None, children: Children, sight: Sight, views: Views
    ) -> Float[Tensor, "b n r"] | None:
        """Of the head for every child, added to those of the rounds before."""
        if self.head is None or maps.features is None:
            return None
        fine = sample(maps.features, sight.uv)
        described = describe(children.gaussians, sight, views)
        features = torch.cat([fuse(fine, sight.weights), fuse(fine, sight.home), described], dim=1).mT
        features = torch.cat([features, children.slots], dim=-1)
        if self.points is not None:
            there = children.parents >= 0
            with exact(features):
                positions = places(children.gaussians.means.detach(), there, views)
            # One scene is never padded; without a mask, attention has faster kernels.
            features = self.points(features, positions, there if len(positions) > 1 else None)
        raw: Tensor = self.head(features)
        return raw if before is None else before + raw

    def _assemble(self, maps: Maps, raw: Tensor | None, children: Children, sight: Sight, views: Views) -> Prediction:
        """Gaussians from the maps and the residuals of each child."""
        scaffold = children.gaussians
        texture = self.config.decoder.texture_bound * torch.tanh(maps.texture)
        images = views.images + texture
        trusted = normalised(sight.raw * torch.exp(sample(maps.trust, sight.uv)[:, :, 0].clamp(-8, 8)))
        before = fuse(sample(views.images, sight.uv), sight.weights)
        change = (fuse(sample(images, sight.uv), trusted) - before).mT / SH_C0
        sh = torch.cat([scaffold.sh[..., :1, :] + change[..., None, :], scaffold.sh[..., 1:, :]], dim=-2)
        fine = replace(scaffold, sh=sh)
        depths, snap = None, None
        residuals: dict[str, Tensor] = {}
        if maps.depth is not None and self.config.geometry is not None:
            log_depth = self.config.geometry.reach * torch.tanh(maps.depth)
            depths = views.surface * torch.exp(log_depth[:, :, 0])
            snap = to_surface(depths, sight, self.config.geometry.bound)
        if self.head is not None and raw is not None:
            away = scaffold.means[:, None] - views.cameras.positions[:, :, None]
            share = torch.where(sight.home.sum(dim=1, keepdim=True) > 0, sight.home, sight.weights)
            towards = (away * (share / away.norm(dim=-1).clamp_min(1e-9))[..., None]).sum(dim=1)
            length = None if snap is None else snap * (away.norm(dim=-1) * share).sum(dim=1)
            rays, axes = nn.functional.normalize(towards, dim=-1), mean_axes(views.cameras)
            fine, residuals = self.head.apply_to(fine, raw, rays, axes, length)
        return Prediction(
            gaussians=fine,
            scaffold=scaffold,
            parents=children.parents,
            images=images.movedim(2, -1).clamp(0, 1),
            depths=depths,
            residuals=residuals,
        )


def _sum(before: Maps | None, maps: Maps) -> Maps:
    """Maps of all rounds so far; features are those of the last one."""
    if before is None:
        return maps
    return Maps(
        features=maps.features,
        texture=before.texture + maps.texture,
        trust=before.trust + maps.trust,
        depth=None if before.depth is None or maps.depth is None else before.depth + maps.depth,
    )
