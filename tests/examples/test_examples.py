"""Every example runs, small, as a user would run it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
TINY = ["--episodes", "64"]
# Arguments that keep a run to seconds, and what it must print.
RUNS = {
    "composed_wrappers": (TINY, ["after"]),
    "custom_environment": (["--episodes", "2048"], ["exactly right"]),
    "custom_reward": ([*TINY, "--eval-episodes", "8"], ["before", "after", "dialogue", "->"]),
    "designed_rewards": ([], ["optimum: 0.615", "PBRS: 0.6", "EXPRD: 0.6", "designs.png"]),
    "diffusion_ddpo": (
        ["--episodes", "32", "--eval-episodes", "4", "--num-steps", "3"],
        ["before", "after", "In pairs:", "images/32.png"],
    ),
    "diffusion_reward": (
        ["--episodes", "32", "--eval-episodes", "4", "--num-steps", "3"],
        ["before", "after", "warmth", "pairs: runs/warm/before-after.png"],
    ),
    "evolving_prompts": (["--episodes", "128", "--every", "64"], ["2 generations", "after 128 episodes"]),
    "flow_grpo": (
        ["--episodes", "8", "--num-steps", "3", "--rows", "8"],
        ["before", "after", "runs/flow-grpo/after.png"],
    ),
    "human_preferences": (
        ["--scripted", "--queries", "8", "--updates", "10"],
        ["8 answers", "gives 8 of them", "learned reward tells right"],
    ),
    "plotting": ([*TINY, "--prompts", "4", "--draws", "2"], ["learning.png", "frontier.png"]),
    "quickstart": (
        [*TINY, "--eval-episodes", "6", "--max-new-tokens", "12"],
        ["before", "after", "gain", "±", "KL", "Sample 3", "learning.png"],
    ),
    "resume": (["--episodes", "32"], ["bit for bit equal: True"]),
    "reward_in_trl": ([], ["ours from theirs"]),
    "self_evolving_society": (
        ["--players", "12", "--rounds", "4"],
        ["they see all", "runs/society/diffusion.gif", "runs/society/tipping-points.png"],
    ),
    "sb3_ppo": (["--steps", "64"], ["mean reward"]),
}
LONG = {  # a quarter to half a minute each
    "composed_wrappers", "custom_reward", "diffusion_ddpo", "diffusion_reward", "evolving_prompts", "flow_grpo",
    "plotting", "resume", "sb3_ppo",
}  # fmt: skip


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(RUNS)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_stay_short(path):
    assert len(path.read_text("utf-8").splitlines()) <= 60


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in RUNS])
def test_example(name, tmp_path):
    arguments, expected = RUNS[name]
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, EXAMPLES / f"{name}.py", *arguments]
    # In a folder of its own: examples write their runs where they are started.
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, encoding="utf-8", timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    for text in expected:
        assert text in done.stdout
    for path in tmp_path.rglob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
