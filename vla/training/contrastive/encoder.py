"""A dual encoder for contrastive training: a backbone's vision encoder and a new text encoder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
"""Initial logarithm of the logit scale, and initial bias (arXiv 2103.00020, 2102.05918, 2303.15343)."""
MAX_LOG_SCALE = math.log(100)
"""Upper bound of CLIP's log scale."""
SMOOTHING = 0.1
"""Label smoothing of ALIGN."""


@dataclass(frozen=True)
class ContrastiveOptions:
    """The options of the contrastive stage.

    Attributes:
        loss: clip, align or siglip.
        width: The dimension of the text encoder and of the embeddings.
        layers: The number of layers of the text encoder.
        max_tokens: The maximum length of a text.
        chunk: Rows of the logit matrix that are in memory at a time; None: all.
        noise: The share of images that get the caption of another image (ALIGN learns from noisy pairs).
    """

    loss: str = "siglip"
    width: int = 128
    layers: int = 2
    max_tokens: int = 64
    chunk: int | None = None
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.loss not in STARTS:
            raise InputError(f"contrastive.loss is {', '.join(STARTS)}, not {self.loss}")
        if not 0 <= self.noise < 1:
            raise InputError(f"contrastive.noise is a share from 0 to below 1, not {self.noise}")


class PairEncoder(nn.Module):
    """Embeds images and texts in one space.

    Args:
        vision: A `VisionEncoder`; its features are averaged.
        vocabulary: The number of tokens of the text encoder, a new Transformer.
        options: The loss, and the size of the text encoder.
    """

    def __init__(self, vision: Any, vocabulary: int, options: ContrastiveOptions) -> None:
        super().__init__()
        width, max_tokens = options.width, options.max_tokens
        self.kind, self.max_tokens, self.chunk = options.loss, max_tokens, options.chunk
        self.vision = vision
        self.of_image = nn.Linear(vision.width, width)
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(max_tokens, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, batch_first=True, norm_first=True)
        self.text = nn.TransformerEncoder(layer, options.layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.of_text = nn.Linear(width, width)
        scale, bias = STARTS[self.kind]
        self.log_scale = nn.Parameter(torch.tensor(scale))
        self.logit_bias = nn.Parameter(torch.tensor(bias), requires_grad=self.kind == "siglip")

    def encode_images(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Unit embeddings of normalised pixels."""
        return normalize(self.of_image(self.vision(pixels).mean((1, 2))), dim=-1)

    def encode_texts(self, input_ids: Int[Tensor, "b l"], attention_mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b d"]:
        """Unit embeddings of at limit `max_tokens` tokens, padded on the right; the mask is True for tokens."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        features = self.text(self.tokens(input_ids) + self.places(positions), src_key_padding_mask=~attention_mask)
        mask = attention_mask.unsqueeze(-1)
        return normalize(self.of_text((features * mask).sum(1) / mask.sum(1)), dim=-1)

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        return self.log_scale.exp()

    def loss(self, images: Float[Tensor, "b d"], texts: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
        """The loss of pairs of embeddings, over all ranks (`vla.training.contrastive.losses`)."""
        if self.kind == "siglip":
            return sigmoid_loss(images, texts, self.logit_scale, self.logit_bias, self.chunk)
        return softmax_loss(images, texts, self.logit_scale, SMOOTHING if self.kind == "align" else 0.0, self.chunk)

    @torch.no_grad()
    def clamp(self) -> None:
        """Clamps CLIP's scale to [1, 100], as its released code does after each step."""
        if self.kind == "clip":
            self.log_scale.clamp_(0, MAX_LOG_SCALE)

    def text_weights(self) -> Mapping[str, Tensor]:
        """All weights except the vision encoder's, which are in the backbone's checkpoint."""
        return {name: w for name, w in self.state_dict().items() if not name.startswith("vision.")}


def tokens(tokenizer: Tokenizer, texts: Sequence[str], limit: int) -> tuple[Int[Tensor, "b l"], Bool[Tensor, "b l"]]:
    """Token ids, padded with zeros on the right, and their mask; texts are truncated to `limit` tokens."""
    ids = [tokenizer.encode(f" {text}", add_special_tokens=False).ids[:limit] for text in texts]
    lengths = torch.tensor([len(row) for row in ids])
    table = torch.zeros(len(ids), int(lengths.max()), dtype=torch.long)
    for row, values in zip(table, ids, strict=True):
        row[: len(values)] = torch.tensor(values)
    return table, torch.arange(table.shape[1]) < lengths[:, None]
