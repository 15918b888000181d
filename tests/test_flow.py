"""Flow matching without a backbone: its keys and values are random numbers here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from vla.errors import InputError
from vla.models.action_heads.action_expert import ActionExpert, ActionExpertShape, frequencies, rotary, rotate
from vla.models.action_heads.flow_matching import EULER_STEPS, FlowHead, KeysValues, sample_time

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


def context(rows: int = 3, tokens: int = TOKENS, layers: int = LAYERS) -> tuple[KeysValues, Tensor]:
    shape = (rows, GROUPS, tokens, HEAD)
    prefix = [(torch.randn(shape), torch.randn(shape)) for _ in range(layers)]
    return prefix, torch.ones(rows, tokens, dtype=torch.bool)


def everything(rows: int = 3) -> Tensor:
    return torch.ones(rows, HORIZON, WIDTH, dtype=torch.bool)


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def fit(model: FlowHead, batch: Callable[[], tuple[Tensor, KeysValues, Tensor, Tensor | None]], steps: int) -> None:
    """Trains, and checks that the loss falls."""
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    losses = []
    for _ in range(steps):
        actions, prefix, mask, state = batch()
        loss = model.loss(actions, prefix, mask, everything(len(actions)), state).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])


@pytest.mark.parametrize("adaptive", [True, False])
def test_samples_have_the_mean_and_spread_of_what_the_prefix_says(adaptive: bool) -> None:
    model = head(adaptive, layers=1)
    told, direction = torch.tensor([0.8, -0.6]), torch.randn(GROUPS, 1, HEAD)

    def situation(which: Tensor) -> tuple[KeysValues, Tensor]:
        prefix, mask = context(len(which), tokens=2, layers=1)
        value = direction * torch.where(which == 0, 1.0, -1.0)[:, None, None, None]
        return [(prefix[0][0], value.expand_as(prefix[0][1]))], mask

    def batch() -> tuple[Tensor, KeysValues, Tensor, None]:
        which = torch.randint(2, (128,))
        return told[which][:, None, None] + 0.1 * torch.randn(128, HORIZON, WIDTH), *situation(which), None

    fit(model, batch, 250)
    for which in (0, 1):
        samples = model.sample(*situation(torch.full((200,), which)), everything(200))
        torch.testing.assert_close(samples.mean(0), told[which].expand(HORIZON, WIDTH), atol=0.15, rtol=0)
        assert samples.std(0).max() < 0.35


def test_of_two_ways_each_sample_takes_one_and_a_given_start_decides_which() -> None:
    """A chunk is all +1 or all -1 by chance, shifted by the state; a mean of the two would be neither."""
    model = head(state=STATE, layers=1)
    prefix, prefix_mask = context(128, layers=1)

    def batch() -> tuple[Tensor, KeysValues, Tensor, Tensor]:
        sign, state = torch.randint(2, (128, 1, 1)) * 2.0 - 1, torch.randn(128, STATE)
        return (sign + 0.3 * state[:, :1, None]).expand(-1, HORIZON, WIDTH), prefix, prefix_mask, state

    fit(model, batch, 350)
    state = torch.randn(128, STATE)
    samples = model.sample(prefix, prefix_mask, everything(128), state) - 0.3 * state[:, :1, None]
    sides = samples.mean((1, 2)).sign()
    assert 0.25 < (sides > 0).float().mean() < 0.75
    assert ((samples - sides[:, None, None]).abs().mean((1, 2)) < 0.5).float().mean() > 0.85
    for sign in (1.0, -1.0):
        given = (sign + 0.3 * state[:, :1, None]).expand(-1, 2, WIDTH)
        samples = model.sample(prefix, prefix_mask, everything(128), state, given)
        assert torch.equal(samples[:, :2], given)
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
    prefix, mask = context()
    torch.testing.assert_close(model.sample(prefix, mask, everything(), noise=noise), actions)
    assert times == pytest.approx([1 - step / EULER_STEPS for step in range(10)])
    times.clear()
    given = actions[:, :2]
    assert torch.equal(model.sample(prefix, mask, everything(), action_prefix=given, noise=noise)[:, :2], given)
    assert len(times) == 10


def test_training_times_are_beta() -> None:
    times = sample_time(20000, generator=seed())
    assert times.min() >= 0.001 and times.max() <= 1.0
    at = torch.linspace(0.1, 0.9, 9)
    below = (times[:, None] < 0.999 * at + 0.001).float().mean(0)
    torch.testing.assert_close(below, at**1.5, atol=0.015, rtol=0)


@pytest.mark.parametrize(("adaptive", "state"), [(True, 0), (False, STATE)])
def test_insulation_keeps_the_gradient_from_the_backbone_and_changes_no_loss(adaptive: bool, state: int) -> None:
    model, (prefix, mask), actions = head(adaptive, state), context(), torch.randn(3, HORIZON, WIDTH)
    told = torch.randn(3, state) if state else None
    leaves = [tensor.requires_grad_() for pair in prefix for tensor in pair]
    drawn = torch.randn_like(actions), sample_time(3)

    def loss(knowledge_insulation: bool) -> Tensor:
        return model.loss(actions, prefix, mask, everything(), told, knowledge_insulation, drawn)

    open_, closed = loss(False), loss(True)
    assert torch.equal(open_, closed)
    closed.sum().backward()
    assert all(leaf.grad is None for leaf in leaves)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    open_.sum().backward()
    assert all(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in leaves)


@pytest.mark.parametrize("adaptive", [True, False])
def test_what_the_mask_leaves_out_contributes_nothing(adaptive: bool) -> None:
    model, (prefix, prefix_mask), actions = head(adaptive), context(), torch.randn(3, HORIZON, WIDTH)
    mask = everything()
    mask[0, 2:], mask[1, :, 1] = False, False  # past an episode's end; a narrower robot
    drawn = torch.randn_like(actions), sample_time(3)
    losses = model.loss(actions, prefix, prefix_mask, mask, drawn=drawn)
    assert len(losses) == mask.sum()
    spoilt = torch.where(mask, actions, torch.nan)
    assert torch.equal(losses, model.loss(spoilt, prefix, prefix_mask, mask, drawn=drawn))
    losses.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    samples = model.sample(prefix, prefix_mask, mask)
    assert (samples[~mask] == 0).all() and (samples[mask] != 0).all()
    # The steps before an episode's end see nothing of those after it.
    noisy, time = torch.randn(3, HORIZON, WIDTH), torch.rand(3, 1).expand(-1, HORIZON)
    other = torch.where(mask, noisy, 9.0)
    ours, theirs = (model(x, time, prefix, prefix_mask, mask) for x in (noisy, other))
    assert torch.equal(ours[mask], theirs[mask])


def test_padding_of_the_prefix_changes_nothing() -> None:
    model, (prefix, mask) = head(), context()
    noisy, time = torch.randn(3, HORIZON, WIDTH), torch.rand(3, 1).expand(-1, HORIZON)
    plain = model(noisy, time, prefix, mask, everything())
    padded = [tuple(torch.cat([torch.randn(3, GROUPS, 2, HEAD) * 9, t], 2) for t in pair) for pair in prefix]
    left = torch.nn.functional.pad(mask, (2, 0), value=False)
    torch.testing.assert_close(model(noisy, time, padded, left, everything()), plain)  # type: ignore[arg-type]


def test_a_block_does_not_see_those_after_it() -> None:
    expert, (prefix, mask) = head().expert, context()
    tokens, blocks = torch.randn(3, 4, 24), torch.tensor([0, 1, 1, 1])
    changed = torch.cat([tokens[:, :3], torch.randn(3, 1, 24)], 1)
    seen = torch.ones(3, 4, dtype=torch.bool)
    a, b = (expert(x, seen, blocks, prefix, mask, mask.sum(1)) for x in (tokens, changed))
    assert torch.equal(a[:, 0], b[:, 0])
    assert (a[:, 1] != b[:, 1]).any()  # within a block, each sees all


def test_adaptive_layers_start_by_adding_nothing() -> None:
    expert = ActionExpert(shape(), adaptive=True)
    prefix, mask = context()
    tokens, seen = torch.randn(3, HORIZON, 24), torch.ones(3, HORIZON, dtype=torch.bool)
    blocks, condition = torch.ones(HORIZON, dtype=torch.long), torch.randn(3, HORIZON, 24)
    hidden = expert(tokens, seen, blocks, prefix, mask, mask.sum(1), condition)
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
    model, (prefix, mask) = head(True, STATE).bfloat16(), context()
    samples = model.sample(prefix, mask, everything(), torch.randn(3, STATE))
    assert samples.dtype == torch.float32 and samples.isfinite().all()


def test_what_does_not_fit_is_named() -> None:
    model, (prefix, mask) = head(), context()
    with pytest.raises(InputError, match="2 layers, the backbone gave 1"):
        model.sample(prefix[:1], mask, everything())
    with pytest.raises(InputError, match="reads 2 heads of 8, the backbone has 2 of 4"):
        model.sample([(k[..., :4], v[..., :4]) for k, v in prefix], mask, everything())
    with pytest.raises(InputError, match="no state components"):
        model.sample(prefix, mask, everything(), torch.randn(3, STATE))
    with pytest.raises(InputError, match="3 state components"):
        head(state=STATE).sample(prefix, mask, everything())
    with pytest.raises(InputError, match="multiple of kv_heads"):
        ActionExpertShape(24, 48, 1, heads=3, kv_heads=2, head_dim=8, frequencies=frequencies(8))
