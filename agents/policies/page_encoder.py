"""Small encoders trained from scratch: pixels to a map of features, bytes of text to one vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIDE = 8  # pixels between features


class ConvBlock(nn.Module):
    """Depthwise convolution and perceptron with a residual connection (ConvNeXt, Liu et al. 2022, arXiv 2201.03545).

    Args:
        width: channels.
        size: of the depthwise kernel.
        expansion: hidden channels over ``width``.
    """

    def __init__(self, width: int, size: int, expansion: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, size, padding=size // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, expansion * width), nn.Linear(expansion * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, width, h, w]`` to the same."""
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Self-attention and perceptron, each after a layer norm and with a residual connection.

    Args:
        width: of the features, a multiple of ``heads``.
        heads: of the attention.
    """

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``[B, N, width]`` to the same; ``mask [B, N]`` is True where something may be attended to."""
        batch, count, width = x.shape
        q, k, v = self.qkv(self.norms[0](x)).view(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        allowed = None if mask is None else mask[:, None, None]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, count, width))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))  # type: ignore[no-any-return]


class PageEncoder(nn.Module):
    """A screenshot, or a part of one, to features every 8 pixels.

    Convolutions read letters and icons at a stride of 4 and 8; attention at a stride of 16 brings in the rest of the
    picture. It knows no absolute place: what is cut out of a page is encoded as it looks.

    Args:
        width: of the features.
        stem: channels at a stride of 4.
        blocks: convolution blocks at a stride of 8.
        layers: attention layers at a stride of 16.
    """

    def __init__(self, width: int = 128, stem: int = 48, blocks: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.width = width
        self.patches = nn.Conv2d(3, stem, 4, stride=4)
        self.fine = ConvBlock(stem, 5, 2)
        self.reduce = nn.Conv2d(stem, width, 2, stride=2)
        self.blocks = nn.ModuleList([ConvBlock(width, 7, 4) for _ in range(blocks)])
        self.pool = nn.Conv2d(width, width, 2, stride=2)
        self.layers = nn.ModuleList([Attention(width) for _ in range(layers)])
        self.merge = ConvBlock(width, 3, 4)
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """``[B, H, W, 3]`` uint8, H and W multiples of 16, to ``[B, H / 8, W / 8, width]`` float.

        Raises:
            ValueError: for another size.
        """
        height, width = images.shape[1:3]
        if height % 16 or width % 16:
            raise ValueError(f"images are {width}x{height}, expected multiples of 16 pixels")
        # A view: images lie channels last, which is what the perceptrons of the blocks read fastest.
        x = images.permute(0, 3, 1, 2).to(self.patches.weight.dtype) / 127.5 - 1
        x = self.reduce(self.fine(self.patches(x)))
        for block in self.blocks:
            x = block(x)
        whole = self.pool(x)
        size = whole.shape[2:]
        whole = whole.flatten(2).transpose(1, 2)
        for layer in self.layers:
            whole = layer(whole)
        whole = whole.transpose(1, 2).unflatten(2, size)
        x = self.merge(x + F.interpolate(whole, scale_factor=2.0, mode="nearest"))
        return self.norm(x.permute(0, 2, 3, 1))  # type: ignore[no-any-return]


class TextEncoder(nn.Module):
    """Bytes of UTF-8 to one vector.

    Args:
        width: of the vector.
        layers: attention layers.
        length: the longest text in bytes.
    """

    def __init__(self, width: int = 128, layers: int = 3, length: int = 96) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, width)
        self.places = nn.Parameter(torch.zeros(length, width))
        self.neighbours = nn.Conv1d(width, width, 5, padding=2)
        self.layers = nn.ModuleList([Attention(width) for _ in range(layers)])
        self.score, self.norm = nn.Linear(width, 1), nn.LayerNorm(width)

    def forward(self, text: Tensor) -> Tensor:
        """``[B, L]`` uint8, padded with 0 on the right, to ``[B, width]``.

        Raises:
            ValueError: for a text longer than the encoder's ``length``.
        """
        if text.shape[1] > len(self.places):
            raise ValueError(f"texts have {text.shape[1]} bytes, expected at most {len(self.places)}")
        mask = text != 0
        mask[:, 0] = True  # an empty text is one NUL
        x = self.bytes(text.long()) * mask[..., None]
        x = x + self.neighbours(x.transpose(1, 2)).transpose(1, 2) + self.places[: text.shape[1]]
        for layer in self.layers:
            x = layer(x, mask)
        weights = self.score(x)[..., 0].masked_fill(~mask, -torch.inf).softmax(1)
        return self.norm((weights[..., None] * x).sum(1))  # type: ignore[no-any-return]
