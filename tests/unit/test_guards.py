"""The guards' judgement and words, by numbers."""

from __future__ import annotations

import pytest
import torch

from train.guards import (
    GuardConfig,
    Watch,
    blind,
    forgetting,
    is_out_of_memory,
    preflight_problem,
    render_problem,
)

GUARDS = GuardConfig(nonfinite_limit=3, spike_factor=10.0)


def steady(count: int = 30) -> Watch:
    watch = Watch()
    for _ in range(count):
        assert watch.judge(1.0, 2.0, GUARDS) == ("step", "")
    return watch


@pytest.mark.parametrize(
    ("loss", "norm", "words"),
    [
        pytest.param(float("nan"), 1.0, "not finite", id="nan loss"),
        pytest.param(1.0, float("inf"), "not finite", id="infinite gradient"),
        pytest.param(1.0, 21.0, "10 times the usual 2", id="spike"),
    ],
)
def test_bad_steps_are_left_out_and_the_third_in_a_row_goes_back(loss: float, norm: float, words: str) -> None:
    watch = steady()
    found = [watch.judge(loss, norm, GUARDS) for _ in range(3)]
    assert [verdict for verdict, _ in found] == ["skip", "skip", "roll back"]
    assert words in found[0][1]
    assert "3 bad steps in a row" in found[2][1]
    assert (watch.skipped, watch.streak) == (3, 3)


def test_a_good_step_ends_the_streak_and_spikes_are_not_remembered() -> None:
    watch = steady()
    assert watch.judge(1.0, 1e6, GUARDS)[0] == "skip"
    assert watch.judge(1.0, 2.0, GUARDS)[0] == "step"
    assert watch.streak == 0
    assert max(watch.norms) == 2.0


def test_the_first_gradients_of_a_run_are_never_spikes() -> None:
    watch = Watch()
    assert [watch.judge(1.0, 10.0**i, GUARDS)[0] for i in range(8)] == ["step"] * 8


def test_what_a_watch_remembers_survives_a_checkpoint() -> None:
    watch = steady()
    watch.judge(float("nan"), 1.0, GUARDS)
    watch.rehearsal, watch.retries = 0.25, 1
    again = Watch()
    again.load(watch.state())
    assert again == watch
    assert again.norms.maxlen == watch.norms.maxlen


def test_forgetting_and_blindness_speak_at_their_limits() -> None:
    guards = GuardConfig(forget_limit=0.2, input_margin=0.02)
    assert forgetting(1.0, 1.19, guards) is None
    assert "from 1 to 1.3 (+30%)" in (forgetting(1.0, 1.3, guards) or "")
    assert blind(1.0, 1.5, guards) is None
    assert "does not depend on the input" in (blind(1.0, 1.01, guards) or "")


def test_preflight_wants_a_fall_and_nan_is_none() -> None:
    guards = GuardConfig(preflight_steps=10, preflight_factor=0.5)
    assert preflight_problem(1.0, 0.5, guards) is None
    assert "from 1 to 0.6 in 10 steps, expected at most 0.5" in (preflight_problem(1.0, 0.6, guards) or "")
    assert preflight_problem(1.0, float("nan"), guards) is not None


def scene() -> torch.Tensor:
    """(8, 8, 4): a dark square in the middle of nothing."""
    truth = torch.zeros(8, 8, 4)
    truth[2:6, 2:6] = torch.tensor([0.3, 0.2, 0.1, 1.0])
    return truth


def test_render_alarms_say_what_is_to_be_seen() -> None:
    truth = scene()
    alpha = truth[..., 3]
    good = truth[..., :3] * alpha[..., None] + 1 - alpha[..., None]
    white = torch.ones(8, 8, 3)
    assert render_problem(good, alpha, truth) is None
    assert "empty: their opacity on the object is 0.000" in (render_problem(white, alpha * 0, truth) or "")
    assert "fog" in (render_problem(good, torch.ones(8, 8), truth) or "")
    assert "white: their mean colour on the object is 1.000" in (render_problem(white, alpha, truth) or "")
    # A white object may be white, and where nothing is to be seen, nothing can be said.
    assert render_problem(white, alpha, torch.cat([torch.ones(8, 8, 3), alpha[..., None]], -1)) is None
    assert render_problem(white, alpha * 0, truth * 0) is None


def test_out_of_memory_is_told_from_other_errors() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert not is_out_of_memory(ValueError("out of memory"))
