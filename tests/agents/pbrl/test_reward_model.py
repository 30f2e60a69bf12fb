"""Reward models: what an ensemble computes, the sum that is its logit, and its file."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from aligngym.agents.pbrl.preference_transformer import PreferenceTransformer
from aligngym.agents.pbrl.reward_model import EnsembleRewardModel, RewardOutput, load_reward_model
from aligngym.agents.pbrl.segments import Segments, sample_segments

from .pendulum import pendulum


def segments(count=6, length=5, observations=3, actions=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Segments(
        torch.randn(count, length, observations, generator=generator),
        torch.randn(count, length, actions, generator=generator),
        torch.ones(count, length, dtype=torch.bool), torch.arange(count), torch.zeros(count, dtype=torch.int64),
    )  # fmt: skip


def steps(found):
    return found.observations, found.actions, found.mask


def joined(first, second):
    """Each segment of ``first`` followed by that of ``second``."""
    parts = (torch.cat([getattr(s, name) for s in (first, second)], 1) for name in ("observations", "actions", "mask"))
    return Segments(*parts, first.episode, first.start)


def ensemble(**options):
    return EnsembleRewardModel(3, 2, hidden=(16, 16), **options)


def test_the_ensemble_is_that_of_pebble():
    model = EnsembleRewardModel(39, 4)
    assert model.size == 3
    layers = [(type(layer).__name__, getattr(layer, "out_features", None)) for layer in model.nets[0]]
    hidden = [("Linear", 256), ("LeakyReLU", None)] * 3
    assert layers == [*hidden, ("Linear", 1), ("Tanh", None)]
    bound = 1 / math.sqrt(256)  # torch's own initialisation
    weights = model.nets[0][2].weight.detach()
    assert weights.abs().max() <= bound and weights.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_rewards_are_means_of_the_members_within_one():
    model, found = ensemble(), segments()
    output = model.rewards(*steps(found))
    assert output.mean.shape == output.weights.shape == (6, 5) and output.std is None
    assert output.mean.abs().max() < 1
    inputs = torch.cat([found.observations, found.actions], -1)
    by_hand = torch.stack([net(inputs)[..., 0] for net in model.nets])
    torch.testing.assert_close(output.mean, by_hand.mean(0))
    assert (by_hand.std(0) > 0).all()
    torch.testing.assert_close(model.member_scores(found), by_hand.sum(2), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.segment_scores(found), by_hand.sum(2).mean(0), rtol=1e-5, atol=1e-5)


def test_scores_of_joined_segments_add_up():
    """The logit is a sum: a mean would stay the same where a segment is repeated."""
    model, a, b = ensemble(), segments(seed=1), segments(seed=2)
    scores = model.segment_scores(a) + model.segment_scores(b)
    torch.testing.assert_close(model.segment_scores(joined(a, b)), scores, rtol=1e-5, atol=1e-5)
    assert (model.segment_scores(joined(a, a)) / model.segment_scores(a)).sub(2).abs().max() < 1e-3


def test_padding_has_no_say():
    model, found = ensemble(), segments()
    mask = found.mask.clone()
    mask[:, :2] = False
    noisy = found.observations.clone()
    noisy[:, :2] = 1e6
    padded = [Segments(o, found.actions, mask, found.episode, found.start) for o in (found.observations, noisy)]
    assert torch.equal(*(model.segment_scores(p) for p in padded))
    short = Segments(*(v[:, 2:] for v in steps(found)), found.episode, found.start)
    torch.testing.assert_close(model.segment_scores(padded[1]), model.segment_scores(short))


def test_scores_are_the_same_in_any_chunks():
    model, found = ensemble(), segments(600)
    alone = torch.cat([model.segment_scores(found.select(torch.tensor([i]))) for i in (0, 255, 256, 599)])
    torch.testing.assert_close(model.segment_scores(found)[[0, 255, 256, 599]], alone)


def test_variance_of_a_logit():
    mean, weights = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.5, 0.5, 0.0]])
    output = RewardOutput(mean, torch.tensor([[2.0, 4.0, 100.0]]), weights)
    assert output.logit.item() == 1.5
    assert output.variance.item() == 0.25 * 4 + 0.25 * 16
    assert RewardOutput(mean, None, weights).variance.item() == 0


def test_weights_come_from_the_generator_alone():
    state = torch.get_rng_state()
    models = [ensemble(generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    PreferenceTransformer(3, 2, 5, width=8, heads=2)
    assert torch.equal(torch.get_rng_state(), state)
    same, again, other = (torch.cat([p.flatten() for p in m.parameters()]) for m in models)
    assert torch.equal(same, again) and not torch.equal(same, other)
    assert torch.equal(ensemble().nets[0][0].weight, ensemble().nets[0][0].weight)


def test_standardised_inputs():
    episodes = pendulum(4, 0)
    found, _ = sample_segments(episodes, 10, 200, np.random.default_rng(0))
    found.observations[..., 1] = 7.0  # what never changes is not blown up
    model = EnsembleRewardModel(3, 1, hidden=(8,))
    assert torch.equal(model.inputs(*steps(found)), torch.cat([found.observations, found.actions], -1))
    model.standardize(found)
    inputs = model.inputs(*steps(found)).flatten(0, 1)
    torch.testing.assert_close(inputs.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(inputs.std(0, correction=0), torch.tensor([1.0, 0, 1, 1]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda g: EnsembleRewardModel(3, 2, size=2, hidden=(8, 4), generator=g),
        lambda g: PreferenceTransformer(3, 2, 5, width=8, heads=2, generator=g),
        lambda g: PreferenceTransformer(
            3, 2, 7, width=8, layers=2, heads=4, gaussian=True, attention=True, reduction="sum", generator=g
        ),
        lambda g: PreferenceTransformer(3, 2, 5, width=8, heads=2, gaussian=True, constant_std=0.5, generator=g),
    ],
)
def test_a_saved_model_is_the_same(make, tmp_path):
    model, found = make(torch.Generator().manual_seed(5)), segments()
    model.standardize(found)
    model.save(tmp_path / "model.safetensors")
    read = load_reward_model(tmp_path / "model.safetensors")
    assert type(read) is type(model) and read.spec() == model.spec() and not read.training
    assert torch.equal(read.segment_scores(found), model.segment_scores(found))
    expected, output = model.eval().rewards(*steps(found)), read.rewards(*steps(found))
    assert (output.std is None) == (expected.std is None)
    if expected.std is not None:
        assert torch.equal(output.std, expected.std)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError, match="there is no reward model"):
        load_reward_model(path)
    path.write_text("nonsense")
    with pytest.raises(ValueError, match="no safetensors file"):
        load_reward_model(path)
    tensors = dict(ensemble().state_dict())
    save_file(tensors, path)
    with pytest.raises(ValueError, match="is no reward model"):
        load_reward_model(path)
    header = {"aligngym": "reward model", "kind": "ensemble", "spec": '{"observation_dim": 3, "action_dim": 2}'}
    save_file(tensors, path, {**header, "schema": "2"})
    with pytest.raises(ValueError, match="schema 2, this version reads up to 1"):
        load_reward_model(path)
    save_file(tensors, path, {**header, "schema": "1"})  # weights of another size
    with pytest.raises(ValueError, match="holds no ensemble of this version"):
        load_reward_model(path)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="action_dim=0"):
        EnsembleRewardModel(3, 0)
    with pytest.raises(ValueError, match="size=0"):
        EnsembleRewardModel(3, 1, size=0)
    with pytest.raises(ValueError, match=r"observations have shape \(6, 5, 4\), expected \(6, 5, 3\)"):
        ensemble().segment_scores(segments(observations=4))
