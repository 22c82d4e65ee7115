from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from sr3d import Sr3dError
from sr3d.zoom.providers import Segmenter, load_provider
from sr3d.zoom.providers.segmentation import partition


def _with_contrast(model: torch.nn.Module) -> None:
    """Weights under which the answer depends on image and prompt; initial ones are too small for that."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)


@pytest.fixture(scope="session")
def sam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SAM 2 of random weights that sees 64 pixels and is sure of what it says."""
    from transformers import (
        Sam2Config,
        Sam2HieraDetConfig,
        Sam2ImageProcessor,
        Sam2Model,
        Sam2Processor,
        Sam2VisionConfig,
    )

    folder = tmp_path_factory.mktemp("sam2")
    hiera = Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[64, 64],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[8, 4, 4, 2],
        global_attention_blocks=[3],
        window_positional_embedding_background_size=[2, 2],
    )
    vision = Sam2VisionConfig(
        backbone_config=hiera,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=16,
    )
    heads = {"mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    config = Sam2Config(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4},
        mask_decoder_config=heads | {"hidden_size": 16},
    )
    with torch.random.fork_rng():
        torch.manual_seed(6)
        model = Sam2Model(config)
        _with_contrast(model)
        model.mask_decoder.iou_prediction_head.proj_out.bias.data.fill_(5.0)
        for head in model.mask_decoder.output_hypernetworks_mlps:
            head.proj_out.weight.data *= 1e5
    model.save_pretrained(folder)
    size, masks = ({"height": side, "width": side} for side in (64, 16))
    Sam2Processor(image_processor=Sam2ImageProcessor(size=size, mask_size=masks)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grounding DINO of random weights that knows two words."""
    from transformers import (
        BertConfig,
        BertTokenizer,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    folder = tmp_path_factory.mktemp("grounding-dino")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "mug", "plate"]
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    swin = {"depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4, "out_indices": [2, 3, 4]}
    sizes = ("encoder_ffn_dim", "decoder_ffn_dim", "max_text_len")
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(image_size=64, patch_size=4, embed_dim=8, **swin),
        text_config=BertConfig(vocab_size=len(words), max_position_embeddings=32, **text),
        num_queries=6,
        num_feature_levels=3,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        d_model=32,
        **dict.fromkeys(sizes, 16),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GroundingDinoForObjectDetection(config)
        _with_contrast(model)
    model.save_pretrained(folder)
    images = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 128})
    GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def _noise(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return (torch.rand(height, width, 3, generator=generator) * 255).round() / 255


def _flat(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Three colours, and which of them where."""
    parts = torch.zeros(height, width, dtype=torch.int64)
    parts[:, width // 3 :], parts[height * 2 // 3 :, width // 3 :] = 1, 2
    return torch.tensor([[0.9, 0.1, 0.1], [0.0, 0.0, 0.0], [0.1, 0.2, 0.9]])[parts], parts


def _eight(image: Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().to(torch.uint8).numpy())


def _is_partition(segments: Tensor) -> bool:
    """Numbered from 0 on without gaps."""
    return segments.unique().tolist() == list(range(int(segments.max()) + 1))


def _filled(sam: Path, image: Tensor, boxes: Tensor) -> Tensor:
    """What transformers' own code says fills the boxes: one mask each."""
    from transformers import Sam2Model, Sam2Processor

    processor = Sam2Processor.from_pretrained(sam)
    inputs = processor(images=_eight(image), input_boxes=[boxes.tolist()], return_tensors="pt")
    with torch.no_grad():
        said = Sam2Model.from_pretrained(sam).eval()(**inputs, multimask_output=False)
    masks: Tensor = processor.post_process_masks(said.pred_masks, inputs["original_sizes"])[0][:, 0]
    return masks


def test_flat_colours_are_one_region_each() -> None:
    image, parts = _flat(30, 40)
    found = load_provider("segmenter", "regions").segments(image)
    assert _is_partition(found) and int(found.max()) == 2
    assert torch.stack([found.flatten(), parts.flatten()]).unique(dim=1).shape[1] == 3, "one region for each colour"


def test_regions_of_noise_are_a_partition_of_regions_that_are_not_too_small() -> None:
    regions = load_provider("segmenter", "regions")
    image = _noise(60, 80)
    found = regions.segments(image)
    assert _is_partition(found)
    assert found.flatten().bincount().min() >= 5, "1/1000 of the image"
    assert torch.equal(found, regions.segments(image))


def test_smaller_masks_lie_on_larger_ones_and_the_rest_joins_its_neighbours() -> None:
    masks = torch.zeros(3, 8, 12, dtype=torch.bool)
    masks[0, 2:4, 1:3], masks[1, :, :5], masks[2, :, 8:] = True, True, True
    expected = torch.ones(8, 12, dtype=torch.int64)
    expected[2:4, 1:3], expected[:, 7:] = 0, 2  # columns 5 to 7 are nobody's: 5 and 6 are nearer to the left
    found = partition(masks)
    assert torch.equal(found[:, [0, 1, 2, 3, 4, 5, 7, 8, 11]], expected[:, [0, 1, 2, 3, 4, 5, 7, 8, 11]])
    assert set(found[:, 6].tolist()) <= {1, 2}, "as far from both"


def test_a_hidden_mask_leaves_no_gap_and_no_mask_is_one_segment() -> None:
    masks = torch.zeros(3, 6, 6, dtype=torch.bool)
    masks[0], masks[1, :3], masks[2, :3] = True, True, True
    assert partition(masks).unique().tolist() == [0, 1]
    assert torch.equal(partition(masks[:0]), torch.zeros(6, 6, dtype=torch.int64))
    assert torch.equal(partition(torch.zeros_like(masks)), torch.zeros(6, 6, dtype=torch.int64))


def test_sam2_cuts_an_image_into_segments(sam: Path) -> None:
    segmenter: Segmenter = load_provider("segmenter", f"sam2:{sam}")
    image = _flat(40, 56)[0]
    found = segmenter.segments(image)
    assert found.shape == (40, 56) and _is_partition(found)
    assert int(found.max()) >= 2
    assert torch.equal(found, segmenter.segments(image))


def test_sam2_segments_are_unions_of_the_masks_that_transformers_makes(sam: Path) -> None:
    """Its own pipeline for square images, where its grid of points is right, with the same settings."""
    from transformers import pipeline

    image = _flat(48, 48)[0]
    own = pipeline("mask-generation", model=str(sam))
    said = own(
        _eight(image), points_per_crop=16, pred_iou_thresh=0.8, stability_score_thresh=0.95, crops_nms_thresh=0.7
    )
    found = load_provider("segmenter", f"sam2:{sam}").segments(image)
    assert len(said["masks"]) >= 2
    assert torch.equal(found, partition(torch.stack([torch.as_tensor(mask) for mask in said["masks"]])))


def test_boxes_are_filled_as_transformers_fills_them(sam: Path) -> None:
    image = _noise(40, 56)
    boxes = torch.tensor([[3.0, 5, 20, 30], [25, 10, 50, 38]]).repeat(10, 1) + torch.arange(20)[:, None] * 0.1
    expected = _filled(sam, image, boxes)
    assert 0 < expected.float().mean() < 1
    assert torch.equal(load_provider("segmenter", f"sam2:{sam}").in_boxes(image, boxes), expected.any(dim=0))


def test_words_find_boxes_and_boxes_masks(sam: Path, dino: Path) -> None:
    from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor

    image = _noise(40, 56)
    segmenter = load_provider("segmenter", f"grounded-sam:{dino},{sam}")
    found = segmenter.find(image, " Mug. ")
    processor = GroundingDinoProcessor.from_pretrained(dino)
    inputs = processor(images=_eight(image), text="mug.", return_tensors="pt")
    with torch.no_grad():
        said = GroundingDinoForObjectDetection.from_pretrained(dino).eval()(**inputs)
    boxes = processor.post_process_grounded_object_detection(said, threshold=0.35, target_sizes=[(40, 56)])[0]["boxes"]
    assert len(boxes) > 0
    assert found.any() and torch.equal(found, _filled(sam, image, boxes).any(dim=0))
    assert torch.equal(found, segmenter.find(image, "mug"))
    assert torch.equal(segmenter.segments(image), load_provider("segmenter", f"sam2:{sam}").segments(image))


def test_no_box_above_the_threshold_is_an_empty_mask(sam: Path, dino: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sr3d.zoom.providers.segmentation._FOUND", 1.0)
    found = load_provider("segmenter", f"grounded-sam:{dino},{sam}").find(_noise(40, 56), "plate")
    assert found.shape == (40, 56) and found.dtype == torch.bool and not found.any()


def test_no_words_are_refused(sam: Path, dino: Path) -> None:
    with pytest.raises(Sr3dError, match=r"words: found ' \. '; expected the name of something"):
        load_provider("segmenter", f"grounded-sam:{dino},{sam}").find(_noise(40, 56), " . ")


def test_without_a_network_that_reads_words_find_nothing() -> None:
    with pytest.raises(Sr3dError, match=r"segmenter provider regions: words: found 'mug'; .*grounded-sam"):
        load_provider("segmenter", "regions").find(_noise(8, 8), "mug")


def test_sam2_does_not_read(sam: Path) -> None:
    with pytest.raises(Sr3dError, match=r"segmenter provider sam2: words: found 'mug'; .*grounded-sam"):
        load_provider("segmenter", f"sam2:{sam}").find(_noise(8, 8), "mug")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sam2:no-one/no-such-sam", r"segmenter provider sam2: no-one/no-such-sam: found .*; expected a folder"),
        ("grounded-sam:no-one/no-dino,x", r"segmenter provider grounded-sam: no-one/no-dino: found .*; expected a"),
        ("grounded-sam:only-one", r"argument: found 'only-one'; expected DINO_MODEL,SAM_MODEL"),
        ("grounded-sam:,only-one", r"argument: found ',only-one'; expected DINO_MODEL,SAM_MODEL"),
        ("regions:large", r"segmenter provider regions: argument: found 'large'; expected regions alone"),
    ],
)
def test_what_cannot_be_loaded_is_one_clear_error(spec: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(Sr3dError, match=message):
        load_provider("segmenter", spec)
