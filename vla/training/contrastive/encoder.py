"""A text encoder beside a backbone's vision encoder, trained so that an image and its caption are near each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import normalize

from vla.errors import InputError
from vla.models.backbones.dual import SIGLIP_BIAS, SIGLIP_SCALE
from vla.training.contrastive.losses import sigmoid_loss, softmax_loss

STARTS = {"clip": (math.log(1 / 0.07), 0.0), "align": (0.0, 0.0), "siglip": (SIGLIP_SCALE, SIGLIP_BIAS)}
"""Logarithm of the scale, and bias, that training starts from (arXiv 2103.00020, 2102.05918, 2303.15343)."""
LARGEST = math.log(100)
"""Where CLIP's scale is clamped."""
SMOOTHING = 0.1
"""Of ALIGN's labels."""


class PairEncoder(nn.Module):
    """`vision` (a `VisionEncoder`, its features averaged) and a new Transformer over the tokens, into one space.

    `loss` is clip, align or siglip. Raises InputError for another.
    """

    def __init__(
        self,
        vision: Any,
        vocabulary: int,
        loss: str = "siglip",
        width: int = 128,
        layers: int = 2,
        max_tokens: int = 64,
    ) -> None:
        super().__init__()
        if loss not in STARTS:
            raise InputError(f"contrastive.loss is {', '.join(STARTS)}, not {loss}")
        self.kind, self.max_tokens = loss, max_tokens
        self.vision = vision
        self.of_image = nn.Linear(vision.width, width)
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(max_tokens, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, batch_first=True, norm_first=True)
        self.text = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.of_text = nn.Linear(width, width)
        scale, bias = STARTS[loss]
        self.log_scale = nn.Parameter(torch.tensor(scale))
        self.logit_bias = nn.Parameter(torch.tensor(bias), requires_grad=loss == "siglip")

    def encode_images(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Unit vectors."""
        return normalize(self.of_image(self.vision(pixels).mean((1, 2))), dim=-1)

    def encode_texts(self, input_ids: Int[Tensor, "b l"], attention_mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b d"]:
        """Unit vectors. The mask is True for tokens, which are before the padding; at most `max_tokens` of them."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        found = self.text(self.tokens(input_ids) + self.places(places), src_key_padding_mask=~attention_mask)
        kept = attention_mask.unsqueeze(-1)
        return normalize(self.of_text((found * kept).sum(1) / kept.sum(1)), dim=-1)

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        return self.log_scale.exp()

    def loss(
        self, images: Float[Tensor, "b d"], texts: Float[Tensor, "b d"], chunk: int | None = None
    ) -> Float[Tensor, ""]:
        """Of pairs of vectors; over the ranks where there are some (`vla.training.contrastive.losses`)."""
        if self.kind == "siglip":
            return sigmoid_loss(images, texts, self.logit_scale, self.logit_bias, chunk)
        return softmax_loss(images, texts, self.logit_scale, SMOOTHING if self.kind == "align" else 0.0, chunk)

    @torch.no_grad()
    def clamp(self) -> None:
        """Keeps CLIP's scale between 1 and 100, as its released code does after each step."""
        if self.kind == "clip":
            self.log_scale.clamp_(0, LARGEST)

    def text_weights(self) -> Mapping[str, Tensor]:
        """All but the vision encoder, which the backbone's checkpoint holds."""
        return {name: w for name, w in self.state_dict().items() if not name.startswith("vision.")}


def tokens(tokenizer: Tokenizer, texts: Sequence[str], most: int) -> tuple[Int[Tensor, "b l"], Bool[Tensor, "b l"]]:
    """Ids, with zeros behind the shorter texts, and which are of the text; texts are cut after `most` tokens."""
    ids = [tokenizer.encode(f" {text}", add_special_tokens=False).ids[:most] for text in texts]
    lengths = torch.tensor([len(row) for row in ids])
    table = torch.zeros(len(ids), int(lengths.max()), dtype=torch.long)
    for row, values in zip(table, ids, strict=True):
        row[: len(values)] = torch.tensor(values)
    return table, torch.arange(table.shape[1]) < lengths[:, None]
