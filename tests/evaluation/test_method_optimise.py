from __future__ import annotations

import json

import pytest
import torch

from sr3d import Sr3dError, render
from sr3d.coarse import CoarseConfig, upsampled_gaussians
from sr3d.datasets import World
from sr3d.datasets.batch import Batch, make_batch
from sr3d.evaluation.case import Made, Task
from sr3d.evaluation.methods.base import MethodOptions
from sr3d.evaluation.methods.optimise import Optimise
from sr3d.training.metrics import psnr
from sr3d.zoom.optimise import START_SIGMA, OptimiseConfig, optimise


@pytest.fixture(scope="module")
def batch() -> Batch:
    world = World.generate(5, "table")
    return make_batch(world.render(world.sample_cameras(3, 48, 48)), [0, 2], [1], 2)


@pytest.fixture(scope="module")
def task(batch: Batch) -> Task:
    return Task(
        name="table/0+2",
        scene="table",
        given=batch.context,
        factor=2,
        cameras=batch.target.posed(),
        config=CoarseConfig(source="sweep"),
    )


def made(task: Task, argument: str | None) -> Made:
    return Optimise(MethodOptions(argument=argument)).make(task)


def test_steps_are_those_of_the_component(task: Task) -> None:
    start = upsampled_gaussians(task.context, 2, CoarseConfig(source="sweep", upsampled_sigma=START_SIGMA))
    expected = optimise(start, task.context, 2, OptimiseConfig(steps=6))
    out = made(task, "6")
    assert out.gaussians is not None and out.images is None
    for name in ("means", "quats", "scales", "opacities", "sh"):
        assert torch.equal(getattr(out.gaussians, name), getattr(expected.gaussians, name))
        assert not getattr(out.gaussians, name).requires_grad
    first, last = expected.losses[[0, -1]].tolist()
    assert out.notes == {"steps": 6, "stopped": "steps", "loss_first": first, "loss_last": last}
    assert last < first


def test_beats_its_start_where_no_input_looks(task: Task, batch: Batch) -> None:
    values = []
    for argument in ("0", "20"):
        gaussians = made(task, argument).gaussians
        assert gaussians is not None
        rgb = render(gaussians, task.cameras, lod=False).rgb
        assert torch.equal(rgb, render(gaussians, task.cameras).rgb)
        values.append(psnr(rgb, batch.target.images).item())
    assert values[1] > values[0] + 0.1


def test_two_runs_leave_the_same_notes(task: Task) -> None:
    notes = [json.dumps(made(task, "3").notes) for _ in range(2)]
    assert notes[0] == notes[1]


def test_no_steps(task: Task) -> None:
    assert made(task, "0").notes == {"steps": 0, "stopped": "steps", "loss_first": None, "loss_last": None}


def test_a_budget_of_time_ends_early(task: Task) -> None:
    notes = made(task, "0.05s").notes
    assert notes["stopped"] == "seconds" and notes["steps"] in range(OptimiseConfig().steps)


def test_identity_holds_every_setting() -> None:
    identity = Optimise(MethodOptions(argument="7")).identity()
    assert identity["method"] == "optimise" and identity["steps"] == 7
    assert identity["upsampler"] == {"method": "bicubic", "name": "", "options": {}, "trainable": False}
    assert identity.keys() == {"method", "start_sigma", *OptimiseConfig.__dataclass_fields__}
    assert json.loads(json.dumps(identity)) == identity
    assert Optimise(MethodOptions()).identity()["steps"] == OptimiseConfig().steps


@pytest.mark.parametrize("argument", ["", "many", "-1", "1.5", "٣", "1e3"])
def test_bad_number_of_steps(argument: str) -> None:
    with pytest.raises(Sr3dError) as caught:
        Optimise(MethodOptions(argument=argument))
    assert (caught.value.source, caught.value.field, caught.value.found) == (
        "method optimise",
        "argument",
        repr(argument),
    )
