"""The claims themselves: each with next to no budget, so that all of it runs; one as `--fast` runs it."""

import math

import pytest

from aligngym.cli import main
from aligngym.reproduce import CLAIMS, claim
from aligngym.reproduce.harness import run_claim
from aligngym.reproduce.report import COLORS, write_report

TINY = {
    "pretraining_steps": 40, "num_steps": 4, "episodes": 64, "calls": 64, "looks": 2, "measured_after": 1,
    "evaluation": 64, "branches": 4, "branch_groups": 4, "inner_updates": 2, "recorded": None, "evaluated": 2,
    "source": 20, "target": 20, "one_problem": 8, "alignment": {"num_labels": 8, "starts": 2},
    "ascent_steps": 2, "total_steps": 400, "look_every": 200,
    "parl": {
        "learning_starts": 50, "unsupervised_steps": 250, "segment_length": 10, "queries_per_round": 6,
        "fresh_queries": 4, "net_arch": (8,), "reward_hidden": (8,), "batch_size": 8,
    },
    "iql": {"total_updates": 4, "updates_per_iteration": 4}, "reward": {"reward_updates": 2, "reward_batch_size": 4},
}  # fmt: skip
TINY |= {
    "teaching_steps": 2, "teaching_batch": 4, "aligning_steps": 1, "evolution_steps": 2,
    "rooms_budget": 1, "rooms_episodes": 64,
    "rows": 1, "warm_steps": 2, "populations": 2, "env_steps": 120, "alignment_steps": 40,
    "repo": {
        "learning_starts": 60, "steps_per_iteration": 60, "updates_per_iteration": 1, "batch_size": 2,
        "sequence_length": 4, "deterministic_size": 4, "stochastic_size": 2, "hidden_size": 4, "embedding_size": 4,
        "conv_depth": 2, "horizon": 3,
    },
    "repo_alignment": {
        "learning_starts": 20, "steps_per_iteration": 40, "updates_per_iteration": 1, "batch_size": 4, "num_pairs": 20,
    },
}  # fmt: skip
EPISODES = {"episodes_per_iteration": 32, "minibatch_size": 16}


def tiny(settings):
    """Settings with the budgets of TINY, and small iterations."""
    small = {k: TINY.get(k, v) for k, v in settings.items()}
    small |= {k: v for k, v in settings.items() if isinstance(small[k], dict) and not isinstance(v, dict)}  # a namesake
    for name, value in small.items():
        if isinstance(value, dict) and "learning_rate" in value:  # of an agent
            group = {"group_size": 4} if "group_size" in value else {}
            small[name] = {**value, **EPISODES, **group}
    return small


@pytest.mark.slow
@pytest.mark.parametrize("key", CLAIMS)
def test_every_claim_measures_what_its_effects_and_curves_read(key, tmp_path):
    one = claim(key)
    numbers = one.run(0, tiny(one.settings), tmp_path)
    read = {e for effect in (*one.premises, *one.effects) for e in (effect.high, effect.low) if isinstance(e, str)}
    assert read <= numbers.keys()
    for curve in one.curves:
        for name in curve.series.values():
            assert sum(k.rpartition("@")[0] == name for k in numbers) > 1
    assert one.run(0, tiny(one.settings), tmp_path) == pytest.approx(numbers, nan_ok=True, rel=0, abs=0)


@pytest.mark.slow
@pytest.mark.parametrize("key", CLAIMS)
def test_every_series_of_a_curve_has_a_colour_of_its_own(key):
    assert all(len(curve.series) <= len(COLORS) for curve in claim(key).curves)


def test_a_claim_from_the_command_line(tmp_path, capsys):
    arguments = ["reproduce", "rlg", "--fast", "--seeds", "2", "--out", str(tmp_path)]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "verdict   reproduced (2 seeds: for a look only)" in out
    names = {"seed-0.json", "seed-1.json", "results.csv", "report.md", "rlg.png"}
    assert {p.name for p in (tmp_path / "rlg-fast").iterdir()} == names
    assert main(arguments) == 0
    again = capsys.readouterr()
    assert again.out == out and "was run before" in again.err
    seeds = run_claim(claim("rlg"), 2, tmp_path / "rlg-fast", fast=True).seeds
    assert all(math.isfinite(v) for numbers in seeds for v in numbers.values())
    assert write_report(run_claim(claim("rlg"), 2, tmp_path / "rlg-fast", fast=True), tmp_path / "other") in out
