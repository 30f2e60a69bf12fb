"""DPO on denoisers: the published loss, noise that a pair shares, and samples that move to the preferred half-plane."""

import math

import pytest
import torch

from aligngym.agents.policies.policy import RowNoise
from aligngym.agents.preference.dpo import DPO, DPOConfig
from aligngym.agents.preference.losses import log_ratio_difference
from aligngym.agents.preference.pairs import Preferences, best_and_worst
from aligngym.agents.rollouts import collect

from ..toy_denoiser import toy_env, toy_policy

KINDS = ["diffusion", "flow"]


def on_the_right(completions, **_):
    """1 in the half-plane x > 0."""
    return [float(point[0] > 0) for point in completions]


def sampled_pairs(kind, first=0):
    """32 pairs of points of the untrained model, one on either side of the line."""
    env, group = toy_env(kind, 256, reward=on_the_right), torch.arange(32).repeat_interleave(8)
    noise = RowNoise(range(first, first + 256))
    pairs = best_and_worst(collect(env, toy_policy(kind), seeds=(group + first).tolist(), noise=noise, group=group))
    assert len(pairs) > 24
    return pairs


def flipped(pairs):
    return Preferences(pairs.rejected, pairs.chosen)


def build(kind, pairs=None, **options):
    options = {"beta": 5.0, "learning_rate": 3e-3, "episodes_per_iteration": 64, "group_size": 8} | options
    return DPO(toy_env(kind, 64, reward=on_the_right), toy_policy(kind), DPOConfig(**options), pairs=pairs)


@pytest.fixture(scope="module", params=KINDS)
def taught(request):
    """A trained agent, the agent that was taught the opposite, and an untrained one."""
    pairs = sampled_pairs(request.param)
    agents = [build(request.param, p).learn(64 * 60) for p in (pairs, flipped(pairs))]
    return request.param, *agents, build(request.param)


def mean_side(agent):
    """Mean first coordinate of samples."""
    points = agent.evaluate(episodes=256).info["image"]
    return sum(float(p[0]) for p in points) / len(points)


def test_samples_move_to_the_preferred_side(taught):
    _, right, left, untrained = taught
    shares = [agent.evaluate(episodes=256).mean for agent in (left, untrained, right)]
    assert shares[0] < 0.3 and 0.4 < shares[1] < 0.6 and shares[2] > 0.8, shares
    sides = [mean_side(agent) for agent in (left, untrained, right)]
    assert sides[0] + 0.5 < sides[1] < sides[2] - 0.5, sides


def test_held_out_pairs_are_told_apart(taught):
    kind, right, left, untrained = taught
    held_out = sampled_pairs(kind, 5000)
    assert right.compare(held_out)["accuracy"] > 0.8 and left.compare(held_out)["accuracy"] < 0.2
    assert untrained.compare(held_out)["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_sampled_pairs_teach_the_same():
    agent = build("diffusion")
    before = agent.evaluate(episodes=256).mean
    assert agent.learn(64 * 60).evaluate(episodes=256).mean > before + 0.2


def errors(policy, episodes, seeds):
    """Mean over dimensions of the squared error of the noise's prediction, by the textbook."""
    noise = RowNoise(seeds)
    step = (noise.uniform(1)[:, 0] * policy.num_steps).long()
    e, level = noise.normal((2,)), policy.grid.levels[step].float()[:, None]
    x = level.sqrt() * episodes.actions[:, -1] + (1 - level).sqrt() * e
    condition = policy.denoiser.encode([str(p) for p in episodes.info["prompt"]])
    return (policy.denoiser(x, policy.grid.times[step], condition) - e).square().mean(1)


def test_the_loss_is_that_of_the_paper():
    """-log sigma(-b/2 [(m_w - m_l) - (m_w_ref - m_l_ref)]) with one step and one noise for all four errors; b = 10."""
    agent, pairs = build("diffusion", sampled_pairs("diffusion")).learn(64 * 5), sampled_pairs("diffusion", 5000)
    seeds = list(range(len(pairs)))
    with torch.no_grad(), agent.reference.policy(agent.policy) as reference:
        (m_w, m_l), (ref_w, ref_l) = (
            [errors(policy, side, seeds) for side in (pairs.chosen, pairs.rejected)]
            for policy in (agent.policy, reference)
        )
    published = -torch.sigmoid(-10 / 2 * ((m_w - m_l) - (ref_w - ref_l))).log().mean()
    found = agent.compare(pairs, seed=0)
    assert found["loss"] == pytest.approx(published.item(), abs=1e-5) and abs(found["loss"] - math.log(2)) > 0.01
    assert found["chosen_log_likelihood"] == pytest.approx((ref_w - m_w).mean().item(), abs=1e-5)
    assert found["rejected_log_likelihood"] == pytest.approx((ref_l - m_l).mean().item(), abs=1e-5)


def test_noise_that_is_not_shared_makes_the_margin_noisier(taught):
    """The trap: another noise or step for the rejected sample, worse still for the reference, adds variance."""
    kind, agent, *_ = taught
    pairs, count = sampled_pairs(kind, 5000), 100

    @torch.no_grad()
    def variance(which):
        found = []
        for k in range(count):
            s = [range(4000 * k + 1000 * j, 4000 * k + 1000 * j + len(pairs)) for j in which]
            with agent.reference.policy(agent.policy) as reference:
                found.append(
                    log_ratio_difference(
                        agent.policy.log_likelihood(pairs.chosen, RowNoise(s[0])),
                        agent.policy.log_likelihood(pairs.rejected, RowNoise(s[1])),
                        reference.log_likelihood(pairs.chosen, RowNoise(s[2])),
                        reference.log_likelihood(pairs.rejected, RowNoise(s[3])),
                    )
                )
        return torch.stack(found).var(0).mean().item()

    shared, apart, all_apart = variance((0, 0, 0, 0)), variance((0, 1, 0, 1)), variance((0, 1, 2, 3))
    assert 1.1 * shared < apart < 0.7 * all_apart, (shared, apart, all_apart)


def test_a_falling_loss_with_both_errors_growing_is_visible():
    """Large steps: the margin grows although the chosen samples are denoised worse than by the reference."""
    agent = build("diffusion", sampled_pairs("diffusion"), learning_rate=3e-2).learn(64 * 60)
    found = agent.compare(sampled_pairs("diffusion", 5000))
    assert found["loss"] < 0.3 and found["chosen_log_likelihood"] < 0 and found["rejected_log_likelihood"] < 0, found


def test_what_is_drawn_does_not_depend_on_micro_batches():
    pairs, found = sampled_pairs("diffusion"), []
    for size in (0, 3):
        agent = build("diffusion", pairs, micro_batch_size=size, max_grad_norm=0.0)
        agent.optimizer.step = lambda *_: None
        agent.iterate()
        found.append(torch.cat([p.grad.flatten() for p in agent.parameters]))
    assert (found[0] - found[1]).norm() < 1e-5 * found[0].norm()


@pytest.mark.parametrize("given", [True, False])
def test_resume_is_exact(given, tmp_path):
    pairs = sampled_pairs("diffusion") if given else None
    straight, first = (build("diffusion", pairs, epochs=2, minibatch_size=3).learn(n) for n in (256, 128))
    first.save(tmp_path / "saved")
    env = toy_env("diffusion", 64, reward=on_the_right)
    resumed = DPO.load(tmp_path / "saved", env, policy=toy_policy("diffusion"), pairs=pairs).learn(128)
    for key, value in resumed.policy.state_dict().items():
        assert torch.equal(value, straight.policy.state_dict()[key]), key
    assert resumed.rng.bit_generator.state == straight.rng.bit_generator.state


def test_a_deterministic_sampler_will_do(tmp_path):
    """Neither sampling nor the loss needs the density of an action; there is no divergence to report then."""
    env = toy_env("flow", 64, reward=on_the_right)
    agent = DPO(env, toy_policy("flow", sampler="ode"), DPOConfig(beta=5.0, sample_from="reference"))
    result = agent.learn(64).evaluate(episodes=64)
    assert math.isnan(result.kl) and result.valid == 64
