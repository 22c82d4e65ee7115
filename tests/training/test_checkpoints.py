"""Which weights are on disk when a training is over."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from training_run import write_config

from sr3d.training.cli import main


def test_the_last_step_is_written_whatever_the_interval(worlds: Path, tmp_path: Path) -> None:
    path = write_config(tmp_path, worlds, steps=3, global_batch_size=1)
    values = yaml.safe_load(path.read_text())
    options = values["trainer"]["callbacks"][1]["init_args"]
    options |= {"filename": "predictor", "save_top_k": 1, "every_n_train_steps": 2, "enable_version_counter": False}
    values["trainer"]["limit_val_batches"] = 0
    values["model"]["warmup_steps"] = 1
    path.write_text(yaml.safe_dump(values))
    callback = main(["fit", "--config", str(path)]).checkpoint_callback
    assert [file.name for file in tmp_path.glob("*.ckpt")] == ["predictor.ckpt"]
    content = torch.load(tmp_path / "predictor.ckpt", weights_only=True)
    assert content["global_step"] == 3 and callback.best_model_path == str(tmp_path / "predictor.ckpt")
    # As in the middle of the epoch: a longer training goes on with the fourth of its six batches.
    epochs = content["loops"]["fit_loop"]["epoch_progress"]["current"]
    assert (epochs["started"], epochs["completed"]) == (1, 0)
