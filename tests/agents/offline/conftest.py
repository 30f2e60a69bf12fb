"""Recorded episodes."""

import numpy as np
import pytest
import torch

from ..recorded import play


@pytest.fixture
def episodes():
    """Four, of 12, 7, 3 and 12 steps; those in the middle terminated, the others were cut."""
    found = play("MountainCarContinuous-v0", 4, max_episode_steps=12)
    found.mask[1, 7:] = found.mask[2, 3:] = False
    for name in ("actions", "log_probs", "rewards"):
        getattr(found, name)[~found.mask] = 0
    found.observations[1, 8:] = found.observations[2, 4:] = 0
    found.terminated[:] = torch.tensor([False, True, True, False])
    found.truncated[:] = ~found.terminated
    found.info = {"policy": ["a", "b", None, "ü"], "seed": [3, 4, 5, 6], "goal": [np.arange(3.0)] * 4}
    found.terms = {"true_return": torch.tensor([0.5, -1.0, torch.nan, 2.0])}
    found.extras = {"true_reward": torch.rand(found.mask.shape, generator=torch.Generator()) * found.mask}
    return found
