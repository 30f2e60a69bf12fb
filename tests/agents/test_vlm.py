"""The vision-language policy: its text is the model's, its scores are exact, its actions are read from it."""

import copy
import json

import numpy as np
import pytest
import torch
from gymnasium import spaces
from transformers import AutoModelForImageTextToText

from aligngym.agents.grpo import GRPO, GRPOConfig
from aligngym.agents.policies.decoding import Sampling
from aligngym.agents.policies.lm import LoRA
from aligngym.agents.policies.policy import RowNoise
from aligngym.agents.policies.vlm import VLMPolicy, action_of
from aligngym.agents.rollouts import collect, step_through
from aligngym.envs.generation import EpisodeScores, GenerationVectorEnv

from .tiny_vlm import EOS, IMAGE, LEFT, RIGHT, all_but, ids_of, save_tiny

HEIGHT, WIDTH, BYTES = 40, 60, 24
SEEN = 84, 56  # width and height of that screenshot to the tiny Qwen2.5-VL: multiples of 28, at least 56 * 56 pixels
SEEDS = [10, 11, 12]
LENGTH = 6  # of answers: float32 resolves the sum of a few log-probabilities to 2e-6, of dozens to 1e-5
NO_IMAGES = (IMAGE, 6)  # an answer with a placeholder of an image in it has no plain forward pass to compare with
NAMES = ["qwen", "llava"]


class Sides(GenerationVectorEnv):
    """One half of the screenshot is bright; a click there is worth 1, elsewhere 0, anything else -1."""

    metadata = {**GenerationVectorEnv.metadata, "render_modes": []}

    def __init__(self, num_envs, num_points=1):
        observation = {
            "screenshot": spaces.Box(0, 255, (HEIGHT, WIDTH, 3), np.uint8),
            "instruction": spaces.Box(0, 255, (BYTES,), np.uint8),
        }
        super().__init__(
            num_envs, spaces.Dict(observation), spaces.Box(-1, 1, (num_points, 2), np.float32), max_steps=1
        )
        self.screens = np.zeros((num_envs, HEIGHT, WIDTH, 3), np.uint8)
        self.right = np.zeros(num_envs, bool)
        self.clicks = np.zeros((num_envs, num_points, 2))

    def _start(self, rows, options):
        for row in rows:
            self.screens[row] = self.generators[row].integers(0, 60, (HEIGHT, WIDTH, 3))
            self.right[row] = self.generators[row].integers(2)
            half = slice(WIDTH // 2, WIDTH) if self.right[row] else slice(0, WIDTH // 2)
            self.screens[row, :, half] += 195

    def _observe(self):
        return {"screenshot": self.screens.copy(), "instruction": texts_to_bytes(["bright"] * self.num_envs)}

    def _apply(self, actions, active):
        self.clicks[active] = actions[active]
        return active.copy(), np.zeros_like(active)

    def _score(self, rows):
        x = self.clicks[rows, 0, 0]
        return EpisodeScores(np.where(x < 0, -1.0, (x > 0.5) == self.right[rows]))

    def _render_row(self, row):
        raise NotImplementedError


def texts_to_bytes(texts):
    out = np.zeros((len(texts), BYTES), np.uint8)
    for row, text in zip(out, texts, strict=True):
        row[: len(text.encode())] = list(text.encode())
    return out


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: save_tiny(name, tmp_path_factory.mktemp(name)) for name in NAMES}


@pytest.fixture
def make(folders):
    """``make(name, **kwargs)``: a tiny model as a policy that answers in at most ``LENGTH`` tokens."""
    return lambda name="qwen", **kwargs: VLMPolicy.from_pretrained(folders[name], **{"max_new_tokens": LENGTH} | kwargs)


@pytest.fixture
def observation():
    """Three rows: different screenshots, instructions of different lengths."""
    screens = np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH, 3), np.uint8)
    return {"screenshot": screens, "instruction": texts_to_bytes(["Save", "Where is the café?", "x"])}


def row_of(observation, row):
    return {name: values[row : row + 1] for name, values in observation.items()}


def inputs_of(policy, observation, row):
    """A row's inputs by the processor alone, without padding."""
    from PIL import Image

    text = bytes(observation["instruction"][row]).decode().rstrip("\0")
    width, height = SEEN if hasattr(policy.processor.image_processor, "merge_size") else (WIDTH, HEIGHT)
    question = f"The screenshot is {width}x{height}. Locate the element that this instruction is about: {text}\n"
    question += 'Answer with its point in JSON: [{"point_2d": [x, y], "label": "..."}]'
    content = [{"type": "image"}, {"type": "text", "text": question}]
    prompt = policy.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return policy.processor(
        text=[prompt], images=[Image.fromarray(observation["screenshot"][row])], return_tensors="pt"
    )


def answer_of(decision, row):
    return decision.extras["tokens"][row][decision.extras["token_mask"][row]]


@pytest.mark.parametrize("name", NAMES)
def test_greedy_answers_are_those_of_the_model(make, observation, name):
    policy = make(name)
    decision = policy.act(observation, RowNoise(SEEDS), deterministic=True)
    for row in range(3):
        inputs = inputs_of(policy, observation, row)
        theirs = policy.model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False)[
            0, inputs["input_ids"].shape[1] :
        ]
        assert answer_of(decision, row).tolist() == theirs.tolist()
    assert len({tuple(answer_of(decision, row).tolist()) for row in range(3)}) == 3, "the rows should differ"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "sampling", [Sampling(suppress=NO_IMAGES), Sampling(temperature=0.6, suppress=(*NO_IMAGES, 8))]
)
def test_log_probs_and_entropies_are_those_of_a_plain_forward_pass(make, observation, name, sampling):
    policy = make(name, sampling=sampling)
    episodes = policy.generate(observation, RowNoise(SEEDS))
    now = policy.evaluate_actions(episodes, entropy=True)
    for row in range(3):
        answer = episodes.extras["tokens"][row, 0][episodes.extras["token_mask"][row, 0]]
        inputs = inputs_of(policy, observation, row)
        start = inputs["input_ids"].shape[1]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], answer[None]], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if "mm_token_type_ids" in inputs:
            kinds = torch.zeros_like(inputs["input_ids"])
            kinds[:, :start] = inputs["mm_token_type_ids"]
            inputs["mm_token_type_ids"] = kinds
        logits = policy.model(**inputs).logits[0, start - 1 : -1].double() / sampling.temperature
        logits[:, list(sampling.suppress)] = -torch.inf
        log_p = logits.log_softmax(-1)
        expected = log_p.gather(1, answer[:, None]).sum().item()
        entropy = torch.special.entr(log_p.exp()).sum().item()
        assert episodes.log_probs[row, 0].item() == pytest.approx(expected, abs=1e-5)
        assert now.log_probs[row, 0].item() == pytest.approx(expected, abs=1e-5)
        assert now.entropy[row, 0].item() == pytest.approx(entropy, abs=1e-4)
    assert (policy.evaluate_actions(episodes).entropy == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_act_is_generate_and_a_row_is_itself_in_any_batch(make, observation, name):
    policy = make(name)
    decision = policy.act(observation, RowNoise(SEEDS))
    episodes = policy.generate(observation, RowNoise(SEEDS), max_steps=1)
    assert torch.equal(decision.actions, episodes.actions[:, 0])
    assert torch.equal(decision.log_probs, episodes.log_probs[:, 0])
    assert all(torch.equal(decision.extras[k], episodes.extras[k][:, 0]) for k in ("tokens", "token_mask"))
    assert episodes.terminated.all() and not episodes.truncated.any() and episodes.mask.shape == (3, 1)
    for row in range(3):
        alone = policy.act(row_of(observation, row), RowNoise([SEEDS[row]]))
        assert torch.equal(alone.extras["tokens"][0], decision.extras["tokens"][row])
        assert alone.log_probs[0].item() == pytest.approx(decision.log_probs[row].item(), abs=1e-5)
        scored = policy.evaluate_actions(episodes.select(torch.tensor([row]))).log_probs
        assert scored.item() == pytest.approx(decision.log_probs[row].item(), abs=1e-5)


def test_equal_prompts_pass_once_and_change_nothing(make, observation):
    policy, seen = make(), []
    order = [0, 1, 0, 2, 1, 0]
    group = {name: values[order] for name, values in observation.items()}
    policy.model.model.visual.register_forward_hook(
        lambda module, args, kwargs, out: seen.append(kwargs), with_kwargs=True
    )
    episodes = policy.generate(group, RowNoise(range(6)))
    assert [len(call["grid_thw"]) for call in seen] == [3]
    now = policy.evaluate_actions(episodes)
    assert [len(call["grid_thw"]) for call in seen] == [3, 3]
    (now.log_probs[:, 0] * torch.arange(1, 7)).sum().backward()
    gradient = {n: p.grad.clone() for n, p in policy.named_parameters()}
    policy.zero_grad()
    for row in range(6):
        alone = policy.act(row_of(group, row), RowNoise([row]))
        assert torch.equal(alone.extras["tokens"][0], episodes.extras["tokens"][row, 0])
        scored = policy.evaluate_actions(episodes.select(torch.tensor([row]))).log_probs
        assert scored.item() == pytest.approx(now.log_probs[row, 0].item(), abs=1e-5)
        (scored.sum() * (row + 1)).backward()
    for name, parameter in policy.named_parameters():
        difference = (gradient[name] - parameter.grad).norm()
        assert difference <= 1e-4 * max(1e-2, parameter.grad.norm()), name


def test_an_image_placeholder_in_an_answer_is_a_token_like_any_other(make, observation):
    policy = make(sampling=Sampling(suppress=all_but("<|image_pad|>", "a")))
    episodes = policy.generate(observation, RowNoise(SEEDS))
    assert (episodes.extras["tokens"] == IMAGE).any() and (episodes.extras["tokens"] != IMAGE).any()
    now = policy.evaluate_actions(episodes)
    torch.testing.assert_close(now.log_probs, episodes.log_probs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ('[{"point_2d": [100, 25], "label": "ok"}]', [[0.5, 0.25], [-1, -1]]),
        ('[{"point_2d": [0, 0]}, {"point_2d": [200, 100]}]', [[0, 0], [1, 1]]),
        ('[{"point_2d": [50, 50]}, {"point_2d": [100, 50]}, {"point_2d": [150, 50]}]', [[0.25, 0.5], [0.5, 0.5]]),
        ("[]", None),
        ("", None),
        ("over there", None),
        ('[{"point_2d": [100, 25], "lab', None),
        ('[{"point_2d": [100, 101]}]', None),
        ('[{"point_2d": [-1, 50]}]', None),
        ('[{"point_2d": [100, 25]}, {"point_2d": [100, 50]}, {"point_2d": [201, 50]}]', None),
    ],
    ids=["one", "corners", "too many", "no point", "nothing", "prose", "cut", "below", "left of", "third outside"],
)
def test_answers_are_read_into_actions(text, points):
    action = action_of(text, (200, 100), 2)
    assert action.dtype == np.float32 and action.shape == (2, 2)
    np.testing.assert_allclose(action, [[-1, -1], [-1, -1]] if points is None else points, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "size", "point"),
    [("qwen", None, (0.25, 0.5)), ("llava", None, (0.35, 0.7)), ("qwen", (210, 280), (0.1, 0.1))],
)
def test_coordinates_are_of_the_image_that_the_model_saw(make, observation, name, size, point):
    """Qwen2.5-VL's processor makes 84 x 56 pixels of this screenshot, LLaVA's does not tell."""
    policy = make(name, sampling=Sampling(suppress=all_but(LEFT)), max_new_tokens=1, answer_size=size)
    decision = policy.act(observation, RowNoise(SEEDS))
    assert policy.texts(decision.extras["tokens"], decision.extras["token_mask"]) == [LEFT] * 3
    torch.testing.assert_close(decision.actions, torch.tensor([[point]] * 3))
    assert (decision.log_probs == 0).all()


def test_answers_end_at_the_stop_token_or_are_cut(make, observation):
    policy = make(sampling=Sampling(suppress=all_but("a", "<|im_end|>")), max_new_tokens=4)
    out = policy.generate({k: v.repeat(8, 0) for k, v in observation.items()}, RowNoise(range(24)))
    tokens, mask = out.extras["tokens"][:, 0], out.extras["token_mask"][:, 0]
    assert tokens.shape == mask.shape == (24, 4) and tokens.dtype == torch.int64 and mask.dtype == torch.bool
    ended = (tokens == EOS).any(1)
    assert ended.any() and not ended.all()
    for row, kept, stopped in zip(tokens, mask, ended, strict=True):
        assert kept.sum() == ((row == EOS).nonzero()[0, 0] + 1 if stopped else 4)
        assert (row[~kept] == 0).all()
    assert (out.actions == -1).all()
    assert make(stop=[EOS, 7]).stop == (EOS, 7)


def test_what_cannot_be_is_refused(make, observation):
    for changes in ({"num_points": 0}, {"max_new_tokens": 0}, {"prompt_template": "Click!"}):
        with pytest.raises(ValueError, match=f"{next(iter(changes))} is .*expected"):
            make(**changes)
    with pytest.raises(ValueError, match="neither processor nor name"):
        VLMPolicy(make().model)
    episodes = make().generate(observation, RowNoise(SEEDS))
    with pytest.raises(ValueError, match="give the policy the same Sampling"):
        make(temperature=0.9).evaluate_actions(episodes)


def grpo(policy, **options):
    defaults = {
        "episodes_per_iteration": 16, "group_size": 4, "learning_rate": 1e-3, "kl_coef": 0.0, "reference": "none"
    }  # fmt: skip
    return GRPO(Sides(16), policy, GRPOConfig(**defaults | options))


TOKENS = (LEFT, RIGHT, "<|im_end|>")


def clicker(make, **kwargs):
    """A policy that draws from three tokens only: one side, the other, and the end."""
    return make(sampling=Sampling(temperature=2.0, suppress=all_but(*TOKENS)), max_new_tokens=2, **kwargs)


def test_both_faces_of_an_environment_play_the_same_episodes(make):
    policy, seeds = clicker(make), [3, 4, 5, 6]
    group = torch.arange(4)
    whole = collect(Sides(4), policy, seeds=seeds, noise=RowNoise(seeds), group=group)
    steps = step_through(Sides(4), policy, seeds=seeds, noise=RowNoise(seeds))
    for name in ("actions", "log_probs", "rewards", "terminated", "truncated", "mask"):
        assert torch.equal(getattr(whole, name), getattr(steps, name)), name
    for name in ("observations", "extras"):
        ours, theirs = getattr(whole, name), getattr(steps, name)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert len(set(whole.rewards[:, 0].tolist())) > 1


def test_an_update_changes_every_parameter_and_begins_at_ratio_one(make):
    policy = clicker(make)
    agent, before = grpo(policy), {n: p.detach().clone() for n, p in policy.named_parameters()}
    episodes = agent.collect()
    assert episodes.rewards.std() > 0
    ratio = (policy.evaluate_actions(episodes).log_probs - episodes.log_probs).exp()
    torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-5, rtol=0)
    agent.update(agent.prepare(episodes)[0])
    assert not [n for n, p in policy.named_parameters() if torch.equal(p, before[n])]


@pytest.mark.slow
def test_it_learns_to_click_where_it_sees_the_bright_half(make):
    """Blind, no policy is above 0.5."""
    agent = grpo(clicker(make), learning_rate=3e-3, episodes_per_iteration=64, group_size=8)
    before = agent.collect().rewards.mean()
    agent.learn(64 * 30)
    assert before < 0 and agent.collect().rewards.mean() > 0.8


def test_lora_trains_adapters_only_and_its_reference_needs_no_copy(make):
    initial, policy = clicker(make), clicker(make, lora=LoRA(rank=2))
    assert {n.split(".")[-4] for n, p in policy.named_parameters() if p.requires_grad} == {"q_proj", "v_proj"}
    frozen = {n: p.detach().clone() for n, p in policy.named_parameters() if not p.requires_grad}
    agent = grpo(policy, learning_rate=3e-2, kl_coef=0.1, reference="initial")
    assert policy.has_adapters and agent.reference._frozen is None
    agent.learn(64)
    assert all(torch.equal(p, frozen[n]) for n, p in policy.named_parameters() if n in frozen)
    assert not [n for n, p in policy.named_parameters() if "lora_B" in n and (p == 0).all()]
    episodes = agent.collect()
    expected = initial.evaluate_actions(episodes).log_probs
    assert (policy.evaluate_actions(episodes).log_probs - expected).abs().max() > 0.01
    with policy.adapters_off() as reference:
        torch.testing.assert_close(reference.evaluate_actions(episodes).log_probs, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kwargs", [{}, {"lora": LoRA(rank=2)}], ids=["all weights", "lora"])
def test_checkpoints_bring_the_policy_back(make, tmp_path, kwargs):
    policy = clicker(make, num_points=1, answer_size=(1, 1), **kwargs)
    agent = grpo(policy, learning_rate=1e-2)
    agent.learn(32)
    agent.save(tmp_path / "one")
    again = GRPO.load(tmp_path / "one", Sides(16))
    assert type(again.policy) is VLMPolicy and again.policy.spec() == policy.spec()
    one, two = agent.collect(), again.collect()
    assert torch.equal(one.extras["tokens"], two.extras["tokens"]) and torch.equal(one.log_probs, two.log_probs)


def test_spec_goes_through_json(make):
    policy = make(num_points=3, max_new_tokens=9, prompt_template="{instruction}!", answer_size=(1000, 1000), stop=[4])
    again = VLMPolicy.from_spec(json.loads(json.dumps(policy.spec())))
    assert again.spec() == policy.spec() and again.answer_size == (1000, 1000) and again.stop == (4,)
    assert again.model.config._attn_implementation == policy.model.config._attn_implementation


@pytest.mark.parametrize("kwargs", [{}, {"lora": LoRA(rank=2)}], ids=["all weights", "lora"])
def test_save_pretrained_gives_the_same_model_to_anyone(make, tmp_path, observation, kwargs):
    policy = make(**kwargs)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3, generator=generator)
    episodes = policy.generate(observation, RowNoise(SEEDS))
    policy.save_pretrained(tmp_path)
    again = VLMPolicy.from_pretrained(tmp_path, max_new_tokens=LENGTH)
    torch.testing.assert_close(again.evaluate_actions(episodes).log_probs, episodes.log_probs, atol=1e-5, rtol=0)
    _, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_a_copy_is_a_policy_of_its_own(make, observation):
    policy = make()
    episodes = policy.generate(observation, RowNoise(SEEDS))
    other = copy.deepcopy(policy)
    with torch.no_grad():
        policy.model.lm_head.weight.add_(torch.randn(policy.model.lm_head.weight.shape))
    torch.testing.assert_close(other.evaluate_actions(episodes).log_probs, episodes.log_probs, atol=1e-5, rtol=0)


def test_ids_of_the_tiny_tokenizer(make):
    tokenizer = make().processor.tokenizer
    assert tokenizer(LEFT)["input_ids"] == list(ids_of(LEFT))
    assert tokenizer('[{"point_2d"')["input_ids"] == list(ids_of("[", "{", '"', "point_2d", '"'))


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_runs_and_keeps_log_probs_in_float32(make, observation, name):
    policy = make(name, dtype=torch.bfloat16, lora=LoRA(rank=2))
    episodes = policy.generate(observation, RowNoise(SEEDS))
    now = policy.evaluate_actions(episodes, entropy=True)
    assert episodes.log_probs.dtype == now.log_probs.dtype == now.entropy.dtype == torch.float32
    assert (now.log_probs - episodes.log_probs).abs().max() < 0.1
    now.log_probs.sum().backward()
    assert all(torch.isfinite(p.grad).all() for n, p in policy.named_parameters() if "lora_B" in n)
