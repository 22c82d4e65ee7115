from __future__ import annotations

import gc
import re
import resource

import pytest
import torch
from conftest import SIZE, sloped_scene
from torch.utils.flop_counter import FlopCounterMode

from sr3d import Sr3dError, SuperResolver, render
from sr3d.models import SuperResolverConfig, create_model, model_config
from sr3d.models.estimate import Estimate, Load, Meter, estimate, out_of_memory, out_of_memory_explained, size_table


def test_meter_counts_what_is_alive() -> None:
    with Meter() as meter:
        a = torch.zeros(1000)
        b = a.view(10, 100).T  # no memory of its own
        c = b + 1
        assert (meter.now, meter.peak) == (8000, 8000)
        del a, b
        assert (meter.now, meter.peak) == (4000, 8000)
        c @ c.T.contiguous()
    assert meter.flops == 2 * 100 * 10 * 100


def step(network: SuperResolver, batch: int, precision: str = "fp32") -> tuple[int, int]:
    """Bytes of tensors at the peak of a forward pass, and of a training step with its two drawings."""
    scene = sloped_scene(batch, 2)
    large = scene[2].resized(4 * SIZE, 4 * SIZE)
    bf16 = torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16")
    gc.collect()
    with Meter() as forward, torch.no_grad(), bf16:
        network.eval()(*scene)
    with Meter() as training:
        with bf16:
            found = network.train().predict(*scene)
        target = torch.zeros(batch, 2, 4 * SIZE, 4 * SIZE, 3)
        errors = [(render(found.gaussians, large, lod=False).rgb - target).square().mean() for _ in range(2)]
        (errors[0] + errors[1] + found.images.mean()).backward()
    return forward.peak, training.peak


@pytest.mark.parametrize(
    ("name", "batch", "overrides", "precision", "checkpointing"),
    [
        ("tiny", 2, {}, "fp32", False),
        ("tiny", 1, {"scaffold": {"budget": None}, "recurrence": {"steps": 1}}, "fp32", True),
        ("tiny", 1, {"semantics": {}, "scaffold": {"split": "shuffle", "budget": None}}, "bf16", False),
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


def test_operations_and_gaussians_are_exact() -> None:
    config = model_config("tiny", scaffold={"budget": None})
    network, scene = SuperResolver(config).train(), sloped_scene(1, 2)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        fine = network(*scene)
    found = estimate(config, SIZE, SIZE, 2, training=False)
    assert found.flops == counted.get_total_flops()
    assert found.gaussians == len(fine) == 2 * SIZE * SIZE * 16
    assert found.training_bytes == 0


def tiny(**changes: object) -> Estimate:
    load = {"width": 16, "height": 12, "views": 2, **changes}
    return estimate(model_config("tiny"), **load)


def test_knobs_point_the_right_way() -> None:
    plain = tiny()
    assert tiny(checkpointing=True).training_bytes < 0.8 * plain.training_bytes
    assert tiny(precision="bf16").training_bytes < 0.8 * plain.training_bytes
    double = tiny(batch=2)
    assert double.gaussians == 2 * plain.gaussians and double.flops == 2 * plain.flops
    assert 1.6 * plain.training_bytes < double.training_bytes < 2 * plain.training_bytes


def test_nothing_is_allocated() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = estimate(model_config("base"), 64, 64, 2, 4, training=False)
    assert found.inference_bytes > 3e9
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 0.1 * found.inference_bytes


def test_advice_is_sorted_and_lowers_the_need() -> None:
    text = out_of_memory(model_config("tiny"), 16, 16, 2, 2)
    assert text.startswith("about ") and "(2 x 2 views of 16x16 at 4x, fp32), or less need: " in text
    needs = [float(n) * {"M": 1e6, "G": 1e9}[unit] for n, unit in re.findall(r"([\d.]+) ([MG])B", text)]
    assert needs[1:] == sorted(needs[1:]) and max(needs[1:]) < needs[0]
    for words in (
        "batch 1 instead of 2",
        "1 view instead of 2",
        "8x8",
        "checkpointing",
        "bf16",
        "scaffold.budget 0.25",
    ):
        assert words in text
    assert "the size 'tiny'" in out_of_memory(model_config("small"), 8, 8, 1, training=False)
    least = out_of_memory(model_config("tiny", scaffold={"split": "shuffle", "budget": None}), 1, 1, 1,
                          training=False, precision="bf16")  # fmt: skip
    assert least.endswith("nothing left to lower")


@pytest.mark.parametrize(
    "fail",
    [
        lambda: torch.empty(2**60, dtype=torch.uint8),
        lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory.\nmore")),
        lambda: (_ for _ in ()).throw(MemoryError()),
    ],
)
def test_running_out_of_memory_is_one_error_with_advice(fail) -> None:
    config, images = model_config("tiny"), torch.zeros(1, 2, 8, 8, 3)
    expected = r"sr3d eval: memory: found .*; expected about .* less need: "
    with (
        pytest.raises(Sr3dError, match=expected) as caught,
        out_of_memory_explained("sr3d eval", config, images),
    ):
        fail()
    assert "\n" not in str(caught.value) and "1 x 2 views of 8x8" in str(caught.value)


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
        tiny(**load)


def test_table_has_a_row_for_every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sr3d.models.estimate.list_models", lambda: ["tiny", "small"])
    table = size_table(Load(width=8, height=8, views=1, batch=3, factor=2), "bf16", True)
    assert table.row_count == 2 and "3 x 1 views of 8x8 to 2x, bf16, checkpointing" in str(table.title)
    # Half of four children for each of 3 · 64 parents.
    assert list(table.columns[2].cells) == ["384", "384"]
