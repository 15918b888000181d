"""Adds an action head: one query token for each step of the chunk, and a Huber loss on its action.

    python examples/add_an_action_head.py

Recipe: write a class by the protocol `Head` of `vla.models.action_heads.action_head`. It has two parts:

- `target` and `decode` say which tokens stand for a chunk, in training and at inference. Text tokens end at
  `vocabulary.text`; the head's own `vocab_size` tokens follow, and after them the query token.
- `continuous` (None for a head of tokens only) learns numbers from the hidden states, with a torch module.

Here it is registered for this process. A package adds it to every command by its pyproject.toml, after which
`vla train head=steps head.delta=0.5` works, and checkpoints with the head load wherever the package is installed:

    [project.entry-points."vla.action_heads"]
    steps = "my_package.steps_head:StepsHead"
"""

from __future__ import annotations

import torch
from load_and_look_at_a_store import parser_of, record
from torch import nn
from train_a_policy import predict_once, train_policy

import vla
from vla.models.action_heads.action_head import Target, finite
from vla.models.batch import IGNORE


class StepsHead:
    """Predicts each step's action with a linear layer on the hidden state of one query token."""

    vocab_size, num_ordinal_tokens = 0, 0  # no token of its own but the query token
    conditions_on_prefix = True  # the tokens do not hold committed actions: the model is given them as numbers
    bidirectional = True  # the query tokens of a chunk attend to each other
    reads_cache = False  # the loss needs hidden states only, not keys and values

    def __init__(self, vocabulary, delta=1.0):
        self.settings = {"kind": "steps", "delta": delta}  # saved in the checkpoint
        self.delta, self.horizon, self.action_dim = delta, vocabulary.horizon, vocabulary.action_dim
        self.num_action_positions = vocabulary.horizon
        self.query, self.eos = vocabulary.text, vocabulary.eos

    @property
    def continuous(self):
        return self

    def target(self, chunk):
        """No token has a label; the steps after the prefix are learned as numbers."""
        return Target([self.query] * self.horizon + [self.eos], [IGNORE] * (self.horizon + 1), chunk.learned)

    def action_positions(self, order, width):
        return order

    def module(self, backbone, conditioning):
        return nn.Sequential(nn.LayerNorm(backbone.hidden_size), nn.Linear(backbone.hidden_size, self.action_dim))

    def loss(self, module, rows):
        """The Huber loss of each normalised action component in `continuous_mask` of the batch."""
        batch, shape = rows.batch, (len(rows.hidden), self.horizon)
        predicted = module(rows.hidden[batch.input_ids == self.query]).unflatten(0, shape).float()
        loss = nn.functional.huber_loss(predicted, batch.actions, reduction="none", delta=self.delta)
        return loss[batch.continuous_mask]

    def decode(self, context):
        rows, device = len(context.conditioning), context.conditioning.device
        hidden = context.decode_tokens(torch.full((rows, self.horizon), self.query, device=device), 0)
        return finite(context.module(hidden)[..., : context.robot.action_dim])


vla.register_action_head("steps", StepsHead)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=16)
    options = parser.parse_args()
    store = record(options.out / "demonstrations.zarr", options.episodes)
    run = train_policy(store, options.out / "steps-head", options.steps, options.batch_size, head="steps")

    chunk = predict_once(run)
    print(f"the head predicts {chunk.actions.shape[0]} actions of {chunk.actions.shape[1]} components")


if __name__ == "__main__":
    main()
