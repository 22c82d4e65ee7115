"""Tables and plots of the ablation, for docs/ablation.md."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib import pyplot as plt

matplotlib.use("agg")

SOURCES = ("sweep", "depth")
KINDS = ("true colours", "true geometry")
BASELINES = ("coarse", "upsampled", "scaffold")


def write_docs(results: dict[str, object], docs: Path) -> None:
    """Plots, and the tables between the markers of docs/ablation.md."""
    page = docs / "ablation.md"
    text = page.read_text()
    for name, table in {"ladder": ladder_table, "views": views_table, "overfit": overfit_table}.items():
        if name in results:
            start, end = f"<!-- {name} -->", f"<!-- end {name} -->"
            head, rest = text.split(start, 1)
            text = head + start + "\n" + table(results[name]) + "\n" + end + rest.split(end, 1)[1]
    partial = page.with_suffix(".part")
    partial.write_text(text)
    partial.replace(page)
    if "ladder" in results:
        plot_ladder(results["ladder"]["rows"], docs / "images" / "ablation.png")
    if "views" in results:
        plot_views(results["views"], docs / "images" / "views.png")


def ladder_table(found: dict) -> str:
    """Markdown."""
    lines = []
    for source in SOURCES:
        words = "depth by stereo" if source == "sweep" else "given depth"
        lines += [f"\n{found['places']} places, {words}:\n"]
        lines += [
            "| | psnr_covered | − coarse | − upsampled | psnr | − upsampled | ssim "
            "| true colours | true geometry | Gaussians / upsampled | parameters | steps |"
        ]
        lines += ["|---|" + "---|" * 11]
        for r in found["rows"]:
            if r["source"] != source:
                continue
            trained = f"{r['parameters'] / 1e6:.2f} M | {r['steps']}" if "steps" in r else "| "
            lines.append(
                f"| {r['name']} | {r['psnr_covered']:.2f} | {r['gain_coarse']:+.2f} | {r['gain']:+.2f} "
                f"| {r['psnr']:.2f} "
                f"| {r['gain_whole']:+.2f} | {r['ssim']:.3f} | {r['true colours']:.2f} | {r['true geometry']:.2f} "
                f"| {r['share']:.2f} | {trained} |"
            )
        both = next(r["both"] for r in found["rows"] if r["source"] == source)
        coverage = next(r["coverage"] for r in found["rows"] if r["source"] == source)
        lines.append(f"\nThe truth for both: {both:.2f} dB. Covered: {coverage:.3f} of the pixels.")
    return "\n".join([*lines, "\n![Bars of the PSNR of every rung](images/ablation.png)"])


def views_table(rows: list[dict]) -> str:
    """Markdown."""
    lines = [
        "",
        "| depth | views | covered | coarse | upsampled | sr3d (always covered) "
        "| whole image: coarse | upsampled | sr3d | Gaussians |",
    ]
    lines += ["|---|" + "---|" * 9]
    for r in rows:
        covered = " | ".join(f"{r[f'{m} psnr_covered']:.2f}" for m in ("coarse", "upsampled", "sr3d"))
        whole = " | ".join(f"{r[f'{m} psnr']:.2f}" for m in ("coarse", "upsampled", "sr3d"))
        lines.append(
            f"| {r['source']} | {r['views']} | {r['coverage']:.3f} | {covered} | {whole} | {r['sr3d gaussians']:,.0f} |"
        )
    always = ", ".join(f"{next(r['common'] for r in rows if r['source'] == s):.3f} ({s})" for s in SOURCES)
    lines.append(f"\nAlways covered, by any number of views: {always} of the pixels.")
    return "\n".join([*lines, "\n![PSNR against the number of input views](images/views.png)"])


def overfit_table(found: dict) -> str:
    """Markdown."""
    lines = [
        "",
        f"{found['steps']} steps, {found['minutes']:.0f} minutes; coverage {found['sr3d']['coverage']:.3f}.",
        "",
    ]
    lines += ["| | psnr_covered | psnr |", "|---|---|---|"]
    lines += [f"| {m} | {found[m]['psnr_covered']:.2f} | {found[m]['psnr']:.2f} |" for m in (*BASELINES, "sr3d")]
    return "\n".join(lines)


def plot_ladder(rows: list[dict], path: Path) -> None:
    """Bars of PSNR, and of the two halves."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.2), sharey=True, layout="constrained")
    for axis, source in zip(axes, SOURCES):
        chosen = [r for r in rows if r["source"] == source]
        for offset, key, color in (
            (-0.27, "psnr_covered", "#1f77b4"),
            (0, KINDS[0], "#ff9f4a"),
            (0.27, KINDS[1], "#5ab45a"),
        ):
            axis.bar([i + offset for i in range(len(chosen))], [r[key] for r in chosen], 0.27, label=key, color=color)
        low = min(r[k] for r in chosen for k in ("psnr_covered", *KINDS))
        axis.set_ylim(low - 0.5)
        axis.set_xticks(range(len(chosen)), [r["name"] for r in chosen], rotation=35, ha="right")
        axis.set_title("depth by stereo" if source == "sweep" else "given depth")
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel("PSNR on covered pixels, dB")
    labels = ["as it is", "true colours on its geometry", "its colours on true geometry"]
    figure.legend(axes[0].containers, labels, loc="outside upper center", ncols=3, fontsize=9)
    figure.savefig(path, dpi=110)


def plot_views(rows: list[dict], path: Path) -> None:
    """Quality against the number of views."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True, layout="constrained")
    for axis, key in zip(axes, ("psnr_covered", "psnr")):
        for source, style in zip(SOURCES, ("-", "--")):
            chosen = [r for r in rows if r["source"] == source]
            for method, color in (("coarse", "0.6"), ("upsampled", "#ff7f0e"), ("sr3d", "#1f77b4")):
                label = f"{method}, {'stereo' if source == 'sweep' else 'given'} depth"
                axis.plot(
                    [r["views"] for r in chosen],
                    [r[f"{method} {key}"] for r in chosen],
                    style,
                    marker="o",
                    color=color,
                    label=label,
                )
        axis.set_xscale("log", base=2)
        axis.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
        axis.set_xlabel("input views")
        axis.set_title("always covered pixels" if key == "psnr_covered" else "whole image")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("PSNR, dB")
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)
