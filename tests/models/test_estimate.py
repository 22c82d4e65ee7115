from __future__ import annotations

import gc
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_networks import SIZE, sloped_scene
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics.functional.image import structural_similarity_index_measure
from transformers import Swin2SRConfig

from sr3d import Sr3dError, SuperResolver, render
from sr3d.models import SuperResolverConfig, create_model, model_config
from sr3d.models import estimate as module
from sr3d.models.estimate import Load, Meter, estimate, out_of_memory, out_of_memory_explained


def test_meter_counts_what_is_alive() -> None:
    with Meter() as meter:
        a = torch.zeros(1000)
        b = a.view(10, 100).T  # no memory of its own
        c = b + 1
        assert (meter.now, meter.peak) == (8000, 8000)
        del a, b
        assert (meter.now, meter.peak) == (4000, 8000)
        c @ c.T.contiguous()
        del c
    assert meter.flops == 2 * 100 * 10 * 100
    weight = torch.zeros(10, 10)
    with Meter([weight]) as meter:
        weight.T @ weight.T[:, :1]
    assert meter.peak == 40


def step(network: SuperResolver, batch: int, precision: str) -> tuple[int, int]:
    """Bytes of tensors at the peak of a forward pass, and of a training step with its drawings and losses."""
    scene = sloped_scene(batch, 2)
    large = scene[2].resized(4 * SIZE, 4 * SIZE)
    bf16 = torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16")
    features = network.semantics is not None
    gc.collect()
    with Meter(network.parameters()) as forward, torch.no_grad(), bf16:
        network.eval()(*scene)
    with Meter(network.parameters()) as training:
        with bf16:
            found = network.train().predict(*scene)
        target, high = (render(found.gaussians, large, features=features, lod=False) for _ in range(2))
        truth = torch.rand(batch, 2, 4 * SIZE, 4 * SIZE, 3)
        pair = [t.flatten(0, 1).movedim(-1, 1) for t in (target.rgb, truth)]
        loss = (high.rgb - truth).square().mean() - structural_similarity_index_measure(*pair, data_range=1.0)
        if target.features is not None:
            loss = loss + target.features.square().mean()
        (loss + found.images.mean()).backward()
    return forward.peak, training.peak


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "batch", "overrides", "precision", "checkpointing"),
    [
        ("tiny", 2, {}, "fp32", False),
        (
            "tiny",
            1,
            {"scaffold": {"budget": None}, "recurrence": {"steps": 1}, "geometry": None, "points": None},
            "fp32",
            True,
        ),
        (
            "tiny",
            1,
            {"semantics": {}, "scaffold": {"split": "shuffle", "budget": None}, "points": None, "geometry": None},
            "bf16",
            False,
        ),
        ("small", 1, {}, "fp32", False),
    ],
)
def test_estimates_are_near_what_is_measured(
    name: str, batch: int, overrides: dict, precision: str, checkpointing: bool
) -> None:
    network = create_model(name, **overrides)
    network.set_checkpointing(checkpointing)
    weights = 4 * sum(p.numel() for p in network.parameters())
    inference, training = step(network, batch, precision)
    found = estimate(network.config, SIZE, SIZE, 2, batch, precision=precision, checkpointing=checkpointing)
    assert found.weight_bytes == weights == 4 * found.parameters
    assert found.inference_bytes == pytest.approx(weights + inference, rel=0.3)
    # Weights, two moments, average; the step's own peak has the gradients.
    assert found.training_bytes - 4 * weights == pytest.approx(max(training, 2 * weights), rel=0.3)


def test_operations_and_gaussians_are_counted() -> None:
    config = model_config("tiny", scaffold={"budget": None})
    network, scene = SuperResolver(config).train(), sloped_scene(1, 2)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        fine = network(*scene)
    found = estimate(config, SIZE, SIZE, 2, training=False)
    # Drawing, which is left out, multiplies a few small matrices.
    assert found.flops == pytest.approx(counted.get_total_flops(), rel=1e-3)
    assert found.gaussians == len(fine) == 2 * SIZE * SIZE * 16
    assert found.training_bytes == 0


def test_tokens_of_a_coarse_network_are_counted() -> None:
    few = {"points": None, "geometry": None}
    plain, told = (
        estimate(model_config("tiny", refinement={"heads": 4, "coarse_width": n}, **few), 8, 8, 1, training=False)
        for n in (0, 5)
    )
    assert told.parameters == plain.parameters + 5 * 96 + 96 and told.flops > plain.flops


def test_twice_the_batch_is_twice_the_work() -> None:
    one, two = (estimate(model_config("tiny"), 8, 8, 2, batch, training=False) for batch in (1, 2))
    assert (two.gaussians, two.flops) == (2 * one.gaussians, 2 * one.flops)
    activations = [e.inference_bytes - e.weight_bytes for e in (one, two)]
    assert 1.4 * activations[0] < activations[1] <= 2.01 * activations[0]


ALLOCATED = """
import resource
from sr3d.models import model_config
from sr3d.models.estimate import estimate

estimate(model_config("tiny", points=None, geometry=None), 8, 8, 1, training=False)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = estimate(model_config("base", points=None, geometry=None), 96, 96, 2, 8, training=False)
print(found.inference_bytes, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


def test_nothing_is_allocated() -> None:
    # In a process of its own: the high-water mark of this one may be above anything that an estimate takes.
    done = subprocess.run([sys.executable, "-c", ALLOCATED], capture_output=True, text=True, check=True)
    estimated, taken = map(int, done.stdout.split())
    assert estimated > 2e9 and taken < 0.05 * estimated


def test_estimates_read_no_weights(tmp_path: Path) -> None:
    options = {"embed_dim": 8, "depths": [1], "num_heads": [2], "window_size": 4, "upscale": 2}
    Swin2SRConfig(**options).save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
    encoder = {"options": {"embed_dim": 32, "depth": 1, "num_heads": 4, "checkpoint_path": str(tmp_path / "none.pt")}}
    few = {"encoder": encoder, "points": None, "geometry": None}
    by_name, alone = (
        model_config("tiny", **few, upsampler={"method": "swin2sr", **how})
        for how in ({"name": str(tmp_path)}, {"options": options})
    )
    assert estimate(by_name, 8, 8, 1, training=False) == estimate(alone, 8, 8, 1, training=False)
    missing = model_config("tiny", upsampler={"method": "swin2sr", "name": str(tmp_path / "none")})
    with pytest.raises(Sr3dError, match=r"config: model\.network\.upsampler\.name: found .*none .*expected a Swin2SR"):
        estimate(missing, 8, 8, 1)


@pytest.fixture
def roughly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Activations by a formula, as the advice asks for many of them."""

    def run(config: SuperResolverConfig, load: Load, training: bool, precision: str, checkpointing: bool) -> object:
        with torch.device("meta"):
            network = SuperResolver(config)
        share = (0.5 if precision == "bf16" else 1) * (0.4 if checkpointing else 1)
        return module._Run(network=network, flops=0, peak=int(1e5 * share * load.batch * load.parents(config)))

    monkeypatch.setattr(module, "_run", run)


@pytest.mark.usefixtures("roughly")
def test_advice_is_sorted_and_lowers_the_need() -> None:
    text = out_of_memory(model_config("small"), Load(width=64, height=48, views=2, batch=4, factor=4))
    assert text.startswith("about ") and "(4 x 2 views of 64x48 at 4x, fp32), or less need: " in text
    knobs = ("batch 2 instead of 4", "1 view instead of 2", "views of half the size (32x24)", "checkpointing",
             "bf16 precision", "fewer children (scaffold.budget 0.25)", "the size 'tiny'")  # fmt: skip
    for words in knobs:
        assert f"{words}: " in text
    needs = [float(n) * {"M": 1e6, "G": 1e9}[unit] for n, unit in re.findall(r"([\d.]+) ([MG])B", text)]
    assert len(needs) == 1 + len(knobs) and needs[1:] == sorted(needs[1:]) and needs[-1] < needs[0]


@pytest.mark.usefixtures("roughly")
def test_advice_leaves_out_what_does_not_help() -> None:
    shuffled = model_config("tiny", scaffold={"split": "shuffle", "budget": None})
    text = out_of_memory(
        shuffled, Load(width=1, height=1, views=1, batch=1, factor=4), training=False, precision="bf16"
    )
    assert text.endswith("or less need: nothing left to lower")
    text = out_of_memory(
        model_config("tiny"), Load(width=64, height=64, views=1, batch=1, factor=4), checkpointing=True
    ).partition("need: ")[2]
    assert not any(word in text for word in ("batch ", "instead", "checkpointing: ", "the size '"))


@pytest.mark.usefixtures("roughly")
@pytest.mark.parametrize(
    ("factors", "budget", "advised"),
    [([8], 0.3, "0.15"), ([8, 2], 0.3, "0.25"), ([2], 0.25, None)],
)
def test_advised_budgets_are_allowed(factors: list[int], budget: float, advised: str | None) -> None:
    config = model_config("tiny", factor=factors[0], factors=factors[1:], scaffold={"budget": budget})
    text = out_of_memory(config, Load(width=64, height=64, views=1, batch=1, factor=factors[0]))
    found = re.search(r"scaffold\.budget ([\d.]+)\)", text)
    assert (found and found[1]) == advised


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    "fail",
    [
        lambda: torch.empty(2**60, dtype=torch.uint8),
        lambda: _raise(torch.OutOfMemoryError("CUDA out of memory.\nmore")),
        lambda: _raise(MemoryError()),
    ],
)
def test_running_out_of_memory_is_one_error_with_advice(fail, monkeypatch: pytest.MonkeyPatch) -> None:
    config, asked = model_config("tiny"), []
    load = Load(width=9, height=8, views=2, batch=3, factor=2, targets=5)
    how = {"training": True, "precision": "bf16", "checkpointing": True}

    def advice(*arguments: object, **options: object) -> str:
        asked.append((*arguments, options))
        return "less"

    monkeypatch.setattr(module, "out_of_memory", advice)
    with (
        pytest.raises(Sr3dError, match=r"sr3d eval: memory: found .*; expected less$") as caught,
        out_of_memory_explained("sr3d eval", config, torch.zeros(3, 2, 8, 9, 3), 2, targets=5, **how),
    ):
        fail()
    assert "\n" not in str(caught.value) and asked == [(config, load, how)]


@pytest.mark.parametrize("error", [RuntimeError("shapes"), Sr3dError("a", "b", "c", "d"), KeyError("x")])
def test_other_errors_pass(error: Exception) -> None:
    with (
        pytest.raises(type(error)) as caught,
        out_of_memory_explained("x", SuperResolverConfig(), torch.zeros(1, 8, 8, 3)),
    ):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    ("load", "message"),
    [
        ({"width": 0}, "width: found 0; expected 1 or more"),
        ({"views": -1}, "views: found -1"),
        ({"factor": 8}, r"factor: found 8; expected one of \[4\]"),
    ],
)
def test_impossible_loads_are_named(load: dict, message: str) -> None:
    with pytest.raises(Sr3dError, match=message):
        estimate(model_config("tiny"), **{"width": 8, "height": 8, "views": 1, **load})
