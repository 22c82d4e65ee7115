from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import TypeVar

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sr3d import Gaussians, Scene, Sr3dError
from sr3d.datasets import Batch, reduce_scene
from sr3d.models.prediction import Prediction
from sr3d.models.semantics import Semantics, SemanticsConfig
from sr3d.rendering import Rendering
from sr3d.training.losses import LossConfig, Losses, cosine_error, depth_error, low_resolution_error, ssim
from sr3d.training.metrics import image_metrics, psnr
from sr3d.training.teachers import TeacherConfig


def test_psnr_of_a_known_error() -> None:
    truth = torch.full((2, 16, 16, 3), 0.5)
    torch.testing.assert_close(psnr(truth + 0.1, truth), torch.full((2,), 20.0), atol=1e-3, rtol=0)


def test_psnr_looks_only_at_the_mask() -> None:
    truth = torch.zeros(1, 16, 16, 3)
    image = truth.clone()
    image[:, :8] = 1.0
    mask = torch.zeros(1, 16, 16, dtype=torch.bool)
    mask[:, 4:12] = True
    torch.testing.assert_close(psnr(image, truth, mask), torch.tensor([-10 * math.log10(0.5)]))
    assert torch.isnan(psnr(image, truth, torch.zeros_like(mask))).all()


def test_colours_are_clamped_before_they_are_compared() -> None:
    truth = torch.ones(1, 16, 16, 3)
    assert psnr(truth * 1.5, truth).item() == 100.0


def test_ssim_matches_scikit_image() -> None:
    from skimage.metrics import structural_similarity

    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 3, 32, 40, 3, generator=generator)
    expected = [
        structural_similarity(
            x.numpy(), y.numpy(), channel_axis=2, data_range=1.0, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )
        for x, y in zip(a, b)
    ]  # fmt: skip
    # torchmetrics pads by reflection before it filters, so borders differ in the third digit.
    torch.testing.assert_close(ssim(a, b), torch.tensor(expected, dtype=torch.float32), atol=1e-2, rtol=0)
    torch.testing.assert_close(ssim(a, a), torch.ones(3))


T = TypeVar("T", Scene, Rendering, Prediction)


@dataclass
class Case:
    """Everything that the losses look at, random, of two clips with two views each."""

    prediction: Prediction
    target: Rendering
    high: Rendering
    batch: Batch
    network: nn.Module

    def losses(self, config: LossConfig, teacher: TeacherConfig | None = None) -> dict[str, Tensor]:
        return Losses(config, teacher)(self.prediction, self.target, self.high, self.batch, self.network)

    def clip(self, i: int) -> Case:
        return Case(
            prediction=_rows(self.prediction, i),
            target=_rows(self.target, i), high=_rows(self.high, i),
            batch=Batch(**{n: _rows(getattr(self.batch, n), i) for n in ("context", "high", "target")}),
            network=self.network,
        )  # fmt: skip


def _rows(value: T, i: int) -> T:
    tensors = {f.name: getattr(value, f.name) for f in fields(value)}
    return replace(value, **{k: v[i : i + 1] for k, v in tensors.items() if isinstance(v, Tensor)})


def _case(seed: int = 0) -> Case:
    g = torch.Generator().manual_seed(seed)

    def scene(size: int) -> Scene:
        depths = 1 + 2 * torch.rand(2, 2, size, size, generator=g)
        depths[0, :, :5] = 0  # unknown, in one clip only
        labels = torch.randint(0, 3, (2, 2, size // 4, size // 4), generator=g)
        labels = labels.repeat_interleave(4, -1).repeat_interleave(4, -2)
        return Scene(images=torch.rand(2, 2, size, size, 3, generator=g), depths=depths, labels=labels)

    def drawn() -> Rendering:
        return Rendering(
            rgb=(torch.rand(2, 2, 16, 16, 3, generator=g) * 1.2).requires_grad_(),
            alpha=torch.rand(2, 2, 16, 16, generator=g),
            depth=(0.5 + torch.rand(2, 2, 16, 16, generator=g)).requires_grad_(),
            features=torch.randn(2, 2, 16, 16, 6, generator=g).requires_grad_(),
        )

    high = scene(16)
    network = nn.Module()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network.semantics = Semantics(SemanticsConfig(width=6, embedding=5))
    empty = Gaussians(means=torch.zeros(2, 0, 3), quats=torch.zeros(2, 0, 4), scales=torch.zeros(2, 0, 3),
                      opacities=torch.zeros(2, 0), sh=torch.zeros(2, 0, 1, 3))  # fmt: skip
    prediction = Prediction(
        gaussians=empty, scaffold=empty, parents=torch.zeros(2, 0, dtype=torch.int64),
        images=torch.rand(2, 2, 16, 16, 3, generator=g).requires_grad_(),
        depths=(torch.rand(2, 2, 16, 16, generator=g) - 0.1).clamp_min(0).requires_grad_(),
    )  # fmt: skip
    batch = Batch(context=scene(4), high=high, target=scene(16))
    return Case(prediction=prediction, target=drawn(), high=drawn(), batch=batch, network=network)


ALL = LossConfig(
    mse=1.0, dssim=0.5, depth=0.4, low_resolution=0.3, semantic=0.2, context=0.6, texture=0.7, geometry=0.8
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> TeacherConfig:
    """Two classes."""
    path = tmp_path_factory.mktemp("table") / "classes.safetensors"
    save_file({"embeddings": torch.randn(2, 5, generator=torch.Generator().manual_seed(1))}, path)
    return TeacherConfig(kind="labels", table=str(path), stride=4)


def _inputs(case: Case) -> list[Tensor]:
    drawn = [getattr(r, n) for r in (case.target, case.high) for n in ("rgb", "depth", "features")]
    return [*drawn, case.prediction.images, case.prediction.depths, *case.network.parameters()]


def test_loss_is_the_weighted_sum_and_parts_of_weight_zero_are_left_out(teacher: TeacherConfig) -> None:
    case = _case()
    parts = case.losses(ALL, teacher)
    weights = {k: v for k, v in asdict(ALL).items() if v}
    assert set(parts) == {*weights, "loss"}
    torch.testing.assert_close(parts["loss"], sum(weights[k] * parts[k] for k in weights))
    assert all(parts[k] > 0.01 for k in weights)
    truth = case.batch.target.images
    torch.testing.assert_close(parts["mse"], (case.target.rgb - truth).square().mean())
    torch.testing.assert_close(parts["dssim"], (1 - ssim(case.target.rgb, truth).mean()) / 2)
    torch.testing.assert_close(parts["texture"], (case.prediction.images - case.batch.high.images).square().mean())
    torch.testing.assert_close(parts["context"], (case.high.rgb - case.batch.high.images).square().mean())
    for name in weights:
        alone = replace(LossConfig(mse=0.0, dssim=0.0, context=0.0), **{name: 2.0})
        some = case.losses(alone, teacher)
        assert set(some) == {name, "loss"}
        torch.testing.assert_close(some["loss"], 2 * parts[name])


def test_two_clips_are_the_mean_of_each(teacher: TeacherConfig) -> None:
    case = _case()
    both, first, second = (c.losses(ALL, teacher) for c in (case, case.clip(0), case.clip(1)))
    for name in both:
        torch.testing.assert_close(both[name], (first[name] + second[name]) / 2, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("what", ["alpha 0", "no truth", "no maps", "nothing predicted", "nan truth"])
def test_losses_and_gradients_are_finite_where_nothing_is_known(what: str, teacher: TeacherConfig) -> None:
    case = _case()
    for scene in (case.batch.high, case.batch.target):
        if what == "no maps":
            scene.depths = scene.labels = None
        else:
            scene.depths *= float("nan") if what == "nan truth" else float(what != "no truth")
            scene.labels *= int(what != "no truth")
    if what == "alpha 0":
        for drawn in (case.target, case.high):
            drawn.rgb, drawn.depth, drawn.features = (
                torch.zeros_like(x).requires_grad_() for x in (drawn.rgb, drawn.depth, drawn.features)
            )
            drawn.alpha = torch.zeros_like(drawn.alpha)
    if what == "nothing predicted":
        case.prediction.depths = torch.zeros_like(case.prediction.depths).requires_grad_()
        case.target.features = torch.zeros_like(case.target.features).requires_grad_()
    parts = case.losses(ALL, teacher)
    gradients = torch.autograd.grad(parts["loss"], _inputs(case), allow_unused=True)
    assert all(torch.isfinite(v) for v in parts.values())
    # A process with nothing to learn from still takes part: everything that has a loss has a gradient.
    assert sum(g is None for g in gradients) == 1 + (what == "no maps"), "features of the input views, their depth"
    assert all(torch.isfinite(g).all() for g in gradients if g is not None)
    zero = {
        "alpha 0": ["depth", "semantic"], "no truth": ["depth", "semantic", "geometry"],
        "no maps": ["depth", "semantic", "geometry"], "nothing predicted": ["geometry"],
        "nan truth": ["depth", "geometry"],
    }[what]  # fmt: skip
    assert all(parts[name] == 0 for name in zero)


def test_what_is_drawn_in_half_precision_is_compared_in_full(teacher: TeacherConfig) -> None:
    case = _case()
    expected = case.losses(ALL, teacher)
    for drawn in (case.target, case.high):
        drawn.rgb, drawn.depth, drawn.features = (
            x.detach().bfloat16() for x in (drawn.rgb, drawn.depth, drawn.features)
        )
    case.prediction.images, case.prediction.depths = (
        case.prediction.images.bfloat16(),
        case.prediction.depths.bfloat16(),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = case.losses(ALL, teacher)
    for name, value in parts.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name], atol=2e-3, rtol=1e-2)


def test_depth_is_compared_as_a_ratio_where_it_is_known() -> None:
    truth = torch.full((1, 1, 4, 4), 3.0)
    depth = truth * 1.1
    depth[..., 0, :] = 50.0
    mask = torch.ones_like(truth, dtype=torch.bool)
    mask[..., 0, :] = False
    expected = torch.tensor(math.log(1.1) - 0.005)
    torch.testing.assert_close(depth_error(depth, truth, mask), expected)
    torch.testing.assert_close(depth_error(truth, truth * 1.1, mask), expected)
    holes = truth.clone()
    holes[..., 0, :] = 0
    torch.testing.assert_close(depth_error(depth, holes), expected)
    assert depth_error(depth * 1e3, holes * 1e3) == pytest.approx(float(expected), abs=1e-5)
    # One wrong surface among many does not drown the rest: the error grows like the logarithm.
    assert depth_error(truth * 100, truth) < 5


def test_low_resolution_error_is_zero_for_images_that_reduce_to_the_inputs() -> None:
    images = torch.rand(2, 3, 12, 18, 3)
    small = reduce_scene(Scene(images=images), 3).images
    assert low_resolution_error(images, small) < 1e-12
    noise = torch.randn(2, 3, 4, 6, 3) * 0.1
    torch.testing.assert_close(low_resolution_error(images, small + noise), noise.square().mean())
    # Detail that the inputs cannot show costs nothing.
    detail = 0.2 * torch.tensor([1.0, -1, 0]).repeat(6)[:, None]
    assert low_resolution_error(images + detail, small) < 1e-12


def test_cosine_error_of_known_features() -> None:
    embeddings = torch.randn(1, 1, 3, 4, 4)
    valid = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    same = embeddings.movedim(2, -1).repeat_interleave(2, -2).repeat_interleave(2, -3)
    alpha = torch.ones(1, 1, 8, 8)
    for features, expected in ((same, 0.0), (same * 7, 0.0), (-same, 2.0), (torch.zeros_like(same), 1.0)):
        assert cosine_error(features, alpha, embeddings, valid, torch.eye(3)) == pytest.approx(expected, abs=2e-3)
    # As embeddings that are built: through a map of random weights.
    weight, other, smooth = torch.randn(3, 5), torch.randn(1, 1, 8, 8, 5), torch.nn.functional.avg_pool2d
    mapped = smooth(other[0].movedim(-1, 1), 2).movedim(1, -1) @ weight.T
    expected = 1 - torch.nn.functional.cosine_similarity(mapped, embeddings[0].movedim(1, -1), dim=-1).mean()
    torch.testing.assert_close(cosine_error(other, alpha, embeddings, valid, weight), expected, atol=1e-3, rtol=0)
    # Only opaque and valid pixels count, on the teacher's grid.
    half = same.clone()
    half[..., :4, :, :] *= -1
    seen = alpha.clone()
    seen[..., :4, :] = 0.1
    assert cosine_error(half, seen, embeddings, valid, torch.eye(3)) == pytest.approx(0, abs=2e-3)
    valid[..., :2, :] = False
    assert cosine_error(half, alpha, embeddings, valid, torch.eye(3)) == pytest.approx(0, abs=2e-3)


def test_what_the_losses_need() -> None:
    nothing = LossConfig(mse=1.0, dssim=0.0, context=0.0)
    assert not Losses(nothing).needs_high and not Losses(nothing).needs_features
    assert Losses(replace(nothing, low_resolution=1.0)).needs_high and Losses(replace(nothing, context=1.0)).needs_high
    with pytest.raises(Sr3dError, match=r"model.loss.semantic.*model.teacher"):
        Losses(replace(nothing, semantic=1.0))
    case = _case()
    case.prediction.depths = None
    with pytest.raises(Sr3dError, match=r"model.loss.geometry.*model.network.geometry"):
        case.losses(replace(nothing, geometry=1.0))


def test_metrics_keep_the_view_axes() -> None:
    image = torch.rand(2, 3, 16, 16, 3)
    values = image_metrics(image, image, torch.ones(2, 3, 16, 16, dtype=torch.bool))
    assert {k: tuple(v.shape) for k, v in values.items()} == {"psnr": (2, 3), "psnr_covered": (2, 3), "ssim": (2, 3)}
