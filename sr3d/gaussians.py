"""The container of a Gaussian-splatting scene."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sr3d.errors import Sr3dError

T = TypeVar("T")


@dataclass(kw_only=True)
class Lod:
    """Level-of-detail fields of a set of Gaussians.

    Attributes:
        native: Footprint at which each Gaussian was made, world units per pixel, > 0. [..., N]
        coarser: Native footprint of its parent, `inf` for a root. [..., N]
        finer: Native footprint of its children, 0 if it was never densified. [..., N]
        level: Zoom level at which it was appended, 0 for the coarse scene. [..., N]
    """

    native: Float[Tensor, "*batch n"]
    coarser: Float[Tensor, "*batch n"]
    finer: Float[Tensor, "*batch n"]
    level: Int[Tensor, "*batch n"]

    @staticmethod
    def roots(native: Float[Tensor, "*batch n"]) -> Lod:
        """Fields of Gaussians that have neither parent nor children: visible at every footprint."""
        return Lod(
            native=native,
            coarser=torch.full_like(native, torch.inf),
            finer=torch.zeros_like(native),
            level=torch.zeros_like(native, dtype=torch.int32),
        )

    def map(self, f: Callable[[Tensor], Tensor]) -> Lod:
        """Apply `f` to every field."""
        return Lod._from([f(t) for t in self._tensors()])

    def _tensors(self) -> list[Tensor]:
        return [self.native, self.coarser, self.finer, self.level]

    @staticmethod
    def _from(tensors: Sequence[Tensor]) -> Lod:
        native, coarser, finer, level = tensors
        return Lod(native=native, coarser=coarser, finer=finer, level=level)

    def to(self, device: torch.device | str) -> Lod:
        """Copy to `device`; dtypes are kept."""
        return self.map(lambda t: t.to(device))

    def index(self, index: Tensor | slice) -> Lod:
        """Select along the Gaussian axis (last axis) by integer index, boolean mask [N] or slice."""
        return self.map(lambda t: t[..., index])

    def __getitem__(self, index: int | slice) -> Lod:
        return self.map(lambda t: t[index])

    @staticmethod
    def cat(parts: Sequence[Lod]) -> Lod:
        """Join along the Gaussian axis."""
        return Lod._from([torch.cat(ts, dim=-1) for ts in zip(*(p._tensors() for p in parts))])


@dataclass(kw_only=True)
class Gaussians:
    """N anisotropic 3D Gaussians, world frame, activated values.

    Attributes:
        means: Centres, world units. [..., N, 3]
        quats: Rotations of the principal axes, wxyz, any norm > 0. [..., N, 4]
        scales: Standard deviations along the principal axes, world units, ≥ 0. [..., N, 3]
        opacities: In [0, 1]. [..., N]
        sh: Spherical-harmonic colour, 3DGS order and basis, K = (degree + 1)², degree 0-3. [..., N, K, 3]
        features: Semantic embedding. [..., N, D]
        lod: Level-of-detail fields.
    """

    means: Float[Tensor, "*batch n 3"]
    quats: Float[Tensor, "*batch n 4"]
    scales: Float[Tensor, "*batch n 3"]
    opacities: Float[Tensor, "*batch n"]
    sh: Float[Tensor, "*batch n k 3"]
    features: Float[Tensor, "*batch n d"] | None = None
    lod: Lod | None = None

    def __len__(self) -> int:
        return self.means.shape[-2]

    @property
    def sh_degree(self) -> int:
        """Degree of `sh`: 0 to 3."""
        return int(self.sh.shape[-2] ** 0.5) - 1

    def to(self, device: torch.device | str | torch.dtype) -> Gaussians:
        """Copy to a device, or to a floating-point type (level-of-detail fields keep theirs)."""
        lod = self.lod
        if lod is not None and not isinstance(device, torch.dtype):
            lod = lod.to(device)
        features = None if self.features is None else self.features.to(device)
        return Gaussians(
            means=self.means.to(device),
            quats=self.quats.to(device),
            scales=self.scales.to(device),
            opacities=self.opacities.to(device),
            sh=self.sh.to(device),
            features=features,
            lod=lod,
        )

    def detach(self) -> Gaussians:
        """The same values outside the autograd graph."""
        return self._map(lambda t, axis: t.detach())

    def index(self, index: Tensor | slice) -> Gaussians:
        """Select along the Gaussian axis by integer index, boolean mask [N] or slice."""
        out = self._map(lambda t, axis: t[(..., index, *[slice(None)] * (-axis - 1))])
        return replace(out, lod=None if self.lod is None else self.lod.index(index))

    def __getitem__(self, index: int | slice) -> Gaussians:
        """Select along the first batch axis where there is one, else along the Gaussian axis (which an int keeps)."""
        if self.means.ndim == 2:
            return self.index(slice(index, index + 1 or None) if isinstance(index, int) else index)
        out = self._map(lambda t, axis: t[index])
        return replace(out, lod=None if self.lod is None else self.lod[index])

    def unsqueezed(self) -> Gaussians:
        """A batch of one: the same with a new first axis."""
        out = self._map(lambda t, axis: t[None])
        return replace(out, lod=None if self.lod is None else self.lod.map(lambda t: t[None]))

    def split(self, sizes: Sequence[int]) -> list[Gaussians]:
        """Cut along the Gaussian axis into consecutive parts; the inverse of `cat`.

        Raises:
            Sr3dError: The sizes do not add up to N.
        """
        if sum(sizes) != len(self):
            raise Sr3dError("sr3d.Gaussians.split", "sizes", f"sum {sum(sizes)}", f"{len(self)} (N)")
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return [self.index(slice(a, a + n)) for a, n in zip(starts, sizes)]

    @staticmethod
    def cat(parts: Sequence[Gaussians]) -> Gaussians:
        """Join along the Gaussian axis.

        Lower SH degrees are padded with zeros. Features and level of detail must be there in all parts or in none.

        Raises:
            Sr3dError: No parts, or some have features (level of detail) and others have not.
        """
        if not parts:
            raise Sr3dError("sr3d.Gaussians.cat", "parts", "none", "at least one")
        for field in ("features", "lod"):
            present = {getattr(p, field) is not None for p in parts}
            if len(present) > 1:
                raise Sr3dError("sr3d.Gaussians.cat", field, "in some parts only", "in all parts or in none")
        k = max(p.sh.shape[-2] for p in parts)
        sh = [torch.nn.functional.pad(p.sh, (0, 0, 0, k - p.sh.shape[-2])) for p in parts]
        first = parts[0]
        return Gaussians(
            means=torch.cat([p.means for p in parts], dim=-2),
            quats=torch.cat([p.quats for p in parts], dim=-2),
            scales=torch.cat([p.scales for p in parts], dim=-2),
            opacities=torch.cat([p.opacities for p in parts], dim=-1),
            sh=torch.cat(sh, dim=-3),
            features=None if first.features is None else torch.cat([_some(p.features) for p in parts], dim=-2),
            lod=None if first.lod is None else Lod.cat([_some(p.lod) for p in parts]),
        )

    def transform(self, matrix: Float[Tensor, "4 4"]) -> Gaussians:
        """Move the scene by a similarity (rotation, uniform scale > 0, translation); SH colour is rotated with it.

        Raises:
            Sr3dError: The matrix is not a similarity that keeps handedness.
        """
        linear = matrix[:3, :3].to(self.means)
        scale = torch.linalg.det(linear.double()).abs().pow(1 / 3).to(self.means)
        rotation = linear / scale
        off = (rotation @ rotation.T - torch.eye(3).to(rotation)).abs().max().item()
        last = (matrix[3].to(rotation) - torch.tensor([0, 0, 0, 1]).to(rotation)).abs().max().item()
        if not off < 1e-4 or not last < 1e-6 or torch.linalg.det(rotation) < 0:
            raise Sr3dError("sr3d.Gaussians.transform", "matrix", matrix.tolist(), "rotation · scale + translation")
        lod = self.lod
        if lod is not None:
            lod = Lod(native=lod.native * scale, coarser=lod.coarser * scale, finer=lod.finer * scale, level=lod.level)
        return replace(
            self,
            means=self.means @ linear.T + matrix[:3, 3].to(self.means),
            quats=quat_multiply(matrix_to_quat(rotation).expand_as(self.quats), self.quats),
            scales=self.scales * scale,
            sh=_rotate_sh(self.sh, rotation),
            lod=lod,
        )

    @staticmethod
    def load(path: str | Path) -> Gaussians:
        """Read a 3DGS `.ply` (see `sr3d.io.read_ply`), or all levels of a `.sr3d` forest (`sr3d.io.read_forest`).

        Parent links and float64 positions of a forest stay behind: `sr3d.lod.Forest.load` keeps them.
        """
        from sr3d.io import read_forest, read_ply

        return read_forest(path).gaussians() if Path(path).suffix == ".sr3d" else read_ply(path)

    def save(self, path: str | Path) -> None:
        """Write a standard 3DGS `.ply` (see `sr3d.io.write_ply`), or a `.sr3d` forest (`sr3d.io.write_forest`).

        A forest needs `lod`, and keeps means of float64 more closely than a ply.
        """
        from sr3d.io import write_forest, write_ply
        from sr3d.lod import Forest

        if Path(path).suffix == ".sr3d":
            write_forest(Forest.from_gaussians(self.to("cpu")), path)
        else:
            write_ply(self, path)

    def _map(self, f: Callable[[Tensor, int], Tensor]) -> Gaussians:
        """Apply f(tensor, axis of N counted from the end) to every tensor but those of `lod`."""
        return replace(
            self,
            means=f(self.means, -2),
            quats=f(self.quats, -2),
            scales=f(self.scales, -2),
            opacities=f(self.opacities, -1),
            sh=f(self.sh, -3),
            features=None if self.features is None else f(self.features, -2),
        )


def _some(value: T | None) -> T:
    assert value is not None
    return value


def quat_to_matrix(quats: Float[Tensor, "*shape 4"]) -> Float[Tensor, "*shape 3 3"]:
    """Rotation matrices of wxyz quaternions of any norm > 0."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def matrix_to_quat(matrix: Float[Tensor, "*shape 3 3"]) -> Float[Tensor, "*shape 4"]:
    """Unit wxyz quaternions, w ≥ 0, of rotation matrices."""
    m = matrix
    trace = m[..., 0, 0] + m[..., 1, 1] + m[..., 2, 2]
    # Four equivalent formulas; the one with the largest pivot is well conditioned.
    q = torch.stack(
        [
            torch.stack(
                [1 + trace, m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]], -1
            ),
            torch.stack(
                [
                    m[..., 2, 1] - m[..., 1, 2],
                    1 + 2 * m[..., 0, 0] - trace,
                    m[..., 1, 0] + m[..., 0, 1],
                    m[..., 0, 2] + m[..., 2, 0],
                ],
                -1,
            ),
            torch.stack(
                [
                    m[..., 0, 2] - m[..., 2, 0],
                    m[..., 1, 0] + m[..., 0, 1],
                    1 + 2 * m[..., 1, 1] - trace,
                    m[..., 2, 1] + m[..., 1, 2],
                ],
                -1,
            ),
            torch.stack(
                [
                    m[..., 1, 0] - m[..., 0, 1],
                    m[..., 0, 2] + m[..., 2, 0],
                    m[..., 2, 1] + m[..., 1, 2],
                    1 + 2 * m[..., 2, 2] - trace,
                ],
                -1,
            ),
        ],
        dim=-2,
    )
    pivots = torch.diagonal(q, dim1=-2, dim2=-1)
    best = pivots.argmax(dim=-1)[..., None, None].expand(*q.shape[:-2], 1, 4)
    out = torch.nn.functional.normalize(q.gather(-2, best)[..., 0, :], dim=-1)
    return torch.where(out[..., :1] < 0, -out, out)


def quat_multiply(a: Float[Tensor, "*shape 4"], b: Float[Tensor, "*shape 4"]) -> Float[Tensor, "*shape 4"]:
    """Hamilton product: the rotation b followed by the rotation a, wxyz."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        dim=-1,
    )


def _rotate_sh(sh: Tensor, rotation: Tensor) -> Tensor:
    """Coefficients of the colour function after the scene is rotated: c'(d) = c(Rᵀ d), solved on sample directions."""
    from sr3d.rendering.sh import sh_basis

    k = sh.shape[-2]
    if k == 1:
        return sh
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(64, 3, generator=generator, dtype=torch.float64), dim=-1)
    old = sh_basis(directions @ rotation.double().cpu(), int(k**0.5) - 1)
    new = sh_basis(directions, int(k**0.5) - 1)
    matrix = torch.linalg.lstsq(new, old).solution.to(sh)
    return torch.einsum("ij,...jc->...ic", matrix, sh)
