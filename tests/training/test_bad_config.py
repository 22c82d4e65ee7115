"""Configs that cannot work end before any data is read: exit status 2, one line, the key in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from training_run import write_config

from sr3d.datasets.datamodule import ClipDataModule
from sr3d.training import cli

NOWHERE = "no/such/shards"


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for name in path:
        values = values.setdefault(name, {})
    values[last] = value


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"model.lerning_rate": 1e-3}, "lerning_rate"),
        ({"model.network.encodr": {"name": "x"}}, "encodr"),
        ({"model.network.refinement.hads": 2}, "hads"),
        ({"trainer.max_stps": 3}, "max_stps"),
        ({"data.views.contxt": 2}, "contxt"),
        ({"model.loss.ssin": 1.0}, "ssin"),
        ({"model.learning_rate": 0.0}, "model.learning_rate"),
        ({"model.warmup_steps": -1}, "model.warmup_steps"),
        ({"model.warmup_steps": 40}, "model.warmup_steps"),
        ({"model.weight_decay": -0.1}, "model.weight_decay"),
        ({"model.ema_decay": 1.0}, "model.ema_decay"),
        ({"model.ema_decay": -0.5}, "model.ema_decay"),
        ({"model.max_gaussians": 0}, "model.max_gaussians"),
        ({"model.max_skipped": 0}, "model.max_skipped"),
        ({"model.sources": []}, "model.sources"),
        ({"model.loss": {"mse": -1.0}}, "model.loss.mse"),
        ({"model.loss": {"mse": 0.0, "dssim": 0.0, "context": 0.0}}, "model.loss"),
        ({"model.loss.geometry": 0.1, "model.network.geometry": None}, "model.loss.geometry"),
        ({"model.loss.semantic": 0.1}, "model.loss.semantic"),
        (
            {
                "model.loss.semantic": 0.1,
                "model.network.semantics": {"width": 4, "embedding": 5},
                "model.teacher": {"kind": "labels", "table": "six.safetensors"},
            },
            "model.network.semantics.embedding: found 5; expected 6, as of the teacher (model.teacher)",
        ),
        (
            {"model.condition": {"kind": "text", "name": NOWHERE}},
            "model.condition: found text; expected null, or a network",
        ),
        ({"model.condition": {"kind": "video"}}, "condition"),
        ({"model.network.conditioning": {"embedding": 12}}, "(model.condition)"),
        ({"model.network.refinement.heads": 5}, "model.network.refinement.heads"),
        ({"model.network.refinement.coarse_width": 4}, "model.network.refinement.coarse_width"),
        ({"model.network.decoder.heads": 5}, "model.network.decoder.heads"),
        ({"model.network.encoder.options.num_heads": 5}, "model.network.encoder"),
        ({"model.network": "no-such-network"}, "no-such-network"),
        ({"data.factor": 2}, "data.factor"),
        ({"data.val_factors": [4, 8]}, "data.val_factors"),
        ({"data.curriculum": {"stages": [{"start": 5, "factors": [2, 4]}]}}, "data.curriculum"),
        ({"data.global_batch_size": 0}, "global_batch_size"),
        ({"data.views.context": 0}, "context"),
        (
            {"data.image_size": [32, 30]},
            "data.image_size: found 32x30; expected multiples of the factor 4, in validation",
        ),
        (
            {
                "data.image_size": [36, 36],
                "data.curriculum": {"stages": [{"start": 5, "factors": [4, 8]}]},
                "model.network.factors": [8],
            },
            "data.image_size: found 36x36; expected multiples of the factor 8, from step 5 on",
        ),
        # 2 clips of 3 views of 8 x 8 pixels, 2 x 2 children each; then of 5 views.
        (
            {"data.image_size": [32, 32], "model.max_gaussians": 1535},
            "model.max_gaussians: found 1535, from step 0 on up to 1,536 (2 clips of 3 views of 8x8)",
        ),
        (
            {
                "data.image_size": [32, 32],
                "data.curriculum": {"stages": [{"start": 7, "views": [2, 5]}]},
                "model.max_gaussians": 1536,
            },
            "model.max_gaussians: found 1536, from step 7 on up to 2,560",
        ),
        ({"trainer.precision": "bf16-true"}, "trainer.precision"),
        ({"trainer.strategy": "fsdp_cpu_offload"}, "trainer.strategy: found fsdp_cpu_offload; expected fsdp (FSDP2"),
        (
            {"trainer.strategy": {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}},
            "trainer.strategy: found ModelParallelStrategy; expected fsdp (FSDP2",
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_bad_config_ends_before_data_is_read(
    changes: dict[str, Any],
    key: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ClipDataModule, "setup", lambda self, stage: pytest.fail("data was looked at"))
    path = write_config(tmp_path, Path(NOWHERE), steps=40)
    values = yaml.safe_load(path.read_text())
    for name, value in changes.items():
        _set(values, name, value)
    path.write_text(yaml.safe_dump(values))
    save_file({"embeddings": torch.zeros(2, 6)}, tmp_path / "six.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py", "fit", "--config", str(path)])
    try:
        status = cli.run()
    except SystemExit as end:
        status = end.code
    errors = capsys.readouterr().err
    assert status == 2 and "Traceback" not in errors
    assert key in errors[errors.index("error: ") :]


def test_a_good_config_gets_as_far_as_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_config(tmp_path, Path(NOWHERE), steps=40)
    monkeypatch.setattr("sys.argv", ["train.py", "fit", "--config", str(path)])
    assert cli.run() == 2
    assert f"error: {NOWHERE}/" in capsys.readouterr().err


def test_resuming_needs_a_folder_that_stays(worlds: Path, tmp_path: Path) -> None:
    path = write_config(tmp_path, worlds, steps=40)
    values = yaml.safe_load(path.read_text())
    del values["trainer"]["callbacks"][1]["init_args"]["dirpath"]
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ValueError, match="dirpath of ModelCheckpoint"):
        cli.main(["fit", "--config", str(path), "--resume", "true"])
