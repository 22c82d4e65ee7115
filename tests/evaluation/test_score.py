"""One case scored: one mask for all methods, who sees what, what is refused, and what things cost."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import jaxtyping
import pytest
import torch
from torch import Tensor

from sr3d import Gaussians, Sr3dError, render
from sr3d.coarse import CoarseConfig, coarse_gaussians
from sr3d.evaluation import case as cases
from sr3d.evaluation import meter, score
from sr3d.evaluation.case import Case, Made, Task
from sr3d.evaluation.cases.procedural import mean_brightness, open_procedural
from sr3d.evaluation.data_config import ProceduralData, WorldEntry
from sr3d.evaluation.meter import Meter
from sr3d.evaluation.methods import MethodOptions
from sr3d.evaluation.methods.base import Method
from sr3d.evaluation.methods.bicubic import Bicubic
from sr3d.evaluation.methods.coarse import Coarse
from sr3d.evaluation.methods.upsampled import Upsampled
from sr3d.evaluation.metrics.base import Column, Observation, SetMetric, ViewMetric
from sr3d.evaluation.metrics.psnr import Psnr
from sr3d.evaluation.score import Scoring, available, score_case, slug
from sr3d.io.images import read_image

CONFIG = CoarseConfig(source="depth")


@pytest.fixture(scope="module")
def case() -> Case:
    """Two inputs of 8 x 8 and three targets of 32 x 32 pixels of a table."""
    world = WorldEntry(seed=3, kind="table")
    data = ProceduralData(worlds=[world], checks=[mean_brightness(world, 5, 32)], size=32)
    return replace(open_procedural(data, 4).load(0), text="a table")


def spy(base: type[Method], make: Callable[[Task], Made], **attributes: Any) -> Any:
    """A method like another one that keeps its tasks and makes something else.

    A subclass of a shipped method: direct subclasses of `Method` would be methods of the command line.
    """

    def kept(self: Any, task: Task) -> Made:
        self.tasks.append(task)
        return make(task)

    return type("Spy", (base,), {"tasks": [], "make": kept, **attributes})(MethodOptions())


class Looks(ViewMetric):
    """Keeps what it is shown."""

    columns: ClassVar[tuple[Column, ...]] = (Column(name="bright", title="Bright", better="higher"),)
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Observation] = []

    def measure(self, seen: Observation) -> dict[str, Tensor]:
        """Mean brightness, but of the last view none."""
        self.seen.append(seen)
        found = seen.rgb.mean(dim=(1, 2, 3))
        return {"bright": torch.cat([found[:-1], torch.tensor([torch.nan])])}


class Counts(SetMetric):
    """Number of views with text."""

    columns: ClassVar[tuple[Column, ...]] = (Column(name="views", title="Views", better="higher"),)
    needs: ClassVar[tuple[str, ...]] = ("text",)

    def state(self, seen: Observation) -> dict[str, Tensor]:
        """How many."""
        return {"count": torch.tensor([len(seen.frames)])}

    def finish(self, states: list[dict[str, Tensor]]) -> dict[str, float]:
        """The sum."""
        return {"views": float(sum(int(state["count"]) for state in states))}


def scoring(folder: Path, methods: dict[str, Method], metrics: dict[str, Any] | None = None, seed: int = 0) -> Scoring:
    return Scoring(methods=methods, metrics=metrics or {}, coarse=CONFIG, device="cpu", folder=folder, seed=seed)


def shipped(*classes: type[Method]) -> dict[str, Method]:
    return {c.name: c(MethodOptions()) for c in classes}


def solid(case: Case) -> Tensor:
    """Where the coarse scene hides what is behind it. [T, H, W]"""
    assert case.context is not None
    return render(coarse_gaussians(case.context, CONFIG), case.cameras).alpha > 0.8


def test_one_mask_for_all_methods(case: Case, tmp_path: Path) -> None:
    looks = Looks()
    scored, _ = score_case(case, scoring(tmp_path, shipped(Bicubic, Coarse, Upsampled), {"looks": looks}))
    expected = solid(case)
    assert 0.5 < float(expected.float().mean()) < 1
    assert scored.coverage == pytest.approx(expected.float().mean(dim=(1, 2)).tolist())
    assert [seen.method for seen in looks.seen] == ["bicubic", "coarse", "upsampled"]
    for seen in looks.seen:
        assert torch.equal(seen.covered, expected)
    picture = torch.from_numpy(read_image(tmp_path / scored.pictures["covered"]))
    assert torch.equal(picture[..., 0] > 0.5, expected[1])
    # Not that of the method itself: an opaque one covers more.
    assert looks.seen[2].alpha is not None and not torch.equal(looks.seen[2].alpha > 0.8, expected)


def test_values_of_all_views_in_their_order(case: Case, tmp_path: Path) -> None:
    looks = Looks()
    metrics = {"psnr": Psnr(), "looks": looks, "counts": Counts()}
    scored, states = score_case(case, scoring(tmp_path, shipped(Bicubic, Coarse), metrics))
    assert case.truth is not None
    for i, name in enumerate(("bicubic", "coarse")):
        error = (looks.seen[i].rgb - case.truth.images).square().mean(dim=(1, 2, 3))
        assert scored.values[name]["psnr"] == pytest.approx((-10 * torch.log10(error)).tolist(), abs=1e-3)
        # A view without a value is empty, not NaN.
        bright = scored.values[name]["bright"]
        assert bright[:2] == pytest.approx(looks.seen[i].rgb[:2].mean(dim=(1, 2, 3)).tolist()) and bright[2] is None
        assert states[name]["counts"]["count"].tolist() == [3] and "views" not in scored.values[name]
    assert (scored.case, scored.scene, scored.frames) == (case.name, case.scene, ["view 1", "view 2", "view 3"])
    assert scored.gaussians == {"bicubic": None, "coarse": 2 * 8 * 8} and set(scored.fps) == {"coarse"}
    assert looks.seen[0].depth is None and looks.seen[1].depth is not None
    drawn = torch.from_numpy(read_image(tmp_path / scored.pictures["coarse"]))
    assert float((drawn - looks.seen[1].rgb[1]).abs().max()) < 1 / 255
    truth = torch.from_numpy(read_image(tmp_path / scored.pictures["truth"]))
    assert float((truth - case.truth.images[1]).abs().max()) < 1 / 255
    assert set(scored.pictures) == {"covered", "input", "truth", "bicubic", "coarse"}


def test_only_what_can_be_seen_is_counted(case: Case, tmp_path: Path) -> None:
    def half(task: Task) -> Made:
        scene = task.coarse.to("cpu")
        return Made(gaussians=replace(scene, opacities=scene.opacities * (torch.arange(128) % 2)))

    scored, _ = score_case(case, scoring(tmp_path, {"half": spy(Coarse, half)}))
    assert scored.gaussians == {"half": 64}


def test_only_methods_in_two_dimensions_are_given_anything_of_the_targets(case: Case, tmp_path: Path) -> None:
    methods = {
        "flat": spy(Bicubic, lambda task: Made(images=torch.zeros(3, 32, 32, 3))),
        "solid": spy(Coarse, lambda task: Made(gaussians=task.coarse)),
        "free": spy(Upsampled, lambda task: Made(gaussians=task.coarse)),
    }
    score_case(case, scoring(tmp_path, methods))
    (flat,), (first,), (second,) = (m.tasks for m in methods.values())
    assert flat.reduced is case.reduced and first.reduced is None and second.reduced is None
    assert first.coarse is second.coarse, "made once"
    assert case.context is not None and case.truth is not None
    for task in (first, second):
        # Nothing that a task holds has the target views' pixels.
        held = [v for v in vars(task).values() if v is case.truth or v is case.reduced]
        assert held == [] and task.given is case.context and task.cameras is case.cameras and task.zoom is None
        assert (task.text, task.classes, task.factor) == ("a table", case.classes, 4)


def test_a_zoom_asks_for_detail_up_to_the_last_level(case: Case, tmp_path: Path) -> None:
    method = spy(Coarse, lambda task: Made(gaussians=task.coarse))
    score_case(replace(case, levels=[1, 4, 16], center=(3.0, 4.5)), scoring(tmp_path, {"spy": method}))
    assert method.tasks[0].zoom == ((3.0, 4.5), 16)


def test_random_methods_depend_on_seed_case_and_label_alone(case: Case, tmp_path: Path) -> None:
    def noise(task: Task) -> Made:
        return Made(images=torch.rand(3, 32, 32, 3))

    def drawn(labels: list[str], seed: int = 0, name: str = "a") -> dict[str, Tensor]:
        looks = Looks()
        methods = {label: spy(Bicubic, noise) for label in labels}
        score_case(replace(case, name=name), scoring(tmp_path, methods, {"looks": looks}, seed))
        return {seen.method: seen.rgb for seen in looks.seen}

    with torch.random.fork_rng():
        both, one = drawn(["x", "y"]), drawn(["y"])
        assert torch.equal(both["y"], one["y"]) and not torch.equal(both["x"], both["y"])
        assert not torch.equal(drawn(["y"], seed=1)["y"], one["y"])
        assert not torch.equal(drawn(["y"], name="b")["y"], one["y"])


def test_a_view_that_no_input_sees_is_refused_by_name(case: Case, tmp_path: Path) -> None:
    around = torch.diag(torch.tensor([-1.0, 1, -1, 1]))
    poses = case.cameras.world_to_cam.clone()
    poses[1] = around @ poses[1]
    away = replace(case, cameras=replace(case.cameras, world_to_cam=poses))
    expected = "case table-3, method coarse, view view 2: covered: found an empty mask; expected covered pixels"
    with pytest.raises(Sr3dError, match=expected):
        score_case(away, scoring(tmp_path, shipped(Coarse, Upsampled)))


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (Made(images=torch.zeros(3, 31, 32, 3)), "rgb: found 3 views of 32x31; expected 3 views of 32x32, as the"),
        (Made(images=torch.zeros(2, 32, 32, 3)), "rgb: found 2 views of 32x32; expected 3 views of 32x32, as the"),
        (Made(images=torch.full((3, 32, 32, 3), torch.nan)), "view view 1: rgb: found NaN or inf"),
        (Made(), "method spy: found neither Gaussians nor images; expected one of them"),
    ],
)
def test_what_cannot_be_scored_names_case_and_method(
    made: Made, expected: str, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Users run without the checks of shapes that tests turn on.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(Sr3dError, match=r"table-3.*method spy") as error:
        score_case(case, scoring(tmp_path, {"spy": spy(Bicubic, lambda task: made)}, {"psnr": Psnr()}))
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("needs", "flat", "drawn", "blind"),
    [
        ((), True, True, True),
        (("truth",), True, True, False),
        (("depth",), False, True, True),
        (("truth", "depths"), False, True, False),
        (("text",), True, True, False),
        (("labels",), False, False, False),
        (("estimated",), False, False, False),
    ],
)
def test_metrics_are_asked_where_there_is_what_they_need(
    needs: tuple[str, ...], flat: bool, drawn: bool, blind: bool, case: Case, tmp_path: Path
) -> None:
    metric: Any = type("Needs", (Looks,), {"needs": needs})()
    methods = shipped(Bicubic, Coarse)
    scored, _ = score_case(case, scoring(tmp_path, methods, {"needs": metric}))
    assert ["bright" in scored.values[name] for name in methods] == [flat, drawn]
    assert len(metric.seen) == flat + drawn
    none = replace(case, truth=None, text=" \n")
    scored, _ = score_case(none, scoring(tmp_path / "none", {"coarse": methods["coarse"]}, {"needs": metric}))
    assert ("bright" in scored.values["coarse"]) == blind and "truth" not in scored.pictures


def test_estimated_poses_and_scores_of_classes_are_handed_on(case: Case, tmp_path: Path) -> None:
    assert case.context is not None
    poses, looks = case.context.posed(), Looks()

    def made(task: Task) -> Made:
        scene = task.coarse
        return Made(gaussians=replace(scene, features=scene.means), classify=lambda f: 2 * f[..., :2], cameras=poses)

    score_case(case, scoring(tmp_path, {"spy": spy(Coarse, made)}, {"looks": looks}))
    seen = looks.seen[0]
    assert seen.estimated is poses and seen.given is poses and seen.logits is not None
    scene = coarse_gaussians(case.context, CONFIG)
    drawn = render(replace(scene, features=scene.means), case.cameras, features=True).features
    assert drawn is not None
    torch.testing.assert_close(seen.logits, 2 * drawn[..., :2])
    assert available(type("Labels", (Looks,), {"needs": ("labels", "estimated", "depths")})(), seen)


class Clock:
    """Seconds that pass when somebody says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def takes(self, seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, which takes longer."""

        def slow(*args: Any, **options: Any) -> Any:
            self.now += seconds
            return function(*args, **options)

        return slow


def test_the_coarse_stage_counts_for_methods_that_use_it(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(meter, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(cases, "coarse_gaussians", clock.takes(5, coarse_gaussians))
    monkeypatch.setattr(score, "render", clock.takes(0.25, render))
    methods = {
        "first": spy(Coarse, clock.takes(2, lambda task: Made(gaussians=task.coarse))),
        "second": spy(Coarse, clock.takes(3, lambda task: Made(gaussians=task.coarse))),
        "free": spy(Upsampled, clock.takes(1, lambda task: Made(gaussians=Gaussians.cat([scene])))),
    }
    assert case.context is not None
    scene = coarse_gaussians(case.context, CONFIG)
    scored, _ = score_case(case, scoring(tmp_path, methods))
    # From the inputs to Gaussians: neither the mask of covered pixels nor the target views are part of it.
    assert scored.seconds == {"first": 7, "second": 8, "free": 1}
    assert scored.fps == {"first": 12, "second": 12, "free": 12}


def test_a_meter_measures_time() -> None:
    with Meter("cpu") as cost:
        time.sleep(0.05)
    assert 0.05 <= cost.seconds < 5
    with pytest.raises(ZeroDivisionError), Meter("cpu") as failed:
        raise ZeroDivisionError
    assert failed.seconds > 0


MEMORY = """
import json, resource, sys
from pathlib import Path
import torch
from sr3d.evaluation import meter

def used(allocate=lambda: None):
    with meter.Meter("cpu") as cost:
        held = allocate()
    del held
    return cost.peak_bytes

torch.ones(1000)  # what PyTorch sets up on first use
found = [used(), used(lambda: torch.ones(50_000_000)), used()]
meter._CLEAR = Path(sys.argv[1])
now = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
print(json.dumps([*found, used(lambda: torch.ones(50_000_000)[:1].clone()), now]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no Linux")
def test_a_meter_measures_the_largest_memory_meanwhile(tmp_path: Path) -> None:
    # In a process of its own: what other tests leave behind may be freed at any time.
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "clear_refs")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after, again, at_the_end, now = json.loads(done.stdout)
    assert 190e6 < after - before < 400e6
    # What was freed before is not counted again.
    assert again < before + 100e6
    # Without a record of the largest memory that of the end counts.
    assert abs(at_the_end - now) < 50e6


def test_names_of_files_are_safe_and_different() -> None:
    names = [
        "fox/3+9", "fox_3+9", "fox/3 9", "fox/3\n9", "../../etc", "..", ".", ".a", "a:b\\c", "ä", "ö", "con trol\0",
        "sr3d:long/net.ckpt", "sr3d:long/net.ckp", "x" * 300, "x" * 299, "x" * 80, "table-3", "a=b", "-rf", "A",
    ]  # fmt: skip
    slugs = [slug(name) for name in names]
    assert len(set(slugs)) == len(names)
    for name in slugs:
        assert 0 < len(name) <= 90 and name[0] != "." and not set(name) & set('/\\:*?"<>| \n\0')
    assert slug("table-3") == "table-3" and slug("fox/3+9").startswith("fox_3+9-")
