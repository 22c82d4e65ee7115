"""`sr3d inspect` of a file of Gaussians: a 3DGS `.ply`, or a `.sr3d` forest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.inspection.pictures import write_figure
from sr3d.inspection.report import Report, span
from sr3d.io import check_forest, read_forest, read_ply
from sr3d.rendering import render

_SIZE, _MOST_DRAWN, _MOST_POINTS = 320, 1_500_000, 80_000
# Directions to look along with up, in the frame of COLMAP and 3DGS: x right, y down, z ahead.
_SIDES = {
    "along +z": ((0, 0, 1), (0, -1, 0)),
    "along -x": ((-1, 0, 0), (0, -1, 0)),
    "along -z": ((0, 0, -1), (0, -1, 0)),
    "along +y": ((0, 1, 0), (0, 0, 1)),
}


def inspect_gaussians(path: Path, output: Path) -> Report:
    """Inspect a `.ply` or `.sr3d` file; pictures go to `output`.

    Raises:
        Sr3dError: It cannot be read, or a picture cannot be written.
    """
    forest = read_forest(path) if path.suffix == ".sr3d" else None
    report = Report(path=path, kind="Gaussians (.ply)" if forest is None else "forest of Gaussians (.sr3d)")
    if forest is not None:
        sizes = ", ".join(f"{len(level):,}" for level in forest.levels)
        report.facts["levels"] = f"{len(forest.levels)} ({sizes} Gaussians), magnification {forest.magnification:.4g}"
        try:
            check_forest(forest)
            report.facts["links and bounds"] = "all checked: right"
        except Sr3dError as error:
            report.error(error.field, error.found, f"expected {error.expected}; write the forest again")
    gaussians = read_ply(path) if forest is None else forest.gaussians()
    if not len(gaussians):
        raise Sr3dError(path, "Gaussians", 0, "at least one")
    check_gaussians(report, gaussians)
    drawable = _finite(gaussians)
    if drawable.any():
        shown = gaussians.index(drawable)
        _draw(shown, output / "renders.png", path.name)
        _map(shown, output / "above.png", path.name)
        report.pictures += [output / "renders.png", output / "above.png"]
    return report


def check_gaussians(report: Report, gaussians: Gaussians) -> None:
    """Facts and violations of the values of Gaussians."""
    g = gaussians
    finite = _finite(g)
    report.facts["Gaussians"] = f"{len(g):,}, SH degree {g.sh_degree}"
    if g.features is not None:
        report.facts["features"] = f"{g.features.shape[-1]} per Gaussian"
    if g.lod is not None:
        levels = g.lod.level.unique().tolist()
        report.facts["levels of detail"] = f"{len(levels)} ({span(float(min(levels)), float(max(levels)))})"
    if not finite.all():
        found = f"NaN, infinite, or a zero quaternion in {int((~finite).sum()):,} Gaussians"
        report.error("values", found, "remove these rows: one NaN spoils a whole image")
    if not finite.any():
        return
    g = g.index(finite)
    low, high = _bounds(g.means)
    text = ", ".join(f"{a} {span(float(x), float(y))}" for a, x, y in zip("xyz", low, high))
    report.facts["bounds"] = f"{text} (1 % to 99 %); all within {_ends(g.means.abs().amax(-1))[1]:.3g} of the origin"
    extent = float((high - low).norm())
    _check_scales(report, g, extent)
    _check_opacities(report, g.opacities)
    rows = torch.cat([g.means, g.scales, g.quats, g.opacities[:, None], g.sh[:, 0]], dim=1).float().contiguous().numpy()
    same = len(rows) - len(np.unique(rows.view([("", f"V{rows.itemsize * rows.shape[1]}")])))
    if same:
        add = report.warn
        add("Gaussians", f"{same:,} rows are copies of others", "remove them: two layers are more opaque than one")


def _finite(g: Gaussians) -> Tensor:
    """Rows that can be drawn. [N]"""
    parts = [g.means, g.quats, g.scales, g.opacities[:, None], g.sh.flatten(1)]
    parts += [] if g.features is None else [g.features]
    good = torch.stack([torch.isfinite(p).all(-1) for p in parts]).all(0)
    return good & (g.quats != 0).any(-1)


def _bounds(means: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, " 3"], Float[Tensor, " 3"]]:
    """1 % and 99 % quantiles of the positions."""
    some = means[:: max(1, len(means) // 1_000_000)].float()
    return some.quantile(0.01, dim=0), some.quantile(0.99, dim=0)


def _ends(values: Float[Tensor, " n"]) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _check_scales(report: Report, g: Gaussians, extent: float) -> None:
    """Scales against the size of the scene; logarithms that were stored as if they were scales, and the reverse."""
    largest = g.scales.amax(-1)
    median = float(largest.median())
    report.facts["scales"] = f"{span(*_ends(g.scales.flatten()))} units, median of the largest axis {median:.3g}"
    # Positive scales written where logarithms belong are read as exp(scale) > 1.
    if float((g.scales >= 1).float().mean()) > 0.999 and median > 0.02 * extent:
        fix = "store the natural logarithm of the scales: the file seems to hold the scales themselves"
        report.error("scale", f"all scales are 1 or more (median {median:.3g}, scene {extent:.3g} units across)", fix)
    elif median > 0.1 * extent > 0:
        fix = "check the unit of the scales against that of the positions"
        report.error("scale", f"median {median:.3g} in a scene {extent:.3g} units across", fix)
    flat = int((largest < 1e-9 * max(extent, 1e-12)).sum())
    if flat > 0.01 * len(g):
        report.warn("scale", f"{flat:,} Gaussians have no size", "remove them; or logarithms were taken twice")
    thin = int(((g.scales.amin(-1) < 1e-5 * largest) & (largest > 0)).sum())
    if thin > 0.5 * len(g):
        report.warn("scale", f"{thin:,} Gaussians are 100,000 times longer than thick", "limit the ratio of their axes")


def _check_opacities(report: Report, opacities: Float[Tensor, " n"]) -> None:
    """Opacities that were stored as they are where logits belong lie between sigmoid(0) and sigmoid(1)."""
    low, high = _ends(opacities)
    faint = float((opacities < 1 / 255).float().mean())
    report.facts["opacities"] = (
        f"{span(low, high)}, median {float(opacities.median()):.3g}; {100 * faint:.2g} % invisible"
    )
    if len(opacities) > 10 and low >= 0.4999 and high <= 0.7312 and high - low > 1e-3:
        fix = "store logit(opacity): the file seems to hold the opacities themselves"
        report.error("opacity", f"all between {low:.3g} and {high:.3g}, which is sigmoid(0) to sigmoid(1)", fix)
    elif faint > 0.5:
        report.warn("opacity", f"{100 * faint:.0f} % of the Gaussians are too faint to be drawn", "prune them")


def _draw(gaussians: Gaussians, path: Path, title: str) -> None:
    """Renders from four sides, far enough to see nearly everything."""
    g = gaussians.detach().to("cpu")
    g = g.index(slice(None, None, max(1, len(g) // _MOST_DRAWN)))
    low, high = _bounds(g.means)
    middle, radius = (low + high) / 2, max(float((high - low).norm()) / 2, 1e-6)
    focal = 1.2 * _SIZE
    poses = torch.stack([_look(torch.tensor(d), torch.tensor(up), middle, 2.6 * radius) for d, up in _SIDES.values()])
    K = torch.tensor([[focal, 0, _SIZE / 2], [0, focal, _SIZE / 2], [0, 0, 1]]).expand(len(poses), 3, 3)
    cameras = Cameras(world_to_cam=poses, K=K.contiguous(), width=_SIZE, height=_SIZE)
    images = render(g, cameras, background=torch.ones(3)).rgb.clamp(0, 1).numpy()
    figure = Figure(figsize=(3.2 * len(images), 3.6), dpi=110, layout="constrained")
    for axes, image, name in zip(figure.subplots(1, len(images)), images, _SIDES):
        axes.imshow(image)
        axes.set_title(name, fontsize=9)
        axes.set_axis_off()
    figure.suptitle(f"{title}, y down")
    write_figure(figure, path)


def _look(ahead: Tensor, up: Tensor, target: Float[Tensor, " 3"], distance: float) -> Float[Tensor, "4 4"]:
    """World-to-camera of a camera that looks along `ahead` at a point."""
    ahead, up = ahead.float(), up.float()
    rotation = torch.stack([torch.linalg.cross(ahead, up), -up, ahead])
    pose = torch.eye(4)
    pose[:3, :3] = rotation
    pose[:3, 3] = -rotation @ (target - distance * ahead)
    return pose


def _map(gaussians: Gaussians, path: Path, title: str) -> None:
    """Positions from above (along y) and from the front (along z), in their own colours."""
    g = gaussians.index(slice(None, None, max(1, len(gaussians) // _MOST_POINTS)))
    low, high = _bounds(g.means)
    margin = 0.1 * float((high - low).max()) + 1e-9
    colors = (0.5 + 0.2820948 * g.sh[:, 0]).clamp(0, 1).numpy()
    means = g.means.float().numpy()
    figure = Figure(figsize=(12, 6), dpi=110, layout="constrained")
    for axes, (i, j), name in zip(figure.subplots(1, 2), ((0, 2), (0, 1)), ("from above", "from the front")):
        axes.scatter(means[:, i], means[:, j], s=min(6.0, max(0.6, 5e4 / len(means))), c=colors, linewidths=0)
        ends = [(float(low[k]) - margin, float(high[k]) + margin) for k in (i, j)]
        axes.set(xlim=ends[0], ylim=ends[1] if j == 2 else ends[1][::-1], aspect="equal", title=name)
        axes.set(xlabel="xyz"[i], ylabel="xyz"[j])
    figure.suptitle(title)
    write_figure(figure, path)
