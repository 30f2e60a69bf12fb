"""Environments whose episodes start from the rows of a table of prompts, which may be replaced while they run."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..batching import Rows
from ..generation import GenerationVectorEnv
from .prompts import Prompt, PromptTable, checked_prompt


class PromptTableVectorEnv(GenerationVectorEnv):
    """A generation environment that draws its prompts from ``self.table``.

    A subclass implements ``_load_table`` and ``_check_prompt``, calls ``_open_table`` in its constructor and ``_take``
    where an episode starts, and reads the columns beside a running prompt by ``_columns_of``: the table may have been
    replaced since that episode began.

    Attributes:
        table: the prompts that episodes start from.
        num_prompts: how many there are.
    """

    table: PromptTable

    @abstractmethod
    def _load_table(self, table: PromptTable) -> None:
        """Set ``table``, ``num_prompts`` and whatever is computed once for all prompts."""

    @abstractmethod
    def _check_prompt(self, prompt: Prompt) -> None:
        """Raise a ValueError for a prompt that no episode can start from."""

    def _open_table(self, table: PromptTable) -> None:
        self._load_table(table)
        self._own_table = self.table  # made with; what a state without a table goes back to
        self._index = np.full(self.num_envs, -1)  # in the table; -1: in none
        self._columns: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]  # beside each running prompt

    def _take(self, row: int, index: int) -> None:
        """Note that the episode of a row starts from row ``index`` of the table; -1: from none."""
        self._index[row] = index
        self._columns[row] = self.table.row(index) if index >= 0 else {}

    def _columns_of(self, rows: Rows) -> dict[str, list[Any]]:
        """For each column, what stands beside the prompts of these rows; None where a prompt has none."""
        return {name: [self._columns[row].get(name) for row in rows] for name in self.table.columns}

    def accepts_prompt(self, prompt: Prompt) -> bool:
        """Whether an episode can start from a prompt: it is well formed, and not too long."""
        try:
            self._check_prompt(checked_prompt(prompt, "the prompt"))
        except (TypeError, ValueError):
            return False
        return True

    def replace_prompts(self, prompts: Sequence[Prompt], columns: Mapping[str, Sequence[Any]] | None = None) -> None:
        """Start episodes from other prompts from now on.

        Running episodes end as they began, columns included; those whose row of the table is another one now have -1 as
        their ``prompt_index``. ``get_state`` holds the new table.

        Args:
            prompts: at least one.
            columns: what stands beside them, under the same names as before; of JSON's types, for ``get_state``.

        Raises:
            TypeError: for a prompt that is neither a string nor a list of messages.
            ValueError: for no prompts, other names or lengths of columns, a prompt that the environment does not take,
                or while ``prompt_weights`` are set, which are those of the old prompts.
        """
        if self.prompt_weights is not None:
            raise ValueError("prompt_weights are set, for the prompts that are there: make them None first")
        sizes = {name: len(values) for name, values in (columns or {}).items()}
        if not len(prompts) or set(sizes) != set(self.table.columns) or set(sizes.values()) - {len(prompts)}:
            raise ValueError(
                f"there are {len(prompts)} prompts and columns of lengths {sizes}, expected at least one prompt and "
                f"columns {sorted(self.table.columns)} of as many values"
            )
        checked = [checked_prompt(prompt, f"prompts, entry {i}") for i, prompt in enumerate(prompts)]
        old = self.table
        self._load_table(PromptTable(checked, {k: list(v) for k, v in (columns or {}).items()}, "the new prompts"))
        for row, index in enumerate(self._index):
            kept = 0 <= index < len(self.table) and old.prompts[index] == self.table.prompts[index]
            if not kept or old.row(index) != self.table.row(index):
                self._index[row] = -1

    def _table_state(self) -> dict[str, Any]:
        """The table where it was replaced, and the columns of running prompts that are no longer in it."""
        replaced = self.table is not self._own_table
        return {
            "table": {"prompts": self.table.prompts, "columns": self.table.columns} if replaced else None,
            "left": {str(i): c for i, c in enumerate(self._columns) if c and self._index[i] < 0},
        }

    def _restore_table(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`_table_state`; ``state["index"]`` holds which rows of the table are running."""
        saved = state.get("table")  # states of earlier versions have none
        if saved is None:
            if self.table is not self._own_table:
                self._load_table(self._own_table)
        elif (saved["prompts"], saved["columns"]) != (self.table.prompts, self.table.columns):
            self._load_table(PromptTable(saved["prompts"], saved["columns"], "the saved prompts"))
        for row, index in enumerate(state["index"]):
            self._take(row, index)
        for name, columns in state.get("left", {}).items():
            self._columns[int(name)] = dict(columns)
