"""The record of episodes: shapes are checked, rows can be picked, moved and stacked."""

from dataclasses import replace

import pytest
import torch

from aligngym.trajectories import Trajectories, concatenate, pad_time


def record(batch=3, steps=4, per_step=True, seed=0, **changes):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(steps) < torch.randint(1, steps + 1, (batch, 1), generator=generator)
    ended = torch.arange(batch) % 2 == 0
    values = {
        "observations": torch.rand(batch, *((steps + 1,) if per_step else ()), 2, generator=generator),
        "actions": torch.randint(1, 5, (batch, steps), generator=generator) * mask,
        "log_probs": -torch.rand(batch, steps, generator=generator) * mask,
        "mask": mask,
        "rewards": torch.rand(batch, steps, generator=generator) * mask,
        "terminated": ended,
        "truncated": ~ended,
        "valid": torch.ones(batch, dtype=torch.bool),
        "group": torch.arange(batch),
        "terms": {"length": torch.rand(batch, generator=generator)},
        "info": {"prompt": [f"prompt {i}" for i in range(batch)]},
    }
    return Trajectories(**{**values, **changes})


def test_lengths_returns_and_size():
    episodes = record()
    assert len(episodes) == 3
    assert episodes.lengths.tolist() == episodes.mask.sum(1).tolist()
    torch.testing.assert_close(episodes.returns, episodes.rewards.sum(1))
    episodes.rewards[1, 0] = torch.nan
    assert episodes.returns.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_probs": torch.zeros(3, 5)}, r"log_probs has shape \(3, 5\), but mask has \(3, 4\)"),
        ({"rewards": torch.zeros(2, 4)}, r"rewards has shape \(2, 4\)"),
        ({"valid": torch.ones(2, dtype=torch.bool)}, r"valid has shape \(2,\), expected \(3,\)"),
        ({"actions": torch.zeros(3, 3)}, r"actions have shape \(3, 3\), expected \(3, 4, \.\.\.\)"),
        ({"terms": {"length": torch.zeros(2)}}, r"'length' of terms or info has 2 entries, expected 3"),
        ({"info": {"prompt": ["a"]}}, r"'prompt' of terms or info has 1 entries, expected 3"),
    ],
)
def test_wrong_shapes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        record(**change)


@pytest.mark.parametrize("index", [torch.tensor([2, 0, 2]), torch.tensor([True, False, True])])
@pytest.mark.parametrize("as_dict", [False, True])
def test_select_picks_every_field_of_a_row(index, as_dict):
    episodes = record()
    if as_dict:
        episodes = replace(episodes, observations={"x": episodes.observations, "y": torch.arange(3)})
    rows = [2, 0, 2] if index.dtype != torch.bool else [0, 2]
    part = episodes.select(index)
    for name in ("actions", "log_probs", "mask", "rewards", "terminated", "truncated", "valid", "group"):
        assert torch.equal(getattr(part, name), getattr(episodes, name)[rows])
    seen = episodes.observations if as_dict else {"x": episodes.observations}
    ours = part.observations if as_dict else {"x": part.observations}
    assert all(torch.equal(ours[k], seen[k][rows]) for k in seen)
    assert torch.equal(part.terms["length"], episodes.terms["length"][rows])
    assert part.info["prompt"] == [f"prompt {i}" for i in rows]


def test_to_moves_every_tensor():
    episodes = replace(record(), observations={"x": torch.zeros(3, 2)}).to("meta")
    tensors = [*episodes.observations.values(), *episodes.terms.values(), episodes.mask, episodes.valid, episodes.group]
    assert all(t.device.type == "meta" for t in tensors) and episodes.info["prompt"][0] == "prompt 0"


def test_concatenate_pads_time_with_zeros():
    short, long = record(2, 3), record(3, 6, seed=1)
    both = concatenate([short, long])
    assert both.mask.shape == (5, 6) and both.observations.shape == (5, 7, 2)
    for name in ("actions", "log_probs", "mask", "rewards"):
        assert torch.equal(getattr(both, name)[:2, :3], getattr(short, name))
        assert (getattr(both, name)[:2, 3:] == 0).all()
        assert torch.equal(getattr(both, name)[2:], getattr(long, name))
    assert torch.equal(both.observations[:2, :4], short.observations)
    assert (both.observations[:2, 4:] == 0).all() and torch.equal(both.observations[2:], long.observations)
    assert both.group.tolist() == [0, 1, 0, 1, 2] and len(both.info["prompt"]) == 5


def test_concatenate_pads_states_of_different_lengths_and_keeps_numbers_of_states():
    def text(batch, width, steps):
        ids = torch.ones(batch, width, dtype=torch.int64)
        return record(batch, steps, observations={"input_ids": ids, "attention_mask": ids.bool()})

    both = concatenate([text(2, 5, 3), text(2, 4, 3)])
    assert both.observations["input_ids"].tolist() == [[1] * 5] * 2 + [[1] * 4 + [0]] * 2
    assert both.observations["attention_mask"].dtype == torch.bool
    first_only = concatenate([record(2, 3, per_step=False), record(2, 5, per_step=False)])
    assert first_only.observations.shape == (4, 2)
    numbered = concatenate([record(2, 3, observations=torch.arange(2)), record(2, 5, observations=torch.arange(2))])
    assert numbered.observations.tolist() == [0, 1, 0, 1]


def test_concatenate_fills_missing_terms_and_info():
    one, two = record(2), record(2, terms={"style": torch.ones(2)}, info={"invalid": [None, "failed"]})
    both = concatenate([one, two])
    assert both.terms["style"].isnan().tolist() == [True, True, False, False]
    assert both.terms["length"].isnan().tolist() == [False, False, True, True]
    assert both.info["invalid"] == [None, None, None, "failed"]
    assert both.info["prompt"] == ["prompt 0", "prompt 1", None, None]


def test_concatenate_of_one_or_of_rows_is_the_identity():
    episodes = record()
    again = concatenate([episodes.select(torch.tensor([i])) for i in range(3)])
    for name in (
        "observations",
        "actions",
        "log_probs",
        "mask",
        "rewards",
        "terminated",
        "truncated",
        "valid",
        "group",
    ):
        assert torch.equal(getattr(again, name), getattr(episodes, name))
        assert torch.equal(getattr(concatenate([episodes]), name), getattr(episodes, name))


def test_concatenate_refuses_nothing_and_different_samplers():
    with pytest.raises(ValueError, match="parts is empty"):
        concatenate([])
    with pytest.raises(ValueError, match="sampled differently"):
        concatenate([record(sampling={"temperature": 1.0}), record(sampling={"temperature": 0.7})])


def test_pad_time_keeps_trailing_axes_and_dtype():
    padded = pad_time(torch.ones(2, 3, 4, 5, dtype=torch.bool), 6)
    assert padded.shape == (2, 6, 4, 5) and padded.dtype == torch.bool and not padded[:, 3:].any()
    assert pad_time(padded, 6) is padded
