from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_networks import SIZE, perturbed, sloped_scene, tiny_config

from sr3d import Sr3dError, SuperResolver
from sr3d.models.decoder import CELL, ConvBlock, Decoder, DecoderConfig
from sr3d.models.describe import places
from sr3d.models.inputs import Views
from sr3d.models.refinement import Refinement, RefinementConfig


@pytest.mark.parametrize("patch", [14, 16, 8])
def test_tokens_lie_where_they_were_taken(patch: int) -> None:
    decoder = Decoder(DecoderConfig(width=4, fine=2, heads=1), 4, patch, 3)
    height, width = 180, 252  # pixels; multiples of a cell, not of every patch
    rows, columns = (-(-n // patch) for n in (height, width))
    centers = torch.stack(
        torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
    ) * patch  # fmt: skip
    found = decoder._on_cells(centers[None], height // CELL, width // CELL)[0] / CELL
    expected = torch.stack(
        torch.meshgrid(torch.arange(height // CELL) + 0.5, torch.arange(width // CELL) + 0.5, indexing="ij")
    )
    border = patch // CELL + 1
    inside = (slice(None), slice(border, -border), slice(border, -border))
    torch.testing.assert_close(found[inside], expected[inside], atol=1e-4, rtol=0)
    assert found.shape == expected.shape


def test_blocks_see_their_input_at_unit_size() -> None:
    torch.manual_seed(0)
    block, x = ConvBlock(6), torch.randn(1, 6, 5, 7)
    torch.testing.assert_close(block(50 * x) - 50 * x, block(x) - x, atol=2e-4, rtol=0)
    assert torch.isfinite(block(torch.zeros(1, 6, 5, 7))).all()


def refinement(coarse_width: int = 0) -> Refinement:
    torch.manual_seed(0)
    return Refinement(RefinementConfig(heads=2, coarse_width=coarse_width), 8, 4, 5)


def test_offered_tokens_of_any_resolution_are_added() -> None:
    module = refinement(3)
    tokens, drawn = torch.randn(2, 2, 6, 8), torch.randn(2, 2, 5, 8, 12)
    offered = torch.randn(2, 2, 3, 2, 3)
    out = module(tokens, drawn, offered)
    assert (out - module(tokens, drawn, offered.flip(0))).abs().max() > 1e-4
    torch.testing.assert_close(module(tokens, drawn, offered.repeat_interleave(4, -1).repeat_interleave(4, -2)), out)
    out.sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_the_network_hands_them_on_and_refuses_what_it_cannot_use() -> None:
    scene = sloped_scene(1, 2)
    config = replace(tiny_config(), refinement=RefinementConfig(heads=4, coarse_width=5))
    torch.manual_seed(3)
    network = SuperResolver(config).eval()
    torch.nn.init.normal_(network.head.out.weight, std=0.1)
    tokens = torch.randn(1, 2, 5, 3, 3)
    one, other = (network.predict(*scene, coarse_tokens=t).gaussians.means for t in (tokens, tokens.flip(1)))
    assert (one - other).abs().max() > 1e-5
    for maps, found in ((None, 0), (tokens[:, :, :4], 4)):
        with pytest.raises(Sr3dError, match=rf"coarse_tokens: found {found} channels; expected 5 \(model"):
            network.predict(*scene, coarse_tokens=maps)
    with pytest.raises(Sr3dError, match="coarse_tokens: found 5 channels; expected 0"):
        perturbed().predict(*scene, coarse_tokens=tokens)
    with pytest.raises(Sr3dError, match="embedding: found one; expected none"):
        perturbed().predict(*scene, embedding=torch.zeros(1, 8))


def test_where_the_coarse_scene_differs_matters() -> None:
    """Its tokens know where they lie: the same drawing in other places is another scene."""
    network, (coarse, images, cameras) = perturbed("full"), sloped_scene(1, 2)
    views = network._prepare(coarse, images, cameras, 2, None)
    same = replace(views, coarse=views.coarse.flip(-1))
    rays = torch.randn(1, 2, 6, 2 * SIZE, 2 * SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = (network._tokens(v, rays, None, None, None) for v in (views, same))
    assert (a - b).abs().max() > 1e-4


def test_points_are_alike_at_every_magnification() -> None:
    coarse, _, cameras = sloped_scene(2, 2)
    mask = torch.rand(coarse.opacities.shape, generator=torch.Generator().manual_seed(0)) > 0.2
    unit = torch.tensor([2.0, 2.0])

    def located(magnification: float) -> torch.Tensor:
        center = coarse.means[mask].mean(dim=0)
        K = cameras.K.clone()
        K[..., :2, :] *= magnification
        views = Views(
            factor=2, images=torch.zeros(2, 2, 3, 4, 4), cameras=replace(cameras, K=K), surface=torch.ones(2, 2, 4, 4),
            coarse=torch.ones(2, 2, 5, 4, 4), low=torch.zeros(2, 2, 3, 2, 2), unit=unit,
        )  # fmt: skip
        return places(center + (coarse.means - center) / magnification, mask, views)

    plain = located(1)
    torch.testing.assert_close(plain[mask], located(64)[mask], atol=2e-3, rtol=2e-3)
    focal = (cameras.K[0, 0, 0, 0] * cameras.K[0, 0, 1, 1]).sqrt()
    distances = (coarse.means[0, mask[0]][:, None] - coarse.means[0, mask[0]][None]).norm(dim=-1)
    found = (plain[0, mask[0]][:, None] - plain[0, mask[0]][None]).norm(dim=-1)
    # A pixel of the inputs is two of the cameras' here, at a depth of 2.
    torch.testing.assert_close(found, distances * focal / (2 * 2), atol=1e-3, rtol=1e-3)
