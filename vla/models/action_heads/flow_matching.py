"""Flow matching with an action expert that reads the backbone's KV cache.

Sources: pi0, Black et al. 2024, arXiv 2410.24164; adaptive norm: pi0.5, arXiv 2504.16054; knowledge insulation: Driess
et al. 2025, arXiv 2505.23705.

Shapes: b rows, h steps, a action components, k steps of the action prefix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vla.errors import InputError
from vla.models.action_heads.action_expert import ActionExpert, ExpertContext, time_features
from vla.models.action_heads.rtc_guidance import guided, previous_chunk
from vla.types import RTCPrefix

EULER_STEPS = 10


@dataclass(frozen=True)
class FlowLayout:
    """How the expert's sequence is composed, by the policy whose weights it has; the defaults are pi0's.

    Attributes:
        state_token: the first token is the state. Without it the backbone has read the state, as text (pi0.5) or as a
            token of the prompt (SmolVLA).
        causal: an action attends to earlier actions only (SmolVLA), else to all.
        noisy_padding: the components that a robot does not have start as noise and are denoised with the others, as
            released policies do; else they are 0.
        steps: Euler steps.
    """

    state_token: bool = True
    causal: bool = False
    noisy_padding: bool = False
    steps: int = EULER_STEPS

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"a flow is integrated in at least 1 step, not {self.steps}")

    def inputs(self, noisy: Float[Tensor, "b h a"], mask: Bool[Tensor, "b h a"]) -> Float[Tensor, "b h a"]:
        """The noisy actions that enter the expert, of which `mask` is valid."""
        return noisy if self.noisy_padding else torch.where(mask, noisy, 0.0)


class FlowHead(nn.Module):
    """Transforms noise into a chunk of normalised actions along a learned velocity field.

    With x_t = t noise + (1 - t) actions, so noise at t = 1, the expert learns the velocity u = noise - actions.
    Training samples t = 0.999 Beta(1.5, 1) + 0.001, which favours noisy inputs. Sampling takes Euler steps from
    t = 1 to 0. Time enters through the expert's adaptive norms (pi0.5) where the expert is adaptive, else
    through each action's embedding (pi0).

    Args:
        state_width: number of state components. They form the expert's first token, which does not attend to the
            actions (pi0). With 0 the backbone has read the state, as text or tokens (pi0.5).
        rtc_training: the action prefix is at t = 0 while the other actions are denoised (training-time real-time
            chunking, Black et al. 2025, arXiv 2512.05964), which requires training. Otherwise the prefix is noised to
            the current time.
        layout: see `FlowLayout`; its `state_token` is that of `state_width`.
    """

    def __init__(
        self,
        expert: ActionExpert,
        horizon: int,
        action_dim: int,
        state_width: int = 0,
        rtc_training: bool = False,
        layout: FlowLayout = FlowLayout(),
    ) -> None:
        super().__init__()
        self.rtc_training, self.layout = rtc_training, layout
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
        context: ExpertContext,
        mask: Bool[Tensor, "b h a"],
    ) -> Float[Tensor, "b h a"]:
        """The velocity at `noisy`, each action at its time.

        Args:
            mask: valid components. Others enter as 0, but with `noisy_padding`; a step without valid components is not
                attended to.

        Raises:
            InputError: when the context does not have the shape that the head was built for.
        """
        state = context.state
        if (state is not None) != bool(self.state_width):
            raise InputError(f"the head takes {self.state_width or 'no'} state components: give as many, or no state")
        dtype = self.action_in_proj.weight.dtype
        tokens = self.action_in_proj(self.layout.inputs(noisy, mask).to(dtype))
        embedded = time_features(time.flatten(), self.expert.width).to(dtype).unflatten(0, time.shape)
        if self.expert.adaptive:
            condition = nn.functional.silu(self.time(embedded))
        else:
            condition = None
            tokens = self.time(torch.cat([tokens, embedded], -1))
        visible = mask.any(-1)
        # Block 0 is the state; the actions are block 1, or one block each. A token attends to the context, its block
        # and earlier blocks.
        blocks = torch.ones(tokens.shape[1], dtype=torch.long, device=tokens.device)
        if self.layout.causal:
            blocks = blocks.cumsum(0)
        if self.state is not None and state is not None:
            tokens = torch.cat([self.state(state.to(dtype))[:, None], tokens], 1)
            visible = nn.functional.pad(visible, (1, 0), value=True)
            blocks = nn.functional.pad(blocks, (1, 0))
            if condition is not None:  # the state token takes the time of the last action, which is never committed
                condition = torch.cat([condition[:, -1:], condition], 1)
        hidden = self.expert(tokens, visible, blocks, context, condition)
        return self.action_out_proj(hidden[:, -self.horizon :]).float()

    def loss(
        self,
        actions: Float[Tensor, "b h a"],
        context: ExpertContext,
        mask: Bool[Tensor, "b h a"],
        drawn: tuple[Float[Tensor, "b h a"], Float[Tensor, "b"]] | None = None,
        prefix_length: Int[Tensor, "b"] | None = None,
    ) -> Float[Tensor, "k"]:
        """Squared error of the velocity for the k components where `mask` is True, row by row.

        Args:
            drawn: noise and times; sampled by default.
            prefix_length: length of each row's action prefix. With `rtc_training` it is clean and has no error.
        """
        actions = torch.where(mask, actions, 0.0)
        noise, time = drawn or (torch.randn_like(actions), sample_time(len(actions), actions.device))
        times = time[:, None].expand(mask.shape[:2])
        if self.rtc_training and prefix_length is not None:
            times = torch.where(_first_actions(prefix_length, times), 0.0, times)
        t = times[..., None]
        velocity = self(t * noise + (1 - t) * actions, times, context, mask)
        error = (velocity - (noise - actions)).square()
        return torch.where(t > 0, error, 0.0)[mask]

    @torch.no_grad()
    def sample(
        self, context: ExpertContext, noise: Float[Tensor, "b h a"], mask: Bool[Tensor, "b h a"], prefix: RTCPrefix
    ) -> Float[Tensor, "b h a"]:
        """Samples normalised chunks from noise, 0 where `mask` is False.

        Args:
            prefix: the action prefix, which the chunks contain unchanged (`integrate`; clean with `rtc_training`), and
                the leftover that guides the actions after it.
        """
        committed = prefix.committed.shape[1]
        guidance = None if prefix.leftover is None else previous_chunk(prefix, self.horizon)

        def velocity(x: Tensor, step: int) -> Tensor:
            time = 1 - step / self.layout.steps
            times = torch.full(mask.shape[:2], time, device=x.device)
            if self.rtc_training:
                times[:, :committed] = 0.0

            def unguided(x: Tensor) -> Tensor:
                return self(x, times, context, mask)

            return unguided(x) if guidance is None else guided(unguided, x, time, *guidance, prefix.guidance_mode)

        clean = self.rtc_training
        return integrate(velocity, noise, mask, prefix.committed, steps=self.layout.steps, clean=clean)


def integrate(
    velocity: Callable[[Tensor, int], Tensor],
    noise: Float[Tensor, "b h a"],
    mask: Bool[Tensor, "b h a"],
    committed: Float[Tensor, "b k a"],
    *,
    steps: int,
    clean: bool = False,
) -> Float[Tensor, "b h a"]:
    """Integrates a velocity field from noise at t = 1 to actions at t = 0; 0 where `mask` is False.

    Args:
        velocity: the velocity at x in one of the steps.
        committed: the first k actions (real-time chunking). At each step they are set to their values at that time,
            t noise + (1 - t) actions, or where `clean` to t = 0, so that the other actions continue them.
    """
    x, count = noise, committed.shape[1]
    for step in range(steps):
        t = 0.0 if clean else 1 - step / steps
        x = torch.cat([t * noise[:, :count] + (1 - t) * committed, x[:, count:]], 1)
        x = x - velocity(x, step) / steps
    return torch.where(mask, torch.cat([committed, x[:, count:]], 1), 0.0)


def _first_actions(counts: Int[Tensor, "b"], like: Float[Tensor, "b h"]) -> Bool[Tensor, "b h"]:
    """Mask of each row's first `counts` actions."""
    return torch.arange(like.shape[1], device=like.device) < counts[:, None]


def sample_time(
    count: int, device: torch.device | str = "cpu", generator: torch.Generator | None = None
) -> Float[Tensor, "b"]:
    """Samples t = 0.999 Beta(1.5, 1) + 0.001, by inverting the distribution function t^1.5 of Beta(1.5, 1)."""
    return 0.999 * torch.rand(count, device=device, generator=generator) ** (1 / 1.5) + 0.001
