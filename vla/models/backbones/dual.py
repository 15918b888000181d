"""Dual encoders, which embed matching images and texts close to each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from vla.errors import InputError
from vla.models.backbones.features import feature_map, patches

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PIXELS = {
    "clip": (tuple(OPENAI_CLIP_MEAN), tuple(OPENAI_CLIP_STD)),
    **dict.fromkeys(("align", "siglip", "siglip2"), HALF),
}
"""Mean and standard deviation of the pixels (0 to 1) by family (transformers' `model_type`)."""

SIGLIP_SCALE, SIGLIP_BIAS = math.log(10.0), -10.0
"""Initial values of SigLIP's training (arXiv 2303.15343); transformers initialises both with 0."""


class DualEncoder(nn.Module):
    """CLIP, ALIGN, SigLIP or SigLIP 2 of transformers, with random weights: images and texts to unit vectors.

    Args:
        model: transformers configuration as a dict with `model_type`.
        pad_token_id: the tokenizer's. SigLIP attends to padding, and its released configurations do not contain it.

    Raises:
        InputError: for another family.
    """

    def __init__(self, model: Mapping[str, Any], pad_token_id: int) -> None:
        super().__init__()
        self.family = str(model.get("model_type"))
        if self.family not in PIXELS:
            raise InputError(f"{self.family} is not a dual encoder: choose of {', '.join(PIXELS)}")
        self.config: dict[str, Any] = {"model": dict(model), "pad_token_id": pad_token_id}
        self.model = AutoModel.from_config(AutoConfig.for_model(**model))
        self.pad_token_id = pad_token_id
        self.mean, self.std = PIXELS[self.family]
        vision = self.model.config.vision_config
        # At native resolution the number of position embeddings determines the image size of the training.
        naflex = self.family == "siglip2"
        self.image_size = math.isqrt(vision.num_patches) * vision.patch_size if naflex else int(vision.image_size)
        self.max_tokens = int(self.model.config.text_config.max_position_embeddings)
        if self._sigmoid:
            nn.init.constant_(self.model.logit_scale, SIGLIP_SCALE)
            nn.init.constant_(self.model.logit_bias, SIGLIP_BIAS)

    @classmethod
    def load(cls, id_or_path: str) -> tuple[DualEncoder, PreTrainedTokenizerBase]:
        """Loads a released checkpoint, or a folder that `save` wrote, with its tokenizer. It runs no remote code.

        Raises:
            InputError: when it does not exist, is not a dual encoder, or its tokenizer has no padding token.
        """
        try:
            config = AutoConfig.from_pretrained(id_or_path)
            tokenizer = AutoTokenizer.from_pretrained(id_or_path)
        except (OSError, ValueError) as error:
            raise InputError(f"{id_or_path} is not a checkpoint that transformers can load: {error}") from error
        if tokenizer.pad_token_id is None:
            raise InputError(f"{id_or_path}: its tokenizer has no padding token")
        with torch.device("meta"):
            encoder = cls(config.to_dict(), tokenizer.pad_token_id)
        encoder.model = AutoModel.from_pretrained(id_or_path, dtype=torch.float32)
        return encoder.eval(), tokenizer

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Writes a checkpoint for `load` and transformers."""
        self.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def encode_images(self, pixel_values: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Unit vectors of images of `image_size` x `image_size`; for SigLIP 2 any multiple of its patch size."""
        if self.family == "siglip2":
            found = self.model.get_image_features(*patches(pixel_values, self.model.config.vision_config.patch_size))
        else:
            found = self.model.get_image_features(pixel_values)
        return normalize(found.pooler_output, dim=-1)

    def encode_texts(self, input_ids: Int[Tensor, "b l"], attention_mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b d"]:
        """Unit vectors of texts, independent of the padding and its side.

        The tokens include the special tokens of the family's tokenizer. For SigLIP, which was trained without a mask,
        texts are padded to `max_tokens`.

        Raises:
            InputError: for texts longer than `max_tokens`.
        """
        longest = int(attention_mask.sum(1).max())
        if longest > self.max_tokens:
            raise InputError(f"a text of {longest} tokens: this {self.family} reads {self.max_tokens} at most")
        length = self.max_tokens if self._sigmoid else longest
        ids = input_ids.new_full((len(input_ids), length), self.pad_token_id)
        valid = torch.arange(length, device=ids.device) < attention_mask.sum(1, keepdim=True)
        ids[valid] = input_ids[attention_mask]
        found = self.model.get_text_features(ids, attention_mask=None if self._sigmoid else valid.long())
        return normalize(found.pooler_output, dim=-1)

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """Factor of the cosine similarity: the exponential of the learned scale, for ALIGN 1 / temperature."""
        return (1 / self.model.temperature if self.family == "align" else self.model.logit_scale.exp()).reshape(())

    @property
    def logit_bias(self) -> Float[Tensor, ""]:
        """Bias of the logits; 0 except for SigLIP."""
        return self.model.logit_bias.reshape(()) if self._sigmoid else torch.zeros_like(self.logit_scale)

    def logits(self, images: Float[Tensor, "n d"], texts: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        """Similarity logits of each image and text, for a softmax, or for SigLIP a sigmoid."""
        return images @ texts.T * self.logit_scale + self.logit_bias

    def features(self, pixel_values: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c gh gw"]:
        """The map of patch features, as input of a composed backbone's connector."""
        return feature_map(self.model.vision_model, pixel_values)

    def freezable_modules(self) -> dict[str, nn.Module]:
        """The modules that a training stage can freeze, by name."""
        return {"vision": self.model.vision_model, "language": self.model.text_model}

    @property
    def _sigmoid(self) -> bool:
        return self.family.startswith("siglip")
