"""The tables of docs/results.md: every method on procedural places, on a zoom, and on real captures.

    python benchmarks/results.py --scenes captures            # all of it: about an hour on two cores
    python benchmarks/results.py --scenes captures --devices 2 --methods bicubic,coarse,upsampled,sr3d
    python benchmarks/results.py --write                      # only docs/results.md again, from what was measured

`captures` holds folders of posed captures; those without depth maps are measured with stereo depth only. The network
is that of `make demo` unless --checkpoint names another one. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from common import machine

from sr3d.errors import Sr3dError
from sr3d.evaluation.output import RESULTS
from sr3d.evaluation.results import Results
from sr3d.evaluation.results_file import read_results
from sr3d.evaluation.statistics import baseline_of, summarise
from sr3d.evaluation.tables import markdown
from sr3d.io import load_scene
from sr3d.io.atomic import atomic
from sr3d.verbs import DEMO_CHECKPOINT

ROOT = Path(__file__).resolve().parents[1]
METHODS = "bicubic,coarse,upsampled,scaffold,optimise,sr3d"
LONG = "sr3d-2000"
NETWORKS = {
    "sr3d": "the network of `make demo`",
    LONG: "the longest training of `benchmarks/ablation.py --long 2000`, on procedural places that are in focus",
}
PLOTS = ("quality_seconds.png", "quality_gaussians.png", "differences.png", "levels.png")


@dataclass(kw_only=True)
class Part:
    """One run.

    Attributes:
        key: Name of its folder and heading of its tables.
        title: In words.
        protocol: Shipped protocol.
        source: Where coarse depth comes from.
        depth: Whether it is about captures with depth maps only.
    """

    key: str
    title: str
    protocol: str
    source: str
    depth: bool = False


PARTS = (
    Part(key="procedural", title="Procedural places, stereo depth", protocol="procedural", source="sweep"),
    Part(key="procedural_depth", title="Procedural places, given depth", protocol="procedural", source="depth"),
    Part(key="zoom", title="Zoom into procedural places, given depth", protocol="procedural_zoom", source="depth"),
    Part(key="captures", title="Real captures, stereo depth", protocol="folder", source="sweep"),
    Part(key="captures_depth", title="Real captures, given depth", protocol="folder", source="depth", depth=True),
)


def captures_in(folder: Path) -> dict[str, tuple[Path, bool]]:
    """Name → folder, and whether it has depth maps, of every posed capture."""
    out = {}
    for path in sorted(p for p in folder.iterdir() if p.is_dir()):
        try:
            scene = load_scene(path, [0])
        except Sr3dError as reason:
            print(f"no capture: {reason}")
            continue
        if scene.cameras is not None:
            out[path.name] = (path, scene.depths is not None)
    return out


def measure(part: Part, arguments: argparse.Namespace, captures: dict[str, tuple[Path, bool]]) -> None:
    """Run one part by the command line, which writes tables, plots and report."""
    paths = [path for path, has_depth in captures.values() if has_depth or not part.depth]
    if part.protocol == "folder" and not paths:
        print(f"{part.key}: left out, no captures (--scenes)")
        return
    methods = arguments.methods + ("" if arguments.long is None else f",{LONG}=sr3d:{arguments.long}")
    words = ["--protocol", part.protocol, "--source", part.source, "--methods", methods]
    words += ["--checkpoint", str(arguments.checkpoint), "--devices", str(arguments.devices)]
    words += ["--accelerator", arguments.accelerator, "--output", str(arguments.output / part.key)]
    if part.protocol == "folder":
        words += ["--scenes", ",".join(map(str, paths)), "--data.max_pixels", str(arguments.max_pixels)]
    print(f"== {part.title}", flush=True)
    # A process of its own: Lightning starts the other ones by running the command again.
    subprocess.run([sys.executable, str(ROOT / "eval.py"), *words], check=True)


def chapter(part: Part, folder: Path, images: Path) -> str:
    """Tables and plots of one part as Markdown; the plots are copied to `images`."""
    results = read_results(folder / RESULTS)
    summary = summarise(results, baseline_of(results))
    lines = [f"## {part.title}\n", command(part, results), markdown(results, summary)]
    for name in PLOTS:
        if (folder / "plots" / name).is_file():
            images.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / "plots" / name, images / f"results_{part.key}_{name}")
            alt = f"{part.title}: {Path(name).stem.replace('_', ' ')}"
            lines.append(f"![{alt}](images/results_{part.key}_{name})\n")
    return "\n".join(lines)


def command(part: Part, results: Results) -> str:
    """What runs this part alone."""
    scenes = ""
    if part.protocol == "folder":
        names = ",".join(dict.fromkeys(case.scene for case in results.cases))
        scenes = f" --scenes {names} --data.max_pixels {results.protocol['data']['max_pixels']}"
    methods = ",".join(f"{LONG}=sr3d:CHECKPOINT" if method == LONG else method for method in results.methods)
    git = results.provenance["git"]
    state = f" (commit {git['commit'][:12]}{', with changes' if git['dirty'] else ''})" if git else ""
    return f"`python eval.py --protocol {part.protocol} --source {part.source} --methods {methods}{scenes}`{state}\n"


def write_docs(output: Path, docs: Path) -> None:
    """docs/results.md from everything that was measured."""
    parts = [part for part in PARTS if (output / part.key / RESULTS).is_file()]
    first = read_results(output / parts[0].key / RESULTS)
    networks = [
        f"`{method}` is {NETWORKS[method]} (SHA-256 {first.methods[method]['sha256'][:16]})"
        for method in NETWORKS
        if method in first.methods
    ]
    head = [
        "# Results\n",
        "Written by `python benchmarks/results.py --scenes CAPTURES`; do not edit. The command above a table makes "
        "it alone. Intervals are 95 % bootstrap intervals over scenes.\n",
        f"{'; '.join(networks)}. `optimise` is per-scene super-resolution by gradient descent, `bicubic` enlarges the "
        "target views themselves: it sees what no other method is given.\n",
        f"Machine: {', '.join(f'{k} {v}' for k, v in machine().items())}.\n",
    ]
    text = "\n".join(head + [chapter(part, output / part.key, docs / "images") for part in parts])
    with atomic(docs / "results.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"written: {docs / 'results.md'}")


def main() -> None:
    """Parse the arguments, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=Path, help="folder of captures")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / DEMO_CHECKPOINT)
    parser.add_argument("--long", type=Path, help=f"checkpoint of a second network, {LONG}")
    parser.add_argument("--devices", type=int, default=1, help="processes, one for each GPU")
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--max_pixels", type=int, default=10_000, help="largest low-resolution input of a capture")
    parser.add_argument("--only", nargs="+", choices=[part.key for part in PARTS], help="parts to measure")
    parser.add_argument("--write", action="store_true", help="measure nothing")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "results")
    arguments = parser.parse_args()
    captures = {} if arguments.scenes is None or arguments.write else captures_in(arguments.scenes)
    for part in PARTS:
        if not arguments.write and (arguments.only is None or part.key in arguments.only):
            measure(part, arguments, captures)
    write_docs(arguments.output, ROOT / "docs")


if __name__ == "__main__":
    main()
