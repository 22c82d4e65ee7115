"""The Lightning module: schedule, precision, draws, validation, checkpoints."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from torch import nn
from training_run import fit, small_batches, small_module, small_network

from sr3d import Sr3dError
from sr3d.coarse import CoarseConfig
from sr3d.datasets.batch import Batch
from sr3d.models import SuperResolver
from sr3d.training import compilation
from sr3d.training.augment import AugmentConfig
from sr3d.training.checkpoints import AtomicCheckpointIO, newest_checkpoint
from sr3d.training.compilation import compile_dense
from sr3d.training.evaluate import draw_methods
from sr3d.training.module import StepRecord
from sr3d.training.randomness import random_states, restore_random_states
from sr3d.training.samples import coarse_of, draw_batch, split_batch
from sr3d.training.schedule import parameter_groups, warmup_cosine
from sr3d.training.validation import Scores

PARTS = {"data", "coarse", "network", "render", "loss", "backward", "optimiser"}
STRONG = AugmentConfig(depth_noise=0.05, depth_edges=0.5, gain=0.7, tint=0.2, exposure=0.2, noise=0.02)


class _Records(lightning.Callback):
    def __init__(self, timing: bool = False) -> None:
        self.timing, self.steps, self.losses = timing, list[StepRecord](), list[float]()

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.timing = self.timing

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.steps.append(pl_module.step)
        self.losses.append(float(trainer.callback_metrics["train/loss"]))


def test_warm_up_then_cosine() -> None:
    factors = [warmup_cosine(s, 10, 110) for s in range(111)]
    assert factors[:10] == pytest.approx([(s + 1) / 10 for s in range(10)])
    assert factors[10] == 1 and factors[60] == pytest.approx(0.51) and factors[110] == pytest.approx(0.02)
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_biases_and_norms_do_not_decay() -> None:
    network = SuperResolver(small_network())
    decayed, kept = parameter_groups(network, 0.3)
    assert decayed["weight_decay"] == 0.3 and kept["weight_decay"] == 0
    names = {id(p): n for n, p in network.named_parameters()}
    plain = [names[id(p)] for p in kept["params"]]
    norms = {f"{n}.{k}" for n, m in network.named_modules() if isinstance(m, nn.LayerNorm) for k in ("weight", "bias")}
    assert norms <= set(plain) and all(n.endswith("bias") or "norm" in n or n in norms for n in plain)
    assert len(plain) + len(decayed["params"]) == len(names)


def test_every_step_leaves_a_record(worlds: Path, tmp_path: Path) -> None:
    records, batches = _Records(timing=True), small_batches(worlds, 3)
    module = small_module()
    fit(module, batches, tmp_path, callbacks=[records])
    for record, batch, loss in zip(records.steps, batches, records.losses):
        assert record.seconds.keys() == PARTS and all(t >= 0 for t in record.seconds.values())
        assert record.seconds["network"] > 1e-4 and record.seconds["render"] > 1e-5
        assert record.samples == 2 and record.sources == ["depth"] * 2
        assert record.losses.keys() == {"mse", "dssim", "context", "loss"}
        total = record.losses["mse"] + 0.02 * record.losses["dssim"] + 0.5 * record.losses["context"]
        assert float(record.losses["loss"]) == pytest.approx(float(total)) == pytest.approx(loss)
        assert not record.prediction.gaussians.means.requires_grad
        assert record.batch.context.name == batch.context.name


def test_mixed_precision_keeps_geometry_and_rendering_exact(worlds: Path, tmp_path: Path) -> None:
    curves = []
    for precision in ("32-true", "bf16-mixed"):
        records = _Records()
        fit(small_module(), small_batches(worlds, 4), tmp_path, callbacks=[records], precision=precision)
        curves.append(records)
    exact, mixed = curves
    assert mixed.losses == pytest.approx(exact.losses, rel=0.02) and mixed.losses != exact.losses
    first, second = exact.steps[0].prediction, mixed.steps[0].prediction
    torch.testing.assert_close(second.scaffold.means, first.scaffold.means, rtol=0, atol=1e-6)
    assert all(p.dtype == torch.float32 for p in (second.gaussians.means, second.gaussians.sh))


def test_checkpointing_does_not_change_the_curve(worlds: Path, tmp_path: Path) -> None:
    curves = []
    for checkpointing in (False, True):
        records = _Records()
        module = small_module(checkpointing=checkpointing)
        fit(module, small_batches(worlds, 3), tmp_path, callbacks=[records])
        curves.append(records.losses)
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)


def test_dense_parts_are_compiled_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "_why_not", lambda: None)
    network = SuperResolver(small_network())
    names = list(network.state_dict())
    assert compile_dense(network) == ["encoder", "refinement", "decoder", "head"]
    compiled = [n for n, m in network.named_modules() if m._compiled_call_impl is not None]
    assert compiled == ["encoder", "refinement", "decoder", "head"] and list(network.state_dict()) == names


def test_where_nothing_compiles_training_goes_on_with_one_message(
    worlds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "_why_not", lambda: "InvalidCxxCompiler: no working C++ compiler")
    with pytest.warns(UserWarning, match="training uncompiled: InvalidCxxCompiler") as caught:
        fit(small_module(compile=True), small_batches(worlds, 3), tmp_path)
    assert sum("uncompiled" in str(w.message) for w in caught) == 1


def test_draws_do_not_depend_on_how_clips_are_batched(worlds: Path) -> None:
    batch = small_batches(worlds, 1, clips=4)[0]
    sources = ["depth", "sweep"]
    whole, chosen = draw_batch(batch, sources, STRONG, seed=3, step=5, first=0)
    assert set(chosen) == set(sources)
    coarse = coarse_of(whole.context, chosen, CoarseConfig())
    clips = split_batch(batch)
    for i in (0, 2):
        part, some = draw_batch(Batch.stack(clips[i : i + 2]), sources, STRONG, seed=3, step=5, first=i)
        assert some == chosen[i : i + 2] and part.sources == whole.sources[i : i + 2]
        assert torch.equal(part.context.images, whole.context.images[i : i + 2])
        assert torch.equal(part.context.depths, whole.context.depths[i : i + 2])
        assert torch.equal(part.target.images, whole.target.images[i : i + 2])
        assert torch.equal(coarse_of(part.context, some, CoarseConfig()).means, coarse.means[i : i + 2])
    other, _ = draw_batch(batch, sources, STRONG, seed=3, step=6, first=0)
    assert not torch.equal(other.context.images, whole.context.images), "every step draws anew"


def test_batches_of_different_view_counts_follow_each_other(worlds: Path, tmp_path: Path) -> None:
    batches = [small_batches(worlds, 1, views=v)[0] for v in (1, 3, 2)]
    records = _Records()
    fit(small_module(sources=["depth"]), batches, tmp_path, callbacks=[records])
    assert [len(r.batch.context) for r in records.steps] == [1, 3, 2]
    with pytest.raises(Sr3dError, match="images: found shapes"):
        Batch.stack([split_batch(b)[0] for b in batches])


def test_a_clip_that_two_processes_saw_counts_once(worlds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = SuperResolver(small_network()).eval()
    batches = small_batches(worlds, 3)
    parts = []
    for chosen in ([0, 1], [2, 0]):
        scores = Scores()
        for i in chosen:
            scores.add(batches[i], "depth", draw_methods(network, batches[i], CoarseConfig()))
        parts.append(scores)
    monkeypatch.setattr("sr3d.training.validation.gather", lambda scores: parts)
    merged = parts[0].merged()
    drawn = [draw_methods(network, b, CoarseConfig()) for b in batches]
    for method in ("coarse", "upsampled", "sr3d"):
        values = torch.cat([d.metrics(method)["psnr_covered"].flatten() for d in drawn])
        assert merged[f"val/procedural/x4/depth/{method}/psnr_covered"] == pytest.approx(float(values.nanmean()))
    gain = (
        merged["val/procedural/x4/depth/sr3d/psnr_covered"] - merged["val/procedural/x4/depth/upsampled/psnr_covered"]
    )
    assert merged["val/depth/gain"] == pytest.approx(gain)


def test_the_average_is_validated_and_a_checkpoint_has_both(worlds: Path, tmp_path: Path) -> None:
    module = small_module(ema_decay=0.9, learning_rate=0.05)
    trainer = fit(module, small_batches(worlds, 5), tmp_path)
    own = {k: v.clone() for k, v in module.network.state_dict().items()}
    module.on_validation_start()
    averaged = {k: v.clone() for k, v in module.network.state_dict().items()}
    assert any(not torch.equal(own[k], averaged[k]) for k in own)
    module.on_validation_epoch_end()
    assert all(torch.equal(own[k], v) for k, v in module.network.state_dict().items())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert all(torch.equal(content["ema_state"][k], v) for k, v in averaged.items())
    assert all(torch.equal(content["state_dict"][f"network.{k}"], v) for k, v in own.items())
    assert content["state_dict"].keys() == {f"network.{k}" for k in own}, "no teachers, no losses"


def test_a_checkpoint_of_another_network_is_refused(worlds: Path, tmp_path: Path) -> None:
    trainer = fit(small_module(), small_batches(worlds, 3), tmp_path)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    other = small_module(replace(small_network(), scaffold=replace(small_network().scaffold, grid=3)))
    content = AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(Sr3dError, match=r"scaffold\.grid 2, now 3"):
        other.on_load_checkpoint(content)


def test_a_file_is_the_old_or_the_new_checkpoint(tmp_path: Path) -> None:
    path, plugin = tmp_path / "deep" / "a.ckpt", AtomicCheckpointIO()
    plugin.save_checkpoint({"state_dict": {"a": torch.ones(3)}}, path)
    with pytest.raises(AttributeError):
        plugin.save_checkpoint({"state_dict": {"a": torch.ones(1000), "bad": lambda: 0}}, path)
    assert torch.equal(plugin.load_checkpoint(path)["state_dict"]["a"], torch.ones(3))
    assert [p.name for p in path.parent.iterdir()] == ["a.ckpt"]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Sr3dError, match=r"a\.ckpt: checkpoint: found unreadable"):
        plugin.load_checkpoint(path)


def test_the_newest_checkpoint_is_found(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b", tmp_path / "none"]
    assert newest_checkpoint(folders) is None
    for i, name in enumerate(["a/one.ckpt", "b/two.ckpt", "a/three.ckpt", "b/.four.ckpt", "b/five.txt"]):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (i, i))
    assert newest_checkpoint(folders) == tmp_path / "a" / "three.ckpt"


def test_random_generators_go_on_where_they_were() -> None:
    def draw() -> list[float]:
        normal = [random.gauss(0, 1), float(np.random.mtrand.randn()), float(torch.randn(()))]
        return [*normal, random.random(), float(np.random.mtrand.rand()), float(torch.rand(()))]

    draw()
    states = random_states()
    restore_random_states(states, 0)
    first = draw()
    draw()
    restore_random_states(states, 0)
    assert draw() == first
    two = {name: torch.cat([torch.zeros_like(rows), rows]) for name, rows in states.items()}
    restore_random_states(two, 1)
    assert draw() == first
    restore_random_states(states, 1)
    assert draw() != first, "a process that was not there keeps its own"
