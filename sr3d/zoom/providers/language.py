"""Vision-language models: what two views of a scene show, in words."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sr3d.errors import Sr3dError
from sr3d.zoom.providers.base import VisionLanguage, eight_bit, network, pretrained, refuse_argument

MAX_NEW_TOKENS = 64  # longest answer: CLIP's text encoder reads 77 tokens
_MODEL = "HuggingFaceTB/SmolVLM-256M-Instruct"


class Silent(VisionLanguage):
    """Says nothing; the default."""

    name: ClassVar[str] = "none"

    def __init__(self, argument: str = "", device: str = "cpu") -> None:
        super().__init__(argument, device)
        refuse_argument(self)

    def answer(self, images: list[Float[Tensor, "_ _ 3"]], question: str) -> str:
        """No words, whatever the question."""
        return ""


class TransformersVlm(VisionLanguage):
    """An instruction-tuned model of transformers that reads several images: SmolVLM, Qwen2-VL, Qwen2.5-VL.

    Weights come from safetensors, in float32; no code of a model's repository is run.

    Args:
        argument: Model of the Hugging Face hub, or a folder; default "HuggingFaceTB/SmolVLM-256M-Instruct".
        device: Where the network runs.

    Raises:
        Sr3dError: The weights or the processor cannot be had, or the model is not made for a chat with images.
    """

    name: ClassVar[str] = "transformers"

    def __init__(self, argument: str = "", device: str = "cpu") -> None:
        super().__init__(argument, device)
        from transformers import AutoModelForImageTextToText, AutoProcessor

        model = argument or _MODEL
        options: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False}
        self._network: Any = network(self, AutoModelForImageTextToText, model, **options)
        self._processor: Any = pretrained(self, AutoProcessor, model, trust_remote_code=False)
        if getattr(self._processor, "chat_template", None) is None:
            where, expected = f"{self.kind} provider {self.name}", "a model for a chat: -Instruct"
            raise Sr3dError(where, model, "no chat template", expected)
        if hasattr(self._processor.image_processor, "do_image_splitting"):
            # By default SmolVLM enlarges every image to 16 tiles: nothing is gained on drawings of about one tile.
            self._processor.image_processor.do_image_splitting = False

    @torch.no_grad()
    def answer(self, images: list[Float[Tensor, "_ _ 3"]], question: str) -> str:
        """What the model writes, in one line: greedy decoding of at most 64 tokens.

        Args:
            images: In [0, 1], of any sizes; shown in this order, before the question.
            question: Words.
        """
        content = [*({"type": "image", "image": eight_bit(x)} for x in images), {"type": "text", "text": question}]
        chat: Any = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        inputs = self._processor.apply_chat_template([{"role": "user", "content": content}], **chat).to(self.device)
        # What a model's own settings say about sampling is put aside.
        greedy: Any = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
        written = self._network.generate(**inputs, **greedy, max_new_tokens=MAX_NEW_TOKENS)
        words = self._processor.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
        return " ".join(words.split())
