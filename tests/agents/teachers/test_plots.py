"""Pictures of designs: what is drawn where, and what cannot be drawn."""

import dataclasses

import matplotlib
import numpy as np
import pytest
from PIL import Image

from aligngym.agents.teachers.plots import plot_designs
from aligngym.envs.design.chain import corridor_mdp
from aligngym.envs.design.line_key import line_key_mdp
from aligngym.envs.design.rooms import rooms_mdp, rooms_nav_table

PROCESSES = {
    "line": line_key_mdp(),
    "corridor": corridor_mdp(4),
    "rooms": rooms_mdp(rooms_nav_table(0.1), reward=10, gamma=0.95),
}


def colours(path):
    """How many pixels are clearly blue, and clearly red."""
    red, _, blue = np.asarray(Image.open(path).convert("RGB")).astype(int).transpose(2, 0, 1)[:, :, :-120]
    return (blue - red > 60).sum(), (red - blue > 60).sum()  # without the bar of colours at the right


@pytest.mark.parametrize("name", PROCESSES)
def test_paid_is_blue_and_charged_is_red(name, tmp_path):
    mdp, backend = PROCESSES[name], matplotlib.get_backend()
    paid = np.zeros(mdp.shape)
    paid[2, 1] = 3.0
    blue, red = colours(plot_designs(mdp, {"paid": paid}, tmp_path / "paid.png"))
    assert blue > 100 and red == 0
    blue, red = colours(plot_designs(mdp, {"charged": -paid}, tmp_path / "charged.png"))
    assert red > 100 and blue == 0
    assert matplotlib.get_backend() == backend


def test_what_cannot_be_drawn_is_told(tmp_path):
    mdp = PROCESSES["corridor"]
    for changes, message in (
        ({"layout": None}, "has no layout"),
        ({"actions": ()}, r"actions are \(\)"),
        ({"actions": ("up", "pick")}, "actions are"),
    ):
        with pytest.raises(ValueError, match=message):
            plot_designs(dataclasses.replace(mdp, **changes), {"true": mdp.R}, tmp_path / "x.png")
    with pytest.raises(ValueError, match="designs is empty"):
        plot_designs(mdp, {}, tmp_path / "x.png")
