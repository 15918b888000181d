"""Flow matching: an action expert that reads the backbone's keys and values (pi0, Black et al. 2024, arXiv 2410.24164;
adaptive norm: pi0.5, arXiv 2504.16054; insulation: Driess et al. 2025, arXiv 2505.23705).

Shapes: b rows, h steps, a components, s state components, w the expert's width; of the backbone m tokens, g heads of
keys and values, e the size of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vla.errors import InputError
from vla.models.action_heads.action_expert import ActionExpert, time_features
from vla.models.action_heads.rtc_guidance import RTCGuidance, guided, prefix_weights

KeysValues = Sequence[tuple[Float[Tensor, "b g m e"], Float[Tensor, "b g m e"]]]
"""What each layer of the backbone cached of the prefix, keys after their rotation by position."""

EULER_STEPS = 10


class FlowHead(nn.Module):
    """Moves noise to a chunk of normalised actions along a learned velocity field.

    With x_t = t noise + (1 - t) actions, so noise at t = 1, the expert learns the velocity u = noise - actions.
    In training t = 0.999 Beta(1.5, 1) + 0.001: noisy ones more often. A chunk is `EULER_STEPS` Euler steps from t = 1
    to 0. Time enters through the expert's adaptive norms (`adaptive`, pi0.5), or into each action's embedding (pi0).
    `state_width` of 0: the backbone has read the state, as text or tokens (pi0.5); else it is the suffix's first token,
    which does not see the actions (pi0). `rtc_training`: actions that are given are at t = 0 while the others are on their
    way (training-time real-time chunking, Black et al. 2025, arXiv 2512.05964), for which it must be trained; if not,
    they are put where the flow would have them.
    """

    def __init__(
        self, expert: ActionExpert, horizon: int, action_dim: int, state_width: int = 0, rtc_training: bool = False
    ) -> None:
        super().__init__()
        self.rtc_training = rtc_training
        self.expert, self.horizon, self.action_dim, self.state_width = expert, horizon, action_dim, state_width
        width = expert.width
        self.action_in_proj = nn.Linear(action_dim, width)
        self.time = nn.Sequential(
            nn.Linear(width if expert.adaptive else 2 * width, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.state = nn.Linear(state_width, width) if state_width else None
        self.action_out_proj = nn.Linear(width, action_dim)

    def forward(
        self,
        noisy: Float[Tensor, "b h a"],
        time: Float[Tensor, "b h"],
        prefix: KeysValues,
        prefix_mask: Bool[Tensor, "b m"],
        mask: Bool[Tensor, "b h a"],
        state: Float[Tensor, "b s"] | None = None,
        start: Int[Tensor, "b"] | None = None,
    ) -> Float[Tensor, "b h a"]:
        """The velocity at `noisy`, each action at its time. A component where `mask` is False enters as 0, and a step
        that has no other is not looked at. The suffix begins at the positions `start`, or at the number of the prefix's
        valid tokens. Raises InputError when the prefix or the state is not what the head was built for."""
        if (state is not None) != bool(self.state_width):
            raise InputError(f"the head takes {self.state_width or 'no'} state components: give as many, or no state")
        dtype = self.action_in_proj.weight.dtype
        tokens = self.action_in_proj(torch.where(mask, noisy, 0.0).to(dtype))
        conditioning = time_features(time.flatten(), self.expert.width).to(dtype).unflatten(0, time.shape)
        if self.expert.adaptive:
            condition = nn.functional.silu(self.time(conditioning))
        else:
            condition = None
            tokens = self.time(torch.cat([tokens, conditioning], -1))
        seen = mask.any(-1)
        # Which block a token is of: it sees the prefix, its own block and those before.
        blocks = torch.ones(tokens.shape[1], dtype=torch.long, device=tokens.device)
        if self.state is not None and state is not None:
            tokens = torch.cat([self.state(state.to(dtype))[:, None], tokens], 1)
            seen = nn.functional.pad(seen, (1, 0), value=True)
            blocks = nn.functional.pad(blocks, (1, 0))
            if condition is not None:  # the state's token goes with the last action, which is never given
                condition = torch.cat([condition[:, -1:], condition], 1)
        start = prefix_mask.sum(1) if start is None else start
        hidden = self.expert(tokens, seen, blocks, prefix, prefix_mask, start, condition)
        return self.action_out_proj(hidden[:, -self.horizon :]).float()

    def loss(
        self,
        actions: Float[Tensor, "b h a"],
        prefix: KeysValues,
        prefix_mask: Bool[Tensor, "b m"],
        mask: Bool[Tensor, "b h a"],
        state: Float[Tensor, "b s"] | None = None,
        knowledge_insulation: bool = False,
        drawn: tuple[Float[Tensor, "b h a"], Float[Tensor, "b"]] | None = None,
        prefix_length: Int[Tensor, "b"] | None = None,
        start: Int[Tensor, "b"] | None = None,
    ) -> Float[Tensor, "k"]:
        """Squared error of the velocity, of each of the k components where `mask` is True, row by row, at the noise and
        the times that were `drawn`, or at new ones.

        `knowledge_insulation`: no gradient reaches the backbone through `prefix`; what trains it are its own tokens. The prefix
        must then not hold the actions' tokens, from which the expert would read what it is to find. `action_prefix`: how many
        of each row's first actions are under way; a head that `rtc_training` is told them, and has no error in them.
        """
        if knowledge_insulation:
            prefix = [(keys.detach(), values.detach()) for keys, values in prefix]
        actions = torch.where(mask, actions, 0.0)
        noise, time = drawn or (torch.randn_like(actions), sample_time(len(actions), actions.device))
        times = time[:, None].expand(mask.shape[:2])
        if self.rtc_training and prefix_length is not None:
            times = torch.where(_first(prefix_length, times), 0.0, times)
        at = times[..., None]
        velocity = self(at * noise + (1 - at) * actions, times, prefix, prefix_mask, mask, state, start)
        error = (velocity - (noise - actions)).square()
        return torch.where(at > 0, error, 0.0)[mask]

    @torch.no_grad()
    def sample(
        self,
        prefix: KeysValues,
        prefix_mask: Bool[Tensor, "b m"],
        mask: Bool[Tensor, "b h a"],
        state: Float[Tensor, "b s"] | None = None,
        action_prefix: Float[Tensor, "b k a"] | None = None,
        noise: Float[Tensor, "b h a"] | None = None,
        guide: RTCGuidance | None = None,
        start: Int[Tensor, "b"] | None = None,
    ) -> Float[Tensor, "b h a"]:
        """Normalised chunks, 0 where `mask` is False, from `noise` or from new noise.

        `action_prefix` are the first k actions, already under way (real-time chunking): at each step they are put where they
        would be at that time, t noise + (1 - t) actions, or at t = 0 by a head that `rtc_training`, so the rest goes on
        from them; they come back as given. A `guide` draws the actions after them.
        """
        if noise is None:
            noise = torch.randn(mask.shape, device=mask.device)
        known = 0 if action_prefix is None else action_prefix.shape[1]
        x, old, weights = noise, *_guidance(guide, action_prefix, mask)
        for step in range(EULER_STEPS):
            time = 1 - step / EULER_STEPS
            times = torch.full(mask.shape[:2], time, device=x.device)
            if action_prefix is not None:
                at = 0.0 if self.rtc_training else time
                times[:, :known] = at
                x = torch.cat([at * noise[:, :known] + (1 - at) * action_prefix, x[:, known:]], 1)

            def velocity(x: Tensor, times: Tensor = times) -> Tensor:
                return self(x, times, prefix, prefix_mask, mask, state, start)

            u = velocity(x) if guide is None else guided(velocity, x, time, old, weights, guide.vjp)
            x = x - u / EULER_STEPS
        if action_prefix is not None:
            x = torch.cat([action_prefix, x[:, known:]], 1)
        return torch.where(mask, x, 0.0)


def _guidance(
    guide: RTCGuidance | None, action_prefix: Float[Tensor, "b k a"] | None, mask: Bool[Tensor, "b h a"]
) -> tuple[Float[Tensor, "b h a"], Float[Tensor, "h"]]:
    """The old chunk, as far as it goes, and how much each action of it counts."""
    rows, horizon, width = mask.shape
    known = 0 if action_prefix is None else action_prefix.shape[1]
    old = torch.zeros(mask.shape, device=mask.device)
    if guide is None:
        return old, torch.zeros(horizon)
    previous_chunk_leftover = guide.previous_chunk_leftover[:, : horizon - known]
    if action_prefix is not None:
        old[:, :known] = action_prefix
    old[:, known : known + previous_chunk_leftover.shape[1]] = previous_chunk_leftover
    return old, prefix_weights(known, previous_chunk_leftover.shape[1], horizon)


def _first(counts: Int[Tensor, "b"], like: Float[Tensor, "b h"]) -> Bool[Tensor, "b h"]:
    """Whether each of a row's actions is one of its first so many."""
    return torch.arange(like.shape[1], device=like.device) < counts[:, None]


def sample_time(
    count: int, device: torch.device | str = "cpu", generator: torch.Generator | None = None
) -> Float[Tensor, "b"]:
    """0.999 Beta(1.5, 1) + 0.001. Of Beta(1.5, 1) the distribution function is t^1.5, which uniform numbers invert."""
    return 0.999 * torch.rand(count, device=device, generator=generator) ** (1 / 1.5) + 0.001
