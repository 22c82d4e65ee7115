"""Providers of pixels, diffusion models by tiny ones of random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d, pad

from sr3d.cameras import Cameras
from sr3d.errors import Sr3dError
from sr3d.models.upsampler import Upsampler, UpsamplerConfig
from sr3d.zoom.providers import AuxiliaryViews, DepthGuess, Editor, ImageSuperResolution, load_provider
from sr3d.zoom.providers.base import ask, check_depth, check_images
from sr3d.zoom.providers.super_resolution import back_projected, reflected


def saved_pipeline(folder: Path, pipeline: str, latents: int, halvings: int, **options: Any) -> Path:
    """A Stable Diffusion of random weights, whose text encoder reads letter by letter.

    Args:
        folder: Is written.
        pipeline: Class of diffusers.
        latents: Channels that the U-Net reads.
        halvings: Of the autoencoder.
        options: Of the pipeline; "noise_levels" of the U-Net.
    """
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [chr(i) for i in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"vocab_size": 54, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = diffusers.UNet2DConditionModel(
            sample_size=8,
            in_channels=latents,
            out_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=4,
            norm_num_groups=4,
            num_class_embeds=options.pop("noise_levels", None),
        )
        vae = diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * (halvings + 1),
            up_block_types=("UpDecoderBlock2D",) * (halvings + 1),
            block_out_channels=(8,) * (halvings + 1),
            norm_num_groups=4,
            scaling_factor=0.08333,
        )
        text = CLIPTextModel(CLIPTextConfig(**size, **tokens))
    getattr(diffusers, pipeline)(
        vae=vae,
        text_encoder=text,
        tokenizer=CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=16),
        unet=unet,
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        **options,
    ).save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def upscaling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import DDPMScheduler

    folder, noise = tmp_path_factory.mktemp("upscaling"), DDPMScheduler()
    return saved_pipeline(folder, "StableDiffusionUpscalePipeline", 7, 2, noise_levels=1000, low_res_scheduler=noise)


@pytest.fixture(scope="module")
def inpainting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inpainting")
    return saved_pipeline(folder, "StableDiffusionInpaintPipeline", 9, 1, requires_safety_checker=False)


@pytest.fixture(scope="module")
def swin2sr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of 2×, of random weights."""
    folder = tmp_path_factory.mktemp("swin2sr")
    size: dict[str, Any] = {"embed_dim": 12, "depths": [1], "num_heads": [2], "window_size": 4, "upscale": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Upsampler(UpsamplerConfig(method="swin2sr", options=size)).swin2sr.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def upscaler(upscaling: Path) -> ImageSuperResolution:
    return load_provider("sr", f"diffusion:{upscaling}@2")


@pytest.fixture(scope="module")
def inpainter(inpainting: Path) -> AuxiliaryViews:
    return load_provider("auxiliary", f"diffusion:{inpainting}@2")


@pytest.fixture(scope="module")
def editor(inpainting: Path) -> Editor:
    return load_provider("editor", f"diffusion:{inpainting}@2")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """8 x 6 pixels: red, opaque on the left; blue, a quarter opaque, on the right."""
    pixels = np.zeros((8, 6, 4), np.uint8)
    pixels[:, :4], pixels[:, 4:] = (255, 0, 0, 255), (0, 0, 255, 51)
    Image.fromarray(pixels).save(tmp_path / "mug.png")
    return tmp_path / "mug.png"


def looking(count: int, width: int, height: int) -> Cameras:
    K = torch.tensor([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]])
    return Cameras(world_to_cam=torch.eye(4).expand(count, 4, 4), K=K.expand(count, 3, 3), width=width, height=height)


def pictures(count: int, height: int, width: int) -> Tensor:
    """Smooth colours."""
    small = torch.rand(count, 3, 3, 4, generator=torch.Generator().manual_seed(5))
    return interpolate(small, (height, width), mode="bilinear").movedim(1, -1).contiguous()


def reduced(images: Tensor, factor: int) -> Tensor:
    return avg_pool2d(images.movedim(-1, 1), factor).movedim(1, -1)


def test_bicubic_is_that_of_torch() -> None:
    images = torch.rand(2, 7, 9, 3, generator=torch.Generator().manual_seed(0))
    large = load_provider("sr", "bicubic").enlarge(images, 3, "a mug", 4)
    expected = interpolate(images.movedim(-1, 1), scale_factor=3, mode="bicubic").clamp(0, 1).movedim(1, -1)
    assert torch.equal(large, expected) and large.is_contiguous()


def test_swin2sr_is_the_upsampler_of_the_predictor(swin2sr: Path) -> None:
    provider, images = load_provider("sr", f"swin2sr:{swin2sr}"), pictures(2, 6, 9)
    network = Upsampler(UpsamplerConfig(method="swin2sr", name=str(swin2sr)))
    large = provider.enlarge(images, 4, "", 0)
    expected = torch.cat([network(image[None].movedim(-1, 1), 4) for image in images]).movedim(1, -1)
    assert large.shape == (2, 24, 36, 3) and torch.equal(large, expected) and not large.requires_grad
    assert large.std() > 0.01
    with pytest.raises(Sr3dError, match="sr provider swin2sr: factor: found Swin2SR of 2× for factor 3"):
        provider.enlarge(images, 3, "", 0)


@pytest.mark.parametrize("factor, size", [(4, (9, 13)), (2, (16, 8)), (5, (3, 6))])
def test_diffusion_of_any_size_and_factor(upscaler: ImageSuperResolution, factor: int, size: tuple[int, int]) -> None:
    images = pictures(2, *size)
    large = upscaler.enlarge(images, factor, "a mug", 0)
    assert large.shape == (2, factor * size[0], factor * size[1], 3)
    assert large.dtype == torch.float32 and large.min() >= 0 and large.max() <= 1
    error = (reduced(large, factor) - images).abs()
    assert error.mean() < 2e-3 and error.max() < 0.03
    # It is drawn, not interpolated: most of what is seen is noise of the random network.
    assert (large - load_provider("sr", "bicubic").enlarge(images, factor, "", 0)).abs().mean() > 0.03


def test_diffusion_follows_seed_and_prompt(upscaler: ImageSuperResolution) -> None:
    images = pictures(1, 8, 8)
    first = upscaler.enlarge(images, 4, "a mug", 0)
    torch.manual_seed(99)
    assert torch.equal(upscaler.enlarge(images, 4, "a mug", 0), first)
    assert (upscaler.enlarge(images, 4, "a mug", 1) - first).abs().mean() > 0.01
    assert (upscaler.enlarge(images, 4, "red bricks", 0) - first).abs().mean() > 1e-5
    twice = upscaler.enlarge(images.expand(2, -1, -1, -1), 4, "a mug", 0)
    assert torch.equal(twice[0], twice[1])


def test_back_projection_changes_nothing_that_is_consistent() -> None:
    fine = torch.rand(1, 12, 8, 3, generator=torch.Generator().manual_seed(0))
    low = reduced(fine, 4)
    assert (back_projected(fine, low) - fine).abs().max() < 1e-6
    assert torch.equal(back_projected(fine, 1 - low, rounds=0), fine)


def test_back_projection_is_exact_where_nothing_is_clamped() -> None:
    generator = torch.Generator().manual_seed(0)
    fine = 0.5 + 0.1 * torch.rand(1, 16, 20, 3, generator=generator)
    low = 0.4 + 0.1 * torch.rand(1, 4, 5, 3, generator=generator)
    assert (reduced(fine, 4) - low).abs().mean() > 0.05
    assert (reduced(back_projected(fine, low), 4) - low).abs().max() < 1e-6
    # What the low resolution cannot see stays: differences within a block of one image pixel, but for the slope.
    kept = back_projected(fine, low) - fine
    blocks = kept.unfold(1, 4, 4).unfold(2, 4, 4)
    assert blocks.std(dim=(-2, -1)).mean() < 0.5 * blocks.mean(dim=(-2, -1)).abs().mean()


def test_reflection_repeats_as_often_as_needed() -> None:
    image = torch.tensor([[[[0.0, 1.0, 2.0]]]])
    assert reflected(image, 8)[0, 0].tolist() == [[0, 1, 2, 1, 0, 1, 2, 1]] * 8


def test_no_edit() -> None:
    image = pictures(1, 6, 5)[0]
    edit = load_provider("editor", "none").edit(image, "a mug", torch.ones(6, 5, dtype=torch.bool), 0)
    assert torch.equal(edit.image, image) and edit.inserted.shape == (6, 5) and not edit.inserted.any()


def test_paste_into_the_middle(picture: Path) -> None:
    image = torch.full((24, 30, 3), 0.5)
    edit = load_provider("editor", f"paste:{picture}").edit(image, "", None, 0)
    expected, inserted = image.clone(), torch.zeros(24, 30, dtype=torch.bool)
    expected[8:16, 12:16] = torch.tensor([1.0, 0.0, 0.0])
    expected[8:16, 16:18] = torch.tensor([0.4, 0.4, 0.6])
    inserted[8:16, 12:16] = True
    assert torch.allclose(edit.image, expected, atol=1e-6) and torch.equal(edit.inserted, inserted)


def test_paste_into_a_mask(picture: Path) -> None:
    image = torch.full((30, 40, 3), 0.5)
    mask = torch.zeros(30, 40, dtype=torch.bool)
    mask[2:26, 1:5] = True
    mask[18:26, 20:24] = True
    edit = load_provider("editor", f"paste:{picture}").edit(image, "", mask, 0)
    # The lowest third is rows 18 to 25, the mean column of the mask there 12.5: the picture covers 10 to 15.
    assert not edit.inserted.any() and torch.equal(edit.image, image)
    mask[18:26] = True
    edit = load_provider("editor", f"paste:{picture}").edit(image, "", mask, 0)
    assert edit.inserted.nonzero().unique(dim=0).amin(0).tolist() == [18, 17]
    assert edit.inserted.nonzero().amax(0).tolist() == [25, 20] and edit.inserted.sum() == 32
    assert torch.equal(load_provider("editor", f"paste:{picture}").edit(image, "", mask & False, 0).image, image)


def test_paste_is_scaled_and_cut_off(picture: Path) -> None:
    large = load_provider("editor", f"paste:{picture}").edit(torch.zeros(48, 60, 3), "", None, 0)
    assert large.inserted.sum() == pytest.approx(4 * 32, abs=16) and large.inserted[16:32, 24:31].all()
    narrow = load_provider("editor", f"paste:{picture}").edit(torch.zeros(24, 4, 3), "", None, 0)
    assert narrow.inserted[8:16, :3].all() and narrow.inserted.sum() == 24


@pytest.mark.parametrize(
    "name, message",
    [
        ("", "file: found no name"),
        ("none.png", "none.png: file: found no such file"),
        ("bad.png", "bad.png: image: "),
        ("grey.png", "grey.png: channels: found RGB; expected an alpha channel"),
    ],
)
def test_nothing_to_paste(name: str, message: str, picture: Path) -> None:
    (picture.parent / "bad.png").write_bytes(picture.read_bytes()[:60])
    Image.new("RGB", (4, 4)).save(picture.parent / "grey.png")
    with pytest.raises(Sr3dError, match=message):
        load_provider("editor", f"paste:{picture.parent / name if name else ''}")


@pytest.mark.parametrize("size", [(9, 21), (40, 24)])
def test_diffusion_edits_inside_the_mask(editor: Editor, size: tuple[int, int]) -> None:
    image, mask = pictures(1, *size)[0], torch.zeros(size, dtype=torch.bool)
    mask[2:8, 5:20] = True
    edit = editor.edit(image, "a mug", mask, 0)
    assert torch.equal(edit.image[~mask], image[~mask]) and edit.image.min() >= 0 and edit.image.max() <= 1
    different = (edit.image - image).abs().amax(dim=-1) > 0.1
    assert edit.inserted.any() and not (edit.inserted & ~different).any()
    # What is inserted is made of squares of 3 x 3 pixels.
    cores = pad(-max_pool2d(-edit.inserted[None].float(), 3, stride=1), (1, 1, 1, 1))
    assert torch.equal(max_pool2d(cores, 3, stride=1, padding=1)[0] > 0, edit.inserted)
    assert torch.equal(editor.edit(image, "a mug", mask, 0).image, edit.image)
    assert (editor.edit(image, "a mug", mask, 1).image - edit.image).abs().max() > 0.01
    none = editor.edit(image, "a mug", mask & False, 0)
    assert torch.equal(none.image, image) and not none.inserted.any()


def test_diffusion_edits_everywhere(editor: Editor) -> None:
    image = pictures(1, 12, 10)[0]
    edit = editor.edit(image, "a mug", None, 0)
    assert edit.image.shape == image.shape and (edit.image - image).abs().amin(dim=-1).median() > 1e-3


def test_inpainting_continues_what_is_known() -> None:
    ramp = torch.linspace(0.1, 0.9, 24)[None, None, :, None].expand(2, 16, 24, 3).contiguous()
    known = torch.ones(2, 16, 24, dtype=torch.bool)
    known[0, 5:11, 8:14] = False
    damaged = torch.where(known[..., None], ramp, torch.nan)
    filled = load_provider("auxiliary", "inpaint").fill(damaged, known, looking(2, 24, 16), "", 0)
    assert torch.equal(filled[known], ramp[known])
    assert (filled - ramp).abs().max() < 0.05
    assert torch.equal(load_provider("auxiliary", "inpaint").fill(damaged, known, looking(2, 24, 16), "x", 7), filled)


def test_frames_without_anything_known() -> None:
    provider, images = load_provider("auxiliary", "inpaint"), pictures(2, 6, 8)
    known = torch.zeros(2, 6, 8, dtype=torch.bool)
    assert (provider.fill(images, known, looking(2, 8, 6), "", 0) == 0.5).all()
    known[1] = True
    filled = provider.fill(images, known, looking(2, 8, 6), "", 0)
    assert torch.equal(filled[1], images[1])
    assert torch.allclose(filled[0], images[1].flatten(0, 1).mean(dim=0).expand(6, 8, 3), atol=1e-6)


def test_diffusion_fills_what_is_unknown(inpainter: AuxiliaryViews) -> None:
    images, cameras = pictures(1, 19, 26).repeat(3, 1, 1, 1), looking(3, 26, 19)
    known = torch.ones(3, 19, 26, dtype=torch.bool)
    known[:2, :, 15:] = False
    known[0, 3, 4] = False
    damaged = torch.where(known[..., None], images, torch.nan)
    filled = inpainter.fill(damaged, known, cameras, "a room", 3)
    assert torch.equal(filled[known], images[known]) and torch.isfinite(filled).all()
    assert filled.min() >= 0 and filled.max() <= 1
    smooth = load_provider("auxiliary", "inpaint").fill(damaged, known, cameras, "", 0)
    assert (filled - smooth)[~known].abs().mean() > 0.03
    assert torch.equal(inpainter.fill(damaged, known, cameras, "a room", 3), filled)
    assert (inpainter.fill(damaged, known, cameras, "a room", 4) - filled)[~known].abs().mean() > 0.01
    # The same noise for every frame: the same gap is filled in the same way.
    known[0, 3, 4] = True
    again = inpainter.fill(damaged.nan_to_num(0.5), known, cameras, "a room", 3)
    assert torch.equal(again[1], filled[1])


@pytest.mark.parametrize("spec", ["sr swin2sr", "sr diffusion", "editor diffusion", "auxiliary diffusion"])
def test_models_that_cannot_be_had(spec: str, tmp_path: Path) -> None:
    kind, name = spec.split()
    model = tmp_path / "nothing"
    with pytest.raises(Sr3dError, match=rf"^{kind} provider {name}: .*nothing.*: found .+; expected .+"):
        load_provider(kind, f"{name}:{model}")


def test_weights_are_read_from_safetensors_only(upscaling: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    for file in upscaling.rglob("*"):
        if file.is_file():
            copy = tmp_path / file.relative_to(upscaling)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(file.read_bytes())
    weights = tmp_path / "text_encoder" / "model.safetensors"
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(Sr3dError, match="sr provider diffusion"):
        load_provider("sr", f"diffusion:{tmp_path}")


def test_too_few_steps(upscaling: Path) -> None:
    with pytest.raises(Sr3dError, match="sr provider diffusion: steps: found 1; expected 2 or more"):
        load_provider("sr", f"diffusion:{upscaling}@1")


@pytest.mark.parametrize("spec", ["sr bicubic", "editor none", "auxiliary inpaint"])
def test_arguments_without_meaning(spec: str) -> None:
    kind, name = spec.split()
    with pytest.raises(Sr3dError, match=f"{kind} provider {name}: argument: found 'a/b'"):
        load_provider(kind, f"{name}:a/b")


@pytest.mark.parametrize("error", [RuntimeError("out of memory\nlong story"), OSError("out of memory")])
def test_a_provider_that_dies(error: Exception) -> None:
    def die() -> Tensor:
        raise error

    provider = load_provider("sr", "bicubic")
    with pytest.raises(Sr3dError) as caught:
        ask(provider, "enlarge", die)
    assert str(caught.value) == "sr provider bicubic: enlarge: found out of memory; expected an answer"
    assert caught.value.__cause__ is error
    assert ask(provider, "enlarge", lambda: 3) == 3


def test_errors_of_a_provider_pass_as_they_are() -> None:
    def refuse() -> Tensor:
        raise Sr3dError("a.png", "size", 1, 2)

    with pytest.raises(Sr3dError, match=r"^a\.png: size: found 1; expected 2$"):
        ask(load_provider("sr", "bicubic"), "enlarge", refuse)


def test_images_of_the_wrong_size_or_without_a_value() -> None:
    provider, images = load_provider("sr", "bicubic"), torch.rand(1, 4, 4, 3)
    with pytest.raises(Sr3dError, match=r"bicubic: image size: found \(1, 4, 4, 3\); expected \(1, 8, 8, 3\)"):
        check_images(provider, images, (1, 8, 8, 3))
    with pytest.raises(Sr3dError, match="bicubic: colours: found NaN or infinity"):
        check_images(provider, images.index_fill(1, torch.tensor(2), torch.nan), (1, 4, 4, 3))
    assert torch.equal(check_images(provider, images * 4 - 1, (1, 4, 4, 3)), (images * 4 - 1).clamp(0, 1))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 0.0, -1.0])
def test_depth_without_a_meaning(value: float) -> None:
    provider = load_provider("sr", "bicubic")
    guess = DepthGuess(depth=torch.full((4, 5), 2.0), kind="metric")
    assert check_depth(provider, guess, (4, 5)) is guess
    with pytest.raises(Sr3dError, match=r"depth size: found \(4, 5\); expected \(5, 4\)"):
        check_depth(provider, guess, (5, 4))
    guess.depth[1, 2] = value
    with pytest.raises(Sr3dError, match="depth: found NaN, infinity, 0 or less"):
        check_depth(provider, guess, (4, 5))
