"""Segments and preferences: where they are cut, what they hold and what not, and their file."""

import dataclasses

import numpy as np
import pytest
import safetensors.torch
import torch

from aligngym.agents.offline.robomimic import read_robomimic
from aligngym.agents.pbrl.dataset import PreferenceDataset
from aligngym.agents.pbrl.segments import Segments, cut_segments, sample_segments
from aligngym.assets import robot_data_path
from aligngym.trajectories import Trajectories

LENGTHS = (6, 2, 9)


def episodes():
    """Observations 100 * episode + step, actions 1000 more, rewards a tenth of them."""
    count, longest = len(LENGTHS), max(LENGTHS)
    lengths = torch.tensor(LENGTHS)
    steps = torch.arange(longest + 1)
    states = 100.0 * torch.arange(count)[:, None] + steps
    mask = steps[:-1] < lengths[:, None]
    zero, flags = torch.zeros(count, longest), torch.zeros(count, dtype=torch.bool)
    return Trajectories(
        observations=torch.stack([states, -states], 2), actions=(states[:, :-1] + 1000)[..., None] * mask[..., None],
        log_probs=zero, mask=mask, rewards=states[:, :-1] / 10 * mask, terminated=flags, truncated=~flags, valid=~flags,
        group=torch.arange(count),
    )  # fmt: skip


def check(segments, rewards, length):
    expected = 100.0 * segments.episode[:, None] + segments.start[:, None] + torch.arange(length)
    assert torch.equal(segments.observations, torch.stack([expected, -expected], 2))
    assert torch.equal(segments.actions[..., 0], expected + 1000)
    torch.testing.assert_close(rewards, expected / 10)
    assert segments.mask.all()
    assert all(s + length <= LENGTHS[e] for e, s in zip(segments.episode, segments.start, strict=True))


@pytest.mark.parametrize(("length", "stride"), [(3, 1), (3, 2), (1, 4), (9, 1)])
def test_all_segments_that_fit_are_cut_in_order(length, stride):
    segments, rewards = cut_segments(episodes(), length, stride)
    check(segments, rewards, length)
    found = list(zip(segments.episode.tolist(), segments.start.tolist(), strict=True))
    assert found == [(e, s) for e, n in enumerate(LENGTHS) for s in range(0, n - length + 1, stride)]


def test_places_are_equally_likely():
    """Episodes of 6 and 9 steps have 4 and 7 places for 3 steps; drawing the episode first would favour the shorter."""
    segments, rewards = sample_segments(episodes(), 3, 11_000, np.random.default_rng(0))
    check(segments, rewards, 3)
    counts = torch.bincount(segments.episode * 10 + segments.start, minlength=30)
    assert sorted(counts.nonzero()[:, 0].tolist()) == [0, 1, 2, 3, *range(20, 27)]
    observed = counts[counts > 0].double()
    assert ((observed - 1000) ** 2 / 1000).sum() < 29.6  # chi-square with 10 degrees of freedom, 0.001
    again, _ = sample_segments(episodes(), 3, 11_000, np.random.default_rng(0))
    assert torch.equal(again.start, segments.start)


@pytest.mark.parametrize(
    ("arguments", "message"), [((0, 5), "length=0"), ((10, 5), r"length=10.*9"), ((3, 0), "count=0")]
)
def test_what_cannot_be_drawn(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_segments(episodes(), *arguments, np.random.default_rng(0))


def test_short_episodes_are_padded_in_front_if_asked_for():
    """The one of 2 steps is one place beside the 2 and 5 of the others, and ends with its last step."""
    segments, rewards = cut_segments(episodes(), 5, 1, pad=True)
    found = list(zip(segments.episode.tolist(), segments.start.tolist(), strict=True))
    assert found == [(0, 0), (0, 1), (1, 0), *((2, s) for s in range(5))]
    assert segments.mask.tolist() == [[e != 1 or i > 2 for i in range(5)] for e, _ in found]
    assert segments.observations[2].tolist() == [[0, 0]] * 3 + [[100, -100], [101, -101]]
    assert segments.actions[2, :, 0].tolist() == [0, 0, 0, 1100, 1101]
    torch.testing.assert_close(rewards[2], torch.tensor([0, 0, 0, 10, 10.1]))
    whole, _ = cut_segments(episodes(), 5, 1)
    full = segments.select(segments.mask.all(1))
    assert all(torch.equal(getattr(whole, f.name), getattr(full, f.name)) for f in dataclasses.fields(Segments))
    drawn, _ = sample_segments(episodes(), 5, 8000, np.random.default_rng(0), pad=True)
    counts = torch.bincount(drawn.episode * 10 + drawn.start)
    observed = counts[counts > 0].double()
    assert len(observed) == 8
    assert ((observed - 1000) ** 2 / 1000).sum() < 24.4  # chi-square with 7 degrees of freedom, 0.001


def test_what_comes_after_an_episode_is_never_taken():
    """Padding of the record is poisoned; so is the observation after the last action of an episode."""
    played = episodes()
    after = ~torch.cat([played.mask, torch.zeros(3, 1, dtype=torch.bool)], 1)
    poisoned = dataclasses.replace(
        played,
        observations=played.observations.masked_fill(after[..., None], torch.nan),
        actions=played.actions.masked_fill(~played.mask[..., None], torch.nan),
        rewards=played.rewards.masked_fill(~played.mask, torch.nan),
    )
    for length in (1, 2, 5, 9, 12):
        segments, rewards = cut_segments(poisoned, length, 1, pad=True)
        assert all(v.isfinite().all() for v in (segments.observations, segments.actions, rewards))


def test_a_learner_sees_no_rewards():
    names = {f.name for f in dataclasses.fields(Segments)} | {f.name for f in dataclasses.fields(PreferenceDataset)}
    assert names == {"observations", "actions", "mask", "episode", "start", "segments", "pairs", "labels"}
    played = read_robomimic(robot_data_path("drawer-open"))
    segments, _ = sample_segments(played, 25, 4, np.random.default_rng(0))
    assert segments.observations.shape == (4, 25, 39) and segments.actions.shape == (4, 25, 4)
    other = dataclasses.replace(played, rewards=torch.full_like(played.rewards, 7.0))
    blind, _ = sample_segments(other, 25, 4, np.random.default_rng(0))
    assert all(torch.equal(getattr(segments, n), getattr(blind, n)) for n in ("observations", "actions", "mask"))


def preferences():
    segments, _ = cut_segments(episodes(), 3, 2)
    return PreferenceDataset(segments=segments, pairs=torch.tensor([[0, 1], [5, 2]]), labels=torch.tensor([1.0, 0.25]))


def test_the_file_gives_back_everything(tmp_path):
    here = preferences()
    there = PreferenceDataset.load(here.save(tmp_path / "deep" / "p.safetensors"))
    assert torch.equal(there.pairs, here.pairs) and torch.equal(there.labels, here.labels)
    for field in dataclasses.fields(Segments):
        one, two = getattr(there.segments, field.name), getattr(here.segments, field.name)
        assert torch.equal(one, two) and one.dtype == two.dtype
    assert len(there.select(torch.tensor([1]))) == 1 and there.select(torch.tensor([1])).labels.tolist() == [0.25]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["p.safetensors"]


def test_other_files_are_refused(tmp_path):
    from safetensors.torch import save_file

    path = preferences().save(tmp_path / "p.safetensors")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="no intact safetensors"):
        PreferenceDataset.load(path)
    for metadata in ({"format": "pt"}, None):
        save_file({"weight": torch.zeros(3)}, path, metadata)
        with pytest.raises(ValueError, match=r"without preferences: it holds \['weight'\]"):
            PreferenceDataset.load(path)
    tensors = safetensors.torch.load(data)
    ours = {"format": "aligngym-preferences", "schema": "1"}
    for change, message in (
        ({"labels": torch.tensor([2.0, 0.0])}, "p.safetensors: labels lie outside"),
        ({"labels": tensors["labels"].double()}, "torch.float64.*expected torch.int64 and torch.float32"),
        ({"pairs": tensors["pairs"].float()}, "expected torch.int64 and torch.float32"),
        ({"mask": tensors["mask"].float()}, "mask has dtype torch.float32, expected torch.bool"),
        ({"start": tensors["start"][:1].clone()}, "start has shape"),
        ({"rewards": torch.zeros(2)}, r"holds .*'rewards'.*expected"),
    ):
        save_file({**tensors, **change}, path, ours)
        with pytest.raises(ValueError, match=message):
            PreferenceDataset.load(path)
    save_file(tensors, path, {"format": "aligngym-preferences"})
    with pytest.raises(ValueError, match="schema None"):
        PreferenceDataset.load(path)
    path.write_bytes(data.replace(b'"schema":"1"', b'"schema":"9"'))
    with pytest.raises(ValueError, match="schema 9"):
        PreferenceDataset.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([1.0, 1.5])}, "outside"),
        ({"labels": torch.tensor([1.0, torch.nan])}, "NaN"),
        ({"labels": torch.tensor([1.0])}, "shapes"),
        ({"pairs": torch.tensor([[0, 1], [0, 99]])}, "outside"),
        ({"pairs": torch.tensor([[0, 1], [0, -1]])}, "outside"),
    ],
)
def test_what_is_no_preference(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(preferences(), **change)
