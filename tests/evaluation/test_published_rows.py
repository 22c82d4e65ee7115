"""The rows of papers in the protocols against a second transcription, typed from the tables themselves."""

from __future__ import annotations

import pytest

from sr3d.evaluation.protocol import Published, protocol_names, read_protocol

# (protocol, number of the table in it) → columns, then a line per method; "-" where nothing is printed.
TABLES = {
    ("sr3r_re10k", 0): """
        psnr | ssim | lpips | Gauss. Param. (M) | gaussians | train mem (GB)
        NoPoSplat         | 21.326 | .612 | .307 |  2.7 |   8192 |  4.82
        Up-NoPoSplat      | 23.374 | .771 | .251 | 44.5 | 131072 | 21.36
        SR3R (NoPoSplat)  | 24.794 | .827 | .188 | 16.5 |  49152 | 12.92
        DepthSplat        | 23.147 | .699 | .281 |  2.3 |   8192 |  7.25
        Up-DepthSplat     | 24.712 | .793 | .244 | 38.3 | 131072 | 26.17
        SR3R (DepthSplat) | 26.250 | .856 | .165 | 14.2 |  49152 | 17.43
    """,
    ("sr3r_acid", 0): """
        psnr | ssim | lpips | Gauss. Param. (M) | gaussians | train mem (GB)
        NoPoSplat         | 21.451 | .606 | .531 |  2.7 |   8192 |  4.82
        Up-NoPoSplat      | 23.911 | .692 | .384 | 44.5 | 131072 | 21.36
        SR3R (NoPoSplat)  | 25.541 | .746 | .283 | 16.5 |  49152 | 12.92
        DepthSplat        | 23.801 | .624 | .437 |  2.3 |   8192 |  7.25
        Up-DepthSplat     | 25.315 | .721 | .322 | 38.3 | 131072 | 26.17
        SR3R (DepthSplat) | 27.018 | .797 | .261 | 14.2 |  49152 | 17.43
    """,
    ("sr3r_dtu", 0): """
        psnr | ssim | lpips | seconds
        SRGS (per scene)      | 12.420 | .327 | .598 | 300
        FSGS+SRGS (per scene) | 13.720 | .444 | .481 | 420
        NoPoSplat             | 12.628 | .343 | .581 | .01
        Up-NoPoSplat          | 16.643 | .598 | .369 | .16
        SR3R (NoPoSplat)      | 17.241 | .607 | .291 | 1.69
    """,
    ("sr3r_scannetpp", 0): """
        psnr | ssim | lpips | seconds
        SRGS (per scene)      | 12.542 | .455 | .502 | 240
        FSGS+SRGS (per scene) | 16.514 | .596 | .409 | 280
        NoPoSplat             | 18.284 | .578 | .421 | .01
        Up-NoPoSplat          | 20.870 | .696 | .303 | .16
        SR3R (NoPoSplat)      | 21.743 | .739 | .256 | 1.69
    """,
    ("lsm_scannet", 0): """
        SfM + per scene | source mIoU | source accuracy | rel | tau | miou | accuracy | psnr | ssim | lpips
        LSeg (2D)|-|.5278|.7654|-|-|.5281|.7612|-|-|-
        NeRF-DFF|20.52 s + 1 min 2 s|.4540|.7173|27.6806|9.6159|.4037|.6755|19.8681|.6650|.3629
        Feature-3DGS|20.52 s + 18 min 36 s|.4453|.7276|12.9595|21.0732|.4223|.7174|24.4998|.8132|.2293
        pixelSplat (GT poses)|20.52 s + 0.064 s|-|-|-|-|-|-|24.8922|.8392|.1641
        LSM|0.108 s total|.5034|.7740|3.3853|67.7789|.5078|.7686|24.3996|.8072|.2506
    """,
    ("gaussianzoom_mipnerf360", 0): """
        psnr | ssim | lpips | fid
        3DGS             | 20.64 | .634 | .385 | 60.48
        Mip-Splatting    | 26.49 | .754 | -    | -
        SRGS             | 26.69 | .761 | .301 | 33.97
        Sequence Matters | 26.95 | .771 | .276 | 26.64
        GaussianZoom     | 27.16 | .781 | .261 | 19.38
    """,
    ("gaussianzoom_tanks", 0): """
        psnr | ssim | lpips | fid
        3DGS             | 19.63 | -    | .337 | 23.82
        Mip-Splatting    | 23.18 | -    | -    | -
        SRGS             | 23.29 | -    | .276 | 19.10
        Sequence Matters | 23.39 | -    | .270 | 15.92
        GaussianZoom     | 23.40 | .812 | .265 | 14.91
    """,
    ("gaussianzoom_consistency", 0): """
        fvd
        GaussianZoom                | 107.99
        GaussianZoom, no depth warp | 168.36
        Sequence Matters            | 165.74
        SuperGaussian               | 574.92
    """,
    ("gaussianzoom_consistency", 1): """
        fvd
        GaussianZoom                | 79.98
        GaussianZoom, no depth warp | 180.45
        Sequence Matters            | 190.97
        SuperGaussian               | 1941.06
    """,
    ("gaussianzoom_extreme", 0): """
        CLIP-IQA | musiq | niqe
        GaussianZoom     | .436 | 42.21 | 5.53
        SRGS             | .346 | 17.27 | 15.54
        Sequence Matters | .302 | 15.44 | 15.25
    """,
    ("wonderzoom_scenes", 0): """
        clip_score | CLIP-IQA+ | q_align | niqe | q_align_aesthetic | seconds
        WonderWorld  | .2687 | .5064 | 1.081 | 21.74 | 1.339 |   9.3
        HunyuanWorld | .2510 | .2827 | 1.058 | 15.21 | 1.302 | 704.2
        Gen3C        | .3004 | .5489 | 2.992 | 4.924 | 2.018 | 306.7
        Voyager      | .2609 | .5746 | 3.148 | 4.913 | 2.929 | 596.6
        WonderZoom   | .3432 | .7035 | 3.926 | 3.695 | 2.986 |  62.1
    """,
    ("wonderzoom_speed", 0): """
        GPU memory (GB) | fps
        WonderZoom without opacity modulation | 7.96 | 1.4
        WonderZoom                            | 3.40 | 97.2
    """,
}

# What a reader has to know before comparing: (protocol, table) → words of its note.
CAVEATS = {
    ("sr3r_re10k", 0): ["poses were aligned", "Which index is not said"],
    ("sr3r_acid", 0): ["poses were aligned", "Which index is not said"],
    ("sr3r_dtu", 0): ["0.291", "second-hand", "copied"],
    ("sr3r_scannetpp", 0): ["pose alignment"],
    ("lsm_scannet", 0): ["percent", "Table 2", "no super-resolution"],
    ("gaussianzoom_mipnerf360", 0): ["Second-hand"],
    ("gaussianzoom_consistency", 0): ["Second-hand"],
    ("gaussianzoom_tanks", 0): ["Second-hand", "Which scenes"],
    ("gaussianzoom_consistency", 1): ["Second-hand"],
    ("gaussianzoom_extreme", 0): ["Second-hand", "64x"],
    ("wonderzoom_scenes", 0): ["cosine", "learned prompts"],
    ("wonderzoom_speed", 0): ["not said"],
}


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")]


def _value(cell: str) -> float | str | None:
    if cell == "-":
        return None
    return float(cell) if cell.replace(".", "", 1).isdigit() else cell


def _published(place: tuple[str, int]) -> Published:
    name, number = place
    return read_protocol(name).published[number]


@pytest.mark.parametrize("place", TABLES, ids=lambda place: f"{place[0]}-{place[1]}")
def test_published_rows_are_those_of_the_paper(place: tuple[str, int]) -> None:
    head, *lines = TABLES[place].strip().splitlines()
    expected = {name: [_value(cell) for cell in cells] for name, *cells in map(_cells, lines)}
    published = _published(place)
    assert published.columns == _cells(head)
    assert published.rows == expected
    # In the order of the paper, method by method.
    assert list(published.rows) == list(expected)


def test_every_published_table_has_a_second_transcription() -> None:
    shipped = {(name, i) for name in protocol_names() for i in range(len(read_protocol(name).published))}
    assert shipped == set(TABLES) == set(CAVEATS)


@pytest.mark.parametrize("place", CAVEATS, ids=lambda place: f"{place[0]}-{place[1]}")
def test_caveats_are_with_the_rows(place: tuple[str, int]) -> None:
    published = _published(place)
    assert [words for words in CAVEATS[place] if words not in published.note] == []
    assert "arXiv" in published.source


def test_second_table_of_lsm_is_not_quoted_as_the_first() -> None:
    quoted = {value for row in _published(("lsm_scannet", 0)).rows.values() for value in row}
    assert 0.5078 in quoted
    assert not quoted & {0.6042, 0.8681, 0.5586, 0.8505}
