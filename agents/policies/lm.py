"""A causal language model as a policy: any Hugging Face model, LoRA, a value head, fast batched generation."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from ...assets import model_path
from ...trajectories import Trajectories
from ..randomness import seeded
from .decoding import Sampling, attends_to_all, decode
from .policy import Decision, Evaluation, Policy, RowNoise, sample_categorical

CHUNK_LOGITS = (
    2**24
)  # logits held at a time when scoring: above it the head is applied in pieces and recomputed backward


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Low-rank adaptation through peft: only the adapters (and the value head) are trained and saved.

    Attributes:
        rank: rank of the update; 4 to 64.
        alpha: scale numerator; the update is multiplied by alpha / rank.
        target_modules: names of the adapted linear layers; None takes peft's default for the architecture.
    """

    rank: int = 8
    alpha: int = 16
    target_modules: tuple[str, ...] | None = None


class LMPolicy(Policy):
    """A token-level policy over ``{"input_ids", "attention_mask"}`` observations (right-padded states).

    Dropout is off throughout (the model stays in eval mode): with it, importance ratios would be noise.

    Args:
        model: the language model, decoder-only, with logits over its vocabulary.
        sampling: how tokens are drawn.
        value_head: add a critic, a linear layer on the last hidden states, initialised to 0.
        lora: train low-rank adapters instead of all weights.
        name: where the model came from; a checkpoint with LoRA stores this instead of the frozen weights.
    """

    first_observation_only = True
    auto_class: Any = AutoModelForCausalLM
    options: tuple[str, ...] = ("value_head",)  # arguments that a checkpoint names besides model, sampling, LoRA

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        sampling: Sampling | None = None,
        value_head: bool = False,
        lora: LoRA | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__()
        self.settings = sampling or Sampling()
        self.lora, self.name = lora, name
        self._adapters: Any = None
        if lora is not None:
            from peft import LoraConfig, get_peft_model

            targets = list(lora.target_modules) if lora.target_modules else None
            config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, lora_dropout=0.0)
            with seeded(0):  # B is 0 whatever A is
                adapters = get_peft_model(model, config)
            object.__setattr__(self, "_adapters", adapters)  # not a submodule: the adapters already live in `model`
        self.model = model
        self.value_head = nn.Linear(model.config.get_text_config().hidden_size, 1) if value_head else None
        if self.value_head is not None:
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "stories",
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        gradient_checkpointing: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Load ``"stories"`` (embedded), ``"smollm2-135m"`` (fetched asset), a local folder or a hub name.

        Args:
            name: which model.
            dtype: of the weights; log-probabilities are always computed in float32.
            device: where to put it.
            gradient_checkpointing: recompute activations backward: less memory, about a third more time.
            kwargs: as the constructor's.
        """
        model = cls.auto_class.from_pretrained(model_path(str(name)), dtype=dtype)
        for parameter in model.parameters():
            # Views into the mapped file may be unaligned, for which matrix products round differently: a run resumed
            # from a checkpoint, whose tensors are aligned, would not go on bit for bit.
            parameter.data = parameter.data.clone()
        if gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return cls(model, name=str(name), **kwargs).to(device)

    def train(self, mode: bool = True) -> LMPolicy:
        """Stay in eval mode: dropout would make the ratio of equal policies differ from 1."""
        return super().train(False)

    @property
    def sampling(self) -> dict[str, Any]:
        return asdict(self.settings)

    @property
    def has_critic(self) -> bool:
        return self.value_head is not None

    @property
    def has_adapters(self) -> bool:
        return self._adapters is not None

    @contextmanager
    def adapters_off(self) -> Iterator[LMPolicy]:
        """This policy with its LoRA adapters switched off, which is the initial model, at no memory."""
        if self._adapters is None:
            raise ValueError(
                "adapters_off() needs LoRA adapters to switch off; without LoRA keep a frozen copy instead"
            )
        with self._adapters.disable_adapter():
            yield self

    def act(self, observation: Any, noise: RowNoise, deterministic: bool = False) -> Decision:
        ids, mask = self._tensors(observation)
        last = mask.sum(1) - 1
        with torch.no_grad():
            hidden = self._hidden(ids, mask)
            log_p = self.settings.logits(self._head(hidden[torch.arange(len(ids)), last]).float()).log_softmax(-1)
        if deterministic:
            actions = log_p.argmax(-1)
        else:
            actions = sample_categorical(log_p, noise.uniform(1)[:, 0].to(log_p.device))
        return Decision(actions, log_p.gather(1, actions[:, None])[:, 0])

    def generate(
        self,
        observation: Any,
        noise: RowNoise,
        *,
        max_steps: int,
        terminal_actions: Collection[int] = (),
        deterministic: bool = False,
    ) -> Trajectories:
        ids, mask = self._tensors(observation)
        prompts, prompt_mask = left_padded(ids, mask)
        out = decode(
            self.model, prompts, prompt_mask, noise, self.settings,
            max_steps=max_steps, stop=terminal_actions, deterministic=deterministic,
        )  # fmt: skip
        width = int(mask.sum(1).max())
        return Trajectories(
            observations={"input_ids": ids[:, :width], "attention_mask": mask[:, :width]},
            actions=out.actions,
            log_probs=out.log_probs,
            mask=out.mask,
            rewards=torch.zeros_like(out.log_probs),
            terminated=out.terminated,
            truncated=~out.terminated,
            valid=torch.ones_like(out.terminated),
            group=torch.arange(len(ids), device=ids.device),
            sampling=self.sampling,
            version=self.version,
        )

    def evaluate_actions(self, trajectories: Trajectories, *, entropy: bool = False) -> Evaluation:
        """Score the recorded tokens in one forward pass over prompt and completion.

        Args:
            trajectories: episodes sampled under this policy's own sampling settings.
            entropy: also return the entropy of every position (differentiable); else it is 0.

        Raises:
            ValueError: if the episodes were sampled under other settings, which would silently bias every ratio.
        """
        self._check_sampling(trajectories)
        assert isinstance(trajectories.observations, dict)
        prompts, prompt_mask = left_padded(*self._tensors(trajectories.observations))
        actions, mask = trajectories.actions.to(prompts.device), trajectories.mask.to(prompts.device)
        hidden = self._states(prompts, prompt_mask, actions, mask)
        scored, where = hidden[:, :-1][mask], actions[mask]
        flat_log_probs, flat_entropy = self._log_probs(scored, where, entropy)
        zeros = torch.zeros(mask.shape, device=mask.device)
        values = None
        if self.value_head is not None:
            values = self.value_head(hidden.to(self.value_head.weight.dtype))[..., 0].float()
        return Evaluation(
            log_probs=zeros.masked_scatter(mask, flat_log_probs),
            entropy=zeros.masked_scatter(mask, flat_entropy) if entropy else zeros,
            values=values,
        )

    def _check_sampling(self, trajectories: Trajectories) -> None:
        if trajectories.sampling and trajectories.sampling != self.sampling:
            raise ValueError(
                f"trajectories were sampled with {trajectories.sampling}, but the policy scores with {self.sampling}: "
                "give the policy the same Sampling"
            )

    def _log_probs(self, hidden: Tensor, actions: Tensor, entropy: bool) -> tuple[Tensor, Tensor]:
        """Log-probabilities (and entropies) ``[N]`` of ``actions [N]`` after ``hidden [N, D]``, the head in pieces.

        The logits of a large vocabulary dominate the memory of a language-model update. In pieces that are recomputed
        in the backward pass, at most ``CHUNK_LOGITS`` of them exist at a time.
        """

        def piece(h: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.settings.logits(self._head(h).float())
            log_prob = -F.cross_entropy(logits, a, reduction="none")
            if not entropy:
                return log_prob, log_prob.new_zeros(())
            log_p = logits.log_softmax(-1)
            return log_prob, -(log_p.exp() * log_p.masked_fill(log_p == -math.inf, 0.0)).sum(-1)

        size = max(1, CHUNK_LOGITS // self.model.config.get_text_config().vocab_size)
        if len(actions) <= size:
            return piece(hidden, actions)
        parts = [
            checkpoint(piece, hidden[i : i + size], actions[i : i + size], use_reentrant=False)
            for i in range(0, len(actions), size)
        ]
        log_probs, entropies = zip(*parts, strict=True)
        return torch.cat(log_probs), torch.cat(entropies) if entropy else entropies[0]

    def _states(self, prompts: Tensor, prompt_mask: Tensor, actions: Tensor, mask: Tensor) -> Tensor:
        """Hidden states ``[B, T + 1, D]`` before each action and after the last.

        A prompt that several episodes share is computed once; its keys and values are read by all of them, and collect
        the gradients of all of them. (Not with gradient checkpointing: layers recomputed backward cannot read a cache.)
        """
        width = prompts.shape[1]
        ids, seen = torch.cat([prompts, actions], 1), torch.cat([prompt_mask, mask], 1)
        keyed, inverse = torch.unique(torch.cat([prompts, prompt_mask.long()], 1), dim=0, return_inverse=True)
        if len(keyed) == len(prompts) or not attends_to_all(self.model) or self.recomputes:
            return self._hidden(ids, seen)[:, width - 1 :]
        cache = DynamicCache(config=self.model.config.get_text_config())
        before = self._hidden(keyed[:, :width], keyed[:, width:].bool(), cache)
        cache.batch_select_indices(inverse)
        return torch.cat([before[inverse, -1:], self._hidden(actions, seen, cache)], 1)

    def _hidden(self, ids: Tensor, mask: Tensor, cache: Cache | None = None) -> Tensor:
        """Last hidden states ``[B, L, D]``; positions count real tokens only, so padding changes nothing."""
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask.long(), "position_ids": positions}
        with self._recomputed_layers():
            hidden: Tensor = self.model.base_model(**inputs, past_key_values=cache, use_cache=cache is not None)[0]
        return hidden

    @property
    def recomputes(self) -> bool:
        """Whether gradient checkpointing is on."""
        return any(getattr(m, "gradient_checkpointing", False) for m in self.model.modules())

    @contextmanager
    def _recomputed_layers(self) -> Iterator[None]:
        """Gradient checkpointing wants layers in training mode; what is in them, dropout too, stays in eval mode."""
        layers = [m for m in self.model.modules() if isinstance(m, GradientCheckpointingLayer)]
        for layer in layers:
            layer.training = layer.gradient_checkpointing and torch.is_grad_enabled()
        try:
            yield
        finally:
            for layer in layers:
                layer.training = False

    def _head(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states, with the scalings some architectures apply after the output layer."""
        config = self.model.config.get_text_config()
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        if scale := getattr(config, "logits_scaling", None):  # Granite
            logits = logits / scale
        if scale := getattr(config, "logit_scale", None):  # Cohere
            logits = logits * scale
        if cap := getattr(config, "final_logit_softcapping", None):  # Gemma 2
            logits = torch.tanh(logits / cap) * cap
        return logits

    def _tensors(self, observation: Any) -> tuple[Tensor, Tensor]:
        """``(ids, mask)`` on the policy's device, trimmed to the longest state."""
        ids, mask = (torch.as_tensor(np.asarray(v) if not isinstance(v, Tensor) else v) for v in (
            observation["input_ids"], observation["attention_mask"],
        ))  # fmt: skip
        mask = mask.to(self.device).bool()
        width = int(mask.sum(1).max())
        return ids.to(self.device).long()[:, :width], mask[:, :width]

    def spec(self) -> dict[str, Any]:
        """JSON-able description from which :meth:`from_spec` rebuilds the policy around saved tensors."""
        return {
            "name": self.name, "config": json.loads(self.model.config.to_json_string(use_diff=False)),
            "sampling": self.sampling, "value_head": self.value_head is not None,
            "lora": asdict(self.lora) if self.lora else None, "dtype": str(self.model.dtype).removeprefix("torch."),
            "attention": self.model.config._attn_implementation,
        }  # fmt: skip

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> Self:
        """Rebuild a policy from :meth:`spec`; weights are those of the named model where LoRA leaves them frozen.

        Raises:
            ValueError: if they are frozen and the model has no name.
        """
        from transformers import AutoConfig

        sampling = Sampling(**{**spec["sampling"], "suppress": tuple(spec["sampling"]["suppress"])})
        dtype = getattr(torch, spec["dtype"])
        kwargs: dict[str, Any] = {"sampling": sampling, **{name: spec[name] for name in cls.options}}
        if spec["lora"] is not None:
            if spec["name"] is None:
                raise ValueError(
                    "the model under these adapters has no name to load it by: rebuild the policy and pass it as "
                    "load(folder, policy=...)"
                )
            targets = spec["lora"]["target_modules"]
            kwargs["lora"] = LoRA(**{**spec["lora"], "target_modules": tuple(targets) if targets else None})
            policy = cls.from_pretrained(spec["name"], dtype=dtype, **kwargs)
        else:
            config = AutoConfig.for_model(**spec["config"])
            model = cls.auto_class.from_config(config, dtype=dtype)
            policy = cls(model, name=spec["name"], **kwargs)
        policy.model.set_attn_implementation(spec["attention"])  # others round otherwise
        return policy

    def with_sampling(self, **changes: Any) -> Self:
        """Change sampling settings in place and return the policy: ``policy.with_sampling(temperature=0.7)``."""
        self.settings = replace(self.settings, **changes)
        return self

    def save_pretrained(self, folder: str | Path, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Write a Hugging Face folder (adapters merged), loadable anywhere, also as ``model=folder`` here.

        Args:
            folder: where to.
            tokenizer: written beside the weights if given; an environment has it as ``unwrapped.tokenizer``.
        """
        model = self.model
        if self._adapters is not None:  # merged in a copy: taking the adapters out again would leave rounding behind
            model = copy.deepcopy(self._adapters).merge_and_unload()
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


def left_padded(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move the padding of ``ids, mask [B, L]`` from the right to the left, so that new tokens of all rows align."""
    length = mask.sum(1, keepdim=True)
    index = torch.arange(ids.shape[1], device=ids.device) - (ids.shape[1] - length)
    return ids.gather(1, index.clamp(min=0)) * (index >= 0), index >= 0
