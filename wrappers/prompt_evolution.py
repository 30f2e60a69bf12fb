"""Prompts that evolve with the policy: the most informative ones are changed, and their variants are trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .base import EpisodeRule, EpisodeWrapper, VectorEpisodeWrapper, generation_env
from .episodes import Episodes, Numbers
from .prompt_creators import Columns, Creator, Prompt, as_creator, json_form
from .prompt_informativeness import MEASURES, Measure, draw_without_replacement, informativeness, sampling_weights

EVOLUTION_PREFIX = "evolution/"

Allowed: TypeAlias = Mapping[str, Sequence[float]] | Callable[[Prompt, Columns], bool]


class PromptEvolutionRule(EpisodeRule):
    """What :class:`PromptEvolution` learns from finished episodes, and makes of the prompts."""

    def __init__(
        self,
        env: Any,
        creator: Creator | str | Mapping[str, Any] | None = None,
        informativeness: str | Callable[[Numbers], float] = "gap",
        *,
        share: float = 0.25,
        variants: int = 4,
        replay: float = 0.2,
        answers: int = 8,
        every: int = 1024,
        allowed: Allowed | None = None,
        noise: float | str = 0.0,
        epsilon: float = 1e-3,
        seed: int = 0,
    ) -> None:
        _check(share=share, variants=variants, replay=replay, answers=answers, every=every, epsilon=epsilon, seed=seed)
        if not callable(informativeness) and informativeness not in MEASURES:
            raise ValueError(
                f"informativeness is {informativeness!r}, expected a function or one of {', '.join(MEASURES)}"
            )
        self.creator = None if creator is None else as_creator(creator)
        super().__init__(
            env, creator=json_form(self.creator), informativeness=informativeness, share=share, variants=variants,
            replay=replay, answers=answers, every=every, allowed=allowed, noise=noise, epsilon=epsilon, seed=seed,
        )  # fmt: skip
        self._measure = informativeness
        if answers < self.measure.least:
            raise ValueError(f"answers is {answers}, but {informativeness!r} compares {self.measure.least} at least")
        self.share, self.variants, self.replay, self.answers = share, variants, replay, answers
        self.every, self.allowed, self.noise, self.epsilon = every, allowed, noise, epsilon
        self._source = generation_env(env)
        self._check_source()
        self.rng = np.random.default_rng(seed)
        self.generation = 0
        self.history: list[dict[str, float]] = []
        self._rewards: list[list[float]] = [[] for _ in range(self._source.num_prompts)]
        self._evolved_at = 0  # episodes

    def _check_source(self) -> None:
        if not hasattr(self._source, "replace_prompts"):
            raise ValueError(
                f"{self._source} has no table of prompts that can be replaced (replace_prompts): expected an "
                "environment such as LLMAlign-v0, or, in a batch that Gymnasium made, wrap each one by itself"
            )
        if self._source.prompt_weights is not None or evolves(self.env):
            raise ValueError("the prompts are chosen by another wrapper already, whose statistics would be of old ones")
        if isinstance(self.allowed, Mapping):
            for name, bounds in self.allowed.items():
                if name not in self._source.table.columns or len(bounds) != 2 or not bounds[0] <= bounds[1]:
                    raise ValueError(
                        f"allowed has {name!r}: {bounds!r}, expected (lowest, highest) of some of the columns "
                        f"{sorted(self._source.table.columns)}"
                    )
        if isinstance(self.noise, str) and self.noise not in self._source.table.columns:
            raise ValueError(f"noise is {self.noise!r}, but the columns are {sorted(self._source.table.columns)}")
        if not isinstance(self.noise, str) and not self.noise >= 0:
            raise ValueError(f"noise is {self.noise}, expected at least 0, or the name of a column")

    @property
    def measure(self) -> Measure:
        """How informativeness is measured."""
        return Measure(self._measure) if callable(self._measure) else MEASURES[self._measure]

    @property
    def informativeness(self) -> Numbers:
        """``[P]``, of each prompt by its answers since the last evolution; NaN where there are too few."""
        columns, noise = self._source.table.columns, self.noise
        std = np.array(columns[noise], np.float64) if isinstance(noise, str) else noise
        return informativeness(self._rewards, self.measure, std)

    def transform(self, episodes: Episodes) -> Episodes:
        """Leaves rewards as they are; adds the generation, and the newest point of the history, to the info."""
        point = {"generation": self.generation, **(self.history[-1] if self.history else {})}
        facts = {EVOLUTION_PREFIX + name: [value] * len(episodes) for name, value in point.items()}
        return replace(episodes, info={**episodes.info, **facts})

    def update(self, episodes: Episodes) -> None:
        """Takes a batch's rewards in, and lets the prompts evolve when it is time."""
        prompts = episodes.info.get("prompt_index", [None] * len(episodes))
        for prompt, reward in zip(prompts, episodes.rewards, strict=True):
            if prompt is not None and prompt >= 0 and np.isfinite(reward):  # below 0: of no prompt that is there
                self._rewards[prompt] = [*self._rewards[prompt], float(reward)][-self.answers :]
        if self.episodes - self._evolved_at >= self.every:
            self._evolve()

    def _evolve(self) -> None:
        """Put variants of informative prompts in the place of others."""
        count, info = self._source.num_prompts, self.informativeness
        weights = sampling_weights(info, zero=self.measure.zero, epsilon=self.epsilon)
        chosen = draw_without_replacement(weights, max(1, round(self.share * count)), self.rng)
        wanted = count - round(self.replay * count)
        made, rejected = ([], 0) if self.creator is None else self._made(self.creator, chosen, wanted)
        if made:
            self._place(made)
        self.history.append({
            "informativeness": float(info[np.isfinite(info)].mean()) if np.isfinite(info).any() else float("nan"),
            "known": int(np.isfinite(info).sum()), "informative": int((weights > 0).sum()), "chosen": len(chosen),
            "evolved": len(made), "rejected": rejected, "episodes": self.episodes,
            "prompts": len({str(prompt) for prompt in self._source.table.prompts}),
        })  # fmt: skip
        self.generation, self._evolved_at = self.generation + 1, self.episodes
        self._rewards = [[] for _ in range(count)]  # answers of an older policy say little of this one

    def _made(
        self, creator: Creator, chosen: NDArray[np.int64], wanted: int
    ) -> tuple[list[tuple[Prompt, dict[str, Any]]], int]:
        """Up to ``wanted`` variants of the ``chosen`` prompts, and how many were made and not taken."""
        table = self._source.table
        jobs = self.rng.permutation(np.repeat(chosen, self.variants))
        seeds = self.rng.integers(2**62, size=len(jobs)).tolist()
        taken: list[tuple[Prompt, dict[str, Any]]] = []
        done = 0
        while len(taken) < wanted and done < len(jobs):
            some = slice(done, done + wanted - len(taken))
            rows = [(table.prompts[i], table.row(i)) for i in jobs[some]]
            rngs = [np.random.default_rng(seed) for seed in seeds[some]]
            many = getattr(creator, "many", None)
            results = many(rows, rngs) if many else [creator(*row, rng) for row, rng in zip(rows, rngs, strict=True)]
            for (prompt, columns), result in zip(rows, results, strict=True):
                variant = result if isinstance(result, tuple) else (result, columns)
                if variant[0] is not None and variant != (prompt, columns) and self._takes(*variant):
                    taken.append((variant[0], dict(variant[1])))
            done += len(rows)
        return taken, done - len(taken)

    def _takes(self, prompt: Prompt, columns: Columns) -> bool:
        """Whether a variant is allowed, and the environment can start from it."""
        if set(columns) != set(self._source.table.columns):
            raise ValueError(
                f"the creator made a prompt with the columns {sorted(columns)}, expected those of the other prompts, "
                f"{sorted(self._source.table.columns)}"
            )
        if isinstance(self.allowed, Mapping):
            fits = all(low <= columns[name] <= high for name, (low, high) in self.allowed.items())
        else:
            fits = self.allowed is None or bool(self.allowed(prompt, columns))
        return fits and bool(self._source.accepts_prompt(prompt))

    def _place(self, made: Sequence[tuple[Prompt, dict[str, Any]]]) -> None:
        """Put new prompts into places of the table drawn at random; the others stay, which is the replay."""
        table = self._source.table
        prompts, columns = list(table.prompts), {name: list(values) for name, values in table.columns.items()}
        places = self.rng.choice(len(prompts), size=len(made), replace=False)
        for place, (prompt, row) in zip(places, made, strict=True):
            prompts[place] = prompt
            for name, value in row.items():
                columns[name][place] = value
        self._source.replace_prompts(prompts, columns)

    def report(self) -> str:
        """The first and the newest generation, side by side."""
        if not self.history:
            return f"no evolution yet: {self.episodes} of {self.every} episodes"
        first, last = self.history[0], self.history[-1]
        lines = [f"{self.generation} generations", f"{'':20}{'first':>10}{'now':>10}"]
        return "\n".join([*lines, *(f"{name:20}{first[name]:10.4g}{value:10.4g}" for name, value in last.items())])

    def _get_state(self) -> dict[str, Any]:
        return {
            "rng": self.rng.bit_generator.state,
            "generation": self.generation,
            "evolved_at": self._evolved_at,
            "history": [dict(point) for point in self.history],
            "rewards": [list(rewards) for rewards in self._rewards],
        }

    def _set_state(self, state: Mapping[str, Any]) -> None:
        if len(state["rewards"]) != self._source.num_prompts:
            raise ValueError(
                f"the state is of {len(state['rewards'])} prompts, but there are {self._source.num_prompts}"
            )
        self.rng.bit_generator.state = state["rng"]
        self.generation, self._evolved_at = int(state["generation"]), int(state["evolved_at"])
        self.history = [dict(point) for point in state["history"]]
        self._rewards = [[float(reward) for reward in rewards] for rewards in state["rewards"]]


class PromptEvolution(PromptEvolutionRule, EpisodeWrapper):
    r"""Lets the prompts evolve with the policy (eva: Ye et al. 2024, arXiv 2411.00062).

    After every ``every`` episodes a *creator* makes the prompts of the next generation. With the rewards
    :math:`r_{x,1}, \dots, r_{x,n}` of the last answers to prompt :math:`x`, its informativeness is their gap,

    .. math:: I(x) = \max_i r_{x,i} - \min_i r_{x,i} ,

    a proxy of the policy's regret there. A ``share`` of the prompts is drawn without replacement, with chances in
    proportion to :math:`I`, min-max normalised, plus ``epsilon``; a prompt whose answers were all as good, mastered or
    impossible, is never drawn, even if fewer remain than were to be drawn. Of each drawn one up to ``variants`` are
    made. They take the places of others: a share ``replay`` of the old prompts at least, drawn uniformly, stays. The
    number of prompts does not change.

    Episodes draw from the table as ever, each row from its own generator: rows with equal seeds start from the same
    prompt, any agent trains, and without a creator (or with one that changes nothing) a run is bit for bit the run
    without the wrapper. ``get_state`` holds the whole table. Groups should fit ``answers``, and ``every`` be a few
    times ``answers`` times the number of prompts, for most of them to be known.

    The newest point of ``history`` is in the info of every finished episode as ``evolution/<name>``: ``generation``,
    ``informativeness`` (mean over known prompts), ``known``, ``informative``, ``chosen``, ``evolved``, ``rejected``,
    ``prompts`` (different ones) and ``episodes``; ``report()`` shows the first beside the last.

    Deviations: the paper evolves once per round of training a preference optimiser, here it is a matter of episodes;
    the number of prompts stays the same, and a drawn prompt may lose its place to a variant like any other. 80 %
    evolved and 20 % old prompts are our reading of its mixture. Answers to earlier generations are forgotten.

    Traps. A noisy reward makes prompts look informative: give ``noise``, and what it alone would give is subtracted.
    The gap depends on the scale of rewards: prompts whose rewards have a larger one are drawn more. Give ``allowed``,
    so that prompts do not drift to where the reward means nothing, or into what is tested on. Without ``replay`` the
    prompts may all descend from a few. Compare runs at equal episodes, not at equal prompts.

    Args:
        env: an environment whose table of prompts can be replaced: ``LLMAlign-v0``, ``DiffusionAlign-v0`` or
            ``FlowAlign-v0``.
        creator: a function of a prompt, its columns and a generator that gives a new one, or a name or JSON form; see
            :mod:`aligngym.wrappers.prompt_creators`. None changes nothing, but informativeness is told.
        informativeness: "gap"; "advantage" (best minus mean), "variance", "second" (best minus second best), "hardest"
            (low mean; it runs away from the policy), "uniform"; or a function of the rewards ``[n]`` of a prompt, of
            which 0 means that nothing can be learned.
        share: of the prompts that are drawn, in (0, 1].
        variants: made of each, at least 1.
        replay: share of old prompts that stay, in [0, 1].
        answers: latest rewards of a prompt that it is judged by; at least 2. More than one group may be among them.
        every: episodes of a generation, at least 1; it ends with the batch in which they are reached.
        allowed: (lowest, highest) of some columns, or a function of a prompt and its columns that says whether a
            variant may be used; None allows all that the environment takes.
        noise: standard deviation of the noise of the reward of one answer; or the column that holds it.
        epsilon: chance of the least informative prompt beside that of the most informative one, above 0.
        seed: of what is drawn here; no row's generator is touched.

    Raises:
        ValueError: for a number out of range, an unknown name or column, an environment without such a table, or one
            whose prompts another wrapper chooses.
    """


class VectorPromptEvolution(PromptEvolutionRule, VectorEpisodeWrapper):
    """:class:`PromptEvolution` for a batch of environments."""


def evolves(env: Any) -> bool:
    """Whether a wrapper in a stack replaces the prompts."""
    while env is not None:
        if isinstance(env, PromptEvolutionRule):
            return True
        env = vars(env).get("env")
    return False


def _check(**values: Any) -> None:
    """Raise a ValueError for the first number that is out of its range."""
    for name in ("variants", "answers", "every"):
        if isinstance(values[name], bool) or not isinstance(values[name], int | np.integer) or values[name] < 1:
            raise ValueError(f"{name} is {values[name]!r}, expected an integer of at least 1")
    if not 0 < values["share"] <= 1 or not 0 <= values["replay"] <= 1:
        raise ValueError(f"share={values['share']}, replay={values['replay']}: expected numbers in (0, 1] and [0, 1]")
    if not values["epsilon"] > 0 or values["seed"] < 0:
        raise ValueError(f"epsilon={values['epsilon']}, seed={values['seed']}: expected above 0, and at least 0")
