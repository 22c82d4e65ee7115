from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, CLIPModel

from sr3d import Sr3dError
from sr3d.training.teachers import ClipTeacher, LabelTeacher, TeacherConfig, load_teacher


def test_patches_are_what_the_last_layers_values_say(clip: Path) -> None:
    teacher = load_teacher(TeacherConfig(name=str(clip), size=32))
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    embeddings, valid = teacher(images, None)
    assert embeddings.shape == (2, 12, 4, 6) and valid.shape == (2, 4, 6) and valid.all() and teacher.width == 12
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2, 4, 6))
    # An attention that looks at every patch alone: the same patch through the whole model, without residual and MLP.
    model = CLIPModel.from_pretrained(clip).eval()
    mean, std = (torch.tensor(x)[:, None, None] for x in ([0.48145466, 0.4578275, 0.40821073],
                                                         [0.26862954, 0.26130258, 0.27577711]))  # fmt: skip
    with torch.no_grad():
        vision = model.vision_model
        hidden = vision.pre_layrnorm(vision.embeddings((images - mean) / std, interpolate_pos_encoding=True))
        hidden = vision.encoder.layers[0](hidden, attention_mask=None)
        last = vision.encoder.layers[1]
        normal, attention = last.layer_norm1(hidden)[:, 1:], last.self_attn
        alone = [attention(hidden_states=normal[:, i : i + 1], attention_mask=None)[0] for i in range(24)]
        expected = model.visual_projection(vision.post_layernorm(torch.cat(alone, dim=1)))
        expected = expected / expected.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(embeddings, expected.reshape(2, 4, 6, 12).movedim(-1, 1), atol=1e-5, rtol=0)


def test_a_teacher_sees_images_of_any_size_at_its_own(clip: Path) -> None:
    teacher = ClipTeacher(str(clip), 24)
    images = torch.rand(1, 3, 60, 101)
    embeddings, _ = teacher(images, None)
    assert embeddings.shape == (1, 12, 3, 5)
    assert teacher(images[:, :, :5, :5], None)[0].shape == (1, 12, 3, 3)
    with pytest.raises(Sr3dError, match="size: found 7; expected 8 or more"):
        ClipTeacher(str(clip), 7)


@pytest.mark.parametrize("kind", ["clip", "labels"])
def test_a_teacher_is_frozen(clip: Path, kind: str) -> None:
    teacher = load_teacher(TeacherConfig(kind=kind, name=str(clip), classes=["wall"] * (kind == "labels"))).train()
    assert not any(m.training for m in teacher.modules()) and not any(p.requires_grad for p in teacher.parameters())
    images = torch.rand(1, 3, 32, 32, requires_grad=True)
    assert not teacher(images, torch.ones(1, 32, 32, dtype=torch.int64))[0].requires_grad


def test_names_of_classes_are_read_by_the_text_encoder(clip: Path) -> None:
    names = ["wall", "coffee table with a very long name"]
    teacher = load_teacher(TeacherConfig(kind="labels", name=str(clip), classes=names, stride=1))
    labels = torch.tensor([[[0, 1, 2], [3, 2, 1]]])
    embeddings, valid = teacher(torch.rand(1, 3, 2, 3), labels)
    assert valid.tolist() == [[[False, True, True], [False, True, True]]] and embeddings.shape == (1, 12, 2, 3)
    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), AutoTokenizer.from_pretrained(clip)
    for (row, column), name in (((0, 1), names[0]), ((1, 2), names[0]), ((0, 2), names[1])):
        tokens = tokenizer(f"a photo of a {name}", return_tensors="pt", truncation=True, max_length=32)
        with torch.no_grad():
            expected = model(**tokens, pixel_values=torch.zeros(1, 3, 32, 32)).text_embeds[0]
        torch.testing.assert_close(embeddings[0, :, row, column], expected, atol=1e-5, rtol=0)


def test_blocks_of_several_classes_have_no_embedding() -> None:
    teacher = LabelTeacher(3 * torch.eye(3), stride=2)
    labels = torch.tensor([[1, 1, 2, 2], [1, 1, 2, 3], [0, 0, 3, 3], [0, 0, 3, 3]])[None]
    embeddings, valid = teacher(torch.rand(1, 3, 4, 4), labels)
    assert valid.tolist() == [[[True, False], [False, True]]]
    assert embeddings[0, :, 0, 0].tolist() == [1, 0, 0] and embeddings[0, :, 1, 1].tolist() == [0, 0, 1]
    embeddings, valid = teacher(torch.rand(1, 3, 4, 4), None)
    assert embeddings.shape == (1, 3, 2, 2) and not valid.any()
    with pytest.raises(Sr3dError, match="image size: found 5x4; expected a multiple of stride 2"):
        teacher(torch.rand(1, 3, 4, 5), torch.ones(1, 4, 5, dtype=torch.int64))


def test_embeddings_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "table.safetensors"
    save_file({"embeddings": torch.tensor([[3.0, 4.0]])}, path)
    teacher = load_teacher(TeacherConfig(kind="labels", table=str(path)))
    assert teacher.width == 2 and teacher.table.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]
    for tensors in ({"other": torch.ones(2, 2)}, {"embeddings": torch.ones(2)}, {"embeddings": torch.ones(1, 1) / 0}):
        save_file(tensors, path)
        with pytest.raises(Sr3dError, match=r"table.safetensors: tensors: found .*embeddings \[K, E\]"):
            LabelTeacher.from_file(path)
    path.write_bytes(b"not a table")
    for bad in (path, tmp_path / "missing"):
        with pytest.raises(Sr3dError, match="file: found"):
            LabelTeacher.from_file(bad)


def test_models_that_are_not_there_or_are_none(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(Sr3dError, match=f"{tmp_path}: CLIP model: found"):
        ClipTeacher(str(tmp_path))
    with pytest.raises(Sr3dError, match="no such thing/x/y: CLIP model: found"):
        ClipTeacher("no such thing/x/y")
    # Weights that are missing would be drawn at random: a teacher of noise.
    model = CLIPModel.from_pretrained(clip)
    some = {k: v for k, v in model.state_dict().items() if "layers.1" not in k}
    model.save_pretrained(tmp_path, state_dict=some)
    with pytest.raises(Sr3dError, match=r"weights: found .* missing, such as"):
        ClipTeacher(str(tmp_path))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 0}, "size"),
        ({"stride": 0}, "stride"),
        ({"kind": "labels"}, "classes, table: found neither"),
        ({"kind": "labels", "classes": ["wall"], "table": "x"}, "classes, table: found both"),
    ],
)
def test_unusable_settings(values: dict[str, object], message: str) -> None:
    with pytest.raises(Sr3dError, match=message):
        TeacherConfig(**values)
