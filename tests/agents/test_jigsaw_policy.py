"""The policy of puzzles: exact probabilities of orders, indifference to slots, and what it learns by GRPO and PPO."""

from itertools import permutations

import gymnasium as gym
import numpy as np
import pytest
import torch

from aligngym.agents.grpo import GRPO, GRPOConfig
from aligngym.agents.policies.clicker import Clicker, distinct
from aligngym.agents.policies.jigsaw import Jigsaw, JigsawPolicy
from aligngym.agents.policies.policy import RowNoise
from aligngym.agents.ppo import PPO, PPOConfig
from aligngym.agents.rollouts import step_through

torch.set_num_threads(1)

SIZES = {"width": 16, "stem": 8, "blocks": 1, "page_layers": 1, "layers": 1}


def small(pieces=3, *, trained=False, **options) -> JigsawPolicy:
    """A tiny policy; with ``trained`` its scores are of size one instead of 0."""
    policy = JigsawPolicy.untrained(pieces, **SIZES, **options)
    if trained:
        torch.nn.init.normal_(policy.network.places.weight, generator=torch.Generator().manual_seed(5))
    return policy


def noisy(count=1, width=96, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, width, 3), dtype=np.uint8)


def make_env(rows, pieces=3, pictures=2, **options):
    source = noisy(pictures, 32 * pieces)
    return gym.make_vec("VisualJigsaw-v0", num_envs=rows, source=source, rows=1, columns=pieces, **options)


def shown(rows, pieces=3, seed=0):
    rng = np.random.default_rng(seed)
    return {"tiles": rng.integers(0, 256, (rows, pieces, 32, 32, 3), dtype=np.uint8)}


def probabilities(policy, tiles):
    """Of every order of the pieces ``[K, h, w, 3]``, each the slots at places 1 to K."""
    orders = list(permutations(range(1, len(tiles) + 1)))
    observation = {"tiles": np.repeat(tiles[None], len(orders), 0)}
    record = policy.generate(observation, RowNoise(range(len(orders))), max_steps=1)
    record.actions[:, 0] = torch.tensor(orders)
    found = policy.evaluate_actions(record).log_probs[:, 0].exp()
    return dict(zip(orders, found.tolist(), strict=True))


@pytest.mark.parametrize("pieces", [3, 4])
def test_probabilities_of_all_orders_sum_to_one_and_are_equal_at_first(pieces) -> None:
    tiles = shown(1, pieces)["tiles"][0]
    found = probabilities(small(pieces), tiles)
    assert list(found.values()) == pytest.approx([1 / len(found)] * len(found), rel=1e-6)
    found = probabilities(small(pieces, trained=True), tiles)
    assert sum(found.values()) == pytest.approx(1, abs=1e-5)
    assert max(found.values()) > 2 / len(found)


def test_orders_are_drawn_as_often_as_they_are_likely() -> None:
    policy, tiles = small(trained=True), shown(1)["tiles"]
    record = policy.generate({"tiles": np.repeat(tiles, 4000, 0)}, RowNoise(range(4000)), max_steps=1)
    drawn = [tuple(order) for order in record.actions[:, 0].tolist()]
    expected = probabilities(policy, tiles[0])
    assert set(drawn) <= expected.keys()
    chi = sum((drawn.count(o) - 4000 * p) ** 2 / (4000 * p) for o, p in expected.items())
    assert chi < 20.5  # 0.1 % of a chi-square of 5 degrees of freedom


def test_the_deterministic_order_is_greedy_without_replacement() -> None:
    policy, observation = small(4, trained=True), shown(8, 4)
    scores, _ = policy._scores(observation)
    found = policy.act(observation, RowNoise(range(8)), deterministic=True).actions
    for row in range(8):
        left = [0, 1, 2, 3]
        for place in range(4):
            best = max(left, key=lambda slot: scores[row, place, slot])
            assert found[row, place] == best + 1
            left.remove(best)


def test_permuting_what_is_shown_permutes_the_answers() -> None:
    policy, tiles = small(4, trained=True), shown(1, 4)["tiles"][0]
    plain, moved = probabilities(policy, tiles), [2, 0, 3, 1]  # slot j now shows what slot moved[j] did
    again = probabilities(policy, tiles[moved])
    assert len({round(p, 4) for p in plain.values()}) > 12
    for order, p in plain.items():
        assert again[tuple(moved.index(slot - 1) + 1 for slot in order)] == pytest.approx(p, abs=1e-5)


def test_entropy_is_that_of_the_orders_on_average() -> None:
    policy, tiles = small(trained=True), shown(1)["tiles"]
    exact = sum(-p * np.log(p) for p in probabilities(policy, tiles[0]).values())
    record = policy.generate({"tiles": np.repeat(tiles, 3000, 0)}, RowNoise(range(3000)), max_steps=1)
    found = policy.evaluate_actions(record, entropy=True).entropy
    assert found.mean().item() == pytest.approx(exact, abs=0.03)
    found.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in policy.parameters() if p.grad is not None)
    uniform = small().evaluate_actions(record, entropy=True).entropy
    assert uniform[0].item() == pytest.approx(np.log(6), abs=1e-5)


def test_recorded_answers_are_scored_as_they_were_drawn_and_alone_as_together() -> None:
    policy, observation = small(4, trained=True), shown(6, 4)
    record = policy.generate(observation, RowNoise(range(6)), max_steps=1)
    assert torch.equal(policy.evaluate_actions(record).log_probs, record.log_probs)
    for i in range(6):
        alone = policy.act({"tiles": observation["tiles"][i : i + 1]}, RowNoise([i]))
        assert torch.equal(alone.actions[0], record.actions[i, 0])
        assert alone.log_probs[0].item() == pytest.approx(record.log_probs[i, 0].item(), abs=1e-5)


def test_pieces_are_encoded_once(monkeypatch) -> None:
    for options, calls in (({}, [3, 3]), ({"freeze_page": True}, [1, 1, 1])):
        policy, seen, tiles = small(**options), [], shown(1)["tiles"]
        original = policy.network.page.forward
        monkeypatch.setattr(policy.network.page, "forward", lambda x, f=original, s=seen: s.append(len(x)) or f(x))
        both = np.concatenate([np.repeat(tiles, 16, 0), np.repeat(tiles[:, ::-1], 16, 0)])
        for _ in range(2):
            policy.act({"tiles": both}, RowNoise(range(32)))
        assert seen == calls


def test_bad_input_is_refused() -> None:
    policy = small()
    with pytest.raises(ValueError, match="tiles has 4 pieces, but num_pieces of the policy is 3"):
        policy.act(shown(2, 4), RowNoise([0, 1]))
    with pytest.raises(ValueError, match="max_steps is 2"):
        policy.generate(shown(2), RowNoise([0, 1]), max_steps=2)
    record = policy.generate(shown(2), RowNoise([0, 1]), max_steps=1)
    record.actions[1, 0] = torch.tensor([1, 1, 2])
    with pytest.raises(ValueError, match="no permutation"):
        policy.evaluate_actions(record)
    with pytest.raises(ValueError, match="num_pieces is 1"):
        JigsawPolicy.untrained(1)
    with pytest.raises(ValueError, match="came from no files"):
        JigsawPolicy.from_spec(small(freeze_page=True).spec())


def test_steps_and_rollouts_agree() -> None:
    env, policy = make_env(6, 4), small(4, trained=True)
    seeds = [5, 5, 5, 9, 9, 9]
    whole = env.rollout(policy, noise=RowNoise(range(6)), seed=seeds)
    steps = step_through(env, policy, seeds=seeds, noise=RowNoise(range(6)))
    for name in ("actions", "log_probs", "rewards", "terminated", "truncated", "mask"):
        assert torch.equal(getattr(whole, name), getattr(steps, name)), name
    assert whole.info["completion"] == steps.info["completion"] and whole.info["order"] == steps.info["order"]


def rising(completions, **columns):
    """A dense reward of the answer alone."""
    return [float(order @ np.arange(len(order))) for order in completions]


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_every_parameter_moves_and_training_resumes_exactly(name, tmp_path) -> None:
    cls, config_class, options = {
        "grpo": (GRPO, GRPOConfig, {"group_size": 4, "kl_coef": 0.01}),
        "ppo": (PPO, PPOConfig, {"minibatch_size": 8}),
    }[name]
    config = config_class(episodes_per_iteration=16, learning_rate=1e-3, **options)

    def make():
        return cls(make_env(16, reward=rising), small(value_head=cls.needs_values), config, seed=1)

    whole, half = make(), make()
    before = {k: v.clone() for k, v in whole.policy.named_parameters()}
    whole.learn(64)
    assert [k for k, v in whole.policy.named_parameters() if torch.equal(v, before[k])] == []
    half.learn(32)
    half.save(tmp_path / "half")
    resumed = cls.load(tmp_path / "half", make_env(16, reward=rising)).learn(32)
    for key, value in resumed.policy.named_parameters():
        assert torch.equal(value, dict(whole.policy.named_parameters())[key]), key


def test_a_frozen_encoder_is_the_clickers_and_does_not_move(tmp_path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        clicker = Clicker(width=16, stem=8, blocks=1, layers=1, text_layers=1)
    clicker.save(tmp_path / "clicker")
    options = {"num_pieces": 3, "layers": 1, "seed": 4}
    free = JigsawPolicy.from_pretrained(tmp_path / "clicker", **options)
    frozen = JigsawPolicy.from_pretrained(tmp_path / "clicker", freeze_page=True, **options)
    for key, value in clicker.page.state_dict().items():
        assert torch.equal(frozen.network.page.state_dict()[key], value)
    for policy in (free, frozen):
        torch.nn.init.ones_(policy.network.places.weight[0])
    for _ in range(2):  # the second time from what was kept
        assert torch.allclose(frozen._scores(shown(4))[0], free._scores(shown(4))[0], atol=1e-5)
    config = GRPOConfig(episodes_per_iteration=16, group_size=4, learning_rate=1e-3, kl_coef=0.0)
    before = {k: v.clone() for k, v in frozen.named_parameters()}
    agent = GRPO(make_env(16, reward=rising), frozen, config).learn(32)
    agent.save(tmp_path / "agent")
    moved = {k for k, v in frozen.named_parameters() if not torch.equal(v, before[k])}
    assert moved == {k for k in before if not k.startswith("network.page.")}
    again = GRPO.load(tmp_path / "agent", make_env(16, reward=rising))
    for key, value in again.policy.named_parameters():
        assert torch.equal(value, dict(frozen.named_parameters())[key]), key
    agent.learn(32), again.learn(32)
    for key, value in again.policy.named_parameters():
        assert torch.equal(value, dict(frozen.named_parameters())[key]), key


def test_making_networks_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    policy = small(value_head=True, seed=3)
    JigsawPolicy.from_spec(policy.spec())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert isinstance(policy.network, Jigsaw) and not torch.equal(
        policy.network.enter.weight, small(seed=4).network.enter.weight
    )


def test_grpo_learns_which_order_is_right_and_not_the_other_way_round() -> None:
    """Two pictures of four tiles, whose orders differ from episode to episode; the opposite reward unlearns them."""

    def exact(reward):
        config = GRPOConfig(episodes_per_iteration=32, group_size=16, learning_rate=1e-2, kl_coef=0.0)
        agent = GRPO(make_env(32, 4, reward=reward), small(4), config, seed=0).learn(32 * 40)
        return agent.play(agent.env, 64, deterministic=False).terms["exact"].mean().item()

    def right(completions, order, **_):
        return [float((c == np.array(o)).mean()) for c, o in zip(completions, order, strict=True)]

    assert exact(right) > 0.5
    assert exact(lambda completions, order, **_: [-r for r in right(completions, order)]) < 0.05


@pytest.mark.slow
def test_nine_tiles_are_learnt_with_partial_credit_and_not_without(tmp_path) -> None:
    """The claim `visual-jigsaw` with three seeds: see aligngym/reproduce/visual_jigsaw.py."""
    from aligngym.reproduce import claim

    one = claim("visual-jigsaw")
    for seed in range(3):
        numbers = one.run(seed, one.settings, tmp_path)
        assert numbers["partial/exact"] > 0.3 and numbers["exact_only/exact"] < 0.02


def test_pieces_shown_twice_are_told_apart_by_nothing() -> None:
    """Alike pieces have alike scores: which of them stands first is a coin flip, whatever was learned."""
    policy, tiles = small(trained=True), shown(1)["tiles"][0]
    tiles[1] = tiles[0]
    found = probabilities(policy, tiles)
    assert found[1, 2, 3] == pytest.approx(found[2, 1, 3], rel=1e-5)
    assert len(distinct(torch.from_numpy(tiles))[0]) == 2


def test_the_command_line_and_agents_build_it(tmp_path) -> None:
    from aligngym.agents.build import make_policy
    from aligngym.agents.experiment import Experiment
    from aligngym.agents.policies import build_policy

    with torch.random.fork_rng(devices=[]):
        Clicker(width=16, stem=8, blocks=1, layers=1, text_layers=1).save(tmp_path)
    env, own = make_env(4, 4), {"env": "VisualJigsaw-v0", "model": str(tmp_path)}
    policy = make_policy(Experiment(**own, policy_options='{"freeze_page": true, "layers": 1}'), env, value=True)
    assert isinstance(policy, JigsawPolicy) and policy.freeze_page and policy.has_critic
    assert policy.network.config["num_pieces"] == 4 and policy.network.config["layers"] == 1
    built = build_policy(env, str(tmp_path), value=False, generator=torch.Generator().manual_seed(0))
    assert isinstance(built, JigsawPolicy) and built.network.config["num_pieces"] == 4
    with pytest.raises(ValueError, match="num_pieces"):
        make_policy(Experiment(**own, policy_options='{"num_pieces": 9}'), env)
    with pytest.raises(ValueError, match="policy_options"):
        make_policy(Experiment(**own, policy_options='{"lairs": 9}'), env)
