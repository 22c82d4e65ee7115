"""Two real optimiser steps of every shipped config, shrunk to two CPU cores; headers; settings that cannot be."""

from __future__ import annotations

import csv
import math
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from small import ROOT, shrink_callbacks, shrink_network

from sr3d import SuperResolver
from sr3d.cli import main as sr3d
from sr3d.datasets.curriculum import CurriculumConfig, StageConfig
from sr3d.datasets.datamodule import ClipDataModule
from sr3d.datasets.procedural import pack_procedural
from sr3d.datasets.views import ViewConfig
from sr3d.models.config import config_from_dict
from sr3d.models.estimate import estimate
from sr3d.models.registry import model_config
from sr3d.training.check import check_stages
from sr3d.training.cli import main

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
LADDER = ROOT / "configs" / "ablation"
RUNGS = sorted(LADDER.glob("[1-9]_*.yaml"))
EXPERIMENTS = [[path] for path in (*CONFIGS, LADDER / "base.yaml")] + [[LADDER / "base.yaml", rung] for rung in RUNGS]
PARTS = ("refinement", "head", "points", "geometry", "recurrence", "semantics", "conditioning")


def name_of(experiment: list[Path]) -> str:
    return experiment[-1].stem


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for i, name in enumerate(("train", "more")):
        pack_procedural(folder / name, scenes=2, views=5, size=32, seed=i, progress=False)
    pack_procedural(folder / "val", scenes=2, views=5, size=32, seed=0, split="validation", progress=False)
    table = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    save_file({"embeddings": table}, folder / "classes.safetensors")
    return folder


def merge(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """What two `--config` options mean: keys of the second one win, lists are replaced."""
    both = {k for k in first.keys() & second.keys() if isinstance(first[k], dict) and isinstance(second[k], dict)}
    return {**first, **second, **{k: merge(first[k], second[k]) for k in both}}


def read(experiment: list[Path]) -> dict[str, Any]:
    return reduce(merge, (yaml.safe_load(path.read_text()) for path in experiment))


def shrink(values: dict[str, Any], folder: Path, shards: Path, clip: Path) -> Path:
    """A further config that makes the experiment tiny, moves it to the CPU, and lets it write below `folder`."""
    values = yaml.safe_load(yaml.safe_dump(values).replace(values["trainer"]["default_root_dir"], str(folder)))
    values["trainer"] |= {
        "max_steps": 2, "accelerator": "cpu", "devices": 1, "strategy": "auto", "precision": "32-true",
        "val_check_interval": 2, "limit_val_batches": 1, "log_every_n_steps": 1, "num_sanity_val_steps": 0,
    }  # fmt: skip
    shrink_callbacks(values["trainer"]["callbacks"])
    model, data = values["model"], values["data"]
    model["warmup_steps"] = 1
    model["loss"]["lpips"] = 0.0  # its weights would be downloaded
    if "teacher" in model:
        model["teacher"] = {"kind": "labels", "classes": [], "table": str(shards / "classes.safetensors")}
    if "condition" in model:
        model["condition"]["name"] = str(clip)
        model["network"]["conditioning"] = {"embedding": 12}
    shrink_network(model["network"])
    data |= {"global_batch_size": 1, "workers": 0, "threads": 0, "image_size": [32, 32]}
    one = isinstance(data["train_shards"], str)
    data["train_shards"] = str(shards / "train") if one else {str(shards / "train"): 0.4, str(shards / "more"): 0.6}
    sets = data["val_shards"]
    data["val_shards"] = str(shards / "val") if isinstance(sets, str) else {k: str(shards / "val") for k in sets}
    limits = {"low": 1, "high": 4}
    for views in filter(None, (data["views"], data.get("val_views"))):
        views |= {"target": 1, "context": 2} | (limits if "low" in views else {})
    if data.get("curriculum"):
        first, *_, last = data["curriculum"]["stages"]
        first |= limits
        last |= limits | {"start": 1, "views": 3, "factors": last["factors"][-1:]}
        data["curriculum"]["stages"] = [first, last]
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=name_of)
def test_two_real_steps(
    experiment: list[Path], tmp_path: Path, shards: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    values = read(experiment)
    files = [*experiment, shrink(values, tmp_path, shards, clip)]
    trainer = main(["fit", *(word for path in files for word in ("--config", str(path)))])
    assert trainer.global_step == 2

    network = SuperResolver.from_pretrained(tmp_path / "predictor.ckpt")
    wanted = values["model"]["network"]
    assert [getattr(network.config, p) is None for p in PARTS] == [wanted[p] is None for p in PARTS]
    start = SuperResolver(network.config)
    assert not torch.equal(network.encoder.vit.patch_embed.proj.weight, start.encoder.vit.patch_embed.proj.weight)
    assert network.head is None or network.head.out.weight.abs().max() > 0, "the head did not leave its zeros"

    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    weights = {k: v for k, v in values["model"]["loss"].items() if v and k != "lpips"}
    for part in ("loss", *weights):
        found = [float(row[f"train/{part}"]) for row in rows if row[f"train/{part}"]]
        assert len(found) == 2 and all(map(math.isfinite, found)), part
    data = values["data"]
    sets = data["val_shards"] if isinstance(data["val_shards"], dict) else ["procedural"]
    for source in values["model"]["sources"]:
        for name in sets:
            for factor in data.get("val_factors") or [data["factor"]]:
                key = f"val/{name}/x{factor}/{source}/sr3d/psnr"
                assert any(row[key] for row in rows), key
    kinds = {part["class_path"].split(".")[-1] for k in ("logger", "callbacks") for part in values["trainer"][k]}
    assert ("ImagePanels" in kinds) == bool(list(tmp_path.glob("panels/*.png")))
    assert ("WandbLogger" in kinds) == bool(list(tmp_path.glob("wandb/offline-run-*")))
    assert ("RunRecord" in kinds) == (tmp_path / "run-step000000.json").is_file()


@pytest.mark.parametrize("path", [*CONFIGS, LADDER / "base.yaml", *RUNGS], ids=lambda p: p.stem)
def test_headers_say_how_to_run_it_and_what_it_takes(path: Path) -> None:
    header = "".join(path.read_text().partition("\nseed_everything")[0].partition("\ntrainer:")[:1])
    assert all(line.startswith("# ") for line in header.splitlines())
    run = shlex.split(re.findall(r"sr3d train (.*)", header)[0])
    files = [ROOT / word for word in run if word != "--config"]
    assert path in files and all(file.is_file() for file in files)
    assert re.search(r"Memory: estimated [0-9.]+ GiB", header) and re.search(
        r"samples/s .*not measured|[0-9.]+ samples/s", header
    )
    assert "one small GPU" in header and "eight large GPUs" in header


@pytest.mark.parametrize("path", [*CONFIGS, LADDER / "base.yaml"], ids=lambda p: p.stem)
@pytest.mark.parametrize("kind", ["one small GPU", "eight large GPUs"])
def test_recipes_of_the_headers_train_on_equally_many_samples(path: Path, kind: str) -> None:
    text = path.read_text()
    found = re.search(rf"on {kind}[^-]*:((?:\s*#?\s+--\S+ \S+)+)", text)
    assert found, "no recipe"
    words = found[1].replace("#", " ").split()
    values, changed = yaml.safe_load(text), yaml.safe_load(text)
    for option, value in zip(words[::2], words[1::2], strict=True):
        *groups, key = option.removeprefix("--").split(".")
        group = reduce(dict.__getitem__, groups, changed)
        assert key in group, option
        group[key] = yaml.safe_load(value)

    def samples(config: dict[str, Any]) -> int:
        return int(config["trainer"]["max_steps"] * config["data"]["global_batch_size"])

    trainer, data = changed["trainer"], changed["data"]
    assert trainer["devices"] == (1 if kind == "one small GPU" else 8)
    assert data["global_batch_size"] % (trainer["devices"] * trainer["accumulate_grad_batches"]) == 0
    assert abs(samples(changed) / samples(values) - 1) < 0.01
    assert changed["model"]["warmup_steps"] < trainer["max_steps"]
    kept = {k: data.get(k) for k in ("train_shards", "val_shards", "factor", "val_factors", "global_batch_size")}
    size, stages = data["image_size"], (data.get("curriculum") or {"stages": []})["stages"]
    views = ViewConfig(**{k: float(v) if k in ("low", "high") else v for k, v in data["views"].items()})
    pairs = [{k: tuple(v) if k == "views" and isinstance(v, list) else v for k, v in stage.items()} for stage in stages]
    curriculum = CurriculumConfig(stages=[StageConfig(**stage) for stage in pairs])
    module = ClipDataModule(**kept, image_size=size and tuple(size), views=views, curriculum=curriculum)
    parts, limit = trainer["devices"] * trainer["accumulate_grad_batches"], changed["model"].get("max_gaussians")
    check_stages(module, config_from_dict(values["model"]["network"]).scaffold, limit, parts, trainer["max_steps"])


def test_memory_in_the_header_is_that_of_the_estimate() -> None:
    text = (ROOT / "configs" / "demo.yaml").read_text()
    values = yaml.safe_load(text)
    config, views = config_from_dict(values["model"]["network"]), values["data"]["views"]
    needs = estimate(config, 48, 48, views["context"], precision="bf16", targets=views["target"])
    found = re.search(r"estimated ([0-9.]+) GiB", text)
    assert found and abs(float(found[1]) - needs.training_bytes / 2**30) < 0.06


@pytest.mark.parametrize("path", [p for p in CONFIGS if p.stem not in ("demo", "zoom")], ids=lambda p: p.stem)
def test_full_size_networks_are_the_registered_one(path: Path) -> None:
    base = model_config("base")
    config = config_from_dict(read([path])["model"]["network"])
    assert config.encoder.name == base.encoder.name and config.encoder.pretrained
    assert replace(config.decoder, texture_bound=base.decoder.texture_bound) == base.decoder
    for part in ("refinement", "head", "points", "geometry"):
        assert getattr(config, part) in (getattr(base, part), None), part


def test_each_rung_adds_one_part_and_states_all() -> None:
    on = [[part for part in PARTS if read([LADDER / "base.yaml"])["model"]["network"][part] is not None]]
    folders = set()
    for rung in RUNGS:
        values = yaml.safe_load(rung.read_text())
        assert values["model"]["network"].keys() == set(PARTS[:5])
        on.append([part for part in PARTS[:5] if values["model"]["network"][part] is not None])
        assert (values["model"]["loss"]["geometry"] > 0) == ("geometry" in on[-1])
        checkpoint = values["trainer"]["callbacks"][-1]["init_args"]
        folders.add(checkpoint["dirpath"])
    assert on == [[]] + [list(PARTS[:i]) for i in range(6)]
    assert len(folders) == len(RUNGS) == 6


# Key and value; what the one line names.
WRONG = {
    "model.lerning_rate": ("0.1", "lerning_rate"),
    "trainer.precision": ("16-mixed", "trainer.precision: found 16-mixed; expected 32-true or bf16-mixed"),
    "trainer.accelerator": ("tpu", "config: trainer: found"),
    "data.factor": ("3", "data.factor: found 3; expected one of [4]"),
    "model.warmup_steps": ("760", "model.warmup_steps: found 760; expected fewer than the 760 steps"),
    "model.network.geometry": ("null", "model.loss.geometry: found 0.02; expected 0, or a network with"),
    "model.loss.semantic": ("1", "model.loss.semantic: found 1.0; expected 0, or a teacher"),
}


@pytest.mark.parametrize("key", WRONG)
def test_what_cannot_be_is_one_line_before_data_is_read(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    value, expected = WRONG[key]
    words = ["train", "--config", str(ROOT / "configs" / "demo.yaml"), f"--{key}", value]
    try:
        status: object = sr3d(words)
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    check_one_error(capsys.readouterr().err, expected)
    assert not (tmp_path / "outputs").exists()


def test_misspelt_key_of_a_file_from_a_shell(tmp_path: Path) -> None:
    text = (ROOT / "configs" / "demo.yaml").read_text().replace("learning_rate", "lerning_rate")
    (tmp_path / "bad.yaml").write_text(text)
    words = [sys.executable, "-m", "sr3d.cli", "train", "--config", "bad.yaml"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    check_one_error(done.stderr, "lerning_rate")


def check_one_error(text: str, expected: str) -> None:
    """One line `error: ...`, the last one, and no traceback; Lightning may show how a verb is used before it."""
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert errors == text.splitlines()[-1:] and expected in errors[0] and "Traceback" not in text
