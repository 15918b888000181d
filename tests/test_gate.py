from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vla.training.checkpoint_gate import choose

EVALUATIONS = st.lists(
    st.fixed_dictionaries({"vqa": st.floats(0, 1), "action_error": st.floats(0, 1)}), min_size=1, max_size=8
)


@given(EVALUATIONS, st.floats(0, 0.2))
def test_the_gate_takes_the_least_error_among_those_that_kept_their_language(
    evaluations: list[dict[str, float]], margin: float
) -> None:
    index = choose(evaluations, margin)
    floor = max(e["vqa"] for e in evaluations) - margin
    assert evaluations[index]["vqa"] >= floor
    for other in evaluations:
        assert other["vqa"] < floor or other["action_error"] >= evaluations[index]["action_error"]


@given(EVALUATIONS, st.floats(0, 0.2))
def test_what_is_not_evaluated_does_not_decide(evaluations: list[dict[str, float]], margin: float) -> None:
    errors = [{"action_error": e["action_error"]} for e in evaluations]
    assert errors[choose(errors, margin)] == min(errors, key=lambda e: e["action_error"])
    languages = [{"vqa": e["vqa"]} for e in evaluations]
    assert languages[choose(languages, margin)] == max(languages, key=lambda e: e["vqa"])
    assert choose([{}] * len(evaluations), margin) == len(evaluations) - 1
