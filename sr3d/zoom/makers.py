"""What makes the children of a level: the trained network, what it starts from, or per-scene optimisation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import copy
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sr3d.gaussians import Gaussians
from sr3d.models import SuperResolver, SuperResolverConfig
from sr3d.models.consistency import ConsistencyConfig, consistent
from sr3d.models.estimate import out_of_memory_explained
from sr3d.scene import Scene
from sr3d.zoom.optimise import OptimiseConfig, optimise

Method = Literal["sr3d", "scaffold", "optimise"]
_SHRINK = 0.9  # child scale of what is optimised: as `wide_start`, closed surfaces whose blur is optimised away


@dataclass(kw_only=True)
class Made:
    """Children of one level.

    Attributes:
        gaussians: With `lod`. [N]
        parents: Index of each one's parent. [N]
        scaffold: The same before learning or optimisation: Gaussians that close the surface. [N]
    """

    gaussians: Gaussians
    parents: Int[Tensor, " n"]
    scaffold: Gaussians


class LevelMaker(ABC):
    """Splits what a level's frames show into finer Gaussians.

    Attributes:
        network: Its settings decide factor and split; only `Predictor` uses its weights.
        told: Whether the network is told about the scene.
        rounds: Of the correction of colours, once a level is complete.
    """

    name: ClassVar[Method]
    told: ClassVar[bool] = False

    def __init__(self, network: SuperResolver, rounds: int = 0) -> None:
        self.network, self.rounds = network.eval(), rounds

    @property
    def factor(self) -> int:
        """Magnification of one level."""
        return self.network.config.factor

    @property
    def children(self) -> int:
        """Most children of a parent."""
        return self.network.config.scaffold.children(self.factor)

    def make(
        self,
        parents: Gaussians,
        views: Scene,
        embedding: Float[Tensor, " e"] | None = None,
        enlarged: Float[Tensor, "v fh fw 3"] | None = None,
        trust: float = 1.0,
    ) -> Made:
        """Children of all parents.

        Args:
            parents: What the views show, in a frame of the level's own; with `lod`. [M]
            views: K posed frames of the level at low resolution. [K]
            embedding: What a network with conditioning is told; only `Predictor` passes it on.
            enlarged: The views as an image super-resolution network enlarges them; None: the maker's own way.
            trust: Share of what the network adds to the scaffold that counts, 0 to 1.

        Raises:
            Sr3dError: See `SuperResolver.predict_scene`, `sr3d.zoom.optimise.optimise`.
        """
        told = embedding if self.told else None
        with torch.no_grad(), out_of_memory_explained("sr3d zoom", self.network.config, views.images):
            found = self.network.predict_scene(parents, views, self.factor, told, enlarged)
        made = Made(gaussians=found.gaussians[0], parents=found.parents[0], scaffold=found.scaffold[0])
        return replace(made, gaussians=self.finished(made, views, enlarged, trust))

    @torch.no_grad()
    def corrected(self, children: Gaussians, others: Gaussians, views: Scene) -> Gaussians:
        """The children with the colours with which the level reduces to what was there (see `consistent`).

        Args:
            children: All that the level adds, as they will be stored. [N]
            others: What else belongs to it, of earlier branches. [M]
            views: As for `make`.
        """
        if self.rounds == 0:
            return children
        drawn = Gaussians.cat([replace(g, features=None, lod=None) for g in (children, others)])
        done = consistent(drawn, views.images, views.posed(), self.factor, self.rounds)
        return replace(children, sh=done.sh[: len(children)])

    @abstractmethod
    def finished(
        self, made: Made, views: Scene, enlarged: Float[Tensor, "v fh fw 3"] | None, trust: float
    ) -> Gaussians:
        """What becomes of the network's answer; arguments as for `make`. [N]"""


class Predictor(LevelMaker):
    """One forward pass of the trained network; colours are corrected when the level is complete."""

    name: ClassVar[Method] = "sr3d"
    told: ClassVar[bool] = True

    def __init__(self, network: SuperResolver) -> None:
        # The weights are shared; what the network corrects itself would be changed again.
        plain = copy(network)
        plain.config = replace(network.config, consistency=None)
        super().__init__(plain, (network.config.consistency or ConsistencyConfig()).rounds)

    def finished(
        self, made: Made, views: Scene, enlarged: Float[Tensor, "v fh fw 3"] | None, trust: float
    ) -> Gaussians:
        """The trusted share."""
        return made.gaussians if trust == 1 else _between(made.scaffold, made.gaussians, trust)


class Untrained(LevelMaker):
    """The scaffold: what the network returns before any learning; the embedding is not looked at."""

    name: ClassVar[Method] = "scaffold"

    def __init__(self, network: SuperResolver, rounds: int = 0) -> None:
        super().__init__(SuperResolver(bare(network.config)).to(next(network.parameters()).device), rounds)

    def finished(
        self, made: Made, views: Scene, enlarged: Float[Tensor, "v fh fw 3"] | None, trust: float
    ) -> Gaussians:
        """As it is."""
        return made.gaussians


class Optimiser(Untrained):
    """Per-scene super-resolution, as GaussianZoom and WonderZoom do at every level: `sr3d.zoom.optimise`.

    Starts from children in the tangent plane of every parent, one for each fine pixel, coloured from the enlarged
    views. Its levels are completed and corrected as those of the network.
    """

    name: ClassVar[Method] = "optimise"

    def __init__(self, network: SuperResolver, config: OptimiseConfig | None = None) -> None:
        settings = network.config
        full = replace(settings.scaffold, split="inplane", budget=None, grid=None, shrink=_SHRINK)
        plain = SuperResolver(replace(settings, scaffold=full)).to(next(network.parameters()).device)
        super().__init__(plain, ConsistencyConfig().rounds)
        self.config = config or OptimiseConfig()

    def finished(
        self, made: Made, views: Scene, enlarged: Float[Tensor, "v fh fw 3"] | None, trust: float
    ) -> Gaussians:
        """Optimised until the views look like their enlargements."""
        with torch.enable_grad():
            done = optimise(replace(made.gaussians, lod=None), views, self.factor, self.config, enlarged)
        return replace(done.gaussians, lod=made.gaussians.lod)


def _between(scaffold: Gaussians, fine: Gaussians, share: float) -> Gaussians:
    """The scaffold with a share of what was added to it."""

    def mixed(a: Tensor, b: Tensor) -> Tensor:
        return a + share * (b - a)

    unit = torch.nn.functional.normalize
    return replace(
        fine,
        means=mixed(scaffold.means, fine.means),
        quats=mixed(unit(scaffold.quats, dim=-1), unit(fine.quats, dim=-1)),
        scales=mixed(scaffold.scales, fine.scales),
        opacities=mixed(scaffold.opacities, fine.opacities),
        sh=mixed(scaffold.sh, fine.sh),
    )


def bare(config: SuperResolverConfig) -> SuperResolverConfig:
    """Without the parts that change nothing before they have learned: an untrained network in less time."""
    return replace(
        config, conditioning=None, refinement=None, geometry=None, points=None, recurrence=None, consistency=None
    )


def level_maker(method: Method, network: SuperResolver) -> LevelMaker:
    """The maker of a method's name."""
    makers: dict[Method, type[LevelMaker]] = {"sr3d": Predictor, "scaffold": Untrained, "optimise": Optimiser}
    return makers[method](network)
