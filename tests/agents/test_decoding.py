"""Sampling and batched decoding: exact against the plain Hugging Face forward, whatever the batch around a row."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from transformers import (
    DynamicCache,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.generation.logits_process import (
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from aligngym.agents.policies.decoding import Sampling, make_cache
from aligngym.agents.policies.lm import LMPolicy
from aligngym.agents.policies.policy import RowNoise, sample_categorical
from aligngym.agents.rollouts import step_through

EOS = 2
ROWS = [[1, 5, 6], [1, 7], [1, 3, 4, 8, 9, 10, 11], [1, 5, 6], [1, 7], [1, 12, 13, 14], [1, 5, 6], [1, 15]]
SEEDS = list(range(100, 108))
OPTIONS = {
    "plain": {},
    "cold": {"temperature": 0.6},
    "hot": {"temperature": 1.7},
    "suppress": {"suppress": (4, 9)},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.8},
    "cold, top_k": {"temperature": 0.7, "top_k": 6},
    "hot, top_p": {"temperature": 1.5, "top_p": 0.9},
    "suppress, cold": {"temperature": 0.7, "suppress": (5, 6)},
    "everything": {"temperature": 1.3, "top_k": 9, "top_p": 0.9, "suppress": (3, 7)},
}


def chi_square_p(seen, expected):
    """p-value of Pearson's test that counts come from their expectations."""
    statistic = torch.tensor(((seen - expected) ** 2 / expected).sum())
    return torch.special.gammaincc(torch.tensor((len(seen) - 1) / 2).double(), statistic / 2).item()


def huggingface_scores(model, row, actions, sampling):
    """Logits ``[T, V]`` of a completion by one plain forward, through Hugging Face's own processors, and the margin.

    The margin is how close, at each position, the mass before any token comes to top_p, or the gap at the top_k edge:
    below rounding, either side of the edge is right.
    """
    with torch.no_grad():
        logits = model(torch.tensor([row + actions])).logits[0, len(row) - 1 : -1].float()
    ids = torch.zeros(len(logits), 1, dtype=torch.long)
    margin = torch.full((len(logits),), math.inf)
    if sampling.suppress:
        logits = SuppressTokensLogitsProcessor(list(sampling.suppress))(ids, logits)
    if sampling.temperature != 1:
        logits = TemperatureLogitsWarper(sampling.temperature)(ids, logits)
    if sampling.top_k:
        ordered = logits.sort(-1, descending=True).values
        margin = ordered[:, sampling.top_k - 1] - ordered[:, sampling.top_k]
        logits = TopKLogitsWarper(sampling.top_k)(ids, logits)
    if sampling.top_p < 1:
        mass = logits.softmax(-1).sort(-1, descending=True).values.cumsum(-1)
        margin = torch.minimum(margin, (mass - sampling.top_p).abs().amin(-1))
        logits = TopPLogitsWarper(sampling.top_p)(ids, logits)
    return logits, margin


def assert_recorded_is_huggingface(model, sampling, out, rows=ROWS, at_edges=0):
    edges = count = 0
    for i, row in enumerate(rows):
        n = int(out.lengths[i])
        actions = out.actions[i, :n].tolist()
        logits, margin = huggingface_scores(model, row, actions, sampling)
        expected = logits.log_softmax(-1).gather(1, out.actions[i, :n, None])[:, 0]
        sure = margin > 1e-5
        edges, count = edges + int((~sure).sum()), count + n
        # float32: processors add up in different orders, and a temperature below 1 magnifies that.
        assert (out.log_probs[i, :n] - expected)[sure].abs().max() <= 1e-5 / min(1.0, sampling.temperature)
    assert edges <= at_edges and count > 2 * len(rows)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_recorded_log_probs_are_those_of_the_plain_forward(tiny_policy, observe, play, options):
    sampling = Sampling(**options)
    policy = tiny_policy(sampling=sampling)
    out = play(policy, observe(ROWS), SEEDS, max_steps=12)
    assert_recorded_is_huggingface(policy.model, sampling, out, at_edges=1 if "top_p" in options else 0)
    assert not torch.isin(out.actions[out.mask], torch.tensor(sampling.suppress, dtype=torch.long)).any()


@pytest.mark.parametrize("options", [o for o in OPTIONS.values() if not {"top_k", "top_p"} & set(o)])
def test_scoring_again_gives_the_recorded_log_probs(tiny_policy, observe, play, options):
    policy = tiny_policy(sampling=Sampling(**options))
    out = play(policy, observe(ROWS), SEEDS, max_steps=12)
    with torch.no_grad():
        again = policy.evaluate_actions(out).log_probs
    assert (again - out.log_probs).abs().max() <= 1e-5


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_embedded_model_is_exact_too(play, temperature):
    sampling, env = Sampling(temperature=temperature), gym.make_vec("LLMAlign-v0", num_envs=6)
    policy, observation = LMPolicy.from_pretrained("stories", sampling=sampling), env.reset(seed=[1, 1, 2, 3, 4, 4])[0]
    rows = [i[m > 0].tolist() for i, m in zip(observation["input_ids"], observation["attention_mask"], strict=True)]
    out = play(policy, observation, SEEDS[:6], max_steps=40, stop=env.unwrapped.terminal_actions)
    assert_recorded_is_huggingface(policy.model, sampling, out, rows)
    with torch.no_grad():
        assert (policy.evaluate_actions(out).log_probs - out.log_probs).abs().max() <= 1e-5 / min(1.0, temperature)


SIZES = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
GROUPED = {**SIZES, "num_key_value_heads": 2, "initializer_range": 0.3, "max_position_embeddings": 64}
GPT2 = {"vocab_size": 32, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.3}
GEMMA2 = {**GROUPED, "head_dim": 8, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0, "sliding_window": 4}
ARCHITECTURES = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2, resid_pdrop=0.3)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**GROUPED)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**GROUPED, head_dim=8)),
    "gemma2, softcap, sliding": lambda: Gemma2ForCausalLM(Gemma2Config(**GEMMA2)),
    "mistral, sliding": lambda: MistralForCausalLM(MistralConfig(**GROUPED, sliding_window=4)),
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, initializer_range=0.3, hidden_dropout=0.3)),
    "granite, scaled": lambda: GraniteForCausalLM(GraniteConfig(**GROUPED, logits_scaling=3.0)),
    "llama, eager": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED, attn_implementation="eager")),
    "llama, tied": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED, tie_word_embeddings=True)),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_architectures(name, observe, play):
    torch.manual_seed(0)
    policy = LMPolicy(ARCHITECTURES[name](), sampling=Sampling(temperature=1.4, suppress=(3,)))
    out = play(policy, observe(ROWS), SEEDS, max_steps=12)
    assert_recorded_is_huggingface(policy.model, policy.settings, out)
    with torch.no_grad():
        assert (policy.evaluate_actions(out).log_probs - out.log_probs).abs().max() <= 1e-5
        acted = policy.act(observe(ROWS, 20), RowNoise(SEEDS))
    assert torch.equal(acted.actions, out.actions[:, 0])
    assert (acted.log_probs - out.log_probs[:, 0]).abs().max() <= 1e-5


def test_the_cache_is_preallocated_only_where_every_layer_attends_to_everything(tiny_policy):
    assert not isinstance(make_cache(tiny_policy().model, 4), DynamicCache)
    assert isinstance(make_cache(ARCHITECTURES["mistral, sliding"](), 4), DynamicCache)
    assert isinstance(make_cache(ARCHITECTURES["gemma2, softcap, sliding"](), 4), DynamicCache)


@pytest.mark.parametrize("extra", [0, 1, 9])
def test_padding_changes_nothing(tiny_policy, observe, play, extra):
    policy = tiny_policy()
    tight, wide = (play(policy, observe(ROWS, 7 + more), SEEDS, max_steps=12) for more in (0, extra))
    assert torch.equal(tight.actions, wide.actions) and torch.equal(tight.mask, wide.mask)
    assert torch.equal(tight.log_probs, wide.log_probs)


def test_what_lies_behind_the_mask_is_not_read(tiny_policy, observe, play):
    clean, dirty = observe(ROWS, 12), observe(ROWS, 12)
    dirty["input_ids"] = torch.where(dirty["attention_mask"] == 0, 9, dirty["input_ids"])
    one, two = (play(tiny_policy(), o, SEEDS) for o in (clean, dirty))
    assert torch.equal(one.actions, two.actions) and torch.equal(one.log_probs, two.log_probs)


def test_a_row_does_not_depend_on_its_batch(tiny_policy, observe, play):
    """Rows of one length in a batch with a longer one (hence padded) and alone (hence not)."""
    policy = tiny_policy()
    together = play(policy, observe(ROWS), SEEDS, max_steps=12)
    for i, row in enumerate(ROWS):
        alone = play(policy, observe([row]), [SEEDS[i]], max_steps=12)
        n = int(alone.lengths[0])
        assert n == together.lengths[i] and torch.equal(alone.actions[0, :n], together.actions[i, :n])
        assert (alone.log_probs[0, :n] - together.log_probs[i, :n]).abs().max() <= 2e-6
        assert alone.terminated[0] == together.terminated[i]


def test_a_row_does_not_depend_on_order_or_sharing_of_prompts(tiny_policy, observe, play):
    policy, order = tiny_policy(), [5, 2, 7, 0, 1, 3, 6, 4]
    out = play(policy, observe(ROWS), SEEDS, max_steps=12)
    mixed = play(policy, observe([ROWS[i] for i in order]), [SEEDS[i] for i in order], max_steps=12)
    assert torch.equal(mixed.actions, out.actions[order]) and torch.equal(mixed.mask, out.mask[order])
    assert (mixed.log_probs - out.log_probs[order]).abs().max() <= 2e-6


def test_equal_rows_and_seeds_are_equal_and_other_seeds_differ(tiny_policy, observe, play):
    out = play(tiny_policy(), observe([ROWS[2]] * 8), [1, 1, 2, 3, 4, 5, 6, 1], max_steps=12)
    assert torch.equal(out.actions[0], out.actions[1]) and torch.equal(out.actions[0], out.actions[7])
    assert len({tuple(a) for a in out.actions.tolist()}) > 3


def test_rows_that_end_leave_the_batch_and_the_others_go_on_alike(tiny_policy, observe, play):
    """Compaction: the model is run on fewer and fewer rows, and no row's result changes."""
    policy, sizes = tiny_policy(), []
    policy.model.model.embed_tokens.register_forward_hook(lambda m, args, out: sizes.append(len(args[0])))
    rows = [ROWS[i % 8] for i in range(32)]
    out = play(policy, observe(rows), list(range(32)), max_steps=20)
    assert sizes[0] == 5, "equal prompts are prefilled once"
    assert sizes[1] <= 32 and sizes[-1] < sizes[1] and sizes[1:] == sorted(sizes[1:], reverse=True)
    assert len(sizes) == int(out.lengths.max())
    endless = play(policy, observe(rows), list(range(32)), max_steps=20, stop=())
    assert (endless.lengths == 20).all() and endless.truncated.all()
    steps = out.mask.shape[1]
    assert torch.equal(endless.actions[:, :steps] * out.mask, out.actions)
    assert (endless.log_probs[:, :steps] - out.log_probs)[out.mask].abs().max() <= 2e-6


def test_episodes_include_the_end_token_and_nothing_after_it(tiny_policy, observe, play):
    out = play(tiny_policy(), observe(ROWS * 8), list(range(64)), max_steps=10)
    assert out.terminated.any() and out.truncated.any()
    assert torch.equal(out.terminated, ~out.truncated)
    for i in range(64):
        n = int(out.lengths[i])
        assert out.mask[i, :n].all() and not out.mask[i, n:].any()
        assert (out.actions[i, n:] == 0).all() and (out.log_probs[i, n:] == 0).all()
        assert (out.actions[i, : n - 1] != EOS).all()
        assert (out.actions[i, n - 1] == EOS) == out.terminated[i]
        assert n == 10 or out.terminated[i]
    assert out.mask.shape[1] == out.lengths.max()


def test_one_step_and_every_stop_token(tiny_policy, observe, play):
    one = play(tiny_policy(), observe(ROWS), SEEDS, max_steps=1)
    assert one.actions.shape == (8, 1) and one.mask.all()
    every = play(tiny_policy(), observe(ROWS), SEEDS, max_steps=5, stop=range(16))
    assert every.terminated.all() and torch.equal(every.actions, one.actions)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.5, "suppress": (4, 9)}])
def test_deterministic_is_greedy_generate(tiny_policy, observe, play, options):
    policy = tiny_policy(sampling=Sampling(**options))
    out = play(policy, observe(ROWS), SEEDS, max_steps=12, deterministic=True)
    for i, row in enumerate(ROWS):
        suppress = list(options.get("suppress", ())) or None
        greedy = policy.model.generate(
            torch.tensor([row]), attention_mask=torch.ones(1, len(row), dtype=torch.long), do_sample=False,
            max_new_tokens=12, eos_token_id=EOS, pad_token_id=0, suppress_tokens=suppress,
        )[0, len(row) :].tolist()  # fmt: skip
        assert out.actions[i, : out.lengths[i]].tolist() == greedy


def test_acting_step_by_step_is_generating(tiny_policy, observe, play):
    policy = tiny_policy(sampling=Sampling(temperature=1.3, suppress=(4,)))
    out, noise = play(policy, observe(ROWS), SEEDS, max_steps=8, stop=()), RowNoise(SEEDS)
    rows = [list(row) for row in ROWS]
    for t in range(8):
        decision = policy.act(observe(rows, 30), noise)
        assert torch.equal(decision.actions, out.actions[:, t])
        assert (decision.log_probs - out.log_probs[:, t]).abs().max() <= 2e-6
        for row, action in zip(rows, decision.actions.tolist(), strict=True):
            row.append(action)


def test_both_faces_of_the_environment_agree_on_the_embedded_model():
    policy = LMPolicy.from_pretrained("stories")
    env = gym.make_vec("LLMAlign-v0", num_envs=6, max_new_tokens=12, reward="sentiment")
    seeds = [5, 5, 5, 6, 6, 7]
    whole = env.rollout(policy, noise=RowNoise(SEEDS[:6]), seed=seeds)
    steps = step_through(env, policy, seeds=seeds, noise=RowNoise(SEEDS[:6]))
    for name in ("actions", "mask", "terminated", "truncated", "rewards"):
        assert torch.equal(getattr(whole, name), getattr(steps, name)), name
    assert (whole.log_probs - steps.log_probs).abs().max() <= 1e-5
    assert whole.info["completion"] == steps.info["completion"]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_first_tokens_are_drawn_with_the_probabilities_that_are_recorded(tiny_policy, observe, play, options):
    sampling = Sampling(**options)
    policy, row, count = tiny_policy(sampling=sampling), ROWS[2], 4000
    out = play(policy, observe([row] * count), list(range(count)), max_steps=1)
    probs = huggingface_scores(policy.model, row, [0], sampling)[0][0].softmax(-1).double().numpy()
    seen = np.bincount(out.actions[:, 0].numpy(), minlength=16)
    assert (seen[probs == 0] == 0).all()
    often = probs * count >= 5
    observed = np.append(seen[often], seen[~often].sum())
    expected = np.append(probs[often], probs[~often].sum()) * count
    keep = expected > 0
    assert keep.sum() < 2 or chi_square_p(observed[keep], expected[keep]) > 1e-3


def test_sample_categorical_frequencies():
    logits = torch.tensor([0.5, -1.0, 2.0, -math.inf, 0.0, 1.0, -math.inf])
    uniform = torch.from_numpy(np.random.default_rng(0).random(20_000))
    seen = np.bincount(sample_categorical(logits.expand(20_000, -1), uniform).numpy(), minlength=7)
    probs = logits.double().softmax(-1).numpy()
    assert (seen[probs == 0] == 0).all()
    assert chi_square_p(seen[probs > 0], probs[probs > 0] * 20_000) > 1e-3


def test_sample_categorical_at_the_edges_of_the_support():
    below_one = float(np.nextafter(1.0, 0))
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]]).expand(4, -1)
    drawn = sample_categorical(logits, torch.tensor([0.0, 0.499999, 0.5, below_one], dtype=torch.float64))
    assert drawn.tolist() == [1, 1, 3, 3]
    only = torch.full((2, 100_000), -math.inf)
    only[:, 70_000] = -300.0
    assert sample_categorical(only, torch.tensor([0.0, below_one], dtype=torch.float64)).tolist() == [70_000] * 2
    rare = torch.tensor([[0.0, -200.0, 0.0]]).expand(2, -1)  # e^-200 underflows in the sum, not in the order
    assert sample_categorical(rare, torch.tensor([0.49, 0.51], dtype=torch.float64)).tolist() == [0, 2]


def test_top_p_keeps_the_smallest_set_that_reaches_it_and_always_one():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    kept = {p: torch.isfinite(Sampling(top_p=p).logits(logits)).sum().item() for p in (0.01, 0.49, 0.6, 0.81, 0.96)}
    assert kept == {0.01: 1, 0.49: 1, 0.6: 2, 0.81: 3, 0.96: 4}
    assert torch.isfinite(Sampling(top_k=2).logits(logits)).tolist() == [True, True, False, False]
    assert torch.equal(Sampling(top_k=99).logits(logits), logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"temperature": -1.0}, "deterministic=True"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"temperature": math.inf}, "temperature=inf"),
        ({"top_k": -1}, "top_k=-1"),
        ({"top_p": 0.0}, r"top_p=0.0: must lie in \(0, 1\]"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"top_p": math.nan}, "top_p=nan"),
    ],
)
def test_bad_sampling_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**options)


def test_only_full_support_can_be_trained():
    assert Sampling(temperature=0.5, suppress=(1,)).trainable
    assert not Sampling(top_k=3).trainable and not Sampling(top_p=0.9).trainable


def test_noise_streams_depend_on_their_seed_alone():
    alone, batch = RowNoise([7]), RowNoise([3, 7, 7])
    first = alone.uniform(6)
    pieces = torch.cat([batch.uniform(2), batch.uniform(4)], 1)
    assert torch.equal(pieces[1:2], first) and torch.equal(pieces[1], pieces[2])
    assert not torch.equal(pieces[0], pieces[1])
    assert first.dtype == torch.float64 and ((first >= 0) & (first < 1)).all()
    assert RowNoise([1, 2]).normal((3, 2)).shape == (2, 3, 2)
