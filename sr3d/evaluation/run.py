"""A run of a protocol: Lightning tests the cases on one device or many; each is stored when it is done."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import sr3d
from sr3d.coarse import CoarseConfig, DepthSource
from sr3d.errors import Sr3dError
from sr3d.evaluation.cases import CaseSet, Sources, open_cases
from sr3d.evaluation.methods import MethodOptions, create_methods
from sr3d.evaluation.metrics import create_metrics
from sr3d.evaluation.metrics.base import SetMetric
from sr3d.evaluation.protocol import Protocol
from sr3d.evaluation.results import Results, Scored
from sr3d.evaluation.results_file import read_case, write_case
from sr3d.evaluation.score import Scoring, States, score_case, slug
from sr3d.io.atomic import atomic
from sr3d.training.provenance import git_state, machine
from sr3d.training.timing import peak_ram


@dataclass(kw_only=True)
class RunConfig:
    """How a protocol is run.

    Attributes:
        output: Folder for everything that is written; a run that was stopped goes on there.
        methods: As `sr3d.evaluation.methods.create_methods` reads them.
        options: For all methods; `factor` and `device` are set by the run.
        sources: Where the data lies.
        source: Where the coarse stage gets depth; the protocol's choice if None.
        data: Values that take the place of the protocol's own `data`.
        metrics: Names; the protocol's if empty.
        limit: Evaluate this many cases from the first on; all if None.
        allow_missing: List cases that cannot be evaluated instead of failing.
        accelerator: Of Lightning.
        devices: Processes on this machine, one for each GPU.
        nodes: Machines.
        threads: PyTorch's threads of each process. The last digits of results may depend on it.
        seed: Of everything random.
    """

    output: Path
    methods: list[str]
    options: MethodOptions = field(default_factory=MethodOptions)
    sources: Sources = field(default_factory=Sources)
    source: DepthSource | None = None
    data: dict[str, Any] = field(default_factory=dict)
    metrics: list[str] = field(default_factory=list)
    limit: int | None = None
    allow_missing: bool = False
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    nodes: int = 1
    threads: int = 1
    seed: int = 0


def run_protocol(protocol: Protocol, config: RunConfig) -> Results | None:
    """Evaluate all cases of a protocol, those that are done already excepted.

    Args:
        protocol: What to evaluate.
        config: How.

    Returns:
        Everything that was found, on the first process; None on the others.

    Raises:
        Sr3dError: Data, a checkpoint or an option cannot be used; or cases are missing and that was not allowed. What
            is done by then is kept, and a run with the same options goes on from there.
    """
    started, begin = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    protocol = replace(
        protocol,
        source=config.source or protocol.source,
        data={**protocol.data, **config.data},
        metrics=config.metrics or protocol.metrics,
    )
    _check(config)
    cases = _limited(open_cases(protocol, config.sources), config.limit)
    config.output.mkdir(parents=True, exist_ok=True)
    tester = Tester(protocol, cases, config)
    trainer, threads = _trainer(config), torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        with torch.random.fork_rng(devices=[]):
            trainer.test(tester, verbose=False)
    finally:
        torch.set_num_threads(threads)
    if not trainer.is_global_zero:
        return None
    results = tester.collect()
    results.timing = {
        "started": started,
        "seconds": time.perf_counter() - begin,
        "processes": trainer.world_size,
        "evaluated now": tester.evaluated if trainer.world_size == 1 else None,
    }
    return results


class Tester(lightning.LightningModule):
    """Every process scores its share of the cases and stores each of them when it is done.

    Args:
        protocol: What is evaluated.
        cases: All of them.
        config: How.

    Attributes:
        current: Name of the case at work.
        evaluated: Cases scored by this process.
    """

    def __init__(self, protocol: Protocol, cases: CaseSet, config: RunConfig) -> None:
        super().__init__()
        self.protocol, self.cases, self.run_config = protocol, cases, config
        self.folder = config.output / "cases"
        self.current, self.evaluated = "", 0
        self.unavailable: dict[str, str] = {}

    def setup(self, stage: str) -> None:
        """Load networks and metrics onto this process's device."""
        device = str(self.trainer.strategy.root_device)
        options = replace(self.run_config.options, factor=self.protocol.factor, device=device)
        methods = create_methods(self.run_config.methods, options)
        metrics, self.unavailable = create_metrics(self.protocol.metrics, device)
        self.run_state = Scoring(
            methods=methods,
            metrics=metrics,
            coarse=CoarseConfig(source=self.protocol.source),
            device=device,
            folder=self.run_config.output,
            seed=self.run_config.seed,
        )
        self.identities = {label: method.identity() for label, method in methods.items()}
        self.fingerprint = _fingerprint(self)
        self.folder.mkdir(parents=True, exist_ok=True)

    def test_dataloader(self) -> Iterable[Any]:
        """Numbers of this process's cases: those that are not done, dealt out in turn."""
        left = [i for i in range(len(self.cases.names)) if self._done(i) is None]
        mine = left[self.trainer.global_rank :: self.trainer.world_size]
        return DataLoader(Numbers(mine), batch_size=None)

    def test_step(self, i: int) -> None:
        """Score one case; what is wrong with it is written down, and the others go on."""
        self.current = self.cases.names[i]
        failed = self._path(i, ".error")
        try:
            scored, states = score_case(self.cases.load(i), self.run_state)
        except Sr3dError as error:
            with atomic(failed) as temporary:
                temporary.write_text(str(error), encoding="utf-8")
            return
        failed.unlink(missing_ok=True)
        # States first: a case counts as done when its scores are there.
        with atomic(self._path(i, ".safetensors")) as temporary:
            save_file(_flat(states), temporary)
        write_case(self._path(i, ".json"), scored, self.fingerprint)
        self.evaluated += 1

    def on_test_end(self) -> None:
        """Wait until every process has stored its cases."""
        self.trainer.strategy.barrier("evaluated")

    def collect(self) -> Results:
        """Join what all processes have stored.

        Raises:
            Sr3dError: Cases are missing, and that was not allowed.
        """
        done = {i: found for i in range(len(self.cases.names)) if (found := self._done(i)) is not None}
        left = [i for i in range(len(self.cases.names)) if i not in done]
        missing = [{"case": self.cases.names[i], "reason": self._reason(i)} for i in left]
        if missing and (not self.run_config.allow_missing or not done):
            words = f"{len(done)} of {len(self.cases.names)}; {missing[0]['case']}: {missing[0]['reason']}"
            expected = "every case of the index, or --allow-missing to list those that are missing"
            raise Sr3dError("sr3d eval", "cases evaluated", words, expected)
        views = sum(len(scored.frames) for scored in done.values())
        if not missing and views != self.cases.views:
            raise Sr3dError("sr3d eval", "target views evaluated", views, f"{self.cases.views}, as the index names")
        pooled = self._pooled(sorted(done))
        return Results(
            protocol={**asdict(self.protocol), "index_sha256": self.cases.digest, "limit": self.run_config.limit},
            methods=self.identities,
            columns=self._columns(list(done.values()), pooled),
            unavailable=self.unavailable | self._without_value(list(done.values()), pooled),
            cases=[done[i] for i in sorted(done)],
            pooled=pooled,
            missing=missing,
            expected=self.cases.views,
            provenance=_provenance(),
        )

    def _done(self, i: int) -> Scored | None:
        return read_case(self._path(i, ".json"), self.fingerprint)

    def _reason(self, i: int) -> str:
        path = self._path(i, ".error")
        return path.read_text(encoding="utf-8") if path.is_file() else "not evaluated"

    def _path(self, i: int, suffix: str) -> Path:
        return self.folder / f"{slug(self.cases.names[i])}{suffix}"

    def _pooled(self, done: Sequence[int]) -> dict[str, dict[str, float | None]]:
        """Metrics of all views together, from what the cases have contributed."""
        states = [_nested(load_file(self._path(i, ".safetensors"))) for i in done]
        out: dict[str, dict[str, float | None]] = {}
        for label in self.identities:
            for name, metric in self.run_state.metrics.items():
                given = [state[label][name] for state in states if name in state.get(label, {})]
                if isinstance(metric, SetMetric) and given:
                    found = metric.finish(given)
                    out.setdefault(label, {}).update({k: None if math.isnan(v) else v for k, v in found.items()})
        return out

    def _columns(
        self, scores: Sequence[Scored], pooled: dict[str, dict[str, float | None]]
    ) -> dict[str, dict[str, Any]]:
        """Columns that have a value somewhere, in the order of the protocol's metrics."""
        known = _known(scores, pooled)
        columns = [column for metric in self.run_state.metrics.values() for column in metric.columns]
        return {
            c.name: {"title": c.title, "better": c.better, "digits": c.digits, "unit": c.unit}
            for c in columns
            if c.name in known
        }

    def _without_value(self, scores: Sequence[Scored], pooled: dict[str, dict[str, float | None]]) -> dict[str, str]:
        """Metrics that were there but had nothing to look at."""
        known, out = _known(scores, pooled), {}
        for name, metric in self.run_state.metrics.items():
            # The other columns may be counts.
            if metric.columns[0].name not in known:
                needs = f" (needs {', '.join(metric.needs)})" if metric.needs else ""
                out[name] = f"no view has a value{needs}"
        return out


class Numbers(Dataset[int]):
    """Numbers of cases.

    Args:
        values: In order.
    """

    def __init__(self, values: list[int]) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, i: int) -> int:
        return self.values[i]


class EvaluationBar(RichProgressBar):
    """Lightning's bar (time gone and left), with the case at work and the process's peak memory."""

    def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, int | str | float | dict[str, float]]:
        """What stands at the end of the bar."""
        return {"case": pl_module.current, "ram_gib": round(peak_ram(), 1)}


def _known(scores: Sequence[Scored], pooled: dict[str, dict[str, float | None]]) -> set[str]:
    """Columns that have a value somewhere."""
    views = {c for scored in scores for values in scored.values.values() for c, v in values.items() if _any(v)}
    return views | {c for values in pooled.values() for c, v in values.items() if v is not None}


def _any(values: Sequence[float | None]) -> bool:
    return any(value is not None for value in values)


def _check(config: RunConfig) -> None:
    for name, value in (("limit", config.limit), ("devices", config.devices), ("threads", config.threads)):
        if value is not None and value < 1:
            raise Sr3dError("sr3d eval", f"--{name}", value, "1 or more")
    if config.output.exists() and not config.output.is_dir():
        raise Sr3dError(config.output, "output", "a file", "a folder, or a name that is free")


def _limited(cases: CaseSet, limit: int | None) -> CaseSet:
    """The first cases only."""
    if limit is None or limit >= len(cases.names):
        return cases
    views = sum(len(cases.load(i).frames) for i in range(limit))
    index = {**cases.index, "limit": limit}
    return replace(cases, names=cases.names[:limit], scenes=cases.scenes[:limit], views=views, index=index)


def _trainer(config: RunConfig) -> lightning.Trainer:
    several = config.devices * config.nodes > 1
    try:
        return lightning.Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.nodes,
            strategy="ddp" if several else "auto",
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            inference_mode=False,  # some methods optimise
            callbacks=[EvaluationBar()],
        )
    except MisconfigurationException as error:
        found = str(error).strip().splitlines()[0]
        raise Sr3dError("sr3d eval", "--accelerator, --devices", found, "devices that are here") from None


def _fingerprint(tester: Tester) -> str:
    """Of everything that the scores of a case depend on, the code included."""
    code = hashlib.sha256()
    for path in sorted(Path(sr3d.__file__).parent.rglob("*.py")):
        code.update(path.read_bytes())
    config = tester.run_config
    content = {
        "protocol": asdict(tester.protocol),
        "index": tester.cases.digest,
        "methods": tester.identities,
        "unavailable": sorted(tester.unavailable),
        "coarse": asdict(tester.run_state.coarse),
        "seed": config.seed,
        "threads": config.threads,
        "code": code.hexdigest(),
        "versions": machine()["versions"],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _provenance() -> dict[str, Any]:
    state = git_state(Path(sr3d.__file__).parent)
    return {"git": None if state is None else asdict(state), "machine": machine()}


def _flat(states: States) -> dict[str, Tensor]:
    """Names that safetensors can hold."""
    return {
        json.dumps([label, name, key]): value.contiguous()
        for label, metrics in states.items()
        for name, parts in metrics.items()
        for key, value in parts.items()
    }


def _nested(tensors: dict[str, Tensor]) -> States:
    """The inverse of `_flat`."""
    out: States = {}
    for joined, value in tensors.items():
        label, name, key = json.loads(joined)
        out.setdefault(label, {}).setdefault(name, {})[key] = value
    return out
