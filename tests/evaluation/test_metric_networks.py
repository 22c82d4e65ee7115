from __future__ import annotations

import sys
import types
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from observed import noisy, observed
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from sr3d import Sr3dError
from sr3d.evaluation.metrics import METRICS, create_metrics, no_reference
from sr3d.evaluation.metrics.base import MetricUnavailable
from sr3d.evaluation.metrics.clip import ClipIqa, ClipScore
from sr3d.evaluation.metrics.no_reference import Musiq, Niqe, QAlign
from sr3d.evaluation.metrics.weights import cached
from sr3d.training.clip_model import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD


def _cosines(folder: Path, images: Tensor, texts: list[str]) -> Tensor:
    """By transformers alone, of images that have CLIP's size."""
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    mean, std = (torch.tensor(x)[:, None, None] for x in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model(pixel_values=(images.movedim(-1, 1) - mean) / std, **tokens)
    return out.logits_per_image / model.logit_scale.exp()


def test_clip_score_and_clip_iqa(clip: Path) -> None:
    rgb, _ = noisy(3, 32, 32)
    score = ClipScore(name=str(clip)).measure(observed(rgb, text="a red chair"))
    torch.testing.assert_close(score["clip_score"], _cosines(clip, rgb, ["a red chair"])[:, 0], atol=1e-5, rtol=0)
    assert (score["clip_score"].abs() <= 1).all() and len(score["clip_score"].unique()) == 3
    quality = ClipIqa(name=str(clip)).measure(observed(rgb))
    expected = (100 * _cosines(clip, rgb, ["Good photo.", "Bad photo."])).softmax(dim=-1)[:, 0]
    torch.testing.assert_close(quality["clip_iqa"], expected, atol=1e-5, rtol=0)


class _Pyiqa(types.ModuleType):
    """Takes pyiqa's place: scores are means of what is asked for."""

    def __init__(self, fails: str = "") -> None:
        super().__init__("pyiqa")
        self.fails, self.made = fails, []

    def create_metric(self, name: str, device: str) -> Any:
        self.made.append((name, device))
        if self.fails:
            raise RuntimeError(self.fails)

        def score(image: Tensor, task_: str = "") -> Tensor:
            assert image.shape[:2] == (1, 3) and not torch.is_grad_enabled()
            return (image.mean() + len(task_)).reshape(1, 1)

        return score


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where weights of pyiqa are kept: files that could be theirs."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    folder = tmp_path / "pyiqa"
    folder.mkdir()
    (folder / "niqe_modelparameters.mat").write_bytes(b"matlab")
    torch.save({"head.weight": torch.zeros(3)}, folder / "musiq_koniq_ckpt-e95806b9.pth")
    return folder


@pytest.mark.parametrize(
    ("metric", "asked", "tasks", "least"),
    [(Niqe, "niqe", [""], 192), (Musiq, "musiq", [""], 32), (QAlign, "qalign", ["quality", "aesthetic"], 1)],
)
def test_metrics_of_pyiqa(
    hub: Path, monkeypatch: pytest.MonkeyPatch, metric: type, asked: str, tasks: list[str], least: int
) -> None:
    pyiqa = _Pyiqa()
    monkeypatch.setitem(sys.modules, "pyiqa", pyiqa)
    monkeypatch.setitem(sys.modules, "icecream", types.ModuleType("icecream"))
    monkeypatch.setattr(no_reference, "require_hub", lambda name, files: None)
    monkeypatch.setattr(no_reference, "_refuse_code", lambda: None)
    rgb, _ = noisy(2, least, 200)
    made = metric()
    values = made.measure(observed(rgb))
    assert pyiqa.made == [(asked, "cpu")] and made.needs == ()
    assert list(values) == [column.name for column in metric.columns]
    for value, task in zip(values.values(), tasks, strict=True):
        torch.testing.assert_close(value, rgb.mean(dim=(1, 2, 3)) + len(task))
    if least > 1:
        assert made.measure(observed(rgb[:, 1:]))[asked].isnan().all()


@pytest.mark.parametrize("metric", [Niqe, Musiq])
def test_weights_that_pyiqa_cannot_use(hub: Path, monkeypatch: pytest.MonkeyPatch, metric: type) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", _Pyiqa(fails="size mismatch for head.weight"))
    with pytest.raises(Sr3dError, match=r"pyiqa/.*: weights: found size mismatch .*; expected those of"):
        metric()


def test_weights_that_would_execute_code(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyiqa reads pickles; it is not asked to read one that holds more than tensors."""
    pyiqa = _Pyiqa()
    monkeypatch.setitem(sys.modules, "pyiqa", pyiqa)
    torch.save(nn.Linear(1, 1), hub / "musiq_koniq_ckpt-e95806b9.pth")
    with pytest.raises(Sr3dError, match=r"musiq_koniq_ckpt-e95806b9.pth: weights: found Weights only load failed"):
        Musiq()
    torch.save([1], hub / "musiq_koniq_ckpt-e95806b9.pth")
    with pytest.raises(Sr3dError, match=r"weights: found list; expected the tensors of https"):
        Musiq()
    assert not pyiqa.made


def test_code_in_the_repository_of_q_align(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: dict[int, str] = {200: "holds code", 500: "cannot be looked into"}

    def ask(status: int) -> None:
        def answer(request: urllib.request.Request, timeout: float) -> Any:
            assert request.full_url.endswith("q-future/one-align/resolve/main/custom_generate/generate.py")
            if status != 200:
                raise urllib.error.HTTPError(request.full_url, status, "no", None, None)
            return types.SimpleNamespace(close=lambda: None)

        monkeypatch.setattr(urllib.request, "urlopen", answer)
        no_reference._refuse_code()

    ask(404)
    for status, reason in answers.items():
        with pytest.raises(MetricUnavailable, match=reason):
            ask(status)
    monkeypatch.setattr(no_reference, "cached", lambda name, files: True)
    with pytest.raises(MetricUnavailable, match="holds code"):
        ask(404)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No network, and nothing kept: addresses that were asked, each with a short patience."""
    asked: list[str] = []

    def refuse(request: urllib.request.Request, timeout: float = 60.0) -> None:
        assert timeout <= 5
        asked.append(request.full_url)
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return asked


@pytest.mark.parametrize("name", ["lpips", "fid", "clip_score", "clip_iqa", "niqe", "musiq", "q_align", "fvd"])
def test_no_network(offline: list[str], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for module in ("fid", "no_reference"):
        monkeypatch.setattr(f"sr3d.evaluation.metrics.{module}.optional_package", types.ModuleType)
    monkeypatch.setattr("sr3d.evaluation.metrics.weights.cached", lambda name, files: False)
    made, unavailable = create_metrics(["psnr", name])
    assert list(made) == ["psnr"] and list(unavailable) == [name] and len(offline) == 1
    assert "no route to host" in unavailable[name] and offline[0] in unavailable[name]
    assert "\n" not in unavailable[name]


@pytest.mark.parametrize(("name", "package"), [("fid", "torch_fidelity"), ("niqe", "pyiqa"), ("q_align", "icecream")])
def test_no_package(monkeypatch: pytest.MonkeyPatch, name: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", _Pyiqa())
    monkeypatch.setitem(sys.modules, package, None)
    made, unavailable = create_metrics([name])
    assert not made and unavailable == {name: f"package {package} is missing: pip install 'sr3d[metrics]'"}


def test_hub_that_is_not_to_be_asked(monkeypatch: pytest.MonkeyPatch, offline: list[str]) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    _, unavailable = create_metrics(["clip_iqa"])
    assert unavailable["clip_iqa"].endswith("HF_HUB_OFFLINE is set") and not offline


def test_cached_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert not cached("a/b", ["model.safetensors"])
    folder = tmp_path / "models--a--b"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (folder / "snapshots" / ("0" * 40) / "model.safetensors").write_bytes(b"")
    assert cached("a/b", ["pytorch_model.bin", "model.safetensors"]) and not cached("a/b", ["pytorch_model.bin"])


def test_names() -> None:
    with pytest.raises(Sr3dError, match=r"metrics: found pnsr; expected one of psnr, ssim, .*fvd"):
        create_metrics(["ssim", "pnsr"])
    columns = [column.name for metric in METRICS.values() for column in metric.columns]
    assert len(set(columns)) == len(columns)
    assert all(column.better in ("higher", "lower") for metric in METRICS.values() for column in metric.columns)
    assert list(create_metrics(["warp_error", "psnr"])[0]) == ["warp_error", "psnr"]
