"""TempFlow-GRPO: one step draws noise, its decisions alone are credited, and the sampler comes back."""

import pytest
import torch

from aligngym.agents.rollouts import collect

from .toy_denoiser import in_first_mode, toy_agent


def played(agent):
    """The batch that the first update of an iteration reads, the sampling it was played with, and the metrics."""
    seen, update = [], agent.update

    def spy(batch):
        seen.append((batch, agent.policy.sampling))
        return update(batch)

    agent.update = spy
    metrics = agent.iterate()[1]
    agent.update = update
    return *seen[0], metrics


@pytest.mark.parametrize("seed", range(3))
def test_groups_part_at_the_branching_step_and_nowhere_before(seed):
    agent = toy_agent("tempflow-grpo", seed=seed)
    batch, sampling, metrics = played(agent)
    k, episodes = int(metrics["train/branch_step"]), batch.episodes
    assert sampling["stochastic_steps"] == [k]
    for number in range(4):
        group = episodes.actions[episodes.group == number]
        assert torch.equal(group[:, :k], group[:1, :k].expand(4, -1, -1))
        assert len({tuple(x) for x in group[:, k].tolist()}) == 4
    assert torch.equal(episodes.mask.nonzero()[:, 1].unique(), torch.tensor([k]))


def test_the_sampler_comes_back_also_after_an_error():
    agent = toy_agent("tempflow-grpo", policy={"noise_level": 0.5})
    before, table = agent.policy.sampling, agent.policy.table
    agent.iterate()
    assert agent.policy.sampling == before and before["stochastic_steps"] is None
    with agent.reference.policy(agent.policy) as reference:
        assert reference is not agent.policy and reference.sampling == before
    agent.update = lambda batch: 1 / 0
    with pytest.raises(ZeroDivisionError):
        agent.iterate()
    assert agent.policy.sampling == before and torch.equal(agent.policy.table.std, table.std)


def test_every_noisy_step_gets_its_turn_and_no_other():
    agent = toy_agent("tempflow-grpo", rows=4, policy={"sampler": "cps"})
    assert agent.policy.table.std[-1] == 0  # of this sampler the last step is deterministic
    agent.update = lambda batch: {}
    steps = {agent.iterate()[1]["train/branch_step"] for _ in range(60)}
    assert steps == set(range(9))


def test_a_policy_s_own_choice_of_steps_is_kept():
    agent = toy_agent("tempflow-grpo", rows=4, policy={"stochastic_steps": (2, 5)})
    agent.update = lambda batch: {}
    assert {agent.iterate()[1]["train/branch_step"] for _ in range(12)} == {2, 5}
    assert agent.policy.stochastic_steps == (2, 5)


def test_branches_without_noise_coincide_and_say_nothing():
    agent = toy_agent("tempflow-grpo", policy={"noise_level": 1e-7})
    assert (played(agent)[0].advantages == 0).all()
    with pytest.raises(ValueError, match=r"no step of sampler 'flow_sde' with noise_level=0\.0 draws noise"):
        toy_agent("tempflow-grpo", policy={"noise_level": 0.0}).iterate()


def test_without_branching_all_steps_are_trained_with_their_weights():
    batch, sampling, metrics = played(toy_agent("tempflow-grpo", branching=False))
    assert sampling["stochastic_steps"] is None and batch.episodes.mask.all() and "train/branch_step" not in metrics


def test_early_branches_decide_more():
    """Of a mode's indicator, within groups: noise at an early step moves a point into another mode, late noise none."""
    agent = toy_agent("tempflow-grpo", rows=256, reward=in_first_mode)
    spread = []
    for k in (1, 4, 7, 9):
        with agent._noise_at(k):
            seeds = [i // 8 for i in range(256)]
            noise = agent.row_noise(256)
            episodes = collect(agent.env, agent.policy, seeds=seeds, noise=noise, group=torch.tensor(seeds))
        spread.append(episodes.returns.view(32, 8).std(1).mean().item())
    assert spread[0] > 3 * spread[2] and spread[1] > 3 * spread[2] and spread[3] == 0, spread
