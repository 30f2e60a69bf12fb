"""A vision-language model as a policy that points at a screenshot: Qwen2.5-VL and other models of Hugging Face."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import Cache

from ...answers import parse_points
from ...assets import model_path
from ...trajectories import Trajectories, pad_time
from .decoding import CachedDecoder, Sampling, Start, decode_from, make_cache
from .lm import LMPolicy, LoRA
from .policy import Decision, Evaluation, RowNoise, one_turn

PROMPT = (
    "The screenshot is {width}x{height}. Locate the element that this instruction is about: {instruction}\n"
    'Answer with its point in JSON: [{"point_2d": [x, y], "label": "..."}]'
)


@dataclass(frozen=True)
class Prompts:
    """What the model is asked, each different pair of screenshot and instruction once.

    Attributes:
        inputs: of the model, ``G`` rows padded on the left.
        mask: ``[G, P]`` bool, True at the prompts' tokens.
        row: ``[B]`` int64, the prompt of every episode.
    """

    inputs: dict[str, Tensor]
    mask: Tensor
    row: Tensor


class VLMPolicy(LMPolicy):
    r"""A policy over ``{"screenshot", "instruction"}`` observations whose one decision is an answer in text.

    The answer, ``[{"point_2d": [x, y], "label": "..."}]``, is read into an action ``[N, 2]`` float32: its first ``N``
    points as shares of the screenshot's width and height, in ``[0, 1]``, and -1 in the rows that are left. An answer
    that does not parse, has no point, or has one outside the screenshot is all -1. Its log-probability is that of the
    text under the sampler, all tokens and the one that ends it,

    .. math::
        \log \pi(a | s) = \sum_{l} \log \pi(y_l | s, y_{<l})

    and so is the ratio that agents clip: it is the answer's, where token-level methods clip one a token. The entropy is
    the sum of the entropies of the tokens' distributions along the answer, whose mean over answers is their entropy.
    The tokens travel in ``extras``: ``tokens [B, 1, L]`` int64 and ``token_mask [B, 1, L]`` bool, ``L`` being
    ``max_new_tokens``. Equal pairs of screenshot and instruction (a group) pass through the model once.

    Of what a model's generation config asks for, only the tokens that end an answer are read: no penalties, no nucleus.
    Gradient checkpointing is not supported, as the answers read the prompts' keys and values.

    Args:
        model: one that ``AutoModelForImageTextToText`` loads.
        processor: turns images and text into its inputs; None loads the one of ``name``.
        num_points: ``N``, the points that an action has room for; at least 1.
        max_new_tokens: tokens after which an answer is cut, and counts as it parses; at least 1.
        prompt_template: what is asked; ``{instruction}``, ``{width}`` and ``{height}`` are filled in.
        answer_size: width and height that an answer's coordinates are out of: (1000, 1000) for Qwen3-VL, (1, 1) for
            shares. None: the pixels of the image as the processor resizes it, which is what Qwen2.5-VL means (of a
            processor that does not tell, those of the screenshot).
        stop: ids of the tokens that end an answer; None takes the model's.
        sampling: how tokens are drawn.
        lora: train low-rank adapters instead of all weights; without ``target_modules`` on ``q_proj`` and ``v_proj``,
            which in Qwen2.5-VL only its language model has.
        name: where the model came from: checkpoints find the processor, and under adapters the weights, by it.

    Raises:
        ValueError: if a number is out of its range, the template asks nothing, or there is no processor and no name.
    """

    auto_class = AutoModelForImageTextToText
    options = ("num_points", "max_new_tokens", "prompt_template", "answer_size", "stop")

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Any = None,
        *,
        num_points: int = 1,
        max_new_tokens: int = 64,
        prompt_template: str = PROMPT,
        answer_size: Sequence[int] | None = None,
        stop: Sequence[int] | None = None,
        sampling: Sampling | None = None,
        lora: LoRA | None = None,
        name: str | None = None,
    ) -> None:
        for option, value in (("num_points", num_points), ("max_new_tokens", max_new_tokens)):
            if value < 1:
                raise ValueError(f"{option} is {value}, expected at least 1")
        if "{instruction}" not in prompt_template:
            raise ValueError(f"prompt_template is {prompt_template!r}, expected a text with {{instruction}} in it")
        if processor is None and name is None:
            raise ValueError(
                "the model has neither processor nor name to load it by: give VLMPolicy one of them, or rebuild the "
                "policy and pass it as load(folder, policy=...)"
            )
        if lora is not None and lora.target_modules is None:
            lora = replace(lora, target_modules=("q_proj", "v_proj"))
        super().__init__(model, sampling=sampling, lora=lora, name=name)
        self.processor = processor or load_processor(str(name))
        self.num_points, self.max_new_tokens, self.prompt_template = num_points, max_new_tokens, prompt_template
        self.answer_size = None if answer_size is None else (answer_size[0], answer_size[1])
        if stop is None:
            config = model.generation_config
            end = config.eos_token_id if config else None
            end = self.processor.tokenizer.eos_token_id if end is None else end
            stop = end if isinstance(end, list) else [end]
        self.stop = tuple(stop)
        self._seen_sizes: dict[tuple[int, int], tuple[int, int]] = {}

    @classmethod
    def from_pretrained(  # type: ignore[override]  # no model is the default, and none is gradient-checkpointed
        cls,
        name: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        temperature: float = 1.0,
        **kwargs: Any,
    ) -> Self:
        """Load a model and its processor from a folder or the Hugging Face hub.

        Args:
            name: the folder or hub name.
            dtype: of the weights; log-probabilities are always computed in float32.
            device: where to put it.
            temperature: divides the logits; above 0. ``sampling`` says more.
            kwargs: as the constructor's.
        """
        kwargs = {"sampling": Sampling(temperature=temperature), **kwargs}
        return super().from_pretrained(name, dtype=dtype, device=device, **kwargs)

    def act(self, observation: Any, noise: RowNoise, deterministic: bool = False) -> Decision:
        prompts = self._prompts(observation)

        def start() -> Start:
            cache = make_cache(self.model, prompts.mask.shape[1] + self.max_new_tokens)
            hidden, position = self._read(prompts, cache)
            decoder = CachedDecoder(self.model, cache, prompts.mask, prompts.row, self.max_new_tokens)
            return self._head(hidden)[prompts.row], decoder, position[prompts.row]

        out = decode_from(
            start, noise, self.settings, max_steps=self.max_new_tokens, stop=self.stop, deterministic=deterministic
        )
        size = self._size(*observation["screenshot"].shape[1:3])
        actions = np.stack([action_of(text, size, self.num_points) for text in self.texts(out.actions, out.mask)])
        extras = {"tokens": out.actions, "token_mask": out.mask}
        return Decision(
            torch.from_numpy(actions).to(self.device),
            out.log_probs.sum(1),
            {name: pad_time(values, self.max_new_tokens) for name, values in extras.items()},
        )

    def generate(
        self,
        observation: Any,
        noise: RowNoise,
        *,
        max_steps: int = 1,
        terminal_actions: Collection[int] = (),
        deterministic: bool = False,
    ) -> Trajectories:
        """Play one-turn episodes.

        Raises:
            ValueError: if ``max_steps`` is not 1.
        """
        return one_turn(self, observation, self.act(observation, noise, deterministic), max_steps)

    def evaluate_actions(self, trajectories: Trajectories, *, entropy: bool = False) -> Evaluation:
        """Score the recorded answers: one pass over the different prompts, one over the answers after them.

        Args:
            trajectories: episodes sampled under this policy's own sampling settings.
            entropy: also return the entropy of every answer (differentiable); else it is 0.

        Raises:
            ValueError: if the episodes were sampled under other settings, which would silently bias every ratio.
        """
        self._check_sampling(trajectories)
        prompts = self._prompts(trajectories.observations)
        tokens, mask = (trajectories.extras[name][:, 0].to(self.device) for name in ("tokens", "token_mask"))
        width = int(mask.sum(1).max())
        tokens, mask, row = tokens[:, :width], mask[:, :width], prompts.row
        cache = DynamicCache(config=self.model.config.get_text_config())
        last, position = self._read(prompts, cache)
        hidden = last[row, None]
        if width > 1:
            cache.batch_select_indices(row)
            after = self.model.base_model(
                input_ids=tokens[:, :-1],
                attention_mask=torch.cat([prompts.mask[row], mask[:, :-1]], 1).long(),
                position_ids=position[row, None] + torch.arange(width - 1, device=row.device),
                past_key_values=cache,
                use_cache=True,
            )
            hidden = torch.cat([hidden, after[0]], 1)
        zeros = torch.zeros(mask.shape, device=mask.device)
        log_probs, entropies = (
            zeros.masked_scatter(mask, values.expand(int(mask.sum()))).sum(1, keepdim=True)
            for values in self._log_probs(hidden[mask], tokens[mask], entropy)
        )
        return Evaluation(log_probs, entropies)

    def texts(self, tokens: Tensor, mask: Tensor) -> list[str]:
        """Answers as text, of ``tokens [B, L]`` and ``mask [B, L]``: of episodes, ``extras[...][:, 0]``."""
        decode = self.processor.tokenizer.decode
        return [decode(row[kept], skip_special_tokens=True) for row, kept in zip(tokens, mask, strict=True)]

    def spec(self) -> dict[str, Any]:
        return super().spec() | {name: getattr(self, name) for name in self.options}

    def save_pretrained(self, folder: str | Path, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Write a Hugging Face folder (adapters merged) with the processor, loadable anywhere."""
        super().save_pretrained(folder, tokenizer or self.processor)
        # A file of its own, which loaders also take for the processor of videos where there is none.
        self.processor.image_processor.save_pretrained(folder)

    def _prompts(self, observation: Any) -> Prompts:
        """The different prompts of a batch, in order of first appearance."""
        from PIL import Image

        screens, instructions = (torch.as_tensor(observation[k]).cpu().numpy() for k in ("screenshot", "instruction"))
        keys = [s.tobytes() + i.tobytes() for s, i in zip(screens, instructions, strict=True)]
        first: dict[bytes, int] = {}
        for i, key in enumerate(keys):
            first.setdefault(key, i)
        number = {key: g for g, key in enumerate(first)}
        width, height = self._size(*screens.shape[1:3])
        filled = self.prompt_template.replace("{width}", str(width)).replace("{height}", str(height))
        asked = [
            filled.replace("{instruction}", instructions[i].tobytes().rstrip(b"\0").decode(errors="replace"))
            for i in first.values()
        ]
        texts = self.processor.apply_chat_template(
            [
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
                for question in asked
            ],
            add_generation_prompt=True,
        )
        start = self.processor.tokenizer.bos_token
        inputs = self.processor(
            text=texts,
            images=[[Image.fromarray(screens[i])] for i in first.values()],
            add_special_tokens=not (start and texts[0].startswith(start)),  # the template has them already
            padding=True,
            padding_side="left",
            return_tensors="pt",
        ).to(self.device)
        row = torch.tensor([number[key] for key in keys], device=self.device)
        return Prompts(dict(inputs), inputs["attention_mask"].bool(), row)

    def _read(self, prompts: Prompts, cache: Cache) -> tuple[Tensor, Tensor]:
        """Last hidden states ``[G, D]`` of the prompts, and the position ``[G]`` of what follows them.

        Models with positions in several dimensions (an image of 100 tokens is less than 100 long) compute them
        themselves and leave the offset of what follows; it is taken away, as it is of this batch only.
        """
        base: Any = self.model.base_model
        inputs, position = prompts.inputs, prompts.mask.sum(1)
        if not hasattr(base, "rope_deltas"):
            inputs = inputs | {"position_ids": (prompts.mask.cumsum(1) - 1).clamp(min=0)}
        hidden = base(**inputs, past_key_values=cache, use_cache=True)[0][:, -1]
        if getattr(base, "rope_deltas", None) is not None:
            position, base.rope_deltas = position + base.rope_deltas[:, 0], None
        return hidden, position

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """Width and height that coordinates are out of, on screenshots of ``height`` and ``width`` pixels."""
        if self.answer_size is not None:
            return self.answer_size
        if (height, width) not in self._seen_sizes:
            from PIL import Image

            processor = self.processor.image_processor
            grid = processor(images=Image.new("RGB", (width, height))).get("image_grid_thw")
            patch = processor.patch_size if grid is not None else 0
            size = (width, height) if grid is None else (int(grid[0][2]) * patch, int(grid[0][1]) * patch)
            self._seen_sizes[height, width] = size
        return self._seen_sizes[height, width]


def action_of(text: str, size: tuple[int, int], num_points: int) -> NDArray[np.float32]:
    """The action ``[num_points, 2]`` of an answer: its first points, then -1; all -1 for one that is no answer.

    Args:
        text: the answer.
        size: width and height that its coordinates are out of.
        num_points: rows of the action.
    """
    action = np.full((num_points, 2), -1, np.float32)
    points = parse_points(text, size)
    if points is not None and ((points >= 0) & (points <= 1)).all():
        kept = points[:num_points]
        action[: len(kept)] = kept
    return action


def load_processor(name: str) -> Any:
    """The processor of a folder or hub name; without torchvision, which only videos need, one of images and text.

    Raises:
        ImportError: without pillow.
    """
    path = model_path(name)
    try:
        return AutoProcessor.from_pretrained(path)
    except ImportError as error:
        from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

        whole: Any = PROCESSOR_MAPPING[type(AutoConfig.from_pretrained(path))]
        parts = [part for part in whole.get_attributes() if part != "video_processor"]
        if len(parts) == len(whole.get_attributes()):
            raise ImportError(f"the processor of {name!r} needs more: pip install 'aligngym[gui]'") from error
        stills: Any = type(whole.__name__, (whole,), {"get_attributes": classmethod(lambda cls: parts)})
        return stills.from_pretrained(path)
