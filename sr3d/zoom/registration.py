"""Depth registration: the depth of a monocular network brought to the depth that the scene renders (WonderZoom Eq. 5).

WonderZoom fine-tunes the network on every image (`sr3d.zoom.fine_tune`). Here the answer of the network is bent
instead: one robust scale and shift, then one per segment, then a smooth residual. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import cv2
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sr3d.coarse.fill import fill_holes
from sr3d.errors import Sr3dError
from sr3d.zoom.providers import DepthGuess

Step = Literal["scale-shift", "segments", "residual"]
_STEPS: tuple[Step, ...] = ("scale-shift", "segments", "residual")
_SOURCE = "sr3d.zoom.register"
_SMALLEST_SLOPE = 1e-3  # of what scale alone would give
_LARGEST_BEND = 0.9  # a segment never turns itself inside out
_COARSEST = 12  # pixels of the smaller side at which the pyramid ends


@dataclass
class RegistrationConfig:
    """How far a guess is bent. The numbers are the best found on procedural training worlds.

    Attributes:
        last: Step after which to stop.
        evidence: Pixels with depth that it takes to pull a segment half-way from the global fit to its own.
        coupling: What one pixel of common border counts for between neighbouring segments, in pixels with depth.
        smoothness: Weight of the difference of neighbouring residuals, against 1 for a pixel with depth. Its square
            root is the distance, in pixels, over which noise of the rendered depth is averaged.
        edge: Difference of log depth, in the guess, across which a residual is hardly handed on.
        border: Share of a residual's smoothness that is left across the border of two segments.
        decay: Pull of the residual to 0, against 1 for a pixel with depth: far from any it dies out.
        noise: Relative error of rendered depth that is never taken for an outlier.
        rounds: Reweighted solutions of the residual.
    """

    last: Step = "residual"
    evidence: float = 5.0
    coupling: float = 3.0
    smoothness: float = 2.0
    edge: float = 0.03
    border: float = 0.3
    decay: float = 1e-4
    noise: float = 0.01
    rounds: int = 5


@dataclass(kw_only=True)
class Registered:
    """A guess in world units.

    Attributes:
        depth: z-depth, positive and finite everywhere. [H, W]
        scale: s of the global fit s·guess + shift, which is a z-depth, or for a guess of kind "inverse" 1 / z-depth.
        shift: Of the same fit; 0 for a guess of kind "metric".
        steps: Mean relative error against the rendered depth after each step, over its valid pixels outside of
            inserted objects.
        used: Pixels whose rendered depth counted: valid, not of an inserted object, no outlier. [H, W]
    """

    depth: Float[Tensor, "h w"]
    scale: float
    shift: float
    steps: dict[str, float]
    used: Bool[Tensor, "h w"]


@dataclass
class _Lines:
    """Robust lines through groups of points, in relative coordinates: a group's mean, offset and slope there."""

    mean: Tensor
    offset: Tensor
    slope: Tensor
    offset_evidence: Tensor
    slope_evidence: Tensor
    weights: Tensor


def register(
    guess: DepthGuess,
    target: Float[Tensor, "h w"],
    valid: Bool[Tensor, "h w"],
    *,
    segments: Int[Tensor, "h w"] | None = None,
    inserted: Bool[Tensor, "h w"] | None = None,
    config: RegistrationConfig | None = None,
) -> Registered:
    """Bring a guessed depth to the rendered depth, in the manner of WonderZoom Eq. 5 but in closed form.

    Scale and shift are fitted where the guess is affine: in 1 / z for kind "inverse", in z else (scale alone for
    "metric"). Order is kept: a larger guess never becomes a smaller value within a segment before the residual, and
    nothing becomes 0 or negative. The residual is log depth, so that it multiplies.

    Args:
        guess: Depth of the image. [H, W]
        target: z-depth rendered from the scene, world units, 0 where unknown. [H, W]
        valid: Where the rendered depth is trusted (alpha ≥ 0.8). [H, W]
        segments: Number of each pixel's segment, ≥ 0; None: one segment. [H, W]
        inserted: Pixels of new objects, of which the scene knows nothing. Each connected one keeps its depth as the
            global fit has it, times one factor that puts its lowest border on the surface below it. [H, W]
        config: How far a guess is bent.

    Returns:
        Depth in world units, and what each step achieved.

    Raises:
        Sr3dError: Sizes differ, the guess is not positive and finite or (unless "metric") the same everywhere, a
            segment number is negative, an unknown last step, or no valid pixel has a depth.
    """
    config = config or RegistrationConfig()
    new = torch.zeros_like(valid) if inserted is None else inserted
    _check(guess, target, valid, segments, new, config)
    believed = valid & torch.isfinite(target) & (target > 0) & ~new
    if not bool(believed.any()):
        found = f"no pixel of {valid.numel()} ({int(valid.sum())} valid, {int(new.sum())} of inserted objects)"
        raise Sr3dError(_SOURCE, "rendered depth", found, "at least one valid pixel with a depth above 0")
    raw, truth = guess.depth.double(), torch.where(believed, target, 1).double()
    inverse = guess.kind == "inverse"
    wanted = 1 / truth if inverse else truth
    scale, shift, weights = _global_fit(guess.kind, raw, wanted, believed)
    # Far below what was seen a line may cross 0: it is bent there, smoothly, to stay above.
    knee = 0.25 * float(wanted[believed & (weights > 0.5)].min())
    line = _above_zero(scale * raw + shift, knee)
    steps: dict[str, float] = {}

    def note(step: Step, depth: Tensor) -> None:
        steps[step] = float(((depth - truth).abs() / truth)[believed].mean())

    start = depth = 1 / line if inverse else line
    note("scale-shift", depth)
    if segments is not None and config.last != "scale-shift":
        bent, weights = _bend_segments(line, wanted, believed, segments, config)
        bent = _above_zero(bent, knee)
        depth = 1 / bent if inverse else bent
        note("segments", depth)
    if config.last == "residual":
        labels = torch.zeros_like(valid, dtype=torch.long) if segments is None else segments
        residual, weights = _smooth_residual(depth, truth, believed, labels, config)
        depth = depth * residual.exp()
        note("residual", depth)
    if bool(new.any()):
        depth = _place_inserted(depth, start, torch.where(valid & (target > 0), target, 0).double(), new)
    return Registered(
        depth=depth.to(guess.depth.dtype), scale=scale, shift=shift, steps=steps, used=believed & (weights > 0.5)
    )


def _check(
    guess: DepthGuess,
    target: Tensor,
    valid: Tensor,
    segments: Tensor | None,
    inserted: Tensor,
    config: RegistrationConfig,
) -> None:
    """Raise for input of which nothing can be made."""
    depth, shape = guess.depth, tuple(guess.depth.shape)
    maps = {"target": target, "valid": valid, "inserted": inserted}
    for name, found in (maps if segments is None else {**maps, "segments": segments}).items():
        if tuple(found.shape) != shape:
            raise Sr3dError(_SOURCE, f"size of {name}", tuple(found.shape), f"{shape}, that of the guess")
    if not bool((torch.isfinite(depth) & (depth > 0)).all()):
        raise Sr3dError(_SOURCE, "guess", "NaN, infinity, 0 or less", "finite numbers above 0")
    if segments is not None and bool((segments < 0).any()):
        raise Sr3dError(_SOURCE, "segments", int(segments.min()), "0 or more")
    if config.last not in _STEPS:
        raise Sr3dError(_SOURCE, "last", repr(config.last), f"one of {', '.join(_STEPS)}")
    if guess.kind != "metric" and float(depth.max() - depth.min()) <= 1e-6 * float(depth.max()):
        raise Sr3dError(_SOURCE, "guess", f"{float(depth.mean()):g} everywhere", f"{guess.kind} depth with relief")


def _global_fit(kind: str, raw: Tensor, wanted: Tensor, believed: Tensor) -> tuple[float, float, Tensor]:
    """Scale and shift of the whole image, and how far each pixel is believed."""
    x, y = raw[believed], wanted[believed]
    weights = torch.zeros_like(raw)
    ratio = (y / x).median()
    if kind == "metric" or float(x.max() - x.min()) <= 1e-6 * float(x.max()):
        error = (y / (ratio * x) - 1).abs()
        near = error <= 3 * 1.4826 * error.median() + 1e-6
        weights[believed] = near.double()
        return float((y / x)[near].mean()), 0.0, weights
    fit = _fit_lines(x, y, torch.zeros_like(x), torch.zeros_like(x, dtype=torch.long), 1)
    scale = float(fit.slope.clamp_min(_SMALLEST_SLOPE * ratio))
    weights[believed] = fit.weights
    return scale, float(fit.offset - scale * fit.mean), weights


def _fit_lines(x: Tensor, y: Tensor, base: Tensor, label: Tensor, groups: int) -> _Lines:
    """y ≈ base + offset + slope·(x − mean) in every group: L1 of relative errors first, then without outliers."""
    # Relative to the geometric mean of y and the line, which is the error of log y to second order: the same in z and
    # in 1 / z, so that what is far does not fly away.
    middle = y

    def total(values: Tensor) -> Tensor:
        return torch.zeros(groups, dtype=x.dtype, device=x.device).index_add_(0, label, values)

    left = y - base
    weights = torch.ones_like(x)
    for turn in range(40):
        w = weights / middle.square()
        mass = total(w).clamp_min(1e-30)
        mean = total(w * x) / mass
        centred = x - mean[label]
        offset = total(w * left) / mass
        power = total(w * centred.square())
        slope = total(w * centred * left) / power.clamp_min(1e-30)
        miss = left - offset[label] - slope[label] * centred
        middle = y * ((y - miss) / y).clamp(0.1, 10).sqrt()
        error = miss / middle
        if turn < 25:
            weights = 1 / error.abs().clamp_min(1e-6)
        else:
            spread = (3 * 1.4826 * error.abs().median()).clamp_min(1e-6)
            weights = (1 - (error / (1.5 * spread)).square()).clamp_min(0).square()
    return _Lines(mean, offset, slope, total(weights), total(weights * (centred / middle).square()), weights)


def _above_zero(value: Tensor, knee: float) -> Tensor:
    """The same above the knee; below, an exponential with the same slope that stays above half of the knee."""
    return torch.where(value >= knee, value, knee * (0.5 + 0.5 * (2 * (value / knee - 1).clamp_max(0)).exp()))


def _bend_segments(
    line: Tensor, wanted: Tensor, believed: Tensor, segments: Tensor, config: RegistrationConfig
) -> tuple[Tensor, Tensor]:
    """A scale and a shift per segment on top of the global ones; neighbours pull each other, and all to the global."""
    _, flat = segments.reshape(-1).unique(return_inverse=True)
    label = flat.reshape(segments.shape)
    groups = int(label.max()) + 1
    x, y, own = line[believed], wanted[believed], label[believed]
    fit = _fit_lines(x, y, x, own, groups)
    size = torch.zeros(groups, dtype=x.dtype, device=x.device)
    average = size.index_add(0, flat, line.reshape(-1)) / size.index_add(0, flat, torch.ones_like(line).reshape(-1))
    mean = torch.where(fit.offset_evidence > 0, fit.mean, average)
    spread = ((x - x.mean()) / y).square().mean().clamp_min(1e-12)
    pull = torch.diag(torch.full_like(mean, config.evidence)) + config.coupling * _borders(label, line, groups, config)

    def shared(value: Tensor, evidence: Tensor) -> Tensor:
        return torch.linalg.solve(pull + torch.diag(evidence), evidence * value)

    offset = shared(fit.offset / mean, fit.offset_evidence) * mean
    slope = shared(fit.slope, fit.slope_evidence / spread).clamp_min(-_LARGEST_BEND)
    weights = torch.zeros_like(line)
    weights[believed] = fit.weights
    return line + offset[label] + slope[label] * (line - mean[label]), weights


def _borders(label: Tensor, line: Tensor, groups: int, config: RegistrationConfig) -> Tensor:
    """Laplacian of the graph of neighbouring segments, by length of their border where the guess does not jump."""
    links = torch.zeros(groups * groups, dtype=line.dtype, device=line.device)
    for axis in (0, 1):
        a, b = label.narrow(axis, 0, label.shape[axis] - 1), label.narrow(axis, 1, label.shape[axis] - 1)
        smooth = (-line.log().diff(dim=axis).abs() / config.edge).exp() * (a != b)
        links.index_add_(0, (a * groups + b).reshape(-1), smooth.reshape(-1))
    links = links.reshape(groups, groups)
    links = links + links.T
    return torch.diag(links.sum(dim=1)) - links


def _smooth_residual(
    depth: Tensor, truth: Tensor, believed: Tensor, labels: Tensor, config: RegistrationConfig
) -> tuple[Tensor, Tensor]:
    """Log of what depth lacks, averaged where it is known and handed on where it is not; and how far it is believed."""
    error = torch.where(believed, (truth / depth).log(), 0)
    log = depth.log()
    across, down = (
        config.smoothness
        * (-log.diff(dim=axis).abs() / config.edge).exp()
        * torch.where(labels.diff(dim=axis) == 0, 1.0, config.border)
        for axis in (1, 0)
    )
    weights = believed.double()
    residual = torch.zeros_like(error)
    for _ in range(config.rounds):
        residual = _screened_poisson(weights + config.decay, weights * error, across, down)
        miss = (residual - error).abs()
        spread = (1.4826 * miss[believed].median()).clamp_min(config.noise)
        weights = believed / (1 + (miss / (3 * spread)).square())
    return residual, weights


def _screened_poisson(weight: Tensor, right: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Solve weight·e − div(conductance·grad e) = right, from coarse to fine, by conjugate gradients."""
    h, w = weight.shape
    diagonal = weight.clone()
    for flow, axis in ((across, 1), (down, 0)):
        n = diagonal.shape[axis]
        diagonal.narrow(axis, 0, n - 1).add_(flow)
        diagonal.narrow(axis, 1, n - 1).add_(flow)

    def apply(e: Tensor) -> Tensor:
        out = weight * e
        for flow, axis in ((across, 1), (down, 0)):
            n = e.shape[axis]
            current = flow * e.diff(dim=axis)
            out.narrow(axis, 0, n - 1).sub_(current)
            out.narrow(axis, 1, n - 1).add_(current)
        return out

    start = torch.zeros_like(right)
    if min(h, w) > _COARSEST:
        half = _screened_poisson(
            _blocks(weight), _blocks(right), _blocks(across[:, 1::2], (2, 1)) / 2, _blocks(down[1::2], (1, 2)) / 2
        )
        start = half.repeat_interleave(2, 0).repeat_interleave(2, 1)[:h, :w]
    return _conjugate_gradients(apply, right, start, diagonal)


def _blocks(values: Tensor, size: tuple[int, int] = (2, 2)) -> Tensor:
    """Sums over blocks of pixels; what is missing at the end counts as 0."""
    pooled = torch.nn.functional.avg_pool2d(
        values[None], size, ceil_mode=True, count_include_pad=True, divisor_override=1
    )
    return pooled[0]


def _conjugate_gradients(
    apply: Callable[[Tensor], Tensor], right: Tensor, start: Tensor, diagonal: Tensor, steps: int = 60
) -> Tensor:
    """Solution of a symmetric positive system, preconditioned by its diagonal."""
    x, rest = start, right - apply(start)
    step = scaled = rest / diagonal
    power = (rest * scaled).sum()
    for _ in range(steps):
        image = apply(step)
        length = power / (step * image).sum().clamp_min(1e-300)
        x, rest = x + length * step, rest - length * image
        scaled = rest / diagonal
        new = (rest * scaled).sum()
        step, power = scaled + new / power.clamp_min(1e-300) * step, new
    return x


def _place_inserted(depth: Tensor, shape: Tensor, known: Tensor, inserted: Tensor) -> Tensor:
    """Every new object scaled along its rays until its lowest border touches what is there, nothing of it behind."""
    mask = inserted.detach().cpu().numpy()
    count, numbers = cv2.connectedComponents(mask.astype("uint8"), connectivity=8)
    label = torch.from_numpy(numbers).to(inserted.device)
    # Under an object the scene's own depth is the surface, or what is around it where the scene has a hole.
    behind = torch.where(inserted, known, depth)
    behind = fill_holes(behind[None], behind.new_zeros(1, *behind.shape, 3))[0]
    below = torch.cat([label[1:], torch.zeros_like(label[:1])])
    out = depth.clone()
    for number in range(1, count):
        own = label == number
        room = behind / shape
        lowest = own & (below != number)
        factor = torch.minimum(room[lowest].median(), room[own].min())
        out[own] = factor * shape[own]
    return out
