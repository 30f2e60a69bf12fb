"""The environments: one table, and its registration with Gymnasium. Importing this loads no environment."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium


@dataclass(frozen=True)
class Entry:
    """One line of the table.

    Attributes:
        single: ``module:class`` of the single environment, the module relative to this package; None where there are
            only many at once.
        batched: the same of its batched twin, which ``gymnasium.make_vec`` then uses; None where Gymnasium batches it.
        extra: the optional dependencies to install for it (``pip install 'aligngym[extra]'``); None needs none.
        summary: what the environment is, in one line.
    """

    single: str | None
    batched: str | None
    extra: str | None
    summary: str


ENVIRONMENTS = {
    "LLMAlign-v0": Entry(
        single=".text.llm_align:LLMAlignEnv",
        batched=".text.llm_align:LLMAlignVectorEnv",
        extra=None,
        summary="continue a prompt token by token; the finished text is rewarded",
    ),
    "DiffusionAlign-v0": Entry(
        single=".image.denoising:DiffusionAlignEnv",
        batched=".image.denoising:DiffusionAlignVectorEnv",
        extra="image",
        summary="denoise a sample step by step with a diffusion model; the finished image is rewarded",
    ),
    "FlowAlign-v0": Entry(
        single=".image.denoising:FlowAlignEnv",
        batched=".image.denoising:FlowAlignVectorEnv",
        extra="image",
        summary="the same with a flow model",
    ),
    "GUIGrounding-v0": Entry(
        single=".gui.grounding:GUIGroundingEnv",
        batched=".gui.grounding:GUIGroundingVectorEnv",
        extra="gui",
        summary="point at the element of a screenshot that an instruction asks for",
    ),
    "VisualJigsaw-v0": Entry(
        single=".gui.jigsaw:VisualJigsawEnv",
        batched=".gui.jigsaw:VisualJigsawVectorEnv",
        extra="gui",
        summary="put the tiles of a screenshot, or the frames of a clip, in order",
    ),
    "GUIBrowser-v0": Entry(
        single=".gui.browser:GUIBrowserEnv",
        batched=None,
        extra="gui",
        summary="click, type and scroll on a live page of a real browser",
    ),
    "ManipulationAlign-v0": Entry(
        single=".robot.manipulation:ManipulationAlignEnv",
        batched=None,
        extra="robot",
        summary="move a robot's arm and gripper in one of Meta-World's 50 tasks",
    ),
    "RobosuiteAlign-v0": Entry(
        single=".robot.robosuite:RobosuiteAlignEnv",
        batched=None,
        extra="robot",
        summary="lift a cube, drop a can into a bin, put a nut on a peg, with robomimic's observations",
    ),
    "ControlAlign-v0": Entry(
        single=".robot.control:ControlAlignEnv",
        batched=None,
        extra="robot",
        summary="control a simulated body in one of the tasks of dm-control's suite",
    ),
    "RewardDesign/RoomsNav-v0": Entry(
        single=".design.rooms:RoomsNavEnv",
        batched=None,
        extra=None,
        summary="find the rewarded corner of four rooms; the table is exposed to teachers who design rewards",
    ),
    "RewardDesign/FourRooms-v0": Entry(
        single=".design.rooms:FourRoomsEnv",
        batched=None,
        extra=None,
        summary="the same rooms with the noise of later papers",
    ),
    "RewardDesign/LineKey-v0": Entry(
        single=".design.line_key:LineKeyEnv",
        batched=None,
        extra=None,
        summary="fetch a key at one end of a line of cells, bring it to the other",
    ),
    "RewardDesign/LineKeyContinuous-v0": Entry(
        single=".design.line_key:LineKeyContinuousEnv",
        batched=None,
        extra=None,
        summary="the same on real numbers, with nine wrong keys",
    ),
    "RewardDesign/Chain-v0": Entry(
        single=".design.chain:ChainEnv",
        batched=None,
        extra=None,
        summary="walk 20 cells to the only reward of a chain",
    ),
    "AlignmentTipping-v0": Entry(
        single=".society.tipping:AlignmentTippingEnv",
        batched=None,
        extra=None,
        summary="keep a rule that costs reward, or break it, round after round, with one's own history in view",
    ),
    "StrategyDiffusion-v0": Entry(
        single=None,
        batched=".society.diffusion:StrategyDiffusionVectorEnv",
        extra=None,
        summary="a game of collective choice, a row a player: collusion pays once enough take part; make_vec only",
    ),
    # An id of its own: as the batched twin of ControlAlign-v0 it would be what make_vec takes unless told otherwise.
    "ControlAlignMJX-v0": Entry(
        single=None,
        batched=".robot.mjx:ControlAlignMJXVectorEnv",
        extra="mjx",
        summary="the same, thousands side by side on a GPU; make_vec only",
    ),
    "TabularBandit-v0": Entry(
        single=".bandit:TabularBanditEnv",
        batched=".bandit:TabularBanditVectorEnv",
        extra=None,
        summary="one decision from a table of rewards; its KL-regularised optimum is known in closed form",
    ),
}


def registered_ids(name: str) -> tuple[str, ...]:
    """The ids of an entry: ``Name-v0`` and ``aligngym/Name-v0``; one with a namespace of its own has that one only."""
    return (name,) if "/" in name else (name, f"aligngym/{name}")


def register() -> None:
    """Register every environment under all its ids; a second call changes nothing."""
    for name, entry in ENVIRONMENTS.items():
        for env_id in registered_ids(name):
            if env_id not in gymnasium.registry:
                gymnasium.register(
                    env_id,
                    entry_point=__name__ + entry.single if entry.single else None,
                    vector_entry_point=__name__ + entry.batched if entry.batched else None,
                )


def list_envs() -> dict[str, Entry]:
    """Every environment by its id, in alphabetical order."""
    return dict(sorted(ENVIRONMENTS.items()))
