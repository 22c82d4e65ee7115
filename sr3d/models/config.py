"""The config of a network, also from a plain dictionary (JSON, checkpoints)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sr3d.errors import Sr3dError
from sr3d.models.conditioning import ConditioningConfig
from sr3d.models.consistency import ConsistencyConfig
from sr3d.models.decoder import DecoderConfig
from sr3d.models.encoder import EncoderConfig
from sr3d.models.gather import GatherConfig
from sr3d.models.geometry import GeometryConfig
from sr3d.models.head import HeadConfig
from sr3d.models.points import PointsConfig
from sr3d.models.ranges import check_ranges
from sr3d.models.recurrence import RecurrenceConfig
from sr3d.models.refinement import RefinementConfig
from sr3d.models.scaffold import ScaffoldConfig
from sr3d.models.semantics import SemanticsConfig
from sr3d.models.upsampler import UpsamplerConfig
from sr3d.typed import from_dict


@dataclass(kw_only=True)
class SuperResolverConfig:
    """The whole network; travels with every checkpoint. Parts that are None are left out.

    Attributes:
        factor: Ratio of the resolutions, per side.
        factors: Further ratios that the network is trained for.
        sh_degree: Degree of the colour residual, 0 to 3; lower-degree coarse colour is padded.
        upsampler: Enlarges the views.
        scaffold: Split of the parents.
        gather: Occlusion test and choice of views.
        encoder: Vision transformer.
        conditioning: On a text or image embedding.
        refinement: Cross-attention with the coarse scene.
        decoder: Attention across views, and maps.
        geometry: Depth from the agreement of views.
        points: Attention among neighbouring Gaussians.
        head: Residuals of each Gaussian; None: only the views' colours are improved.
        semantics: Feature on every Gaussian; needs `head`.
        recurrence: Rounds that see the error of the one before.
        consistency: Correction of the colours, so that what is drawn reduces to the inputs.
    """

    factor: int = 4
    factors: list[int] = field(default_factory=list)
    sh_degree: int = 0
    upsampler: UpsamplerConfig = field(default_factory=UpsamplerConfig)
    scaffold: ScaffoldConfig = field(default_factory=ScaffoldConfig)
    gather: GatherConfig = field(default_factory=GatherConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    conditioning: ConditioningConfig | None = None
    refinement: RefinementConfig | None = field(default_factory=RefinementConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    geometry: GeometryConfig | None = None
    points: PointsConfig | None = None
    head: HeadConfig | None = field(default_factory=HeadConfig)
    semantics: SemanticsConfig | None = None
    recurrence: RecurrenceConfig | None = None
    consistency: ConsistencyConfig | None = None

    def __post_init__(self) -> None:
        check_ranges(asdict(self))
        for f in (self.factor, *self.factors):
            if f < 2 or f & (f - 1):
                raise Sr3dError("model.network", "factor", f, "2, 4, 8 or another power of 2")
            budget, least = self.scaffold.budget, self.scaffold.least_budget(f)
            if budget is not None and budget < least:
                expected = f"{least:g} (one child of each parent at factor {f}) to 1, or null"
                raise Sr3dError("model.network", "scaffold.budget", budget, expected)
        for name, part in (("points", self.points), ("geometry", self.geometry), ("semantics", self.semantics)):
            if self.head is None and part is not None:
                raise Sr3dError("model.network", name, "without a head", "a head as well, or null")


def config_from_dict(values: dict[str, Any], source: str | Path = "config") -> SuperResolverConfig:
    """A network's config; the inverse of `dataclasses.asdict`, also after a trip through JSON.

    Raises:
        Sr3dError: An unknown or missing key, or a value of the wrong type; names the key, e.g. `decoder.width`.
    """
    config: SuperResolverConfig = from_dict(SuperResolverConfig, values, source)
    return config
