"""What the shipped methods make of a task: against libraries, against each other, from files of others."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small import small_checkpoint
from tiny_networks import perturbed
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import AutoTokenizer, CLIPModel

from sr3d import Gaussians, Scene, Sr3dError, SuperResolver, render
from sr3d.coarse import CoarseConfig, coarse_gaussians, upsampled_gaussians
from sr3d.datasets.batch import reduce_scene
from sr3d.datasets.world import World
from sr3d.evaluation.case import Made, Task
from sr3d.evaluation.methods import MethodOptions, create_methods
from sr3d.evaluation.methods.bicubic import Bicubic
from sr3d.evaluation.methods.coarse import Coarse
from sr3d.evaluation.methods.ply import Ply
from sr3d.evaluation.methods.predictor import Predictor
from sr3d.evaluation.methods.scaffold import Scaffold
from sr3d.evaluation.methods.upsampled import Upsampled
from sr3d.lod import Forest
from sr3d.models import SuperResolverConfig
from sr3d.models.decoder import DecoderConfig
from sr3d.models.encoder import EncoderConfig
from sr3d.models.scaffold import ScaffoldConfig
from sr3d.models.semantics import SemanticsConfig
from sr3d.zoom import level_maker, zoom_into

CONFIG = CoarseConfig(source="depth")
CLASSES = ["wall", "floor", "chair", "lamp"]
CENTER = (3.5, 4.5)


@pytest.fixture(scope="module")
def task() -> Task:
    """Two views of 8 x 8 pixels of a table, one target of 32 x 32."""
    world = World.generate(3, "table")
    views = world.render(world.sample_cameras(3, 32, 32))
    cameras = views.posed().index([1])
    return Task(
        name="table/0+2", scene="table", given=reduce_scene(views.views([0, 2]), 4), factor=4, cameras=cameras,
        config=CONFIG, reduced=reduce_scene(views.views([1]), 4),
    )  # fmt: skip


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of factor 4 that returns its scaffold."""
    return small_checkpoint(tmp_path_factory.mktemp("weights") / "untrained.ckpt")


@pytest.fixture(scope="module")
def trained(untrained: Path) -> Path:
    """The same network with residuals at work, as if it had learned."""
    network = SuperResolver.from_pretrained(untrained)
    assert network.head is not None
    with torch.random.fork_rng():
        torch.manual_seed(1)
        nn.init.normal_(network.head.out.weight, std=0.1)
    path = untrained.with_name("trained.safetensors")
    network.save_pretrained(path)
    return path


def options(checkpoint: Path, factor: int = 4, text_model: Path | None = None) -> MethodOptions:
    model = None if text_model is None else str(text_model)
    return MethodOptions(checkpoint=str(checkpoint), factor=factor, text_model=model)


def scene_of(made: Made) -> Gaussians:
    assert isinstance(made.gaussians, Gaussians) and made.images is None
    return made.gaussians


def same(a: Gaussians, b: Gaussians, atol: float = 0.0) -> None:
    assert len(a) == len(b)
    for name in ("means", "quats", "scales", "opacities", "sh"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=atol)


def levels_of(scene: Gaussians) -> list[int]:
    assert scene.lod is not None
    return scene.lod.level.unique().tolist()


def test_bicubic_is_that_of_torch(task: Task) -> None:
    assert task.reduced is not None
    made = Bicubic(MethodOptions()).make(task)
    enlarged = interpolate(task.reduced.images.movedim(-1, 1), scale_factor=4, mode="bicubic", align_corners=False)
    assert made.images is not None and made.gaussians is None
    torch.testing.assert_close(made.images, enlarged.movedim(1, -1).clamp(0, 1), atol=1e-5, rtol=0)


def test_coarse_and_upsampled_are_the_baselines_of_the_coarse_stage(task: Task) -> None:
    coarse, upsampled = (scene_of(method(MethodOptions()).make(task)) for method in (Coarse, Upsampled))
    same(coarse, coarse_gaussians(task.context, CONFIG))
    same(upsampled, upsampled_gaussians(task.context, 4, CONFIG))
    assert len(upsampled) == 16 * len(coarse) == 16 * 2 * 8 * 8


def test_the_scaffold_is_the_untrained_network(task: Task, untrained: Path, trained: Path) -> None:
    first, again = (scene_of(Scaffold(options(path)).make(task)) for path in (untrained, trained))
    start, learned = (scene_of(Predictor(options(path)).make(task)) for path in (untrained, trained))
    same(first, start, 1e-6)
    same(first, again)
    assert float((learned.means - start.means).abs().max()) > 1e-3
    expected = SuperResolver.from_pretrained(trained).eval().upscale(task.coarse, task.context, 4)
    same(learned, expected)
    for scene in (first, learned):
        # One level alone: nothing fades, however far away.
        assert scene.lod is not None and bool((scene.lod.finer == 0).all()) and bool(scene.lod.coarser.isinf().all())
        assert not scene.means.requires_grad and not scene.sh.requires_grad


def test_identities_name_settings_and_files(task: Task, untrained: Path) -> None:
    sha = hashlib.sha256(untrained.read_bytes()).hexdigest()
    for method in (Scaffold, Predictor):
        found = method(options(untrained)).identity()
        assert found == {"method": method.name, "checkpoint": str(untrained), "sha256": sha}
    own = Predictor(replace(options(Path("nowhere")), argument=str(untrained))).identity()
    assert own["checkpoint"] == str(untrained)
    assert Coarse(MethodOptions()).identity() == {"method": "coarse"}


@pytest.mark.parametrize("label", ["truth", "input", "covered"])
def test_labels_that_other_pictures_have_are_refused(label: str) -> None:
    assert list(create_methods([f"{label}s=coarse"], MethodOptions())) == [f"{label}s"]
    with pytest.raises(Sr3dError, match=f"--methods: found label {label}; expected any but covered, input, truth"):
        create_methods(["coarse", f"{label}=coarse"], MethodOptions())


def test_a_zoom_takes_one_pass_for_each_level(
    task: Task, trained: Path, untrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoom = replace(task, zoom=(CENTER, 16), cameras=task.context.posed().index([0]).zoomed(16.0, CENTER))
    makers = [level_maker(m, SuperResolver.from_pretrained(p)) for m, p in (("sr3d", trained), ("scaffold", untrained))]
    expectations = [zoom_into(task.context, CENTER, 16, maker=maker, coarse=CONFIG) for maker in makers]
    assert len(zoom.coarse) == 128
    # The coarse stage is not run again: its seconds would count twice.
    monkeypatch.delattr("sr3d.zoom.loop.coarse_gaussians")
    for method, path, expected in zip((Predictor, Scaffold), (trained, untrained), expectations):
        found = scene_of(method(options(path)).make(zoom))
        same(found, expected)
        assert levels_of(found) == levels_of(expected) == [0, 1, 2]
    # Whatever was learned, the scaffold of a zoom is that of the untrained network.
    same(scene_of(Scaffold(options(trained)).make(zoom)), scene_of(Scaffold(options(untrained)).make(zoom)))


def test_a_network_of_several_factors_is_used_at_the_one_that_is_asked_for(task: Task, tmp_path: Path) -> None:
    network = perturbed("full")
    network.save_pretrained(tmp_path / "net.safetensors")
    assert (network.config.factor, network.config.factors) == (2, [4])
    found = scene_of(Predictor(options(tmp_path / "net.safetensors", 4)).make(task))
    same(found, network.eval().upscale(task.coarse, task.context, 4), 1e-6)
    with pytest.raises(Sr3dError, match=r"net\.safetensors: factor: found made for 2x, 4x; expected 8x"):
        Predictor(options(tmp_path / "net.safetensors", 8))


@pytest.fixture
def others(task: Task, tmp_path: Path) -> Path:
    """Somebody's files, of 30, 31 and 32 Gaussians: hall.ply, hall/scene.ply and hall/scene.sr3d."""
    scene = task.coarse
    (tmp_path / "hall").mkdir()
    scene.index(slice(0, 30)).save(tmp_path / "hall.ply")
    scene.index(slice(0, 31)).save(tmp_path / "hall" / "scene.ply")
    assert scene.lod is not None
    Forest.from_gaussians(scene.index(slice(0, 32))).save(tmp_path / "hall" / "scene.sr3d")
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "file", "count"),
    [
        ("{base}/{scene}.ply", "hall.ply", 30),
        ("{base}/{scene}/scene.sr3d", "hall/scene.sr3d", 32),
        ("{folder}/scene.sr3d", "hall/scene.sr3d", 32),
        ("{folder}/../{scene}.ply", "hall/../hall.ply", 30),
        (None, "hall/scene.sr3d", 32),
    ],
)
def test_gaussians_of_others_are_read_as_they_are(
    pattern: str | None, file: str, count: int, task: Task, others: Path
) -> None:
    argument = None if pattern is None else pattern.replace("{base}", str(others))
    method = Ply(MethodOptions(argument=argument))
    made = method.make(replace(task, scene="hall", folder=str(others / "hall")))
    scene = made.gaussians.gaussians() if isinstance(made.gaussians, Forest) else made.gaussians
    assert isinstance(made.gaussians, Forest) == file.endswith(".sr3d") and scene is not None
    assert made.notes["file"] == str(others / file) and method.identity()["method"] == "ply"
    expected = task.coarse.index(slice(0, count))
    # A forest keeps its Gaussians in another order.
    nearest = torch.cdist(expected.means.double(), scene.means.double()).min(dim=1)
    assert len(scene) == count and float(nearest.values.max()) < 1e-5 and len(nearest.indices.unique()) == count
    torch.testing.assert_close(scene.opacities[nearest.indices], expected.opacities, atol=0.01, rtol=0)
    if (others / file).is_file():
        assert made.notes["sha256"] == hashlib.sha256((others / file).read_bytes()).hexdigest()


def test_a_scene_without_a_folder_has_no_files(task: Task) -> None:
    with pytest.raises(Sr3dError, match=r"folder: found none.*ply:PATH with \{scene\}"):
        Ply(MethodOptions()).make(replace(task, folder=""))


def test_a_scene_ply_is_taken_where_there_is_no_forest(task: Task, others: Path) -> None:
    (others / "two").mkdir()
    (others / "hall.ply").rename(others / "two" / "scene.ply")
    made = Ply(MethodOptions()).make(replace(task, scene="two", folder=str(others / "two")))
    assert isinstance(made.gaussians, Gaussians) and len(made.gaussians) == 30


def test_files_of_others_that_are_not_there_or_damaged(task: Task, others: Path) -> None:
    with pytest.raises(Sr3dError, match=r"attic: Gaussians: found no .*attic\.ply; expected a \.ply or \.sr3d file"):
        Ply(MethodOptions(argument=f"{others}/{{scene}}.ply")).make(replace(task, scene="attic"))
    (others / "attic.ply").write_bytes(b"ply\nformat")
    with pytest.raises(Sr3dError, match=r"attic\.ply"):
        Ply(MethodOptions(argument=f"{others}/{{scene}}.ply")).make(replace(task, scene="attic"))
    with pytest.raises(Sr3dError, match=r"ply: found others/hall\.ply; expected a path with {scene} or {folder}"):
        Ply(MethodOptions(argument="others/hall.ply"))


def semantic(path: Path, embedding: int) -> Path:
    """A network whose Gaussians carry features that are not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SuperResolver(
            SuperResolverConfig(
                scaffold=ScaffoldConfig(grid=4),
                encoder=EncoderConfig(options={"embed_dim": 24, "depth": 1, "num_heads": 2}),
                decoder=DecoderConfig(heads=2, width=16, convolutions=1, fine=8),
                semantics=SemanticsConfig(width=5, embedding=embedding),
            )
        )
        assert network.head is not None
        nn.init.normal_(network.head.out.weight, std=0.1)
    network.save_pretrained(path)
    return path


def text_embeddings(clip: Path) -> Tensor:
    """What CLIP says of the classes, each by itself. [L, E]"""
    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), AutoTokenizer.from_pretrained(clip)
    out = []
    for name in CLASSES:
        tokens = tokenizer(f"a photo of a {name}", return_tensors="pt", truncation=True, max_length=32)
        with torch.no_grad():
            out.append(model(pixel_values=torch.zeros(1, 3, 32, 32), **tokens).text_embeds[0])
    return torch.stack(out)


def test_drawn_features_are_scored_by_the_nearest_class(task: Task, clip: Path, tmp_path: Path) -> None:
    path = semantic(tmp_path / "net.safetensors", 12)
    made = Predictor(options(path, text_model=clip)).make(replace(task, classes=CLASSES))
    assert made.classify is not None
    drawn = render(scene_of(made), task.cameras, features=True).features
    assert drawn is not None and drawn.shape[-1] == 5 and float(drawn.abs().max()) > 1e-3
    network, table = SuperResolver.from_pretrained(path), text_embeddings(clip)
    assert network.semantics is not None
    weight = network.semantics.to_embedding.weight.detach()
    wide = torch.randn(1, 4, 6, 5, generator=torch.Generator().manual_seed(0))
    for features in (drawn, wide):
        scores = made.classify(features)
        assert scores.shape == (*features.shape[:-1], 4)
        embedded = nn.functional.normalize(features.flatten(0, -2) @ weight.T, dim=-1)
        cosines = torch.stack([embedded @ row / row.norm() for row in table], dim=-1)
        best = cosines.topk(2, dim=-1)
        # Ties are left out: rounding decides them.
        clear = (best.values[:, 0] - best.values[:, 1] > 1e-4) & (features.flatten(0, -2).norm(dim=-1) > 1e-4)
        assert float(clear.float().mean()) > 0.5
        assert torch.equal(scores.flatten(0, -2).argmax(dim=-1)[clear], best.indices[:, 0][clear])
    assert len(made.classify(wide).argmax(dim=-1).unique()) > 1


def test_labels_need_classes_semantics_and_a_model_that_fits(
    task: Task, untrained: Path, clip: Path, tmp_path: Path
) -> None:
    path = semantic(tmp_path / "net.safetensors", 12)
    known = replace(task, classes=CLASSES)
    assert Predictor(options(path)).make(known).classify is None
    assert Predictor(options(path, text_model=clip)).make(task).classify is None
    with pytest.raises(Sr3dError, match=r"--text_model: found .*; expected none: the network has no semantics"):
        Predictor(options(untrained, text_model=clip))
    other = semantic(tmp_path / "other.safetensors", 7)
    with pytest.raises(Sr3dError, match=r"--text_model: found .*, embeddings of 12 channels; expected 7 channels"):
        Predictor(options(other, text_model=clip))


def test_a_task_without_views_is_refused(task: Task) -> None:
    bare = replace(task, given=None, reduced=None)
    for method in (Coarse, Upsampled):
        with pytest.raises(Sr3dError, match=r"table/0\+2: input views: found none: the protocol is about given"):
            method(MethodOptions()).make(bare)
    with pytest.raises(Sr3dError, match=r"table/0\+2: input views: found none; expected views that can be enlarged"):
        Bicubic(MethodOptions()).make(bare)


def test_unposed_views_are_refused(task: Task) -> None:
    with pytest.raises(Sr3dError, match="images without poses"):
        Coarse(MethodOptions()).make(replace(task, given=Scene(images=task.context.images, name="holiday")))
