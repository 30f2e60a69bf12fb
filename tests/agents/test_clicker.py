"""The clicker: its probabilities are those of its answers, rows do not disturb each other, and it learns by GRPO."""

import math
from itertools import product

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from aligngym.agents.aepo import AEPO, AEPOConfig
from aligngym.agents.grpo import GRPO, GRPOConfig
from aligngym.agents.policies.clicker import NEAR, Clicker, ClickerPolicy, cells_of, distinct, empty, near, points_of
from aligngym.agents.policies.policy import RowNoise
from aligngym.agents.ppo import PPO, PPOConfig
from aligngym.agents.rollouts import step_through

torch.set_num_threads(1)

SMALL = {"width": 16, "stem": 8, "blocks": 1, "layers": 1, "text_layers": 1}


def small(seed=0, **options) -> ClickerPolicy:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ClickerPolicy(Clicker(**SMALL), **options)


def shown(rows, height=32, width=48, seed=0):
    rng = np.random.default_rng(seed)
    texts = [rng.integers(1, 256, size=96, dtype=np.uint8) * (np.arange(96) < 5 + i) for i in range(rows)]
    return {
        "screenshot": rng.integers(0, 256, size=(rows, height, width, 3), dtype=np.uint8),
        "instruction": np.stack(texts).astype(np.uint8),
    }


def make_env(rows, **options):
    return gym.make_vec("GUIGrounding-v0", num_envs=rows, **{"split": "validation", **options})


def answers(policy, observation, count, seed=0):
    rows = {k: np.repeat(v[:1], count, 0) for k, v in observation.items()}
    return policy.generate(rows, RowNoise(range(seed, seed + count)), max_steps=1)


def test_embedded_network_is_small_and_loads() -> None:
    policy = ClickerPolicy.from_pretrained()
    assert sum(p.numel() for p in policy.parameters()) < 5_000_000
    observation = make_env(1).reset(seed=0)[0]
    assert torch.isfinite(policy.act(observation, RowNoise([0])).log_probs).all()


def test_probabilities_of_all_answers_of_a_small_map_sum_to_one() -> None:
    """Every list of at most two points that the policy may give, enumerated; and frequencies agree with them."""
    policy, observation = small(num_points=2), shown(1, width=64)
    torch.nn.init.normal_(policy.more.weight, generator=torch.Generator().manual_seed(3))
    size = (4, 8)
    lists = [(a, -1) for a in range(32)] + [(a, b) for a, b in product(range(32), repeat=2)]
    apart = [not near(torch.tensor([a]), size)[0, b] for a, b in lists]
    lists = [(a, b) for (a, b), far in zip(lists, apart, strict=True) if b < 0 or far]
    record = answers(policy, observation, len(lists))
    record.actions[:, 0] = points_of(torch.tensor(lists), size)
    log_probs = policy.evaluate_actions(record).log_probs[:, 0]
    assert log_probs.exp().sum().item() == pytest.approx(1, abs=1e-4)
    drawn = cells_of(answers(policy, observation, 4000).actions[:, 0], size)
    counts = torch.zeros(len(lists))
    for i, pair in enumerate(lists):
        counts[i] = (drawn == torch.tensor(pair)).all(1).sum()
    assert counts.sum() == 4000, "an answer was drawn that has no probability"
    expected = 4000 * log_probs.exp()
    assert (((counts - expected) ** 2) / expected.clamp(min=0.2)).mean() < 3


def test_one_point_is_a_softmax_over_cells() -> None:
    policy, observation = small(temperature=0.7), shown(3)
    maps, size = policy.maps(observation)
    decision = policy.act(observation, RowNoise([4, 5, 6]))
    cells = cells_of(decision.actions[:, 0], size)
    expected = (maps / 0.7).log_softmax(1).gather(1, cells[:, None])[:, 0]
    assert torch.allclose(decision.log_probs, expected, atol=1e-6)
    best = policy.act(observation, RowNoise([4, 5, 6]), deterministic=True)
    assert torch.equal(cells_of(best.actions[:, 0], size), maps.argmax(1))


def test_recorded_answers_are_scored_as_they_were_drawn_bit_for_bit() -> None:
    policy = small(num_points=4)
    record = policy.generate(shown(6, 96, 128), RowNoise(range(6)), max_steps=1)
    assert torch.equal(policy.evaluate_actions(record).log_probs, record.log_probs)
    lengths = (record.actions[:, 0, :, 0] >= 0).sum(1)
    assert len(lengths.unique()) > 1 and lengths.min() >= 1


def test_a_row_does_not_depend_on_the_rows_around_it() -> None:
    policy, observation = small(num_points=3), shown(5, 64, 96)
    together = policy.act(observation, RowNoise(range(5)))
    for i in range(5):
        alone = policy.act({k: v[i : i + 1] for k, v in observation.items()}, RowNoise([i]))
        assert torch.equal(alone.actions[0], together.actions[i])
        assert alone.log_probs[0].item() == pytest.approx(together.log_probs[i].item(), abs=1e-5)
    rolled = {k: np.roll(v, 2, 0) for k, v in observation.items()}
    assert torch.equal(policy.act(rolled, RowNoise([3, 4, 0, 1, 2])).actions.roll(-2, 0), together.actions)


def test_padding_of_instructions_changes_nothing() -> None:
    policy, observation = small(), shown(2)
    cut = {**observation, "instruction": observation["instruction"][:, :40]}
    assert torch.allclose(policy.maps(cut)[0], policy.maps(observation)[0], atol=1e-5)


def test_later_points_leave_out_what_is_near() -> None:
    policy = small(num_points=3)
    torch.nn.init.constant_(policy.more.bias, 9.0)
    record = answers(policy, shown(1, 96, 128), 64)
    cells = cells_of(record.actions[:, 0], (12, 16))
    assert (cells >= 0).all()
    for i, j in ((0, 1), (0, 2), (1, 2)):
        down = (cells[:, i] // 16 - cells[:, j] // 16).abs()
        right = (cells[:, i] % 16 - cells[:, j] % 16).abs()
        assert (torch.maximum(down, right) > NEAR).all()


def test_cells_and_points_are_inverse() -> None:
    cells = torch.tensor([[0, 23, -1], [5, 6, 17]])
    points = points_of(cells, (4, 6))
    assert torch.equal(cells_of(points, (4, 6)), cells)
    assert points[0, 0].tolist() == pytest.approx([0.5 / 6, 0.5 / 4])
    assert points[0, 2].tolist() == [-1, -1]
    assert cells_of(torch.tensor([[1.0, 1.0]]), (4, 6)).tolist() == [23]


def test_distinct_rows() -> None:
    rows = torch.tensor([[1, 2], [3, 4], [1, 2], [5, 6], [3, 4]])
    first, which = distinct(rows)
    assert first.tolist() == [[1, 2], [3, 4], [5, 6]] and which.tolist() == [0, 1, 0, 2, 1]


def test_groups_share_encodings(monkeypatch) -> None:
    policy, seen = small(), []
    original = policy.network.page.forward
    monkeypatch.setattr(policy.network.page, "forward", lambda images: seen.append(len(images)) or original(images))
    answers(policy, shown(1), 32)
    assert seen == [1]


def test_making_networks_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    empty(Clicker, SMALL)
    ClickerPolicy.from_spec(small(num_points=2).spec())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_files_of_another_network_are_refused(tmp_path) -> None:
    small().network.save(tmp_path)
    for name, value in Clicker.load(tmp_path).state_dict().items():
        assert torch.equal(value, small().network.state_dict()[name])
    (tmp_path / "config.json").write_text('{"width": 32}')
    with pytest.raises(ValueError, match="is no network of a clicker"):
        Clicker.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        Clicker.load(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("options", "message"), [({"num_points": 0}, "num_points=0"), ({"temperature": 0.0}, "temperature=0.0")]
)
def test_bad_options(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_other_settings_and_longer_episodes_are_refused() -> None:
    record = small().generate(shown(2), RowNoise([0, 1]), max_steps=1)
    with pytest.raises(ValueError, match="were drawn with"):
        small(temperature=0.5).evaluate_actions(record)
    with pytest.raises(ValueError, match="max_steps is 2"):
        small().generate(shown(2), RowNoise([0, 1]), max_steps=2)
    with pytest.raises(ValueError, match="num_points=2 are too many for a map of 4 x 6 cells"):
        small(num_points=2).maps(shown(1))
    with pytest.raises(ValueError, match="multiples of 16"):
        small().maps(shown(1, 40, 48))


def test_steps_and_rollouts_agree() -> None:
    env, policy = make_env(6, max_points=3), small(num_points=3)
    seeds = [5, 5, 5, 9, 9, 9]
    whole = env.rollout(policy, noise=RowNoise(range(6)), seed=seeds)
    steps = step_through(env, policy, seeds=seeds, noise=RowNoise(range(6)))
    for name in ("actions", "log_probs", "rewards", "terminated", "truncated", "mask"):
        assert torch.equal(getattr(whole, name), getattr(steps, name)), name
    assert whole.info["completion"] == steps.info["completion"]


AGENTS = {
    "grpo": (GRPO, GRPOConfig, {"kl_coef": 0.01}, 1),
    "aepo": (AEPO, AEPOConfig, {}, 4),
    "ppo": (PPO, PPOConfig, {"minibatch_size": 8}, 1),
}


@pytest.mark.parametrize("name", AGENTS)
def test_every_parameter_moves_and_training_resumes_exactly(name, tmp_path) -> None:
    cls, config_class, options, points = AGENTS[name]
    group = {"group_size": 4} if name != "ppo" else {}
    config = config_class(episodes_per_iteration=16, learning_rate=1e-3, **group, **options)

    def make():
        policy = small(num_points=points, value_head=cls.needs_values)
        # A reward that differs within every group: far more is to be learned from it than from rare hits.
        return cls(make_env(16, max_points=points, reward=leftmost), policy, config, seed=1)

    whole, half = make(), make()
    before = {k: v.clone() for k, v in whole.policy.named_parameters()}
    whole.learn(32)
    unmoved = [k for k, v in whole.policy.named_parameters() if torch.equal(v, before[k])]
    assert unmoved == []
    half.learn(16)
    half.save(tmp_path / "half")
    resumed = cls.load(tmp_path / "half", make_env(16, max_points=points, reward=leftmost)).learn(16)
    for name_, value in resumed.policy.named_parameters():
        assert torch.equal(value, dict(whole.policy.named_parameters())[name_]), name_


def leftmost(completions, **columns):
    return [1 - float(points[0, 0]) - 0.1 * len(points) for points in completions]


@pytest.mark.slow
def test_grpo_learns_and_the_opposite_reward_does_not() -> None:
    def share(reward):
        env = make_env(32, reward=reward)
        agent = GRPO(env, small(), GRPOConfig(episodes_per_iteration=32, learning_rate=3e-3, kl_coef=0.0), seed=0)
        agent.learn(32 * 12)
        played = agent.play(env, 64, deterministic=False)
        return played.actions[:, 0, 0, 0].mean().item()

    left, right = share(leftmost), share(lambda completions, **_: [float(p[0, 0]) for p in completions])
    assert left < 0.35 and right > 0.65


def test_stop_and_go_on_have_their_probabilities() -> None:
    """A head with fixed log-odds u: lists of one, two, three points occur with 1 - p, p (1 - p), p^2."""
    policy, u = small(num_points=3), 0.8
    torch.nn.init.constant_(policy.more.bias, u)
    record = answers(policy, shown(1, 96, 128), 3000)
    lengths = (record.actions[:, 0, :, 0] >= 0).sum(1)
    p = 1 / (1 + math.exp(-u))
    for length, expected in ((1, 1 - p), (2, p * (1 - p)), (3, p * p)):
        assert (lengths == length).float().mean().item() == pytest.approx(expected, abs=0.03)
    short = record.select(lengths == 1)
    maps, size = policy.maps({k: v[:1] for k, v in shown(1, 96, 128).items()})
    plain = maps.log_softmax(1)[0, cells_of(short.actions[:, 0, 0], size)]
    assert torch.allclose(short.log_probs[:, 0], plain + F.logsigmoid(torch.tensor(-u)), atol=1e-4)


def test_a_frozen_page_encoder_scores_alike_and_does_not_move(tmp_path) -> None:
    small().network.save(tmp_path / "net")
    free = ClickerPolicy.from_pretrained(tmp_path / "net")
    frozen = ClickerPolicy.from_pretrained(tmp_path / "net", freeze_page=True)
    observation = shown(5)
    for _ in range(2):  # the second time from what was kept
        assert torch.equal(frozen.maps(observation)[0], free.maps(observation)[0])
    other = shown(4, seed=1)
    assert torch.equal(frozen.maps(other)[0], free.maps(other)[0])
    config = GRPOConfig(episodes_per_iteration=16, group_size=4, learning_rate=1e-3, kl_coef=0.0)
    agent = GRPO(make_env(16, reward=leftmost), frozen, config)
    before = {k: v.clone() for k, v in frozen.named_parameters()}
    agent.learn(16).save(tmp_path / "agent")
    moved = {k for k, v in frozen.named_parameters() if not torch.equal(v, before[k])}
    assert moved == {k for k in before if not k.startswith("network.page.")}
    again = GRPO.load(tmp_path / "agent", make_env(16, reward=leftmost))
    for name, value in again.policy.named_parameters():
        assert torch.equal(value, dict(frozen.named_parameters())[name]), name


def test_a_frozen_encoder_of_no_files_says_what_to_do(tmp_path) -> None:
    spec = small(freeze_page=True).spec()
    with pytest.raises(ValueError, match="came from no files"):
        ClickerPolicy.from_spec(spec)
