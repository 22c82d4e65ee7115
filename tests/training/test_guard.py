"""Steps that are left out, and batches that are too large."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from training_run import fit, small_batches, small_module, small_network

from sr3d import Sr3dError
from sr3d.coarse import CoarseConfig, coarse_gaussians
from sr3d.datasets.batch import Batch
from sr3d.models.estimate import Load
from sr3d.models.inputs import sight_problems
from sr3d.training.guard import Guard, not_finite
from sr3d.training.memory import check_budget, most_gaussians
from sr3d.training.samples import split_batch


def _broken(batch: Batch) -> Batch:
    images = batch.target.images.clone()
    images[1, 0, 3, 3] = torch.nan
    return replace(batch, target=replace(batch.target, images=images))


def _away(batch: Batch) -> Batch:
    """The views of the second clip look away from each other."""
    cameras = batch.context.posed()
    poses = cameras.world_to_cam.clone()
    poses[1, 1] = torch.diag(torch.tensor([-1.0, 1, -1, 1])) @ poses[1, 1]
    depths = torch.full_like(batch.context.depths, 1.0)
    context = replace(batch.context, cameras=replace(cameras, world_to_cam=poses), depths=depths)
    return replace(batch, context=context)


class _Weights(lightning.Callback):
    """The network's weights after every batch."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.seen.append({k: v.clone() for k, v in pl_module.state_dict().items()})


@pytest.mark.parametrize(
    ("spoil", "words"), [(_broken, "loss nan of"), (_away, "no input view sees anything of another one")]
)
def test_a_bad_batch_changes_nothing(worlds: Path, tmp_path: Path, spoil: Any, words: str) -> None:
    good = small_batches(worlds, 3)
    name = good[1].context.name.split(", ")[1]
    module = small_module()
    after = _Weights()
    with pytest.warns(UserWarning, match=words) as caught:
        trainer = fit(module, [good[0], spoil(good[1]), good[2]], tmp_path, gradient_clip_val=1.0, callbacks=[after])
    assert name in next(str(w.message) for w in caught if words in str(w.message)), "the warning names the clip"
    seen = after.seen
    assert all(torch.equal(seen[0][k], seen[1][k]) for k in seen[0]), "the bad step moved a weight"
    assert any(not torch.equal(seen[1][k], seen[2][k]) for k in seen[0]), "the step after it did not"
    assert float(trainer.callback_metrics["train/skipped"]) == 1
    state = trainer.optimizers[0].state_dict()["state"]
    assert {float(s["step"]) for s in state.values()} == {2.0}, "moments of the bad step"
    assert all(torch.isfinite(s["exp_avg"]).all() for s in state.values())
    assert module.ema is not None and module.ema.updates == 2


def test_training_gives_up_after_too_many_bad_steps(worlds: Path, tmp_path: Path) -> None:
    batches = [_broken(b) for b in small_batches(worlds, 9)]
    module = small_module(max_skipped=3)
    with pytest.warns(UserWarning, match="step 0 skipped"), pytest.raises(Sr3dError, match="max_skipped") as caught:
        fit(module, batches, tmp_path)
    assert module.trainer.global_step == 2 and "3, the last one by loss nan of procedural" in str(caught.value)


def test_good_steps_between_bad_ones_keep_training_alive() -> None:
    guard = Guard(2)
    for step in range(0, 10, 2):
        with pytest.warns(UserWarning, match=f"step {step} skipped .1 in a row, {step // 2 + 1} in all.: why"):
            guard.skipped(step, ["why", "why"])
        guard.passed()
    assert (guard.total, guard.row) == (5, 0)


def test_gradients_are_looked_at_where_the_loss_is_finite() -> None:
    one, nan = torch.ones(3), torch.tensor([1.0, torch.nan, 0])
    assert not_finite([torch.tensor(1.0)], [["a"]], [one, one]) == []
    assert not_finite([torch.tensor(1.0), torch.tensor(2.0)], [["a", "b"], ["c"]], [one, nan]) == [
        "gradients that are not finite, of a, b, c"
    ]
    assert not_finite([torch.tensor(1.0), torch.tensor(torch.inf)], [["a"], ["b"]], [nan]) == ["loss inf of b"]


def test_clips_without_overlap_or_anything_in_sight_are_found(worlds: Path) -> None:
    batch = small_batches(worlds, 1)[0]
    coarse = coarse_gaussians(batch.context, CoarseConfig())
    assert sight_problems(coarse, batch.context.posed()) == []
    apart = _away(batch).context
    assert sight_problems(coarse_gaussians(apart, CoarseConfig()), apart.posed()) == [
        (1, "no input view sees anything of another one")
    ]
    means = coarse.means.clone()
    means[0] += 1e4
    assert sight_problems(replace(coarse, means=means), batch.context.posed()) == [
        (0, "the coarse scene lies outside the frustum of every input view")
    ]
    one = batch.context.views([0])
    assert sight_problems(coarse_gaussians(one, CoarseConfig()), one.posed()) == [], (
        "a single view overlaps with nothing"
    )


def test_the_budget_is_checked_before_the_network_runs(
    worlds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = small_batches(worlds, 1)
    # Two clips of two views of 8 x 8 pixels, 2 x 2 children each.
    count = 2 * 2 * 8 * 8 * 4
    fit(small_module(max_gaussians=count, warmup_steps=0), batches, tmp_path)
    module = small_module(max_gaussians=count - 1, warmup_steps=0)
    monkeypatch.setattr(module.network, "predict", None)
    with pytest.raises(Sr3dError) as caught:
        fit(module, batches, tmp_path)
    assert caught.value.field == "model.max_gaussians"
    assert f"{count:,} Gaussians (2 clips of 2 views of 8x8)" in caught.value.found
    for knob in ("global_batch_size", "views.context", "image_size", "scaffold.grid", f"at most {count - 1:,}"):
        assert knob in caught.value.expected
    check_budget(10**9, None, batches[0])


def test_a_budget_of_the_scaffold_counts() -> None:
    config = small_network().scaffold
    assert most_gaussians(config, 100, 4) == 400
    assert most_gaussians(replace(config, grid=None), 100, 8) == 6400
    assert most_gaussians(replace(config, grid=4, budget=0.5), 100, 4) == 800


def test_validation_leaves_out_clips_without_overlap(worlds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = _away(small_batches(worlds, 1)[0])
    name, other = batch.context.name.split(", ")
    first, second = (Batch.stack([clip]) for clip in split_batch(batch))
    module = small_module().eval()
    monkeypatch.setattr(module, "_memory", lambda batch: contextlib.nullcontext())  # asks the trainer
    with torch.no_grad():
        alone = module.validation_step(first, 0)["depth"]
        drawn = module.validation_step(batch, 0)["depth"]
        assert module.validation_step(second, 0) == {}
    torch.testing.assert_close(drawn.gaussians["sr3d"].means, alone.gaussians["sr3d"].means)
    assert drawn.batch.context.name == name and {clip.name for clip in module.scores.clips} == {name}
    reason = f"{other}: no input view sees anything of another one"
    with pytest.warns(UserWarning, match=f"validation leaves out 1 clips: {re.escape(reason)}$"):
        assert "val/depth/gain" in module.scores.merged()


@pytest.mark.parametrize("place", ["predict", "backward"])
def test_out_of_memory_says_what_lowers_it(
    worlds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("sr3d.models.estimate.out_of_memory", lambda _, load, **options: f"{load}, {options}")
    module = small_module(warmup_steps=0, checkpointing=True)
    if place == "predict":
        monkeypatch.setattr(module.network, "predict", full)
    else:
        monkeypatch.setattr(lightning.LightningModule, "backward", full)
    with pytest.raises(Sr3dError) as caught:
        fit(module, small_batches(worlds, 1), tmp_path, precision="bf16-mixed")
    assert caught.value.field == "memory" and "Tried to allocate 2 GiB" in caught.value.found
    load = Load(width=8, height=8, views=2, batch=2, factor=4, targets=1)
    options = {"training": True, "precision": "bf16", "checkpointing": True}
    assert caught.value.expected == f"{load}, {options}"


def test_validation_of_a_mixed_training_needs_full_precision(
    worlds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    module, batches = small_module(warmup_steps=0), small_batches(worlds, 1)
    fit(module, batches, tmp_path, precision="bf16-mixed")
    monkeypatch.setattr("sr3d.models.estimate.out_of_memory", lambda _, load, **options: f"{options}")
    monkeypatch.setattr(module.network, "predict", full)
    with pytest.raises(Sr3dError, match=r"'training': False, 'precision': 'fp32'"), torch.no_grad():
        module.eval().validation_step(batches[0], 0)
