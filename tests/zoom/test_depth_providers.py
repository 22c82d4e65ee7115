from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import interpolate

from sr3d import Sr3dError
from sr3d.zoom.providers import MonocularDepth, load_provider
from sr3d.zoom.providers.base import check_depth

_BACKBONE = {"hidden_size": 16, "num_attention_heads": 2, "mlp_ratio": 2}


def _with_contrast(model: torch.nn.Module, std: float) -> None:
    """Weights under which the answer depends on the image; initial ones are too small for that."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=std)


@pytest.fixture(scope="session")
def anything(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Depth Anything of random weights, relative and metric, that sees 56 pixels."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    layers = {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "reshape_hidden_states": False}
    config = DepthAnythingConfig(
        backbone_config=Dinov2Config(**_BACKBONE, **layers, patch_size=14, image_size=56),
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
    )
    size = {"height": 56, "width": 56}
    processor = DPTImageProcessor(size=size, ensure_multiple_of=14, keep_aspect_ratio=True)
    folders = {}
    for kind, largest in (("relative", 1), ("metric", 20)):
        folders[kind] = tmp_path_factory.mktemp(f"depth-anything-{kind}")
        config.depth_estimation_type, config.max_depth = kind, largest
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = DepthAnythingForDepthEstimation(config)
            _with_contrast(model, 0.3)
            model.head.conv3.weight.data *= 0.01
        model.save_pretrained(folders[kind])
        processor.save_pretrained(folders[kind])
    return folders


@pytest.fixture(scope="session")
def pro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Depth Pro of random weights, with its guess of the field of view, that sees 64 pixels."""
    from transformers import DepthProConfig, DepthProForDepthEstimation, DepthProImageProcessor

    folder = tmp_path_factory.mktemp("depth-pro")
    backbone = _BACKBONE | {"model_type": "dinov2", "num_hidden_layers": 2, "patch_size": 4, "image_size": 16}
    parts = ("image_model_config", "patch_model_config", "fov_model_config")
    config = DepthProConfig(
        patch_size=16,
        fusion_hidden_size=16,
        intermediate_hook_ids=[1, 0],
        intermediate_feature_dims=[8, 8],
        scaled_images_feature_dims=[8, 8, 8],
        merge_padding_value=1,
        use_fov_model=True,
        **{part: dict(backbone) for part in parts},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DepthProForDepthEstimation(config)
        _with_contrast(model, 0.2)
        # Mostly above 0, and an angle of view that exists.
        model.head.layers[-2].bias.data.fill_(2.0)
        model.fov_model.head.layers[-1].bias.data.fill_(60.0)
    model.save_pretrained(folder)
    DepthProImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def _picture(height: int, width: int) -> tuple[Image.Image, Tensor]:
    """The same noise as 8 bits and in [0, 1]."""
    eight = (torch.rand(height, width, 3, generator=torch.Generator().manual_seed(1)) * 255).round().to(torch.uint8)
    return Image.fromarray(eight.numpy()), eight.float() / 255


def _prior() -> MonocularDepth:
    provider: MonocularDepth = load_provider("depth", "prior")
    return provider


def _ground(height: int, focal: float) -> Tensor:
    return (torch.arange(height) + 0.5 + height / 2) / focal


def test_the_prior_of_a_plain_image_is_a_plane_that_comes_nearer() -> None:
    guess = check_depth(_prior(), _prior().guess(torch.full((40, 60, 3), 0.4), 50.0), (40, 60))
    assert guess.kind == "inverse"
    assert (guess.depth.diff(dim=0) > 0).all()
    assert torch.allclose(guess.depth, _ground(40, 50.0)[:, None].expand(40, 60))


def test_the_prior_stands_regions_upright_on_the_ground() -> None:
    """A wall with a window, before a sky that the wall does not reach."""
    image = torch.full((48, 64, 3), 0.3)
    image[:8] = torch.tensor([0.5, 0.7, 1.0])
    image[12:36, 10:50] = torch.tensor([0.9, 0.2, 0.1])
    image[18:24, 20:30] = torch.tensor([0.1, 0.1, 0.6])
    found, ground = _prior().guess(image, 50.0).depth, _ground(48, 50.0)
    assert torch.allclose(found[12:36, 10:50], ground[35]), "wall and window: where the wall stands"
    assert torch.allclose(found[:8], ground[[0, 7]].mean()), "sky: the middle of its rows"
    assert torch.allclose(found[36:], ground[36:, None].expand(12, 64))
    assert torch.allclose(found[8:36, :10], ground[8:36, None].expand(28, 10)), "ground beside the wall"
    assert (found > 0).all()


@pytest.mark.parametrize("kind", ["relative", "metric"])
def test_depth_anything_is_what_transformers_says(anything: dict[str, Path], kind: str) -> None:
    from transformers import pipeline

    eight, image = _picture(56, 70)
    provider = load_provider("depth", f"depth-anything:{anything[kind]}")
    guess = check_depth(provider, provider.guess(image, 60.0), (56, 70))
    expected = pipeline("depth-estimation", model=str(anything[kind]))(eight)["predicted_depth"]
    assert guess.kind == {"relative": "inverse", "metric": "metric"}[kind]
    assert expected.std() > 0.1
    floor = expected.max() / 1000 if kind == "relative" else 1e-4
    assert torch.allclose(guess.depth, expected.clamp_min(floor), atol=1e-4)
    assert torch.equal(provider.guess(image, 60.0).depth, guess.depth)


def test_depth_anything_is_enlarged_bilinearly_and_stays_above_zero(anything: dict[str, Path]) -> None:
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    eight, image = _picture(100, 150)
    folder = anything["relative"]
    inputs = AutoImageProcessor.from_pretrained(folder)(images=eight, return_tensors="pt")
    assert inputs["pixel_values"].shape[-2:] == (56, 84), "multiples of 14 that keep the shape"
    with torch.no_grad():
        said = AutoModelForDepthEstimation.from_pretrained(folder).eval()(**inputs).predicted_depth
    expected = interpolate(said[None], (100, 150), mode="bilinear")[0, 0]
    guess = load_provider("depth", f"depth-anything:{folder}").guess(image, 60.0)
    assert (expected == 0).any(), "otherwise this says nothing about the floor"
    assert torch.allclose(guess.depth, expected.clamp_min(expected.max() / 1000), atol=1e-4)


def test_depth_pro_under_its_own_focal_length_is_what_transformers_says(pro: Path) -> None:
    from transformers import AutoImageProcessor, DepthProForDepthEstimation

    eight, image = _picture(40, 60)
    processor = AutoImageProcessor.from_pretrained(pro)
    with torch.no_grad():
        said = DepthProForDepthEstimation.from_pretrained(pro).eval()(**processor(images=eight, return_tensors="pt"))
    expected = processor.post_process_depth_estimation(said, target_sizes=[(40, 60)])[0]
    provider = load_provider("depth", f"depth-pro:{pro}")
    guess = check_depth(provider, provider.guess(image, float(expected["focal_length"])), (40, 60))
    assert guess.kind == "metric"
    assert torch.allclose(1 / guess.depth, 1 / expected["predicted_depth"], atol=1e-4)
    assert (1 / guess.depth).std() > 0.01


def test_depth_pro_is_as_far_as_the_focal_length_is_long(pro: Path) -> None:
    provider, image = load_provider("depth", f"depth-pro:{pro}"), _picture(40, 60)[1]
    short, long = (provider.guess(image, focal).depth for focal in (30.0, 90.0))
    inside = (short > 1e-4) & (long < 1e4)
    assert inside.float().mean() > 0.5
    assert torch.allclose(long[inside], 3 * short[inside], rtol=1e-5)
    assert torch.equal(short, provider.guess(image, 30.0).depth)


@pytest.mark.parametrize("name", ["depth-anything", "depth-pro"])
def test_weights_that_cannot_be_had_are_one_clear_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(Sr3dError, match=f"^depth provider {name}: no-one/no-such-depth: found .*expected a folder"):
        load_provider("depth", f"{name}:no-one/no-such-depth")


def test_another_kind_of_network_is_refused(pro: Path) -> None:
    with pytest.raises(Sr3dError, match=r"found a model of type depth_pro; expected depth_anything"):
        load_provider("depth", f"depth-anything:{pro}")


def test_weights_with_a_gap_are_refused(anything: dict[str, Path], tmp_path: Path) -> None:
    for file in anything["relative"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["head.conv3.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(Sr3dError, match=r"found 1 weights missing, such as head\.conv3\.weight"):
        load_provider("depth", f"depth-anything:{tmp_path}")


def test_the_prior_has_nothing_to_choose() -> None:
    with pytest.raises(Sr3dError, match=r"depth provider prior: argument: found 'large'; expected prior alone"):
        load_provider("depth", "prior:large")
