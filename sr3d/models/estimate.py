"""What a network needs before anything is allocated: parameters, memory, Gaussians, floating-point operations.

The network itself runs on fake tensors, which have shapes and no values; every storage that they would take is counted.
Only drawing is left out and added by formula.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from rich.table import Table
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from sr3d.cameras import Cameras
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.lod import Lod
from sr3d.models.config import SuperResolverConfig
from sr3d.models.inputs import Views
from sr3d.models.registry import list_models, model_config
from sr3d.models.resolver import SuperResolver
from sr3d.models.upsampler import described

Precision = Literal["fp32", "bf16"]

# Bytes that drawing takes in training, measured: of a Gaussian in a view, of its gradients, of a pixel with its losses.
_SPLAT, _GRADIENT, _PIXEL = 100, 56, 300


@dataclass(kw_only=True)
class Estimate:
    """Needs of a network for a batch.

    Attributes:
        parameters: Numbers that are trained or frozen.
        gaussians: Fine Gaussians of the whole batch, at most.
        flops: Of one forward pass; a multiplication and an addition are two. Drawing and looking up are left out.
        weight_bytes: Weights.
        inference_bytes: Weights and the largest amount of memory in use during a forward pass.
        training_bytes: Weights, gradients, two moments of AdamW, moving average, and the largest amount of memory in
            use during a forward and backward pass with its renderings; 0 if it was not asked for.
    """

    parameters: int
    gaussians: int
    flops: int
    weight_bytes: int
    inference_bytes: int
    training_bytes: int


class Meter(TorchDispatchMode):
    """Counts the bytes of all storages made while it is on, and the operations of matrix products and convolutions.

    Args:
        known: Tensors that do not count, e.g. weights: views of them have no memory of their own.

    Attributes:
        now: Bytes in use.
        peak: Most bytes in use so far.
        flops: Floating-point operations so far.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._known = {t.untyped_storage()._cdata: t for t in known}
        self.now = self.peak = self.flops = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count what it returns."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        for value in [out] if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._alive or key in self._known:
            return
        size = storage.nbytes()

        def freed(_: Any) -> None:
            self.now -= size
            del self._alive[key]

        self._alive[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


class _Outline(SuperResolver):
    """A network whose inputs are not drawn."""

    def _prepare(self, coarse: Gaussians, images: Tensor, cameras: Cameras, factor: int, large: Tensor | None) -> Views:
        b, v = images.shape[:2]
        height, width = cameras.height * factor, cameras.width * factor
        low = images.movedim(-1, 2)
        return Views(
            factor=factor,
            images=self.upsampler(low.flatten(0, 1), factor).float().unflatten(0, (b, v)),
            cameras=cameras.resized(width, height),
            surface=torch.ones(b, v, height, width),
            coarse=torch.ones(b, v, 5, height, width),
            low=low,
            unit=torch.ones(b),
        )

    def _error(self, fine: Gaussians, images: Tensor, views: Views) -> Tensor:
        return torch.zeros_like(views.images)


def estimate(
    config: SuperResolverConfig,
    width: int,
    height: int,
    views: int,
    batch: int = 1,
    factor: int | None = None,
    *,
    training: bool = True,
    precision: Precision = "fp32",
    checkpointing: bool = False,
    targets: int = 2,
) -> Estimate:
    """What a network needs for a batch, without allocating anything.

    Args:
        config: Of the network.
        width: Of the low-resolution views, pixels.
        height: Of the low-resolution views, pixels.
        views: Input views of each scene.
        batch: Scenes.
        factor: Ratio of the resolutions; the network's first one if None.
        training: Also estimate a training step.
        precision: "bf16" is mixed precision: weights and whatever must be exact stay in 32 bits.
        checkpointing: Activations are computed again in the backward pass (training).
        targets: Views of each scene that are drawn for the loss, beside the input views (training).

    Raises:
        Sr3dError: A size below 1, or a factor that the network is not made for.
    """
    load = Load(width=width, height=height, views=views, batch=batch, factor=factor or config.factor, targets=targets)
    load.check(config)
    forward = _run(config, load, False, precision, False)
    return Estimate(
        parameters=forward.parameters,
        gaussians=batch * load.parents(config) * config.scaffold.children(load.factor),
        flops=forward.flops,
        weight_bytes=4 * forward.parameters,
        inference_bytes=4 * forward.parameters + forward.peak,
        training_bytes=_training_bytes(config, load, precision, checkpointing) if training else 0,
    )


@dataclass(kw_only=True)
class Load:
    """Size of a batch; see `estimate`."""

    width: int
    height: int
    views: int
    batch: int
    factor: int
    targets: int = 2

    def check(self, config: SuperResolverConfig) -> None:
        """Raise unless a network can work on it."""
        for name in ("width", "height", "views", "batch"):
            if getattr(self, name) < 1:
                raise Sr3dError("sr3d models", name, getattr(self, name), "1 or more")
        known = [config.factor, *config.factors]
        if self.factor not in known:
            raise Sr3dError("sr3d models", "factor", self.factor, f"one of {known}")

    def parents(self, config: SuperResolverConfig) -> int:
        """Coarse Gaussians of a scene, or as many as would have the children that a budget leaves."""
        share = 1.0 if config.scaffold.budget is None else config.scaffold.budget
        return math.ceil(share * self.views * self.width * self.height)


def _training_bytes(config: SuperResolverConfig, load: Load, precision: Precision, checkpointing: bool) -> int:
    step = _run(config, load, True, precision, checkpointing)
    gaussians = load.batch * load.parents(config) * config.scaffold.children(load.factor)
    channels = 0 if config.semantics is None else config.semantics.width
    views, pixels = load.views + load.targets, load.batch * load.width * load.height * load.factor**2
    # What renderings keep for the backward pass, and the gradients that come out of it.
    drawn = gaussians * (views * (_SPLAT + 4 * channels) + _GRADIENT + 4 * channels)
    drawn += pixels * views * (_PIXEL + 8 * channels)
    # Weights, two moments of AdamW, moving average; the gradients are in the step. Afterwards the optimiser makes
    # copies as large as the weights, when the activations are gone.
    weights = 4 * step.parameters
    return 4 * weights + max(step.peak + drawn, 2 * weights)


@dataclass(kw_only=True)
class _Run:
    """A pass of a network that has shapes and no values."""

    network: SuperResolver
    flops: int
    peak: int

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.network.parameters())


def _run(config: SuperResolverConfig, load: Load, training: bool, precision: Precision, checkpointing: bool) -> _Run:
    """One forward pass, and backward where it trains, on fake tensors."""
    b, v, height, width = load.batch, load.views, load.height, load.width
    # Which parents a budget leaves out depends on the scene; corrections of colours are drawings.
    plain = replace(_unloaded(config), scaffold=replace(config.scaffold, budget=None), consistency=None)
    with torch.device("meta"):
        network = _Outline(plain)
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        torch.set_grad_enabled(training),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"),
    ):
        # In training mode, also without gradients: otherwise attention becomes one operation that nobody can look into.
        network = network.to_empty(device="cpu").train()
        network.set_checkpointing(checkpointing)
        with Meter(network.parameters()) as meter:
            cameras = Cameras(world_to_cam=torch.ones(b, v, 4, 4), K=torch.ones(b, v, 3, 3), width=width, height=height)
            images = torch.ones(b, v, height, width, 3)
            offered = config.refinement.coarse_width if config.refinement else 0
            tokens = {"coarse_tokens": torch.ones(b, v, offered, 1, 1)} if offered else {}
            found = network.predict(_coarse(b, load.parents(config)), images, cameras, factor=load.factor, **tokens)
            flops = meter.flops
            if training:
                g = found.gaussians
                outputs = [g.means, g.quats, g.scales, g.opacities, g.sh, g.features, found.images, found.depths]
                torch.stack([t.sum() for t in outputs if t is not None]).sum().backward()
    return _Run(network=network, flops=flops, peak=meter.peak)


def _coarse(b: int, m: int) -> Gaussians:
    """Gaussians of a scene that nobody looks at. [B, M]"""
    return Gaussians(
        means=torch.ones(b, m, 3),
        quats=torch.ones(b, m, 4),
        scales=torch.ones(b, m, 3),
        opacities=torch.ones(b, m),
        sh=torch.ones(b, m, 1, 3),
        lod=Lod.roots(torch.ones(b, m)),
    )


def size_table(load: Load, precision: Precision = "fp32", checkpointing: bool = False) -> Table:
    """All named sizes side by side, each made for the factor of `load`."""
    title = f"{load.batch} x {load.views} views of {load.width}x{load.height} to {load.factor}x, {precision}"
    table = Table("size", title=title + ", checkpointing" * checkpointing)
    for heading in ("parameters", "Gaussians", "GFLOP", "weights", "inference", "training"):
        table.add_column(heading, justify="right")
    for name in list_models():
        found = estimate(
            model_config(name, factor=load.factor), load.width, load.height, load.views, load.batch,
            precision=precision, checkpointing=checkpointing, targets=load.targets,
        )  # fmt: skip
        numbers = (f"{found.parameters / 1e6:.1f} M", f"{found.gaussians:,}", f"{found.flops / 1e9:,.0f}")
        memory = (found.weight_bytes, found.inference_bytes, found.training_bytes)
        table.add_row(name, *numbers, *map(_gigabytes, memory))
    return table


def out_of_memory(
    config: SuperResolverConfig,
    load: Load,
    *,
    training: bool = True,
    precision: Precision = "fp32",
    checkpointing: bool = False,
) -> str:
    """What a batch needs, and what would lower it, most effective first; arguments as for `estimate`."""
    width, height, views, batch = load.width, load.height, load.views, load.batch

    def needed(config: SuperResolverConfig, load: Load, precision: Precision, checkpointing: bool) -> int:
        if training:
            return _training_bytes(config, load, precision, checkpointing)
        run = _run(config, load, False, precision, False)
        return 4 * run.parameters + run.peak

    now = needed(config, load, precision, checkpointing)
    knobs: list[tuple[str, int]] = []

    def offer(words: str, other: SuperResolverConfig = config, **changes: int) -> None:
        knobs.append((words, needed(other, replace(load, **changes), precision, checkpointing)))

    if batch > 1:
        offer(f"batch {batch // 2} instead of {batch}", batch=batch // 2)
    if views > 1:
        offer(f"{views // 2} view{'s' * (views > 3)} instead of {views}", views=views // 2)
    if min(width, height) > 1:
        offer(f"views of half the size ({width // 2}x{height // 2})", width=width // 2, height=height // 2)
    if training and not checkpointing:
        knobs.append(("checkpointing", needed(config, load, precision, True)))
    if precision != "bf16":
        knobs.append(("bf16 precision", needed(config, load, "bf16", checkpointing)))
    if (fewer_children := _fewer_children(config)) is not None:
        offer(f"fewer children (scaffold.budget {fewer_children.scaffold.budget:g})", fewer_children)
    if (smaller := _smaller(config, load)) is not None:
        offer(f"the size {smaller!r}", model_config(smaller))
    lower = [f"{words}: {_gigabytes(need)}" for words, need in sorted(knobs, key=lambda k: k[1]) if need < 0.97 * now]
    size = f"{batch} x {views} views of {width}x{height} at {load.factor}x, {precision}"
    return f"about {_gigabytes(now)} ({size}), or less need: {'; '.join(lower) or 'nothing left to lower'}"


def _fewer_children(config: SuperResolverConfig) -> SuperResolverConfig | None:
    """Half as many Gaussians, or as few as there can be; None if there are no fewer."""
    scaffold = config.scaffold
    if scaffold.split != "inplane":
        return None
    least = max(scaffold.least_budget(f) for f in (config.factor, *config.factors))
    now = 1.0 if scaffold.budget is None else scaffold.budget
    budget = max(now / 2, least)
    return replace(config, scaffold=replace(scaffold, budget=budget)) if budget < now else None


def _smaller(config: SuperResolverConfig, load: Load) -> str | None:
    """The largest of the named sizes with fewer parameters that is made for the same factor."""
    count = _parameters(config)
    fitting = [
        name for name in list_models() if load.factor in (model_config(name).factor, *model_config(name).factors)
    ]
    return next((name for name in reversed(fitting) if _parameters(model_config(name)) < 0.9 * count), None)


def _parameters(config: SuperResolverConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in SuperResolver(_unloaded(config)).parameters())


def _unloaded(config: SuperResolverConfig) -> SuperResolverConfig:
    """The same network without weights to download or read; their sizes are the same."""
    options = {k: v for k, v in config.encoder.options.items() if k != "checkpoint_path"}
    encoder = replace(config.encoder, pretrained=False, options=options)
    return replace(config, encoder=encoder, upsampler=described(config.upsampler))


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


@contextmanager
def out_of_memory_explained(
    source: str,
    config: SuperResolverConfig,
    images: Float[Tensor, "*batch v h w 3"],
    factor: int | None = None,
    *,
    training: bool = False,
    precision: Precision = "fp32",
    checkpointing: bool = False,
    targets: int = 2,
) -> Iterator[None]:
    """Say what the block needs and what lowers it, where memory runs out in it.

    Args:
        source: Of the error.
        config: Of the network.
        images: Low-resolution views that the network works on.
        factor: See `estimate`, as for all that follows.
        training: Whether the block trains.
        precision: Of the block.
        checkpointing: Of a block that trains.
        targets: Of a block that trains.

    Raises:
        Sr3dError: Memory ran out, of a GPU or of the machine.
    """
    try:
        yield
        return
    except (RuntimeError, MemoryError) as error:
        # The allocator of CPU memory has no error of its own, only these words.
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        found = (str(error).strip() or "no memory left").splitlines()[0]
    *batch, views, height, width, _ = images.shape
    size = {"width": width, "height": height, "views": views, "batch": math.prod(batch), "targets": targets}
    load = Load(**size, factor=factor or config.factor)
    advice = out_of_memory(config, load, training=training, precision=precision, checkpointing=checkpointing)
    raise Sr3dError(source, "memory", found, advice)
