"""Two real optimiser steps of every shipped config, shrunk to two CPU cores."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
import yaml

from sr3d import SuperResolver
from sr3d.datasets.procedural import pack_procedural
from sr3d.training.cli import main

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    pack_procedural(folder / "train", scenes=2, views=5, size=32, seed=0, progress=False)
    pack_procedural(folder / "val", scenes=2, views=5, size=32, seed=0, split="validation", progress=False)
    return folder


def shrink(config: Path, folder: Path, shards: Path) -> Path:
    """The same experiment with tiny widths, on the CPU, writing below `folder`."""
    values = yaml.safe_load(config.read_text())
    values["trainer"] |= {
        "max_steps": 2, "accelerator": "cpu", "devices": 1, "strategy": "auto", "precision": "32-true",
        "val_check_interval": 2, "limit_val_batches": 1, "log_every_n_steps": 1, "num_sanity_val_steps": 0,
        "default_root_dir": str(folder),
    }  # fmt: skip
    for logger in values["trainer"]["logger"]:
        logger["init_args"]["save_dir"] = str(folder)
    for callback in values["trainer"]["callbacks"]:
        if callback["class_path"].endswith("ModelCheckpoint"):
            callback["init_args"] |= {"dirpath": str(folder), "every_n_train_steps": 2}
        if callback["class_path"].endswith("ImagePanels"):
            callback["init_args"]["clips"] = 1
    network = values["model"]["network"]
    network["encoder"] |= {"pretrained": False, "options": {"embed_dim": 24, "depth": 1, "num_heads": 2}}
    network["refinement"]["heads"] = network["decoder"]["heads"] = 2
    network["decoder"] |= {"blocks": 1, "width": 16, "convolutions": 1, "fine": 8}
    values["data"] |= {"train_shards": str(shards / "train"), "val_shards": str(shards / "val")}
    values["data"] |= {"global_batch_size": 1, "workers": 0, "views": {"target": 1}, "val_views": {"target": 1}}
    values["data"]["image_size"] = [32, 32]
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: p.stem)
def test_two_real_steps(config: Path, tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    trainer = main(["fit", "--config", str(shrink(config, tmp_path, shards))])
    assert trainer.global_step == 2
    checkpoint = tmp_path / "predictor.ckpt"
    network = SuperResolver.from_pretrained(checkpoint)
    start = SuperResolver(network.config)
    assert network.head.out.weight.abs().max() > 0, "the head did not leave its zeros"
    assert not torch.equal(network.encoder.vit.patch_embed.proj.weight, start.encoder.vit.patch_embed.proj.weight)
    rows = list(csv.DictReader((tmp_path / "csv" / "metrics.csv").open()))
    assert [float(r["train/loss"]) for r in rows if r["train/loss"]].__len__() == 2
    source = yaml.safe_load(config.read_text())["model"]["sources"][0]
    assert any(r[f"val/{source}/sr3d/psnr"] for r in rows)
    assert list((tmp_path / "csv" / "panels").glob("*.png"))
    assert list(tmp_path.glob("wandb/offline-run-*")), "wandb wrote nothing"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: p.stem)
def test_the_header_of_a_shipped_config_says_how_to_run_it(config: Path) -> None:
    lines = config.read_text().splitlines()
    assert lines[0].startswith("#") and any("train.py fit" in line for line in lines[:4])


def test_misspelt_key_fails_before_data_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "configs" / "demo.yaml").read_text().replace("learning_rate", "lerning_rate")
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(tmp_path / "bad.yaml")])
    assert "lerning_rate" in capsys.readouterr().err
