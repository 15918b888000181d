"""Fine-tunes a released vision-language model to a robot policy, with low-rank adapters.

    python examples/fine_tune_a_released_backbone.py --backbone google/paligemma-3b-pt-224

`--backbone` takes a family of `vla models`, a name of the Hugging Face hub, or a folder of released files. Without it
the example writes a tiny PaliGemma with random weights: the same classes and files, so that everything runs offline in
seconds. With a released one use a GPU, hundreds of demonstrations and thousands of steps.
"""

from __future__ import annotations

from pathlib import Path

import torch
from load_and_look_at_a_store import parser_of, record
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from train_a_policy import predict_once
from transformers import (
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
)

from vla.commands.cli import main as vla_command

LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def write_tiny_checkpoint(folder: Path) -> Path:
    """Writes a random PaliGemma with images of 28 pixels and a vocabulary of bytes, as its makers publish theirs."""
    words = Tokenizer(models.BPE({word: i for i, word in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        extra_special_tokens={"image_token": "<image>"},
    )
    images = SiglipImageProcessor(size={"height": 28, "width": 28})
    images.image_seq_length = 4  # patches of 14 pixels
    ids = {name: tokenizer.convert_tokens_to_ids(f"<{name}>") for name in ("pad", "bos", "eos", "image")}
    text = {"model_type": "gemma", "vocab_size": len(tokenizer), "head_dim": 8, "num_key_value_heads": 2, **LAYERS}
    config = PaliGemmaConfig(
        vision_config={"image_size": 28, "patch_size": 14, "vision_use_head": False, **LAYERS},
        text_config={**text, "pad_token_id": ids["pad"], "bos_token_id": ids["bos"], "eos_token_id": ids["eos"]},
        image_token_index=ids["image"],
        projection_dim=32,
    )
    torch.manual_seed(0)
    PaliGemmaForConditionalGeneration(config).save_pretrained(folder)
    PaliGemmaProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--backbone", help="a released model; default: a tiny random one")
    parser.add_argument("--episodes", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=4)
    options = parser.parse_args()
    store = record(options.out / "demonstrations.zarr", options.episodes)
    backbone = options.backbone or write_tiny_checkpoint(options.out / "tiny-paligemma")

    # As on the command line: vla train backbone=… stage=lora …
    run = options.out / "fine-tuned"
    code = vla_command(
        [
            "train",
            f"data={store}",
            f"backbone={backbone}",
            f"out={run}",
            "stage=lora",  # adapters of all linear layers; the backbone's own weights stay
            "head=l1",
            "horizon=6",
            "vqa={}",
            "mixture={robot: 1.0, vqa: 0.0}",
            f"plan.steps={options.steps}",
            f"plan.batch_size={options.batch_size}",
            f"plan.evaluate_every={options.steps}",
        ]
    )
    if code != 0:
        raise SystemExit(code)

    # Adapters are merged into the saved weights: the checkpoint needs no adapter to load.
    chunk = predict_once(run)
    print(f"the fine-tuned policy predicts {chunk.actions.shape[0]} actions of {chunk.actions.shape[1]} components")


if __name__ == "__main__":
    main()
