"""Flow matching without a backbone: its keys and values are random numbers here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from vla.errors import InputError
from vla.models.action_heads.action_expert import (
    ActionExpert,
    ActionExpertShape,
    ExpertContext,
    frequencies,
    rotary,
    rotate,
)
from vla.models.action_heads.flow_matching import EULER_STEPS, FlowHead, sample_time
from vla.types import RTCPrefix

LAYERS, GROUPS, HEAD, TOKENS = 2, 2, 8, 5
HORIZON, WIDTH, STATE = 4, 2, 3


def shape(layers: int = LAYERS) -> ActionExpertShape:
    return ActionExpertShape(24, 48, layers, 4, GROUPS, HEAD, frequencies(HEAD))


def head(adaptive: bool = False, state: int = 0, layers: int = LAYERS) -> FlowHead:
    model = FlowHead(ActionExpert(shape(layers), adaptive), HORIZON, WIDTH, state)
    expert = model.expert
    if adaptive:  # as after some training
        for layer in (*expert.layers, expert):
            for name, module in layer.named_modules():
                if name.endswith("modulation"):
                    torch.nn.init.normal_(module.weight, std=0.1)
    return model


def random_context(
    rows: int = 3, tokens: int = TOKENS, layers: int = LAYERS, state: Tensor | None = None
) -> ExpertContext:
    shape = (rows, GROUPS, tokens, HEAD)
    keys_values = [(torch.randn(shape), torch.randn(shape)) for _ in range(layers)]
    mask = torch.ones(rows, tokens, dtype=torch.bool)
    return ExpertContext(keys_values, mask, mask.sum(1), state)


def everything(rows: int = 3) -> Tensor:
    return torch.ones(rows, HORIZON, WIDTH, dtype=torch.bool)


def sample(
    model: FlowHead,
    context: ExpertContext,
    prefix: RTCPrefix | None = None,
    noise: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Samples by default complete chunks from random noise, without a prefix."""
    mask = everything(len(context.mask)) if mask is None else mask
    noise = torch.randn(mask.shape) if noise is None else noise
    return model.sample(context, noise, mask, RTCPrefix(noise[:, :0]) if prefix is None else prefix)


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def fit(model: FlowHead, batch: Callable[[], tuple[Tensor, ExpertContext]], steps: int) -> None:
    """Trains, and checks that the loss falls."""
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    losses = []
    for _ in range(steps):
        actions, context = batch()
        loss = model.loss(actions, context, everything(len(actions))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])


@pytest.mark.parametrize("adaptive", [True, False])
def test_samples_have_the_mean_and_standard_deviation_that_the_context_encodes(adaptive: bool) -> None:
    model = head(adaptive, layers=1)
    means, direction = torch.tensor([0.8, -0.6]), torch.randn(GROUPS, 1, HEAD)

    def encoded(which: Tensor) -> ExpertContext:
        context = random_context(len(which), tokens=2, layers=1)
        value = direction * torch.where(which == 0, 1.0, -1.0)[:, None, None, None]
        ((keys, values),) = context.keys_values
        return replace(context, keys_values=[(keys, value.expand_as(values))])

    def batch() -> tuple[Tensor, ExpertContext]:
        which = torch.randint(2, (128,))
        return means[which][:, None, None] + 0.1 * torch.randn(128, HORIZON, WIDTH), encoded(which)

    fit(model, batch, 250)
    for which in (0, 1):
        samples = sample(model, encoded(torch.full((200,), which)))
        torch.testing.assert_close(samples.mean(0), means[which].expand(HORIZON, WIDTH), atol=0.15, rtol=0)
        assert samples.std(0).max() < 0.35


def test_each_sample_takes_one_of_two_modes_and_an_action_prefix_decides_which() -> None:
    """A chunk is all +1 or all -1 by chance, shifted by the state; a mean of the two would be neither."""
    model = head(state=STATE, layers=1)
    context = random_context(128, layers=1)

    def batch() -> tuple[Tensor, ExpertContext]:
        sign, state = torch.randint(2, (128, 1, 1)) * 2.0 - 1, torch.randn(128, STATE)
        return (sign + 0.3 * state[:, :1, None]).expand(-1, HORIZON, WIDTH), replace(context, state=state)

    fit(model, batch, 350)
    state = torch.randn(128, STATE)
    context = replace(context, state=state)
    samples = sample(model, context) - 0.3 * state[:, :1, None]
    sides = samples.mean((1, 2)).sign()
    assert 0.25 < (sides > 0).float().mean() < 0.75
    assert ((samples - sides[:, None, None]).abs().mean((1, 2)) < 0.5).float().mean() > 0.85
    for sign in (1.0, -1.0):
        committed = (sign + 0.3 * state[:, :1, None]).expand(-1, 2, WIDTH)
        samples = sample(model, context, RTCPrefix(committed))
        assert torch.equal(samples[:, :2], committed)
        assert ((samples - 0.3 * state[:, :1, None])[:, 2:].mean((1, 2)).sign() == sign).float().mean() > 0.75


def test_ten_euler_steps_from_noise_to_the_actions(monkeypatch: pytest.MonkeyPatch) -> None:
    model, actions, times = head(), torch.randn(3, HORIZON, WIDTH), []
    noise = torch.randn(3, HORIZON, WIDTH, generator=seed(7))

    def exact(x: Tensor, time: Tensor, *rest: object) -> Tensor:
        times.append(time[0, -1].item())
        at = time[..., None]
        torch.testing.assert_close(x, at * noise + (1 - at) * actions)  # the straight path
        return noise - actions

    monkeypatch.setattr(model, "forward", exact)
    context = random_context()
    torch.testing.assert_close(sample(model, context, noise=noise), actions)
    assert times == pytest.approx([1 - step / EULER_STEPS for step in range(10)])
    times.clear()
    committed = actions[:, :2]
    assert torch.equal(sample(model, context, RTCPrefix(committed), noise)[:, :2], committed)
    assert len(times) == 10


def test_training_times_are_beta() -> None:
    times = sample_time(20000, generator=seed())
    assert times.min() >= 0.001 and times.max() <= 1.0
    at = torch.linspace(0.1, 0.9, 9)
    below = (times[:, None] < 0.999 * at + 0.001).float().mean(0)
    torch.testing.assert_close(below, at**1.5, atol=0.015, rtol=0)


@pytest.mark.parametrize("adaptive", [True, False])
def test_masked_components_contribute_nothing(adaptive: bool) -> None:
    model, context, actions = head(adaptive), random_context(), torch.randn(3, HORIZON, WIDTH)
    mask = everything()
    mask[0, 2:], mask[1, :, 1] = False, False  # past an episode's end; a smaller action dimension
    drawn = torch.randn_like(actions), sample_time(3)
    losses = model.loss(actions, context, mask, drawn)
    assert len(losses) == mask.sum()
    invalid = torch.where(mask, actions, torch.nan)
    assert torch.equal(losses, model.loss(invalid, context, mask, drawn))
    losses.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    samples = sample(model, context, mask=mask)
    assert (samples[~mask] == 0).all() and (samples[mask] != 0).all()
    # The steps before an episode's end do not attend to those after it.
    noisy, time = torch.randn(3, HORIZON, WIDTH), torch.rand(3, 1).expand(-1, HORIZON)
    other = torch.where(mask, noisy, 9.0)
    ours, theirs = (model(x, time, context, mask) for x in (noisy, other))
    assert torch.equal(ours[mask], theirs[mask])


def test_padding_of_the_context_changes_nothing() -> None:
    model, context = head(), random_context()
    noisy, time = torch.randn(3, HORIZON, WIDTH), torch.rand(3, 1).expand(-1, HORIZON)
    plain = model(noisy, time, context, everything())

    def padded(x: Tensor) -> Tensor:
        return torch.cat([torch.randn(3, GROUPS, 2, HEAD) * 9, x], 2)

    left = torch.nn.functional.pad(context.mask, (2, 0), value=False)
    keys_values = [(padded(keys), padded(values)) for keys, values in context.keys_values]
    context = replace(context, keys_values=keys_values, mask=left)
    torch.testing.assert_close(model(noisy, time, context, everything()), plain)


def test_a_block_does_not_attend_to_later_blocks() -> None:
    expert, context = head().expert, random_context()
    tokens, blocks = torch.randn(3, 4, 24), torch.tensor([0, 1, 1, 1])
    changed = torch.cat([tokens[:, :3], torch.randn(3, 1, 24)], 1)
    visible = torch.ones(3, 4, dtype=torch.bool)
    a, b = (expert(x, visible, blocks, context) for x in (tokens, changed))
    assert torch.equal(a[:, 0], b[:, 0])
    assert (a[:, 1] != b[:, 1]).any()  # within a block, each attends to all


def test_adaptive_layers_start_by_adding_nothing() -> None:
    expert = ActionExpert(shape(), adaptive=True)
    tokens, visible = torch.randn(3, HORIZON, 24), torch.ones(3, HORIZON, dtype=torch.bool)
    blocks, condition = torch.ones(HORIZON, dtype=torch.long), torch.randn(3, HORIZON, 24)
    hidden = expert(tokens, visible, blocks, random_context(), condition)
    torch.testing.assert_close(hidden, torch.nn.functional.rms_norm(tokens, (24,), eps=1e-6))


def test_rotation_is_that_of_the_backbones() -> None:
    query, key = torch.randn(2, 4, 6, HEAD), torch.randn(2, GROUPS, 6, HEAD)
    cos, sin = rotary(torch.arange(6).expand(2, -1) + 11, torch.tensor(frequencies(HEAD)))
    expected = apply_rotary_pos_emb(query, key, cos[:, 0], sin[:, 0])
    torch.testing.assert_close((rotate(query, (cos, sin)), rotate(key, (cos, sin))), expected)
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=32, num_attention_heads=4, rope_parameters={"rope_type": "default", "rope_theta": 1e4}
    )
    theirs = LlamaRotaryEmbedding(config)(query, torch.arange(6).expand(2, -1) + 11)
    torch.testing.assert_close((cos[:, 0], sin[:, 0]), theirs)


def test_half_precision_samples() -> None:
    model = head(True, STATE).bfloat16()
    samples = sample(model, random_context(state=torch.randn(3, STATE)))
    assert samples.dtype == torch.float32 and samples.isfinite().all()


def test_a_context_of_another_shape_is_named() -> None:
    model, context = head(), random_context()
    with pytest.raises(InputError, match="2 layers, the backbone gave 1"):
        sample(model, replace(context, keys_values=context.keys_values[:1]))
    with pytest.raises(InputError, match="reads 2 heads of 8, the backbone has 2 of 4"):
        sample(model, replace(context, keys_values=[(k[..., :4], v[..., :4]) for k, v in context.keys_values]))
    with pytest.raises(InputError, match="no state components"):
        sample(model, replace(context, state=torch.randn(3, STATE)))
    with pytest.raises(InputError, match="3 state components"):
        sample(head(state=STATE), context)
    with pytest.raises(InputError, match="multiple of kv_heads"):
        ActionExpertShape(24, 48, 1, heads=3, kv_heads=2, head_dim=8, frequencies=frequencies(8))
