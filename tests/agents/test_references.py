"""The policy that a divergence is measured from: initial, moving, soup, none; with and without adapters."""

import pytest
import torch

from aligngym.agents.grpo import GRPO, GRPOConfig
from aligngym.agents.policies.control import TabularPolicy
from aligngym.agents.policies.lm import LoRA
from aligngym.agents.references import Reference, average

COMMON = {"episodes_per_iteration": 16, "group_size": 4, "kl_coef": 0.01, "learning_rate": 0.1}


def bandit(**options):
    return GRPO("TabularBandit-v0", TabularPolicy(4, 8, value=False), GRPOConfig(**COMMON | options))


def table(agent):
    with agent.reference.policy(agent.policy) as policy:
        return policy.logits.detach().clone()


def test_the_initial_reference_never_moves_and_learns_nothing():
    agent = bandit()
    agent.learn(64)
    assert (table(agent) == 0).all() and (agent.policy.logits != 0).any()
    with agent.reference.policy(agent.policy) as policy:
        assert policy is not agent.policy and not any(p.requires_grad for p in policy.parameters())


@pytest.mark.parametrize("mix", [1.0, 0.25])
def test_a_moving_reference_follows_every_so_many_iterations(mix):
    agent, expected = bandit(reference="moving", reference_every=3, reference_mix=mix), torch.zeros(4, 8)
    for iteration in range(1, 8):
        agent.learn(16)
        if iteration % 3 == 0:
            expected = expected.lerp(agent.policy.logits.detach(), mix)
        torch.testing.assert_close(table(agent), expected, atol=1e-7, rtol=0)
    assert (expected != 0).any()


def test_a_soup_is_the_mean_of_the_initial_policy_and_the_checkpoints(tmp_path):
    tables = []
    for seed in (1, 2):
        agent = GRPO("TabularBandit-v0", TabularPolicy(4, 8, value=False), GRPOConfig(**COMMON), seed=seed)
        agent.learn(32)
        agent.save(tmp_path / str(seed))
        tables.append(agent.policy.logits.detach())
    folders = (str(tmp_path / "1"), str(tmp_path / "2"))
    agent = bandit(reference="soup", reference_soup=folders)
    torch.testing.assert_close(table(agent), (tables[0] + tables[1]) / 3)
    agent.learn(32)
    torch.testing.assert_close(table(agent), (tables[0] + tables[1]) / 3)


def test_a_soup_of_another_architecture_or_of_nothing_is_refused(tmp_path):
    GRPO("TabularBandit-v0", TabularPolicy(4, 8), GRPOConfig(**COMMON)).save(tmp_path / "critic")
    with pytest.raises(ValueError, match="same parameters"):
        bandit(reference="soup", reference_soup=(str(tmp_path / "critic"),))
    with pytest.raises(ValueError, match="is no checkpoint"):
        bandit(reference="soup", reference_soup=(str(tmp_path / "nothing"),))


def test_average():
    half = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(4.0, dtype=torch.bfloat16)}
    states = [half, {"a": torch.zeros(2), "b": torch.tensor(0.0)}]
    mean = average(states)
    assert mean["a"].tolist() == [0.5, 1.0] and mean["b"].item() == 2 and mean["b"].dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"\['b'\]"):
        average([states[0], {"a": torch.zeros(2)}, states[1]])


def test_no_reference_costs_no_pass_and_no_copy():
    agent = bandit(reference="none", kl_coef=0)
    _, metrics = agent.iterate()
    assert agent.reference.tensors() == {} and not any("kl" in k and k != "train/approx_kl" for k in metrics)
    assert len(agent.evaluate(episodes=16).divergences) == 0


def test_adapters_are_their_own_reference(tiny_policy, tiny_env):
    agent = GRPO(tiny_env(16), tiny_policy(lora=LoRA(rank=2)), GRPOConfig(**COMMON | {"learning_rate": 0.02}))
    assert agent.reference.tensors() == {}
    initial = tiny_policy()
    agent.learn(48)
    episodes = agent.collect()
    with agent.reference.policy(agent.policy) as policy:
        assert policy is agent.policy
        scored = agent.score(policy, episodes).log_probs
    torch.testing.assert_close(scored, initial.evaluate_actions(episodes).log_probs, atol=1e-5, rtol=0)
    assert agent.divergences(episodes).mean() > 0.01


def test_a_moving_reference_of_adapters_is_a_copy(tiny_policy):
    policy = tiny_policy(lora=LoRA(rank=2))
    reference = Reference(policy, "moving")
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    with reference.policy(policy) as frozen:
        before = {k: v.clone() for k, v in frozen.named_parameters()}
        reference.step(policy, 1, 1, 1.0)
        moved = [k for k, v in frozen.named_parameters() if not torch.equal(v, before[k])]
    assert moved and all("lora_" in name for name in moved)
    assert all(p.requires_grad for n, p in policy.named_parameters() if "lora_" in n)
