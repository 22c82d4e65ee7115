from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import jsonargparse
import pytest
import torch
import yaml

from sr3d import Cameras, Scene, Sr3dError
from sr3d.datasets import Batch, write_shards
from sr3d.datasets.curriculum import CurriculumConfig, StageConfig
from sr3d.datasets.datamodule import ClipDataModule
from sr3d.datasets.reader import BatchConfig, ClipBatches, ClipLoader
from sr3d.datasets.views import ViewConfig

SIZE, VIEWS, CLIPS = 12, 9, 8
# Steps 0 and 1, 2 to 4, 5 on; an epoch has four steps.
STAGES = CurriculumConfig(
    stages=[
        StageConfig(start=0, views=2, factors=[2], low=2, high=2),
        StageConfig(start=2, views=(2, 3), factors=[2, 4], low=3.0, high=4.0),
        StageConfig(start=5, views=(3, 4), factors=[3], high=8.0),
    ]
)
CONFIG = BatchConfig(
    factor=6,
    batch_size=2,
    views=ViewConfig(by="frames", low=5.0, high=6.0, context=2, target=1),
    seed=3,
    curriculum=STAGES,
)


def _clip(number: int) -> Scene:
    """A straight walk; the x position of a camera is the number of its view."""
    pose = torch.eye(4).repeat(VIEWS, 1, 1)
    pose[:, 0, 3] = -torch.arange(VIEWS)
    K = torch.tensor([[20.0, 0, 6], [0, 20, 6], [0, 0, 1]]).repeat(VIEWS, 1, 1)
    images = torch.rand(VIEWS, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(number))
    return Scene(images=images, cameras=Cameras(world_to_cam=pose, K=K, width=SIZE, height=SIZE), name=f"clip {number}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("walks")
    write_shards((_clip(i) for i in range(CLIPS)), out)
    return out


Step = tuple[str, int, int, list[int]]


def _described(batch: Batch) -> list[Step]:
    """Name, factor, number of inputs and gap of each clip."""
    context = batch.context.posed()
    order = context.positions[..., 0].round().int()
    factor = batch.high.posed().width // context.width
    names = batch.context.name.split(", ")
    return [(n, factor, len(o), (o[-1] - o[0]).tolist()) for n, o in zip(names, order)]


def _steps(folder: Path, epochs: int = 3, **options: int) -> list[list[Step]]:
    loader = ClipLoader(ClipBatches(folder, CONFIG, shuffle=True), **{"workers": 0, **options})
    return [_described(batch) for _ in range(epochs) for batch in loader]


def test_every_step_has_what_its_stage_says(folder: Path) -> None:
    steps = _steps(folder, epochs=12)
    assert len(steps) == 48
    seen: Counter[tuple[int, str, int]] = Counter()
    for number, step in enumerate(steps):
        assert len(step) == 2 and len({(factor, views) for _, factor, views, _ in step}) == 1, "equal within a batch"
        stage = 0 if number < 2 else 1 if number < 5 else 2
        for _, factor, views, gap in step:
            assert factor in ([2], [2, 4], [3])[stage]
            assert views in ([2], [2, 3], [3, 4])[stage]
            # What a stage leaves out is the data module's own.
            assert gap in ([2], [3, 4], [5, 6, 7, 8])[stage]
            seen |= {(stage, "views", views): 1, (stage, "gap", gap): 1}
    assert {v for s, k, v in seen if (s, k) == (2, "views")} == {3, 4}
    assert {v for s, k, v in seen if (s, k) == (2, "gap")} == {5, 6, 7, 8}
    drawn = [ClipBatches(folder, replace(CONFIG, seed=s), shuffle=True) for s in range(8)]
    for batches in drawn:
        batches.seek(0, 2)
    assert {_described(next(iter(b)))[0][1] for b in drawn} == {2, 4}


def test_workers_threads_processes_and_resuming_change_nothing(folder: Path) -> None:
    expected = _steps(folder)
    assert _steps(folder, workers=2) == _steps(folder, threads=2) == expected
    # Two processes that accumulate two batches of a clip... of half a step each: the same clips in every step.
    ranks = [
        ClipLoader(ClipBatches(folder, replace(CONFIG, batch_size=1), shuffle=True, rank=r, world=2), 0)
        for r in range(2)
    ]
    both = [[d for part in parts for d in _described(part)] for _ in range(3) for parts in zip(*map(list, ranks))]
    assert both == expected
    twice = ClipLoader(ClipBatches(folder, replace(CONFIG, batch_size=1), shuffle=True, accumulate=2), 0)
    parts = [_described(batch) for _ in range(3) for batch in twice]
    assert [a + b for a, b in zip(parts[::2], parts[1::2])] == expected
    for done in (3, 5, 8):
        stopped = ClipLoader(ClipBatches(folder, CONFIG, shuffle=True), 0)
        left = done
        while left > 0:
            for _ in stopped:
                left -= 1
                if not left:
                    break
        resumed = ClipLoader(ClipBatches(folder, CONFIG, shuffle=True), 0)
        resumed.load_state_dict(stopped.state_dict())
        rest = [_described(batch) for _ in range(3) for batch in resumed]
        assert rest[: 12 - done] == expected[done:]


def test_epochs_that_are_cut_short_count_their_steps(folder: Path) -> None:
    loader = ClipLoader(ClipBatches(folder, CONFIG, shuffle=True), 0, limit=1)
    factors = [_described(batch)[0][1] for _ in range(7) for batch in loader]
    assert factors[:2] == [2, 2] and set(factors[2:5]) <= {2, 4} and factors[5:] == [3, 3]


def test_another_curriculum_is_noticed(folder: Path) -> None:
    first = ClipLoader(ClipBatches(folder, CONFIG, shuffle=True), 0)
    next(iter(first))
    changed = replace(CONFIG, curriculum=CurriculumConfig(stages=STAGES.stages[:2]))
    with pytest.warns(UserWarning, match="epoch 0 starts anew, its batches are others: curriculum"):
        ClipLoader(ClipBatches(folder, changed, shuffle=True), 0).load_state_dict(first.state_dict())


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"start": -1}], "StageConfig: start: found -1"),
        ([{"factors": []}], "StageConfig: factors"),
        ([{"factors": [2, 0]}], "StageConfig: factors"),
        ([{"start": 5}, {"start": 5}], "start of the stages: found .*5, 5.*; expected rising steps"),
        ([{"views": 0}], "context"),
        ([{"views": (3, 2)}], "context"),
        ([{"low": 7}], "high: found 6.*low"),
    ],
)
def test_impossible_stages(stages: list[dict[str, object]], message: str) -> None:
    with pytest.raises(Sr3dError, match=message):
        replace(CONFIG, curriculum=CurriculumConfig(stages=[StageConfig(**s) for s in stages]))


def test_limits_need_a_rule_that_has_some() -> None:
    with pytest.raises(Sr3dError, match=r"low, high.*by 'span'"):
        BatchConfig(curriculum=CurriculumConfig(stages=[StageConfig(start=100, low=1)]))


def test_a_config_file_holds_stages_and_validation_sets(folder: Path, tmp_path: Path) -> None:
    write_shards([_clip(100), _clip(101)], tmp_path / "other")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ClipDataModule, "data")
    text = f"""
        train_shards: {folder}
        val_shards: {{near: {tmp_path / "other"}, all: [{tmp_path / "other"}]}}
        val_factors: [2, 4]
        val_views: {{context: 2, target: 1}}
        global_batch_size: 2
        curriculum:
          stages:
            - {{start: 0, views: 2, factors: [2]}}
            - {{start: 4, views: [2, 3], factors: [2, 3]}}
    """
    data = parser.instantiate_classes(parser.parse_object({"data": yaml.safe_load(text)})).data
    data.setup("fit")
    assert data.train_config.curriculum == CurriculumConfig(
        stages=[StageConfig(start=0, views=2, factors=[2]), StageConfig(start=4, views=(2, 3), factors=[2, 3])]
    )
    loaders = data.val_dataloader()
    rows = [(b.sources, b.context.name, _described(b.unpacked())[0][1]) for loader in loaders for b in loader]
    assert rows == [([n, n], "clip 100, clip 101", f) for n in ("near", "all") for f in (2, 4)]
    batch = next(iter(data.train_dataloader()))
    assert batch.sources == ["python", "python"] == batch.unpacked().to("cpu").sources
    with pytest.raises(Sr3dError, match="trained on as well: clip 0"):
        ClipDataModule(str(folder), {"near": str(tmp_path / "other"), "same": str(folder)}).setup("fit")
    with pytest.raises(Sr3dError, match="val_factors"):
        ClipDataModule(str(folder), str(folder), val_factors=[])
