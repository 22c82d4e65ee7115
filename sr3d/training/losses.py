"""Losses on what was drawn and predicted. Every part is a mean over clips: it does not matter how they are batched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, smooth_l1_loss
from torchmetrics.functional.image import structural_similarity_index_measure

from sr3d.datasets.batch import Batch
from sr3d.errors import Sr3dError
from sr3d.models.prediction import Prediction
from sr3d.rendering import Rendering
from sr3d.training.perceptual import Net, load_perceptual
from sr3d.training.processes import any_process
from sr3d.training.sharding import gathered
from sr3d.training.teachers import Teacher, TeacherConfig, load_teacher

_OPAQUE = 0.5  # alpha from which on depth and features mean something
_BETA = 0.01  # relative depth error below which its loss is quadratic
_EPSILON = 1e-2  # length of drawn embeddings below which they have no direction


@dataclass(kw_only=True)
class LossConfig:
    """Weights of the parts; one of weight 0 is not computed.

    Attributes:
        mse: Squared error at the target views.
        dssim: (1 − SSIM) / 2 at the target views.
        lpips: LPIPS at the target views; left out where its weights cannot be had.
        depth: |log(drawn / true depth)| at the target views, and at the input views where another part needs them.
        low_resolution: Squared error of the drawn input views, reduced by area, against the low-resolution inputs.
        semantic: 1 − cos between drawn features, mapped to embeddings, and the teacher's at the target views.
        context: Squared error of the drawn input views at full resolution.
        texture: Squared error of the network's own high-resolution images of the input views.
        geometry: |log(predicted / true depth)| of the network's own depth of the input views.
    """

    mse: float = 1.0
    dssim: float = 0.02
    lpips: float = 0.0
    depth: float = 0.0
    low_resolution: float = 0.0
    semantic: float = 0.0
    context: float = 0.5
    texture: float = 0.0
    geometry: float = 0.0


@dataclass(kw_only=True)
class _Made:
    """What the parts look at."""

    prediction: Prediction
    target: Rendering
    high: Rendering | None
    batch: Batch
    network: nn.Module


class Losses(nn.Module):
    """The parts of the loss and their weighted sum, in float32 whatever precision is around them.

    Args:
        config: Weights.
        teacher: Gives the embeddings of the semantic part.
        perceptual: Network that LPIPS compares images by.

    Attributes:
        needs_high: Whether the input views have to be drawn, at full resolution.
        needs_features: Whether features have to be drawn.

    Raises:
        Sr3dError: The semantic part has no teacher, or the teacher cannot be loaded.
    """

    def __init__(self, config: LossConfig, teacher: TeacherConfig | None = None, perceptual: Net = "vgg") -> None:
        super().__init__()
        if config.semantic and teacher is None:
            raise Sr3dError("config", "model.loss.semantic", config.semantic, "0, or a teacher (model.teacher)")
        self.weights: dict[str, float] = {name: weight for name, weight in asdict(config).items() if weight}
        self.perceptual = load_perceptual(perceptual) if config.lpips else None
        self._asks_lpips = bool(config.lpips)
        if self.perceptual is None:
            self.weights.pop("lpips", None)
        self.teacher: Teacher | None = load_teacher(teacher) if teacher is not None and config.semantic else None
        self.needs_high = bool(config.context or config.low_resolution)
        self.needs_features = bool(config.semantic)

    def agree(self, device: torch.device) -> None:
        """Leave LPIPS out where any process lacks its weights; all of them have to ask."""
        if not self._asks_lpips or not any_process(self.perceptual is None, device):
            return
        if self.perceptual is not None:
            rank_zero_warn("LPIPS is left out: another process cannot have its weights")
        self.perceptual = None
        self.weights.pop("lpips", None)

    def forward(
        self, prediction: Prediction, target: Rendering, high: Rendering | None, batch: Batch, network: nn.Module
    ) -> dict[str, Float[Tensor, ""]]:
        """The loss of B clips.

        Args:
            prediction: Of the network.
            target: Fine Gaussians drawn into the target views, with features if `needs_features`. [B, T]
            high: The same in the input views at full resolution, if `needs_high`. [B, V]
            batch: Inputs and truth, images as floats.
            network: Its `semantics` maps features to embeddings.

        Returns:
            One entry for each part whose weight is not 0, and "loss", their weighted sum. Pixels without truth, and
            clips without any, count as 0.
        """
        made = _Made(prediction=prediction, target=target, high=high, batch=batch, network=network)
        with torch.autocast(target.rgb.device.type, enabled=False):
            parts = {name: self._parts[name](made) for name in self.weights}
            total = torch.stack([weight * parts[name] for name, weight in self.weights.items()]).sum()
        return {**parts, "loss": total}

    @property
    def _parts(self) -> dict[str, Callable[[_Made], Float[Tensor, ""]]]:
        return {
            "mse": lambda m: squared_error(m.target.rgb, m.batch.target.images),
            "dssim": lambda m: (1 - ssim(m.target.rgb.float(), m.batch.target.images).mean()) / 2,
            "lpips": self._lpips,
            "depth": _depth,
            "low_resolution": lambda m: low_resolution_error(_drawn(m).rgb, m.batch.context.images),
            "semantic": self._semantic,
            "context": lambda m: squared_error(_drawn(m).rgb, m.batch.high.images),
            "texture": lambda m: squared_error(m.prediction.images, m.batch.high.images),
            "geometry": _geometry,
        }

    def _lpips(self, made: _Made) -> Float[Tensor, ""]:
        assert self.perceptual is not None
        distance: Tensor = self.perceptual(made.target.rgb, made.batch.target.images)
        return distance.mean()

    def _semantic(self, made: _Made) -> Float[Tensor, ""]:
        truth, features = made.batch.target, made.target.features
        assert self.teacher is not None and features is not None
        images = truth.images.flatten(0, 1).movedim(-1, 1)
        embeddings, valid = self.teacher(images, None if truth.labels is None else truth.labels.flatten(0, 1))
        shape = truth.images.shape[:2]
        semantics: Any = made.network.semantics
        return cosine_error(
            features,
            made.target.alpha,
            embeddings.unflatten(0, shape),
            valid.unflatten(0, shape),
            gathered(semantics.to_embedding.weight),
        )


def squared_error(rgb: Float[Tensor, "*views h w 3"], truth: Float[Tensor, "*views h w 3"]) -> Float[Tensor, ""]:
    """Mean squared error."""
    return (rgb.float() - truth).square().mean()


def ssim(rgb: Float[Tensor, "*views h w 3"], truth: Float[Tensor, "*views h w 3"]) -> Float[Tensor, "*views"]:
    """Structural similarity of each view (11 × 11 Gaussian window, σ 1.5), images in [0, 1]."""
    a, b = (x.flatten(0, -4).movedim(-1, 1) for x in (rgb, truth))
    value = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
    assert isinstance(value, Tensor)
    return value.reshape(rgb.shape[:-3])


def low_resolution_error(
    rgb: Float[Tensor, "b v h w 3"], inputs: Float[Tensor, "b v low_h low_w 3"]
) -> Float[Tensor, ""]:
    """Mean squared error of views reduced by area to the size of the inputs: what the inputs say must stay true."""
    small = interpolate(rgb.float().flatten(0, 1).movedim(-1, 1), inputs.shape[2:4], mode="area")
    return (small - inputs.flatten(0, 1).movedim(-1, 1)).square().mean()


def depth_error(
    depth: Float[Tensor, "b v h w"], truth: Float[Tensor, "b v h w"], mask: Bool[Tensor, "b v h w"] | None = None
) -> Float[Tensor, ""]:
    """|log(depth / truth)|, quadratic below one percent, over the pixels of `mask` where both are above 0.

    The logarithm makes it a relative error: far and near surfaces, and worlds of any scale, weigh the same.
    """
    depth = depth.float()
    known = (depth > 0) & (truth > 0) & torch.isfinite(truth) & torch.isfinite(depth)
    known = known if mask is None else known & mask
    # Chosen before the logarithm: the gradient of what is not chosen would be NaN.
    ratio = torch.where(known, depth, 1.0).log() - torch.where(known, truth, 1.0).log()
    return _masked_mean(smooth_l1_loss(ratio, torch.zeros_like(ratio), reduction="none", beta=_BETA), known)


def cosine_error(
    features: Float[Tensor, "b v h w d"],
    alpha: Float[Tensor, "b v h w"],
    embeddings: Float[Tensor, "b v e fh fw"],
    valid: Bool[Tensor, "b v fh fw"],
    weight: Float[Tensor, "e d"],
) -> Float[Tensor, ""]:
    """1 − cos between drawn features f, mapped to embeddings W f, and a teacher's t (LSM, released code).

    Features and alpha are averaged over the area of each of the teacher's pixels; the map is linear, so this is the
    average of the embeddings. Only where the teacher is valid and half of the light comes from Gaussians. The mapped
    image is never built: W f · t = f · Wᵀ t, and |W f|² = f · Wᵀ W f.
    """
    size, weight = embeddings.shape[-2:], weight.float()
    small = interpolate(features.float().flatten(0, 1).movedim(-1, 1), size, mode="area")
    opaque = interpolate(alpha.detach().float().flatten(0, 1)[:, None], size, mode="area")[:, 0] > _OPAQUE
    truth = embeddings.float().flatten(0, 1)
    norm = truth.norm(dim=1)
    known = valid.flatten(0, 1) & opaque & torch.isfinite(norm)
    truth = torch.where(known, truth.movedim(1, 0) / norm.clamp_min(1e-8), 0.0).movedim(0, 1)
    along = (small * conv2d(truth, weight.T[..., None, None])).sum(dim=1)
    length = (small * conv2d(small, (weight.T @ weight)[..., None, None])).sum(dim=1)
    cosine = along / (length.clamp_min(0) + _EPSILON**2).sqrt()
    return _masked_mean((1 - cosine).unflatten(0, valid.shape[:2]), known.unflatten(0, valid.shape[:2]))


def _depth(made: _Made) -> Float[Tensor, ""]:
    """Mean over the target views, and over the input views if they were drawn."""
    pairs = [(made.target, made.batch.target), (made.high, made.batch.high)]
    parts = [
        depth_error(drawn.depth, scene.depths, drawn.alpha.detach() > _OPAQUE)
        for drawn, scene in pairs
        if drawn is not None and scene.depths is not None
    ]
    return torch.stack(parts).mean() if parts else _nothing(made.target.depth)


def _geometry(made: _Made) -> Float[Tensor, ""]:
    depths, truth = made.prediction.depths, made.batch.high.depths
    if depths is None:
        raise Sr3dError("config", "model.loss.geometry", "a network without depth", "0, or model.network.geometry")
    return _nothing(depths) if truth is None else depth_error(depths, truth)


def _drawn(made: _Made) -> Rendering:
    """The input views."""
    assert made.high is not None
    return made.high


def _masked_mean(values: Float[Tensor, "b ..."], mask: Bool[Tensor, "b ..."]) -> Float[Tensor, ""]:
    """Mean over clips of the means over their chosen pixels; 0 for a clip without any."""
    chosen = torch.where(mask, values, 0.0).flatten(1).sum(dim=1)
    return (chosen / mask.flatten(1).sum(dim=1).clamp_min(1)).mean()


def _nothing(values: Tensor) -> Float[Tensor, ""]:
    """0 that gradients of 0 flow from: all processes of a training use the same parameters."""
    return torch.where(torch.zeros_like(values, dtype=torch.bool), values.float(), 0.0).sum()
