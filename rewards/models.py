"""A Hugging Face sequence classifier or scalar reward model as a reward."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from .reward import Reward, RewardScores, Text, reason_of, text_of


@dataclass
class SequenceClassifierReward(Reward):
    """The score of an ``AutoModelForSequenceClassification``, computed in batches without gradients.

    Attributes:
        model: A folder or hub name.
        label: The class whose score is paid, by index or by its name in the model's config; None: the only output of a
            model that has one (a reward model).
        output: ``"logit"``, ``"probability"`` or ``"log_probability"``; over the classes, or of the sigmoid where the
            model has one output.
        read: ``"completion"``; ``"both"``, prompt and completion joined (through the chat template where they are
            messages); or ``"pair"``, as the tokenizer's two segments.
        batch_size: Texts a forward pass.
        max_length: Longest input in tokens; longer ones lose their beginning. None: the tokenizer's limit.
        device: Where the model runs.
    """

    model: str
    label: int | str | None = None
    output: str = "logit"
    read: str = "completion"
    batch_size: int = 16
    max_length: int | None = None
    device: str = "cpu"
    name: str | None = field(default="classifier", kw_only=True)
    _loaded: Any = field(default=None, init=False, repr=False, compare=False)

    transient: ClassVar[tuple[str, ...]] = ("_loaded",)

    def __post_init__(self) -> None:
        self.model = str(self.model)
        if self.output not in ("logit", "probability", "log_probability"):
            raise ValueError(f"output must be 'logit', 'probability' or 'log_probability', got {self.output!r}")
        if self.read not in ("completion", "both", "pair"):
            raise ValueError(f"read must be 'completion', 'both' or 'pair', got {self.read!r}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")

    def load(self) -> None:
        """Reads the model and its tokenizer.

        Raises:
            ImportError: if transformers is not installed.
            ValueError: if the label does not exist, or is needed and not given.
        """
        if self._loaded is not None:
            return
        try:
            from transformers import AutoModelForSequenceClassification, AutoTokenizer
        except ImportError as error:
            raise ImportError("SequenceClassifierReward needs transformers: pip install transformers") from error
        tokenizer = AutoTokenizer.from_pretrained(self.model, truncation_side="left")
        model = AutoModelForSequenceClassification.from_pretrained(self.model).to(self.device).eval()
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if model.config.pad_token_id is None:  # decoder models find the last token by it
            model.config.pad_token_id = tokenizer.pad_token_id
        self._loaded = (tokenizer, model, self._index(model.config))

    def _index(self, config: Any) -> int:
        names = {str(name): int(index) for index, name in config.id2label.items()}
        if self.label is None and config.num_labels == 1:
            return 0
        index = names.get(self.label) if isinstance(self.label, str) else self.label
        if index is None or not 0 <= index < config.num_labels:
            listed = ", ".join(f"{name!r} ({i})" for name, i in names.items())
            raise ValueError(f"label must be one of the model's classes {listed}; got {self.label!r}")
        return index

    def _score(self, completions: list[Text], prompts: list[Text] | None, columns: dict[str, Any]) -> RewardScores:
        if self.read != "completion" and prompts is None:
            raise ValueError(f"read={self.read!r} needs prompts, got None")
        self.load()
        asked: list[Any] = prompts if prompts is not None else [None] * len(completions)
        inputs = [self._input(prompt, text) for prompt, text in zip(asked, completions, strict=True)]
        values, reasons = np.full(len(inputs), np.nan), list[str | None]([None] * len(inputs))
        for start in range(0, len(inputs), self.batch_size):
            batch = inputs[start : start + self.batch_size]
            try:
                values[start : start + len(batch)] = self._forward(batch)
            except Exception as error:  # for instance out of memory: these samples are invalid
                reasons[start : start + len(batch)] = [reason_of(error)] * len(batch)
        for i in np.flatnonzero(np.isnan(values)):
            reasons[i] = reasons[i] or "the model returned nan"
        return RewardScores(values, {}, reasons)

    def _input(self, prompt: Any, completion: Text) -> tuple[str, ...]:
        """Returns one or two segments, free of lone surrogates, which no tokenizer can encode."""
        if self.read == "both":
            tokenizer = self._loaded[0]
            if isinstance(prompt, str) or isinstance(completion, str) or not tokenizer.chat_template:
                parts: tuple[str, ...] = (_all_text(prompt) + text_of(completion),)
            else:
                parts = (tokenizer.apply_chat_template([*prompt, *completion], tokenize=False),)
        else:
            parts = (text_of(completion),) if self.read == "completion" else (_all_text(prompt), text_of(completion))
        return tuple(part.encode("utf-8", "replace").decode("utf-8") for part in parts)

    def _forward(self, batch: list[tuple[str, ...]]) -> Any:
        import torch

        tokenizer, model, index = self._loaded
        segments = [list(column) for column in zip(*batch, strict=True)]
        limit = self.max_length or min(tokenizer.model_max_length, model.config.max_position_embeddings)
        tokens = tokenizer(*segments, return_tensors="pt", padding=True, truncation=True, max_length=limit)
        if tokens["input_ids"].shape[1] == 0:  # every text of the batch is empty
            raise ValueError("the tokenizer gives no token for an empty text")
        with torch.inference_mode():
            logits = model(**tokens.to(self.device)).logits.float()
        if self.output != "logit":
            log = torch.nn.functional.logsigmoid if logits.shape[1] == 1 else _log_softmax
            logits = log(logits)
        scores = logits[:, index].exp() if self.output == "probability" else logits[:, index]
        return scores.cpu().numpy()


def _log_softmax(logits: Any) -> Any:
    return logits.log_softmax(dim=-1)


def _all_text(prompt: Text) -> str:
    """Returns a prompt as text: of chat messages all contents, whoever spoke."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(text_of([{**message, "role": "assistant"}]) for message in prompt)
