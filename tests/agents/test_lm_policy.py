"""The language-model policy: scoring, critic, adapters, precision, and its way to disk and back."""

import copy
import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from aligngym.agents.policies import lm
from aligngym.agents.policies.decoding import Sampling
from aligngym.agents.policies.lm import LMPolicy, LoRA, left_padded
from aligngym.agents.policies.policy import RowNoise

ROWS = [[1, 5, 6], [1, 7], [1, 3, 4, 8, 9, 10, 11], [1, 12, 13, 14]]
SEEDS = [10, 11, 12, 13]
SMALL = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def episodes(tiny_policy, observe, play):
    return play(tiny_policy(), observe(ROWS), SEEDS, max_steps=10)


def gradients(policy):
    return {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}


def objective(policy, episodes, entropy=False):
    """A number that depends on every score, and its gradient."""
    policy.zero_grad()
    now = policy.evaluate_actions(episodes, entropy=entropy)
    weights = torch.linspace(-1, 1, now.log_probs.numel()).reshape(now.log_probs.shape)
    total = (now.log_probs * weights).sum() + 0.1 * (now.entropy * weights).sum()
    if now.values is not None:
        total = total + (now.values[:, :-1] * episodes.mask * weights).sum()
    total.backward()
    return now, gradients(policy)


def assert_close(one, two, tolerance=1e-5):
    assert one.keys() == two.keys()
    for name in one:
        assert (one[name] - two[name]).norm() <= tolerance * max(1e-3, one[name].norm().item()), name


def test_gradients_are_those_of_the_plain_forward_row_by_row(tiny_policy, episodes):
    policy = tiny_policy()
    now, ours = objective(policy, episodes)
    policy.zero_grad()
    weights, total = torch.linspace(-1, 1, now.log_probs.numel()).reshape(now.log_probs.shape), 0.0
    for i, row in enumerate(ROWS):
        n = int(episodes.lengths[i])
        actions = episodes.actions[i, :n]
        logits = policy.model(torch.tensor([row + actions.tolist()])).logits[0, len(row) - 1 : -1]
        total = total + (logits.log_softmax(-1).gather(1, actions[:, None])[:, 0] * weights[i, :n]).sum()
    total.backward()
    assert_close(ours, gradients(policy))


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("limit", [1, 50, 16 * 7])
def test_the_head_in_pieces_is_the_head(tiny_policy, episodes, monkeypatch, limit, entropy):
    policy = tiny_policy(sampling=Sampling(temperature=0.8, suppress=(4,)))
    episodes = copy.copy(episodes)
    episodes.sampling = policy.sampling
    whole, gradient = objective(policy, episodes, entropy)
    monkeypatch.setattr(lm, "CHUNK_LOGITS", limit)
    pieces, same_gradient = objective(policy, episodes, entropy)
    torch.testing.assert_close(pieces.log_probs, whole.log_probs, atol=1e-6, rtol=0)
    torch.testing.assert_close(pieces.entropy, whole.entropy, atol=1e-6, rtol=0)
    assert_close(same_gradient, gradient)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.6}, {"suppress": (3, 4)}])
def test_entropy_is_that_of_the_distribution_that_is_sampled(tiny_policy, observe, play, options):
    policy = tiny_policy(sampling=Sampling(**options))
    out = play(policy, observe(ROWS), SEEDS, max_steps=6)
    entropy = policy.evaluate_actions(out, entropy=True).entropy
    for i, row in enumerate(ROWS):
        n = int(out.lengths[i])
        logits = policy.model(torch.tensor([row + out.actions[i, :n].tolist()])).logits[0, len(row) - 1 : -1].double()
        probs = logits.div(options.get("temperature", 1.0)).softmax(-1)
        probs[:, list(options.get("suppress", ()))] = 0
        probs = probs / probs.sum(-1, keepdim=True)
        expected = [-sum(p * math.log(p) for p in row if p > 0) for row in probs.tolist()]
        assert entropy[i, :n].tolist() == pytest.approx(expected, abs=1e-5)
        assert (entropy[i, n:] == 0).all()
    assert (policy.evaluate_actions(out).entropy == 0).all()
    _, gradient = objective(policy, out, entropy=True)
    assert all(torch.isfinite(g).all() for g in gradient.values())


def test_padding_of_prompts_and_of_time_changes_no_score_and_no_gradient(tiny_policy, episodes):
    policy = tiny_policy(value_head=True)
    torch.nn.init.normal_(policy.value_head.weight, generator=torch.Generator().manual_seed(0))
    wide = copy.copy(episodes)
    wide.observations = {k: torch.nn.functional.pad(v, (0, 5)) for k, v in episodes.observations.items()}
    for name in ("actions", "log_probs", "mask", "rewards"):
        setattr(wide, name, torch.nn.functional.pad(getattr(episodes, name), (0, 4)))
    steps = episodes.mask.shape[1]
    one, two = policy.evaluate_actions(episodes), policy.evaluate_actions(wide)
    torch.testing.assert_close(two.log_probs[:, :steps], one.log_probs, atol=2e-6, rtol=0)
    reached = torch.cat([torch.ones(4, 1, dtype=torch.bool), episodes.mask], 1)
    torch.testing.assert_close(two.values[:, : steps + 1][reached], one.values[reached], atol=2e-6, rtol=0)
    assert (two.log_probs[:, steps:] == 0).all()
    both = []
    for now in (one, two):
        policy.zero_grad()
        (now.log_probs.sum() + now.values[:, :steps].mul(episodes.mask).sum()).backward()
        both.append(gradients(policy))
    assert_close(*both)


def test_a_value_is_that_of_the_state_before_the_action(tiny_policy, episodes):
    """Column t does not see action t: changing the actions from t on leaves the values up to column t."""
    policy = tiny_policy(value_head=True)
    torch.nn.init.normal_(policy.value_head.weight, generator=torch.Generator().manual_seed(0))
    values = policy.evaluate_actions(episodes).values
    assert values.shape == (4, episodes.mask.shape[1] + 1)
    for t in (0, 1, 2):
        other = copy.copy(episodes)
        other.actions = episodes.actions.clone()
        other.actions[:, t:] = (other.actions[:, t:] + 5) % 16
        changed = policy.evaluate_actions(other).values
        torch.testing.assert_close(changed[:, : t + 1], values[:, : t + 1], atol=2e-6, rtol=0)
        assert ((changed - values)[:, t + 1].abs() > 1e-4)[episodes.mask[:, t]].all()
    for i, row in enumerate(ROWS):
        n = int(episodes.lengths[i])
        hidden = policy.model.model(torch.tensor([row + episodes.actions[i, :n].tolist()]))[0][0, len(row) - 1 :]
        torch.testing.assert_close(policy.value_head(hidden)[:, 0], values[i, : n + 1], atol=1e-5, rtol=0)


def test_value_head_starts_at_zero(tiny_policy, episodes):
    policy = tiny_policy(value_head=True)
    assert policy.has_critic and policy.value_head.weight.shape == (1, 16)
    assert (policy.evaluate_actions(episodes).values == 0).all()
    plain = tiny_policy()
    assert not plain.has_critic and plain.evaluate_actions(episodes).values is None


def test_episodes_sampled_otherwise_are_refused(tiny_policy, episodes):
    for changes in ({"temperature": 0.9}, {"suppress": (3,)}, {"top_k": 4}):
        with pytest.raises(ValueError, match="give the policy the same Sampling"):
            tiny_policy(sampling=Sampling(**changes)).evaluate_actions(episodes)
    policy = tiny_policy().with_sampling(temperature=0.9)
    assert policy.sampling["temperature"] == 0.9
    with pytest.raises(ValueError, match=r"'temperature': 0\.9"):
        policy.evaluate_actions(episodes)


def test_dropout_stays_off(observe, play):
    torch.manual_seed(0)
    policy = LMPolicy(LlamaForCausalLM(LlamaConfig(**SMALL, attention_dropout=0.9)))
    policy.train()
    assert not policy.training and not policy.model.training
    out = play(policy, observe(ROWS), SEEDS)
    again = policy.evaluate_actions(out)
    assert torch.equal(policy.evaluate_actions(out).log_probs, again.log_probs)
    assert (again.log_probs - out.log_probs).abs().max() <= 1e-5


def test_bfloat16_runs_and_keeps_log_probs_in_float32(tiny_policy, observe, play):
    policy = tiny_policy(dtype=torch.bfloat16, value_head=True)
    out = play(policy, observe(ROWS), SEEDS)
    now = policy.evaluate_actions(out, entropy=True)
    assert out.log_probs.dtype == now.log_probs.dtype == now.entropy.dtype == now.values.dtype == torch.float32
    assert (now.log_probs - out.log_probs).abs().max() < 0.1
    (now.log_probs.sum() + now.values.sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in policy.parameters())


def test_gradient_checkpointing_changes_no_gradient(tiny_policy, tiny_folder, episodes):
    _, gradient = objective(tiny_policy(), episodes)
    _, same = objective(LMPolicy.from_pretrained(tiny_folder, gradient_checkpointing=True), episodes)
    assert_close(same, gradient)


def lora_policy(tiny_policy, **kwargs):
    """Adapters that do something: their second factor, 0 at first, is drawn."""
    policy = tiny_policy(lora=LoRA(rank=4), **kwargs)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3, generator=generator)
    return policy


def test_lora_starts_as_the_model_and_trains_adapters_only(tiny_policy, episodes):
    policy = tiny_policy(lora=LoRA(rank=4), value_head=True)
    trained = {n for n, p in policy.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in n or n.startswith("value_head") for n in trained)
    torch.testing.assert_close(policy.evaluate_actions(episodes).log_probs, episodes.log_probs, atol=1e-5, rtol=0)
    _, gradient = objective(policy, episodes)
    assert gradient.keys() == trained
    assert all(g.abs().max() > 0 for n, g in gradient.items() if "lora_B" in n)


def test_lora_weights_are_the_same_every_time_and_draw_from_no_global_generator(tiny_policy):
    before = torch.get_rng_state()
    one = tiny_policy(lora=LoRA(rank=4))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    two = tiny_policy(lora=LoRA(rank=4))
    torch.set_rng_state(before)
    for (name, a), (_, b) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_the_reference_of_lora_is_the_initial_model(tiny_policy, episodes):
    policy, initial = lora_policy(tiny_policy), tiny_policy().evaluate_actions(episodes).log_probs
    assert (policy.evaluate_actions(episodes).log_probs - initial).abs().max() > 0.01
    with policy.adapters_off() as reference:
        torch.testing.assert_close(reference.evaluate_actions(episodes).log_probs, initial, atol=1e-6, rtol=0)
    assert (policy.evaluate_actions(episodes).log_probs - initial).abs().max() > 0.01
    with pytest.raises(ValueError, match="LoRA"), tiny_policy().adapters_off():
        pass


@pytest.mark.parametrize("adapted", [False, True])
def test_save_pretrained_gives_the_same_model_to_anyone(tiny_policy, tmp_path, episodes, adapted):
    policy = lora_policy(tiny_policy) if adapted else tiny_policy()
    expected = policy.evaluate_actions(episodes).log_probs
    tokenizer = AutoTokenizer.from_pretrained(policy.name)
    policy.save_pretrained(tmp_path, tokenizer)
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == tokenizer.get_vocab()
    assert torch.equal(policy.evaluate_actions(episodes).log_probs, expected), "saving changed the policy"
    saved = LMPolicy.from_pretrained(tmp_path)
    torch.testing.assert_close(saved.evaluate_actions(episodes).log_probs, expected, atol=1e-5, rtol=0)
    theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    row = torch.tensor([ROWS[0] + episodes.actions[0, :1].tolist()])
    ours = theirs(row).logits[0, -2].log_softmax(-1)[episodes.actions[0, 0]]
    assert ours.item() == pytest.approx(expected[0, 0].item(), abs=1e-5)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"sampling": Sampling(temperature=0.7, suppress=(3, 4)), "value_head": True},
        {"lora": LoRA(rank=2, alpha=4.0, target_modules=("q_proj", "up_proj"))},
        {"dtype": torch.bfloat16},
    ],
    ids=["plain", "sampling and critic", "lora", "bfloat16"],
)
def test_spec_round_trip_through_json(tiny_policy, tiny_folder, observe, play, kwargs):
    policy = tiny_policy(**kwargs)
    again = LMPolicy.from_spec(json.loads(json.dumps(policy.spec())))
    assert again.sampling == policy.sampling and again.lora == policy.lora and again.name == tiny_folder
    assert again.model.dtype == policy.model.dtype and again.spec() == policy.spec()
    old, new = dict(policy.named_parameters()), dict(again.named_parameters())
    assert old.keys() == new.keys()
    assert {n: p.requires_grad for n, p in old.items()} == {n: p.requires_grad for n, p in new.items()}
    with torch.no_grad():
        for name, parameter in old.items():
            if parameter.requires_grad:
                new[name].copy_(parameter)
    one, two = (play(p, observe(ROWS), SEEDS) for p in (policy, again))
    assert torch.equal(one.actions, two.actions) and torch.equal(one.log_probs, two.log_probs)


def test_a_model_with_another_attention_is_rebuilt_with_it():
    config = LlamaConfig(**SMALL)
    policy = LMPolicy(AutoModelForCausalLM.from_config(config, attn_implementation="eager"))
    again = LMPolicy.from_spec(json.loads(json.dumps(policy.spec())))
    assert again.model.config._attn_implementation == "eager"


def test_adapters_on_a_model_without_name_cannot_be_rebuilt_and_say_so():
    config = LlamaConfig(**SMALL)
    policy = LMPolicy(LlamaForCausalLM(config), lora=LoRA(rank=2))
    with pytest.raises(ValueError, match=r"load\(folder, policy="):
        LMPolicy.from_spec(policy.spec())


def test_left_padding():
    ids = torch.tensor([[5, 6, 7], [8, 0, 0], [9, 9, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]]).bool()
    moved, moved_mask = left_padded(ids, mask)
    assert moved.tolist() == [[5, 6, 7], [0, 0, 8], [0, 9, 9]]
    assert moved_mask.int().tolist() == [[1, 1, 1], [0, 0, 1], [0, 1, 1]]


def test_recorded_episodes_carry_what_scoring_needs(tiny_policy, observe, play):
    policy = tiny_policy(sampling=Sampling(temperature=0.9))
    policy.version = 7
    out = play(policy, observe(ROWS, 20), SEEDS)
    assert out.version == 7 and out.sampling == {"temperature": 0.9, "top_k": 0, "top_p": 1.0, "suppress": ()}
    assert out.observations["input_ids"].shape == (4, 7) and out.valid.all()
    assert (out.rewards == 0).all() and not out.log_probs.requires_grad
    assert not policy.act(observe(ROWS), RowNoise(SEEDS)).log_probs.requires_grad


def test_gradient_checkpointing_runs_layers_again_instead_of_keeping_their_activations(tiny_folder, episodes):
    policy, calls = LMPolicy.from_pretrained(tiny_folder, gradient_checkpointing=True), []
    policy.model.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    objective(policy, episodes)
    assert len(calls) == 2
