"""A language model and a tokenizer of sixteen words, so small that whole training runs take seconds."""

from typing import Any

import gymnasium as gym
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from aligngym.agents.grpo import GRPO, GRPOConfig
from aligngym.agents.policies.lm import LMPolicy
from aligngym.agents.policies.policy import RowNoise
from aligngym.agents.ppo import PPO, PPOConfig

AGENTS = {"ppo": (PPO, PPOConfig), "grpo": (GRPO, GRPOConfig)}
WORDS = ["<pad>", "<bos>", "<eos>", *(f"w{i}" for i in range(13))]
EOS = 2
PROMPTS = ["w0 w1 w2", "w3", "w4 w5 w6 w7 w8", "w9 w10"]


def words_used(completions: list[str], **_: Any) -> list[float]:
    """A reward that differs between most completions: distinct words, and a little for each w1."""
    return [len(set(c.split())) + 0.3 * c.split().count("w1") for c in completions]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Hugging Face folder with both."""
    folder = tmp_path_factory.mktemp("tiny")
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", model_max_length=64
    )
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.25, pad_token_id=0, bos_token_id=1, eos_token_id=EOS,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def tiny_policy(tiny_folder: str) -> Any:
    """``tiny_policy(**kwargs)``: the model as a policy."""
    return lambda **kwargs: LMPolicy.from_pretrained(tiny_folder, **kwargs)


@pytest.fixture
def tiny_env(tiny_folder: str) -> Any:
    """``tiny_env(num_envs, **changes)``: ``LLMAlign-v0`` over the sixteen words."""

    def make(num_envs: int = 8, **changes: Any) -> Any:
        settings = {"prompts": PROMPTS, "reward": words_used, "max_prompt_tokens": 6, "max_new_tokens": 8}
        return gym.make_vec("LLMAlign-v0", num_envs=num_envs, tokenizer=tiny_folder, **settings | changes)

    return make


@pytest.fixture
def observe() -> Any:
    """``observe(rows, width)``: rows of token ids as a batched observation, padded on the right to ``width``."""

    def batch(rows: list[list[int]], width: int = 0) -> dict[str, torch.Tensor]:
        width = width or max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": mask}

    return batch


@pytest.fixture
def play() -> Any:
    """``play(policy, observation, seeds, ...)``: whole episodes of a policy, ended by ``<eos>`` or ``max_steps``."""

    def generate(policy: Any, observation: Any, seeds: list[int], max_steps: int = 8, stop: Any = (EOS,), **kwargs):
        noise = RowNoise(seeds)
        return policy.generate(observation, noise, max_steps=max_steps, terminal_actions=stop, **kwargs)

    return generate


@pytest.fixture
def make(tiny_policy, tiny_env):
    """``make("grpo", kl_coef=0.1, ...)``: an agent over sixteen words; ``env`` and ``policy`` are settings of those."""

    def build(name, env=None, policy=None, seed=0, folder=None, **options):
        cls, config = AGENTS[name]
        options = {"episodes_per_iteration": 16, "group_size": 4, "learning_rate": 1e-3} | options
        model = tiny_policy(**{"value_head": cls.needs_values} | (policy or {}))
        if model.has_critic:  # says something, unlike one of zeros
            with torch.no_grad():
                model.value_head.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(5))
        return cls(tiny_env(16, **env or {}), model, config(**options), seed=seed, folder=folder)

    return build
