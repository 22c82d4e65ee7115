from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from made_results import made_results
from wandb.proto import wandb_internal_pb2

from sr3d import Sr3dError
from sr3d.evaluation.dashboard import log_to_wandb, summary_values
from sr3d.evaluation.results import Results
from sr3d.evaluation.statistics import summarise
from sr3d.io.images import write_image

_BLOCK = 32768


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None at all, and nothing that wandb sets for itself stays."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


def finished(folder: Path) -> list[Any]:
    """What an offline run has stored; wandb's own process writes the last of it after the run was finished."""
    limit = time.monotonic() + 30
    while not any(record.HasField("exit") for record in records(folder)) and time.monotonic() < limit:
        time.sleep(0.05)
    return records(folder)


def records(folder: Path) -> list[Any]:
    """Records of LevelDB's log, after a header of seven bytes."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, at, whole, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if _BLOCK - at % _BLOCK < 7:
            at += _BLOCK - at % _BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole, at = whole + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):
            found.append(wandb_internal_pb2.Record.FromString(whole))
            whole = b""
    return found


def with_pictures(results: Results, folder: Path) -> None:
    for name in ("truth", "upsampled", "sr3d"):
        write_image(folder / f"{name}.png", torch.rand(8, 8, 3))
    for case in results.cases:
        case.pictures = {name: f"{name}.png" for name in ("truth", "upsampled", "sr3d")}


@pytest.mark.usefixtures("account")
def test_without_an_account_every_number_and_picture_is_kept_for_later(tmp_path: Path) -> None:
    results = made_results(scenes=3, methods=("upsampled", "sr3d"))
    results.pooled = {"sr3d": {"fid": 12.5}, "upsampled": {"fid": None}}
    with_pictures(results, tmp_path)
    summary = summarise(results, "upsampled", resamples=50)
    log_to_wandb(results, summary, tmp_path, name="check")
    assert wandb.run is None
    stored = finished(tmp_path)
    logged = {item.key or "/".join(item.nested_key): item.value_json for r in stored for item in r.history.item}
    values = summary_values(results, summary)
    assert {name: json.loads(logged[name]) for name in values} == pytest.approx(values) and len(values) > 60
    mean, paired = summary.means[1]["sr3d"]["psnr"], summary.paired[1]["sr3d"]["psnr"]
    assert values["sr3d/psnr"] == mean.mean and values["sr3d/psnr/low"] == mean.low
    assert values["sr3d/psnr/difference"] == paired.difference and values["sr3d/psnr/win_rate"] == paired.win_rate
    assert values["pooled/sr3d/fid"] == 12.5 and "pooled/upsampled/fid" not in values
    assert values["views"] == results.expected and "upsampled/psnr/difference" not in values
    assert [r.exit.exit_code for r in stored if r.HasField("exit")] == [0]
    (run,) = [r.run for r in stored if r.HasField("run")]
    assert (run.project, run.display_name) == ("sr3d", "check")
    config = {item.key: item.value_json for r in stored for item in r.config.update}
    assert json.loads(config["protocol"]) == results.protocol and json.loads(config["methods"]) == results.methods

    (media,) = tmp_path.glob("wandb/offline-run-*/files/media")
    (table,) = (media / "table").glob("scenes*.json")
    content = json.loads(table.read_text())
    assert len(content["data"]) == 6 and content["columns"][:3] == ["level", "scene", "method"]
    rows = {(row[1], row[2]): dict(zip(content["columns"], row)) for row in content["data"]}
    assert rows["scene_1", "sr3d"]["lpips"] == pytest.approx(summary.rows[1]["scene_1"]["sr3d"]["lpips"])
    assert next((media / "html").glob("report*.html")).read_text() == (tmp_path / "report.html").read_text()
    kept = {path.parent.name for path in (media / "images").rglob("*.png")}
    assert kept == {"plots", "best_scene", "median_scene", "worst_scene"}
    assert len(list((media / "images" / "worst_scene").iterdir())) == 3


@pytest.mark.usefixtures("account")
def test_after_an_error_the_run_is_finished_as_failed(tmp_path: Path) -> None:
    results = made_results(scenes=1, methods=("upsampled", "sr3d"))
    with_pictures(results, tmp_path)
    write_image(tmp_path / "sr3d.png", torch.zeros(8, 9, 3))
    with pytest.raises(Sr3dError, match="size of the picture"):
        log_to_wandb(results, summarise(results, "upsampled", resamples=10), tmp_path)
    assert wandb.run is None
    assert [r.exit.exit_code for r in finished(tmp_path) if r.HasField("exit")] == [1]


def test_levels_have_values_of_their_own() -> None:
    results = made_results(scenes=2, levels=(1, 4))
    summary = summarise(results, "upsampled", resamples=10)
    values = summary_values(results, summary)
    assert values["x4/sr3d/psnr"] == summary.means[4]["sr3d"]["psnr"].mean != values["x1/sr3d/psnr"]
    assert values["x4/coverage"] == summary.coverage[4] and "sr3d/psnr" not in values
