"""Who sees whom."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Visibility = Any
"""``"complete"``, ``"ring"``, a ``[n, n]`` matrix, or a networkx graph."""


def visible_peers(visibility: Visibility, players: int) -> NDArray[np.float64] | None:
    """Whose choices each player sees: ``[n, n]``, 1 where player ``i`` sees ``j``, 0 elsewhere and on the diagonal.

    Args:
        visibility: ``"complete"``: everybody sees everybody, which is returned as None; ``"ring"``: both neighbours; a
            matrix; or a networkx graph on ``n`` nodes in the order of players, along whose edges they see: those of
            ``networkx.watts_strogatz_graph(n, k, p, seed)``, say, or a directed one.
        players: n.

    Raises:
        ValueError: for another name, or a matrix or graph of another size or with other entries than 0 and 1.
    """
    if isinstance(visibility, str):
        if visibility not in ("complete", "ring"):
            raise ValueError(f"visibility is {visibility!r}, expected 'complete', 'ring', a matrix or a networkx graph")
        if visibility == "complete":
            return None
        matrix = np.zeros((players, players))
        at = np.arange(players)
        matrix[at, (at + 1) % players] = matrix[at, (at - 1) % players] = 1
    elif hasattr(visibility, "edges"):
        import networkx

        matrix = np.asarray(networkx.to_numpy_array(visibility, weight=None), np.float64)
    else:
        matrix = np.array(visibility, np.float64)
    if matrix.shape != (players, players) or not np.isin(matrix, (0, 1)).all():
        raise ValueError(f"visibility has shape {matrix.shape}, expected zeros and ones, {players} x {players}")
    np.fill_diagonal(matrix, 0)
    return matrix
