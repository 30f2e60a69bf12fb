"""``DiffusionAlign-v0`` and ``FlowAlign-v0``: denoise a sample step by step; the final one is rewarded once."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ...assets import image_prompts_path
from ...rewards import as_reward
from ..batching import Flags, Rows, check_positive, row_indices
from ..generation import EpisodeScores, GenerationEnv, GenerationVectorEnv
from ..text.prompts import PromptSource, PromptTable, load_prompts, well_formed
from ..text.tables import PromptTableVectorEnv

if TYPE_CHECKING:
    from ...rewards import Reward

BOUND = 100.0  # of states and actions; samples of trained models stay within a few units
RESERVED = ("completions", "prompts")  # names that a reward is called with


class DenoisingVectorEnv(PromptTableVectorEnv):
    """A batch of denoising chains as Markov decision processes (Black et al. 2023, arXiv 2305.13301).

    State: ``(x_t, t, prompt)``. Action: ``x_{t-1}``, which becomes the next state: the transition is deterministic, and
    all randomness is the policy's, whose sampler says how likely an action was. After ``num_steps`` actions the episode
    *terminates* and the final sample is decoded and scored; every other reward is 0.

    Observation: ``sample`` (``shape`` float32, :math:`x_t`), ``timestep [1]`` int64 (steps still to take, ``num_steps``
    at the start) and ``prompt [max_prompt_bytes]`` uint8 (UTF-8, padded with 0). The first sample is standard normal,
    drawn from the row's generator, as the prompt is: rows with equal seeds share both.

    The info of a finished episode holds ``image`` (what the decoder made of the final sample), ``prompt``,
    ``prompt_index`` (-1: given to ``reset``), ``columns``, ``reward/<term>`` and ``invalid``, as in ``LLMAlign-v0``.

    Options of ``reset``: ``prompt`` (one for all rows, or a list of ``num_envs``) or ``prompt_index``.

    Deviation: Flow-GRPO gives each image of a group its own initial noise; here a group shares its whole initial state,
    as in DanceGRPO and TempFlow-GRPO.

    Args:
        num_envs: episodes side by side.
        prompts: see :func:`~aligngym.envs.text.prompts.load_prompts`; None takes the embedded captions.
        split: of the embedded prompts, "train" or "eval".
        reward: a name, a JSON form, a function with TRL's signature, or a ``Reward``. It is called with the decoded
            samples as completions: uint8 ``[H, W, 3]`` arrays.
        shape: of a sample; ``(3, 32, 32)`` fits the embedded models, a latent's shape a latent diffusion model.
        num_steps: denoising steps of an episode; None: 20 (diffusion), 10 (flow).
        decoder: "pixels" maps a sample ``[3, H, W]`` in [-1, 1] to an image; None hands out the samples themselves,
            float32 (points, not images); a function maps samples ``[B, *shape]`` to a list of ``B`` arrays of one shape
            (a VAE).
        max_prompt_bytes: the longest prompt, at least 1.
        prompt_column: where prompts have columns, the one that holds the prompt.
        render_mode: None or "rgb_array": the decoded sample of a row as it stands; needs a decoder.
        device: None for numpy observations, a torch device for tensors there.

    Raises:
        ValueError: for an argument outside what is allowed, an unknown reward, or a prompt that is too long or no text.
    """

    metadata = {**GenerationVectorEnv.metadata, "render_modes": ["rgb_array"]}
    option_names = ("prompt", "prompt_index")
    model: ClassVar[str]  # whose policy trains here unless another is named
    default_steps: ClassVar[int]

    def __init__(
        self,
        num_envs: int = 1,
        *,
        prompts: PromptSource = None,
        split: str = "train",
        reward: str | Mapping[str, Any] | Callable[..., Any] | Reward = "compressibility",
        shape: Sequence[int] = (3, 32, 32),
        num_steps: int | None = None,
        decoder: str | Callable[[NDArray[np.float32]], Sequence[NDArray[Any]]] | None = "pixels",
        max_prompt_bytes: int = 128,
        prompt_column: str = "prompt",
        render_mode: str | None = None,
        device: str | None = None,
    ) -> None:
        num_steps = self.default_steps if num_steps is None else num_steps
        check_positive(num_steps=num_steps, max_prompt_bytes=max_prompt_bytes)
        whole = isinstance(shape, Sequence) and all(isinstance(n, int | np.integer) and n > 0 for n in shape)
        if not whole or not len(shape):
            raise ValueError(f"shape is {shape!r}, expected a list of positive integers")
        self.shape = tuple(int(n) for n in shape)
        if decoder == "pixels" and (len(self.shape) != 3 or self.shape[0] != 3):
            raise ValueError(f"decoder is 'pixels', but shape is {self.shape}, expected (3, height, width)")
        if not (decoder is None or decoder == "pixels" or callable(decoder)):
            raise ValueError(f"decoder is {decoder!r}, expected 'pixels', None or a function")
        if decoder is None and render_mode is not None:
            raise ValueError(f"render_mode is {render_mode!r}, but decoder is None: the samples are no images")
        self.decoder, self.reward = decoder, as_reward(reward)
        super().__init__(
            num_envs,
            spaces.Dict(
                sample=spaces.Box(-BOUND, BOUND, self.shape, np.float32),
                timestep=spaces.Box(0, num_steps, (1,), np.int64),
                prompt=spaces.Box(0, 255, (max_prompt_bytes,), np.uint8),
            ),
            spaces.Box(-BOUND, BOUND, self.shape, np.float32),
            max_steps=num_steps,
            render_mode=render_mode,
            device=device,
        )
        if prompts is None:
            prompts = image_prompts_path(split)
        self._open_table(load_prompts(prompts, split=split, column=prompt_column))
        self._samples = np.zeros((num_envs, *self.shape), np.float32)
        self._bytes = np.zeros((num_envs, max_prompt_bytes), np.uint8)
        self._prompts = [""] * num_envs

    def _load_table(self, table: PromptTable) -> None:
        if clash := [name for name in RESERVED if name in table.columns]:
            raise ValueError(f"{table.source} has columns {clash}, which rewards are called with; rename them")
        self._encoded = [self._encode(p, f"row {i} of {table.source}") for i, p in enumerate(table.prompts)]
        self.table, self.num_prompts = table, len(table)

    def _check_prompt(self, prompt: Any) -> None:
        self._encode(prompt, "the table")

    def _encode(self, prompt: Any, where: str) -> NDArray[np.uint8]:
        if not isinstance(prompt, str):
            raise ValueError(f"the prompt of {where} is a {type(prompt).__name__}, expected text")
        raw, most = prompt.encode("utf-8"), self.single_observation_space["prompt"].shape[0]  # type: ignore[index]
        if len(raw) > most or b"\0" in raw:
            raise ValueError(
                f"the prompt of {where} takes {len(raw)} bytes of UTF-8, expected at most max_prompt_bytes={most} and "
                f"no NUL character: {prompt[:60]!r}"
            )
        return np.frombuffer(raw.ljust(most, b"\0"), np.uint8)

    def _start(self, rows: Rows, options: Mapping[str, Any]) -> None:
        if len(options) > 1:
            raise ValueError("options has both 'prompt' and 'prompt_index', expected at most one of them")
        given = self._given(options["prompt"]) if "prompt" in options else None
        index = np.full(self.num_envs, -1)
        if "prompt_index" in options:
            index = row_indices(options["prompt_index"], self.num_envs, len(self.table))
        elif given is None:
            index[rows] = [self._draw_prompt(row) for row in rows]
        for row in rows:
            self._take(row, index[row])
            if given is not None:
                self._prompts[row] = given[row]
                self._bytes[row] = self._encode(given[row], f"options['prompt'], entry {row}")
            else:
                self._prompts[row] = str(self.table.prompts[index[row]])
                self._bytes[row] = self._encoded[index[row]]
            self._samples[row] = self.generators[row].standard_normal(self.shape, np.float32)

    def _given(self, value: Any) -> list[Any]:
        if isinstance(value, str):
            return [well_formed(value)] * self.num_envs
        if not isinstance(value, list | tuple) or len(value) != self.num_envs:
            given = f"{len(value)} prompts" if isinstance(value, list | tuple) else type(value).__name__
            raise ValueError(f"options['prompt'] is {given}, expected one prompt or a list of num_envs={self.num_envs}")
        return [well_formed(v) if isinstance(v, str) else v for v in value]

    def _observe(self) -> dict[str, NDArray[Any]]:
        left = self.max_steps - self.steps[:, None]
        return {"prompt": self._bytes.copy(), "sample": self._samples.copy(), "timestep": left}

    def _apply(self, actions: NDArray[Any], active: Flags) -> tuple[Flags, Flags]:
        self._samples[active] = actions[active]
        terminated = active & (self.steps >= self.max_steps)
        return terminated, np.zeros_like(terminated)

    def decode(self, samples: NDArray[np.float32]) -> list[NDArray[Any]]:
        """What the reward sees of final samples ``[B, *shape]``: ``B`` images, or the samples themselves."""
        if self.decoder is None:
            return list(samples.copy())
        if callable(self.decoder):
            images = [np.asarray(image) for image in self.decoder(samples.copy())]
            if len(images) != len(samples):
                raise ValueError(f"decoder returned {len(images)} arrays for {len(samples)} samples, expected one each")
            return images
        pixels = np.round((np.clip(samples, -1, 1) + 1) * 127.5).astype(np.uint8)
        return list(np.moveaxis(pixels, 1, -1))

    def _score(self, rows: Rows) -> EpisodeScores:
        images, prompts = self.decode(self._samples[rows]), [self._prompts[row] for row in rows]
        kept = [image.copy() for image in images]  # a reward may keep or change what it is given
        self.reward.set_progress(self.episodes)
        scores = self.reward.score(images, prompts, **self._columns_of(rows))
        absent = np.isnan(scores.values)
        reasons = [
            r or ("the reward does not apply" if a else None) for r, a in zip(scores.reasons, absent, strict=True)
        ]
        info: dict[str, list[Any]] = {
            "prompt": prompts,
            "prompt_index": self._index[rows].tolist(),
            "image": kept,
            "columns": [{name: str(v) for name, v in self._columns[row].items()} for row in rows],
        }
        return EpisodeScores(scores.values, scores.terms, reasons, info)

    def _render_row(self, row: int) -> Any:
        return self.decode(self._samples[row : row + 1])[0]

    def get_state(self) -> dict[str, Any]:
        """Everything that the next steps depend on, of JSON's types."""
        running = np.flatnonzero(~self._over)
        return {
            **super().get_state(),
            # Bytes of float32: decimal numbers would take five times the space.
            "samples": {str(r): base64.b64encode(self._samples[r].tobytes()).decode() for r in running},
            "prompts": list(self._prompts),
            "index": self._index.tolist(),
            **self._table_state(),
            "reward": self.reward.get_state(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where ``get_state`` was called, in an environment made with the same arguments."""
        super().set_state(state)
        self._restore_table(state)
        for row, raw in state["samples"].items():
            self._samples[int(row)] = np.frombuffer(base64.b64decode(raw), np.float32).reshape(self.shape)
        for row, prompt in enumerate(state["prompts"]):
            self._prompts[row], self._bytes[row] = prompt, self._encode(prompt, f"row {row} of the state")
        self.reward.set_state(state["reward"])


class DiffusionAlignVectorEnv(DenoisingVectorEnv):
    """:class:`DenoisingVectorEnv` for diffusion models: 20 steps, and the embedded diffusion model as its policy."""

    model = "emoji-diffusion"
    default_steps = 20


class FlowAlignVectorEnv(DenoisingVectorEnv):
    """:class:`DenoisingVectorEnv` for flow models: 10 steps, and the embedded flow model as its policy."""

    model = "emoji-flow"
    default_steps = 10


class DiffusionAlignEnv(GenerationEnv):
    """One episode of :class:`DiffusionAlignVectorEnv` at a time; it takes the same arguments, but ``num_envs``."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(DiffusionAlignVectorEnv(1, **kwargs))


class FlowAlignEnv(GenerationEnv):
    """One episode of :class:`FlowAlignVectorEnv` at a time; it takes the same arguments, but ``num_envs``."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(FlowAlignVectorEnv(1, **kwargs))
