from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from observed import noisy, observed
from sklearn.metrics import accuracy_score, jaccard_score
from torch import Tensor, nn
from torchmetrics.image.fid import _compute_fid

from sr3d import Sr3dError
from sr3d.evaluation.metrics import fid as fid_file
from sr3d.evaluation.metrics import fvd as fvd_file
from sr3d.evaluation.metrics.fid import Fid
from sr3d.evaluation.metrics.frechet import frechet_distance
from sr3d.evaluation.metrics.fvd import Fvd
from sr3d.evaluation.metrics.i3d import I3d
from sr3d.evaluation.metrics.semantics import Semantics


def _scene(seed: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Labels of two views (0: none), scores that agree with most of them, and a mask."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (2, 9, 11), generator=generator)  # the last class is never there
    scores = torch.randn(2, 9, 11, classes, generator=generator)
    scores += 2 * nn.functional.one_hot((labels - 1).clamp_min(0), classes)
    return labels, scores, torch.rand(2, 9, 11, generator=generator) < 0.5


def test_semantics_of_scikit_learn() -> None:
    classes, metric = 5, Semantics()
    scenes = [_scene(seed, classes) for seed in (0, 1)]
    states = []
    for labels, scores, covered in scenes:
        rgb = torch.zeros(2, 9, 11, 3)
        states.append(metric.state(observed(rgb, rgb, labels=labels, covered=covered, logits=scores)))
    values = metric.finish(states)
    assert list(values) == [column.name for column in metric.columns]
    true = np.concatenate([labels.flatten() for labels, _, _ in scenes])
    best = np.concatenate([scores.argmax(dim=-1).flatten() + 1 for _, scores, _ in scenes])
    mask = np.concatenate([covered.flatten() for _, _, covered in scenes])
    for suffix, chosen in (("", true > 0), ("_covered", (true > 0) & mask)):
        present = np.unique(true[chosen])
        assert list(present) == [1, 2, 3, 4] and 5 in best[chosen]
        expected = jaccard_score(true[chosen], best[chosen], labels=present, average="macro")
        assert values["miou" + suffix] == pytest.approx(expected, abs=1e-12)
        assert values["accuracy" + suffix] == pytest.approx(accuracy_score(true[chosen], best[chosen]), abs=1e-12)
    assert 0.5 < values["miou"] < 0.95 and values["miou"] != values["miou_covered"]


def test_semantics_where_nothing_is_drawn() -> None:
    rgb = torch.zeros(1, 1, 4, 3)
    labels = torch.tensor([[[1, 1, 2, 0]]])
    scores = torch.tensor([[[[5.0, 1.0], [0.0, 0.0], [0.0, 1.0], [3.0, 0.0]]]])
    metric = Semantics()
    values = metric.finish([metric.state(observed(rgb, rgb, labels=labels, logits=scores))])
    assert values["accuracy"] == pytest.approx(2 / 3) and values["miou"] == pytest.approx((1 / 2 + 1) / 2)
    without = metric.state(observed(rgb, rgb, labels=labels * 0, logits=scores))
    assert all(math.isnan(value) for value in metric.finish([without, without]).values())
    with pytest.raises(Sr3dError, match=r"case hall/0\+1: labels: found 0 to 3; expected 0 to 2: mine has 2 scores"):
        metric.state(observed(rgb, rgb, labels=labels + (labels == 2).int(), logits=scores))


class _Linear(nn.Module):
    """Takes Inception's place: the mean colour, moved and stretched."""

    def forward(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8 and images.shape[:2] == (1, 3)
        return images.double().mean(dim=(2, 3)) / 255 * torch.tensor([1.0, 2.0, 4.0]) + 7


def _flat(colors: Tensor) -> Tensor:
    return colors[:, None, None].expand(-1, 12, 12, -1).contiguous()


def test_fid_of_two_gaussians(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fid_file, "load_inception", _Linear)
    # Two-point distributions along each axis: means and variances are known, covariances are diagonal.
    signs = torch.tensor([[a, b, c] for a in (-1.0, 1) for b in (-1.0, 1) for c in (-1.0, 1)])
    level = 1 / 255  # colours are rounded to bytes: these are bytes
    true = 100 * level + signs * torch.tensor([10.0, 20.0, 30.0]) * level
    drawn = 120 * level + signs * torch.tensor([20.0, 20.0, 15.0]) * level
    metric = Fid()
    states = [metric.state(observed(_flat(drawn[part]), _flat(true[part]))) for part in (slice(0, 3), slice(3, 8))]
    assert states[1]["drawn"].shape == (5, 3) and states[1]["drawn"].device.type == "cpu"
    values = metric.finish(states)
    # Diagonal Gaussians: |μ₁ − μ₂|² + Σ (σ₁ − σ₂)²; eight samples have a variance 8 / 7 of that of the points.
    stretch = torch.tensor([1.0, 2.0, 4.0])
    mean = ((20 * level * stretch) ** 2).sum()
    spread = 8 / 7 * ((torch.tensor([10.0, 0.0, 15.0]) * level * stretch) ** 2).sum()
    assert values == {"fid": pytest.approx((mean + spread).item(), rel=1e-5), "fid_views": 8}
    same = metric.state(observed(_flat(true), _flat(true)))
    assert metric.finish([same])["fid"] < 1e-9
    one = metric.finish([{name: x[:1] for name, x in same.items()}])
    assert math.isnan(one["fid"]) and one["fid_views"] == 1


def test_frechet_distance_of_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(200, 6, generator=generator, dtype=torch.float64) @ torch.randn(6, 6, generator=generator).double()
    b = torch.randn(90, 6, generator=generator, dtype=torch.float64) + 0.5
    moments = [f(x) for x in (a, b) for f in (lambda x: x.mean(dim=0), lambda x: torch.cov(x.T))]
    assert frechet_distance(a, b) == pytest.approx(_compute_fid(*moments).item(), rel=1e-9)
    # Fewer samples than dimensions: in a rotated frame the covariance stays singular, the distance the same.
    turn = torch.linalg.qr(torch.randn(50, 50, generator=generator, dtype=torch.float64)).Q
    few, other = torch.zeros(10, 50, dtype=torch.float64), torch.zeros(12, 50, dtype=torch.float64)
    few[:, :6], other[:, :6] = a[:10], b[:12]
    expected = frechet_distance(a[:10], b[:12])
    assert frechet_distance(few @ turn, other @ turn) == pytest.approx(expected, rel=1e-9)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where weights are kept, empty."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path


def test_inception_of_a_file(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is read as tensors before torch-fidelity gets it, which would execute what it asks for."""
    asked: list[Any] = []

    def inception(*arguments: Any) -> nn.Module:
        asked.append(arguments)
        raise RuntimeError("Missing key(s) in state_dict: fc.weight")

    monkeypatch.setattr(fid_file, "optional_package", lambda name: None)
    monkeypatch.setattr("torchmetrics.image.fid.NoTrainInceptionV3", inception)
    path = hub / "checkpoints" / fid_file._URL.rpartition("/")[2]
    torch.save(nn.Linear(1, 1), path)  # a pickled object
    with pytest.raises(Sr3dError, match=r"weights: found .*Weights only load failed") as error:
        Fid()
    assert not asked and error.value.source == str(path)
    torch.save({"fc.bias": torch.zeros(3)}, path)
    with pytest.raises(Sr3dError, match=r"found Missing key.*; expected those of Inception v3"):
        Fid()
    assert asked == [("inception-v3-compat", ["2048"], str(path))]


def test_fvd(hub: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = I3d()
    # As old files have it: without counters of batches.
    table = {name: x for name, x in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert len(table) == 57 * 5 + 2 and table["Mixed_4f.b2b.conv3d.weight"].shape == (128, 32, 3, 3, 3)
    path = hub / "checkpoints" / "i3d_rgb_imagenet.pt"
    torch.save(table, path)
    metric = Fvd()
    rgb, truth = noisy(9, 16, 20)
    state = metric.state(observed(rgb, truth))
    assert state["drawn"].shape == (1, 400) and not torch.equal(state["drawn"], state["true"])
    short = metric.state(observed(rgb[:8], truth[:8]))
    assert short["true"].shape == (0, 400)
    one = metric.finish([state, short])
    assert math.isnan(one["fvd"]) and one["fvd_videos"] == 1
    other = {name: x + torch.arange(400) / 400 for name, x in state.items()}
    expected = frechet_distance(*(torch.cat([state[name], other[name]]) for name in ("drawn", "true")))
    assert metric.finish([state, short, other]) == {"fvd": expected, "fvd_videos": 2}
    torch.save({name: x for name, x in table.items() if "logits" not in name}, path)
    with pytest.raises(Sr3dError, match=f"expected those of I3D .*{fvd_file._URL.rpartition('/')[2]}"):
        Fvd()
