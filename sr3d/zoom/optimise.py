"""Per-scene super-resolution: Gaussians optimised until they look like enlarged views. What the network replaces."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from sr3d.cameras import Cameras
from sr3d.coarse import CoarseConfig, upsampled_gaussians
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.models.upsampler import Upsampler, UpsamplerConfig
from sr3d.rendering import render
from sr3d.scene import Scene
from sr3d.training.losses import ssim

START_SIGMA = 0.4  # in-plane standard deviation of the start, pixels of the enlarged view
_LEAST = 6  # pixels per side, for SSIM: its window of 11 mirrors 5 of them at the border
_OPAQUE = 1 - 1e-4  # largest opacity that is optimised; its logit is finite


@dataclass(kw_only=True)
class OptimiseConfig:
    """What is optimised, against what, and for how long.

    The defaults are the best that `benchmarks/tune_optimise.py` finds on procedural training worlds, each to within
    0.02 dB: 1.2 dB above `upsampled` between the inputs. GaussianZoom's weights (0.6 and 0.4) gain 0.7 dB: the bicubic
    views are blurred, and serve best to hold what the inputs leave open. Longer runs fit the inputs better, and the
    views between them worse.

    Attributes:
        steps: Of Adam.
        seconds: Stop before a step that would begin later than this after the start; None for all steps. Results
            then depend on the machine's speed.
        upsampler: Makes the pseudo-views, the inputs at full resolution: bicubic, or a network in two dimensions.
        high: Weight of the loss at full resolution, against the pseudo-views.
        low: Weight of the loss of drawings reduced by area, against the inputs.
        dssim: Share of 1 − SSIM in both; the rest is L1.
        means: Rate of positions, footprints (at full resolution) per step.
        scales: Rate of log-scales per step; 0 here and below keeps a group as it is.
        quats: Rate of rotations per step.
        opacities: Rate of logit-opacities per step.
        colors: Rate of spherical harmonics of degree 0 per step.
        decay: Rates at the last step, as a share of those at the first; exponential in between.
        views: Views per step, drawn in turn; None for all.
    """

    steps: int = 100
    seconds: float | None = None
    upsampler: UpsamplerConfig = field(default_factory=UpsamplerConfig)
    high: float = 0.1
    low: float = 1.0
    dssim: float = 0.2
    means: float = 0.01
    scales: float = 0.005
    quats: float = 0.001
    opacities: float = 0.3
    colors: float = 0.02
    decay: float = 0.1
    views: int | None = 1

    def __post_init__(self) -> None:
        checks: list[tuple[str, bool, str]] = [
            ("steps", self.steps >= 0, "0 or more"),
            ("seconds", self.seconds is None or self.seconds > 0, "more than 0, or null"),
            ("dssim", 0 <= self.dssim <= 1, "0 to 1"),
            ("decay", 0 < self.decay <= 1, "more than 0, at most 1"),
            ("views", self.views is None or self.views >= 1, "1 or more, or null"),
            ("high, low", self.high + self.low > 0, "not both 0"),
        ]
        for name in ("high", "low", "means", "scales", "quats", "opacities", "colors"):
            checks.append((name, 0 <= getattr(self, name) < math.inf, "0 or more"))
        for name, fine, expected in checks:
            if not fine:
                found = [getattr(self, part) for part in name.split(", ")]
                raise Sr3dError("optimise", name, found[0] if len(found) == 1 else found, expected)


@dataclass(kw_only=True)
class Optimised:
    """What came out.

    Attributes:
        gaussians: In the order of the start, outside the autograd graph. [N]
        steps: That were done.
        losses: Before every step. [steps]
        seconds: Wall time, pseudo-views included.
        stopped: By the number of steps or by the time.
    """

    gaussians: Gaussians
    steps: int
    losses: Float[Tensor, " steps"]
    seconds: float
    stopped: Literal["steps", "seconds"]


def wide_start(context: Scene, factor: int, config: CoarseConfig) -> Gaussians:
    """What to start from: the baseline `upsampled` with wider Gaussians.

    Fewer gaps open between the views, and the blur is optimised away.

    Args:
        context: Posed low-resolution views. [V, h, w, 3]
        factor: Ratio of the resolutions, ≥ 1.
        config: Of the coarse stage.

    Returns:
        Gaussians [V·factor·h·factor·w], as `upsampled_gaussians` orders them.

    Raises:
        Sr3dError: See `sr3d.coarse.upsampled_gaussians`.
    """
    return upsampled_gaussians(context, factor, replace(config, upsampled_sigma=START_SIGMA))


def optimise(
    start: Gaussians,
    context: Scene,
    factor: int,
    config: OptimiseConfig,
    enlarged: Float[Tensor, "v fh fw 3"] | None = None,
) -> Optimised:
    """Optimise Gaussians at the input cameras (SRGS, GaussianZoom).

    L = high · L_rgb(R, U) + low · L_rgb(area(R), I), L_rgb = (1 − dssim) · L1 + dssim · (1 − SSIM), where R are the
    drawings at full resolution, I the inputs and U the inputs enlarged. All levels are drawn at once. Gaussians of
    opacity 0 stay as they are. Two runs on one machine, with one number of threads, agree bit by bit unless time stops
    them.

    Args:
        start: On the device of the context. [N]
        context: Posed low-resolution views. [V, h, w, 3]
        factor: Ratio of the resolutions, ≥ 1.
        config: Rates, weights and budget.
        enlarged: Pseudo-views; by default those of `config.upsampler`.

    Raises:
        Sr3dError: No poses, a batch of scenes, a factor under 1, views too small for SSIM, an upsampler that does not
            enlarge by the factor, or a loss that is not finite.
    """
    begin = time.perf_counter()
    cameras = _checked(context, factor, config)
    cameras = cameras.resized(cameras.width * factor, cameras.height * factor)
    pseudo = _pseudo_views(context.images, factor, config.upsampler) if enlarged is None else enlarged
    start = start.detach()
    live = start.opacities > 0
    scene = _Parameters(start.index(live), cameras, config)
    order = _view_order(len(context), config)
    losses: list[Tensor] = []
    stopped: Literal["steps", "seconds"] = "steps"
    for step in range(config.steps if scene.groups and bool(live.any()) else 0):
        if config.seconds is not None and _elapsed(begin, pseudo) >= config.seconds:
            stopped = "seconds"
            break
        chosen = order[step % len(order)]
        rgb = render(scene.gaussians(), cameras.index(chosen), lod=False).rgb
        loss = _loss(rgb, pseudo[chosen], context.images[chosen], config)
        losses.append(loss.detach())
        scene.step(loss, config.decay ** (step / config.steps))
    values = torch.stack(losses) if losses else context.images.new_zeros(0)
    if not torch.isfinite(values).all():
        raise Sr3dError(context.name, "loss", f"not finite at step {int((~values.isfinite()).nonzero()[0])}", "finite")
    return Optimised(
        gaussians=_put(start, live, scene.gaussians().detach()) if losses else start,
        steps=len(losses),
        losses=values,
        seconds=_elapsed(begin, pseudo),
        stopped=stopped,
    )


class _Parameters:
    """Gaussians as what Adam changes: offsets from the start, which an unchanged group equals bit by bit."""

    def __init__(self, start: Gaussians, cameras: Cameras, config: OptimiseConfig) -> None:
        self.start = replace(start, lod=None)
        self.footprint = _footprints(start.means, cameras)
        shapes = {
            "means": start.means,
            "scales": start.scales,
            "quats": start.quats,
            "opacities": start.opacities,
            "colors": start.sh[:, :1],
        }
        self.groups = {
            name: torch.zeros_like(like).requires_grad_() for name, like in shapes.items() if getattr(config, name)
        }
        self.rates = {name: getattr(config, name) for name in self.groups}
        self.adam = (
            torch.optim.Adam(
                [{"params": [tensor], "lr": self.rates[name], "name": name} for name, tensor in self.groups.items()],
                # Gradients of a mean over all pixels are tiny: the usual eps would stop most Gaussians.
                eps=1e-15,
            )
            if self.groups
            else None
        )

    def gaussians(self) -> Gaussians:
        """Activated values."""
        s, change = self.start, self.groups
        out = s
        if "means" in change:
            out = replace(out, means=s.means + self.footprint * change["means"])
        if "scales" in change:
            out = replace(out, scales=s.scales * change["scales"].exp())
        if "quats" in change:
            unit = torch.nn.functional.normalize(s.quats, dim=-1)
            out = replace(out, quats=unit + change["quats"])
        if "opacities" in change:
            logit = torch.logit(s.opacities.clamp(max=_OPAQUE))
            out = replace(out, opacities=torch.sigmoid(logit + change["opacities"]))
        if "colors" in change:
            out = replace(out, sh=torch.cat([s.sh[:, :1] + change["colors"], s.sh[:, 1:]], dim=1))
        return out

    def step(self, loss: Tensor, share: float) -> None:
        """One step of Adam at this share of the rates."""
        assert self.adam is not None
        for group in self.adam.param_groups:
            group["lr"] = self.rates[group["name"]] * share
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()


def _checked(context: Scene, factor: int, config: OptimiseConfig) -> Cameras:
    """Cameras of a scene that can be optimised."""
    if factor < 1:
        raise Sr3dError("optimise", "factor", factor, "1 or more")
    if context.images.ndim != 4:
        raise Sr3dError(context.name, "images", tuple(context.images.shape), "views of one scene [V, h, w, 3]")
    side = min(context.images.shape[1:3]) * (1 if config.low else factor)
    if config.dssim and side < _LEAST:
        raise Sr3dError(context.name, "image size", f"{side} pixels", f"{_LEAST} or more for SSIM")
    return context.posed()


@torch.no_grad()
def _pseudo_views(images: Float[Tensor, "v h w 3"], factor: int, config: UpsamplerConfig) -> Float[Tensor, "v fh fw 3"]:
    """The inputs enlarged, one after another: a network may need much memory."""
    upsampler = Upsampler(config).to(images.device).eval()
    return torch.cat([upsampler(image[None].movedim(-1, 1), factor) for image in images]).movedim(1, -1).contiguous()


def _footprints(means: Float[Tensor, "n 3"], cameras: Cameras) -> Float[Tensor, "n 1"]:
    """World units per pixel of the nearest camera in front of each Gaussian."""
    _, depth = cameras.to(means.dtype).project(means)
    depth = torch.where(depth > 0, depth, torch.inf)
    nearest = cameras.to(means.dtype).footprint(depth).amin(dim=0)
    return torch.where(nearest.isfinite(), nearest, 0.0)[:, None]


def _view_order(count: int, config: OptimiseConfig) -> list[list[int]]:
    """Views of every step, over and over."""
    most = min(count, config.views or count)
    return [[(first + i) % count for i in range(most)] for first in range(0, count * most, most)]


def _loss(
    rgb: Float[Tensor, "v fh fw 3"],
    pseudo: Float[Tensor, "v fh fw 3"],
    inputs: Float[Tensor, "v h w 3"],
    config: OptimiseConfig,
) -> Float[Tensor, ""]:
    """Weighted sum of both resolutions."""
    total = rgb.new_zeros(())
    if config.high:
        total = total + config.high * _difference(rgb, pseudo, config.dssim)
    if config.low:
        small = interpolate(rgb.movedim(-1, 1), inputs.shape[1:3], mode="area").movedim(1, -1)
        total = total + config.low * _difference(small, inputs, config.dssim)
    return total


def _difference(rgb: Tensor, truth: Tensor, dssim: float) -> Tensor:
    """L1 and D-SSIM as in 3DGS."""
    loss = (1 - dssim) * (rgb - truth).abs().mean()
    return loss + dssim * (1 - ssim(rgb, truth).mean()) if dssim else loss


def _put(start: Gaussians, live: Tensor, changed: Gaussians) -> Gaussians:
    """`start` with new values where `live`."""

    def put(old: Tensor, new: Tensor) -> Tensor:
        out = old.clone()
        out[live] = new
        return out

    return replace(
        start,
        means=put(start.means, changed.means),
        quats=put(start.quats, changed.quats),
        scales=put(start.scales, changed.scales),
        opacities=put(start.opacities, changed.opacities),
        sh=put(start.sh, changed.sh),
    )


def _elapsed(begin: float, tensor: Tensor) -> float:
    """Seconds, after the device has done what it was asked for."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
    return time.perf_counter() - begin
