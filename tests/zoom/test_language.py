"""Vision-language models, by tiny ones of random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from sr3d import Sr3dError
from sr3d.zoom.providers import load_provider, provider_names
from sr3d.zoom.providers.language import MAX_NEW_TOKENS, Silent, TransformersVlm

IMAGE = {"smolvlm": "<image>", "qwen2-vl": "<|vision_start|><|image_pad|><|vision_end|>"}
IMAGE["qwen2.5-vl"] = IMAGE["qwen2-vl"]
SPECIAL = {
    "smolvlm": ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", "<row_1_col_1>"],
    "qwen2-vl": ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"],
}
SPECIAL["qwen2.5-vl"] = SPECIAL["qwen2-vl"]
TEMPLATE = (
    "{{% for message in messages %}}{{% for part in message.content %}}{{% if part.type == 'image' %}}{image}"
    "{{% else %}}{{{{ part.text }}}}{{% endif %}}{{% endfor %}}{{% endfor %}}"
    "{{% if add_generation_prompt %}},{{% endif %}}"
)
LETTERS = [chr(i) for i in range(ord("a"), ord("z") + 1)]
WORDS = ["<unk>", "<eos>", *LETTERS, " ", ",", "?", *(f"{letter}\n" for letter in LETTERS)]
SIZE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def letters(family: str) -> PreTrainedTokenizerFast:
    """Reads and writes letter by letter."""
    table = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(WORDS)}, merges=[], unk_token="<unk>"))
    table.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=table,
        unk_token="<unk>",
        eos_token="<eos>",
        pad_token="<eos>",
        additional_special_tokens=SPECIAL[family],
    )


def smolvlm(tokenizer: PreTrainedTokenizerFast, template: str, ids: dict[str, Any]) -> tuple[Any, Any]:
    pictures = Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    config = Idefics3Config(
        vision_config=SIZE | {"image_size": 32, "patch_size": 8},
        text_config=SIZE | ids | {"model_type": "llama", "num_key_value_heads": 2},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    processor = Idefics3Processor(pictures, tokenizer, image_seq_len=4, chat_template=template)
    return Idefics3ForConditionalGeneration(config), processor


def qwen(tokenizer: PreTrainedTokenizerFast, template: str, ids: dict[str, Any], newer: bool) -> tuple[Any, Any]:
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    names |= {"vision_start_token_id": "vision_start", "vision_end_token_id": "vision_end"}
    special = {key: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for key, name in names.items()}
    vision = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2}
    text = (
        SIZE | ids | {"num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
    )
    limits = {"patch_size": 4, "min_pixels": 64, "max_pixels": 1024}
    parts = (Qwen2VLImageProcessor(**limits), tokenizer, Qwen2VLVideoProcessor(**limits))
    if newer:
        vision |= {"hidden_size": 16, "intermediate_size": 16, "out_hidden_size": 16, "window_size": 16}
        config = Qwen2_5_VLConfig(vision_config=vision, text_config=text, **special)
        return Qwen2_5_VLForConditionalGeneration(config), Qwen2_5_VLProcessor(*parts, chat_template=template)
    vision |= {"embed_dim": 16, "hidden_size": 16, "mlp_ratio": 1}
    config = Qwen2VLConfig(vision_config=vision, text_config=text, **special)
    return Qwen2VLForConditionalGeneration(config), Qwen2VLProcessor(*parts, chat_template=template)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a model of random weights, whose own settings ask for sampling."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family in made:
            return made[family]
        tokenizer, template = letters(family), TEMPLATE.format(image=IMAGE[family])
        ids = {"vocab_size": len(tokenizer), "eos_token_id": 1, "bos_token_id": 1, "pad_token_id": 1}
        ids["initializer_range"] = 1.0
        made[family] = tmp_path_factory.mktemp(family)
        with torch.random.fork_rng():
            torch.manual_seed(4)
            if family == "smolvlm":
                model, processor = smolvlm(tokenizer, template, ids)
            else:
                model, processor = qwen(tokenizer, template, ids, family == "qwen2.5-vl")
        # Special tokens are not written: an image that was never there has no features.
        model.lm_head.weight.data[len(WORDS) :] = 0
        model.generation_config.update(do_sample=True, temperature=2.0, top_p=0.9, top_k=40)
        model.save_pretrained(made[family])
        processor.save_pretrained(made[family])
        return made[family]

    return folder


@pytest.fixture(scope="module")
def views() -> list[Tensor]:
    """A coarse view and a zoomed one, of different sizes."""
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(24, 32, 3, generator=generator), torch.rand(40, 20, 3, generator=generator)]


FAMILIES = pytest.mark.parametrize("family", ["smolvlm", "qwen2-vl", "qwen2.5-vl"])


def greedy(folder: Path, images: list[Tensor], question: str) -> str:
    """What the model writes without a cache, without settings: the likeliest letter each time."""
    family = folder.name.rstrip("0123456789")
    options: dict[str, Any] = {"do_image_splitting": False} if family == "smolvlm" else {}
    processor = AutoProcessor.from_pretrained(folder)
    text = IMAGE[family] * len(images) + question + ","
    pictures = [Image.fromarray((x * 255).round().byte().numpy()) for x in images]
    inputs = processor(text=text, images=pictures, return_tensors="pt", **options)
    model, length = AutoModelForImageTextToText.from_pretrained(folder).eval(), inputs["input_ids"].shape[1]
    for _ in range(MAX_NEW_TOKENS):
        with torch.no_grad():
            token = model(**inputs, use_cache=False).logits[:, -1:].argmax(dim=-1)
        for key in ("input_ids", "attention_mask", "mm_token_type_ids"):
            if key in inputs:
                more = {"input_ids": token, "attention_mask": torch.ones_like(token)}.get(key, torch.zeros_like(token))
                inputs[key] = torch.cat([inputs[key], more], dim=1)
        if token.item() == model.generation_config.eos_token_id:
            break
    return processor.tokenizer.decode(inputs["input_ids"][0, length:], skip_special_tokens=True)


@FAMILIES
def test_answers_are_the_likeliest_words_in_one_line(
    family: str, tiny: Callable[[str], Path], views: list[Tensor]
) -> None:
    vlm = load_provider("vlm", f"transformers:{tiny(family)}")
    answer = vlm.answer(views, "what is it?")
    written = greedy(tiny(family), views, "what is it?")
    assert answer == " ".join(written.split()) and len(answer) > 5
    assert "\n" in written
    assert vlm.answer(views, "what is it?") == answer
    assert vlm.answer(views[::-1], "what is it?") != answer
    assert vlm.answer(views, "where is it?") != answer


def test_the_default_says_nothing_and_takes_no_argument(views: list[Tensor]) -> None:
    assert provider_names("vlm")[0] == "none"
    silent = load_provider("vlm", "none")
    assert isinstance(silent, Silent) and silent.answer(views, "what is it?") == ""
    with pytest.raises(Sr3dError, match="vlm provider none: argument: found 'much'; expected none alone"):
        load_provider("vlm", "none:much")


def without_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def without_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.text_model.layers.0.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def cut_short(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])


def foreign_code(folder: Path) -> None:
    """A model whose own code would leave a mark."""
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "mine",
        "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForImageTextToText": "mine.Mine"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Mine: pass\n")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (without_template, "no chat template"),
        (without_weight, "1 weights missing, such as model.text_model.layers.0.mlp.up_proj.weight"),
        (pickled, "model.safetensors"),
        (cut_short, "[Hh]eader"),
        (foreign_code, "contains custom code"),
    ],
)
def test_a_model_that_cannot_be_used(
    damage: Callable[[Path], None], reason: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    copytree(tiny("smolvlm"), folder)
    damage(folder)
    with pytest.raises(Sr3dError, match=rf"vlm provider transformers: {folder}: found .*{reason}.*; expected"):
        load_provider("vlm", f"transformers:{folder}")
    assert not (folder / "ran").exists()


def test_a_model_that_is_not_there_or_does_not_see(clip: Path, tmp_path: Path) -> None:
    for folder in (tmp_path, clip):
        with pytest.raises(Sr3dError, match=f"vlm provider transformers: {folder}: found"):
            load_provider("vlm", f"transformers:{folder}")


def test_smolvlm_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(Sr3dError, match="vlm provider transformers: HuggingFaceTB/SmolVLM-256M-Instruct: found"):
        TransformersVlm()
