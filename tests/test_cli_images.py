"""The command line on the image environments, with the embedded models and three denoising steps."""

import contextlib
import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from aligngym.agents.callbacks import read_table
from aligngym.agents.checkpoint import load_checkpoint
from aligngym.agents.experiment import read_run
from aligngym.agents.images import read_grid
from aligngym.cli import main
from aligngym.envs.robot.manipulation import ManipulationAlignEnv

STEPS = ["--env-options", '{"num_steps": 3}']
SMALL = ["--episodes-per-iteration", "4", "--group-size", "2", "--eval-episodes", "4", "--learning-rate", "1e-4"]
DOG = '{"type": "image_classifier", "word": "dog", "output": "logit"}'  # tells all images apart, unlike probabilities
FLOW = ["FlowAlign-v0", "--agent", "grpo", "--reward", DOG, *SMALL, *STEPS]
QUIET = ['{"noise_level": 0.1}', '{"noise_level": 0.1, "guidance": 2}']
FLOW += ["--policy-options", '{"guidance": 2}', "--eval-every", "4"]


def output(*args, code=0):
    """What a command prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(list(args)) == code
    return out.getvalue()


def reward(text):
    """The numbers in the first line of an evaluation."""
    return text.splitlines()[0].split("(")[0].removeprefix("reward").strip()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run of a flow model, and what the command printed."""
    folder = tmp_path_factory.mktemp("runs") / "flow"
    return folder, output("train", *FLOW, "--episodes", "8", "--out", str(folder))


def test_training_shows_images_before_and_after(run):
    folder, text = run
    lines = text.splitlines()
    assert lines[0].startswith("Evaluation reward") and "KL" not in text and "Sample" not in text
    assert f"Images:     {folder / 'images/0.png'}, {folder / 'images/8.png'}" in lines
    assert f"In pairs:   {folder / 'before-after.png'}" in lines and f"Curve:      {folder / 'learning.png'}" in lines
    first, last = (read_grid(folder / f"images/{n}.png") for n in (0, 8))
    assert first.captions == last.captions and not np.array_equal(first.images, last.images)
    assert np.mean(last.rewards) == pytest.approx(read_table(folder / "eval.csv")[-1]["reward_mean"])
    pairs = np.asarray(Image.open(folder / "before-after.png").convert("RGB"))
    assert np.array_equal(pairs[12:140:4, 12:140:4], first.images[0])
    assert np.array_equal(pairs[12:140:4, 142:270:4], last.images[0])


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(run, tmp_path):
    whole, parts = tmp_path / "whole", shutil.copytree(run[0], tmp_path / "parts")
    output("train", *FLOW, "--episodes", "12", "--out", str(whole))
    output("train", "--resume", str(parts), "--episodes", "12")
    tensors = [load_checkpoint(folder / "last")[0]["policy"] for folder in (whole, parts)]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    for name in ("images/12.png", "before-after.png", "eval.csv"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()


def test_runs_from_before_policy_options_are_still_read(run, tmp_path):
    values = json.loads((run[0] / "run.json").read_text())
    del values["experiment"]["policy_options"]
    (tmp_path / "run.json").write_text(json.dumps(values))
    assert read_run(tmp_path)[0].policy_options == "{}"


def test_evaluation_follows_training_and_can_be_told_otherwise(run):
    folder = str(run[0])
    evaluate = ["evaluate", folder, "--episodes", "4", "--samples", "1"]
    text, last = output(*evaluate), read_table(run[0] / "eval.csv")[-1]
    assert reward(text) == f"{last['reward_mean']:.3f} ± {last['reward_se']:.3f}"
    assert "KL" not in text and "prompt: " in text and "3.0 decisions" in text
    assert output(*evaluate, "--deterministic") == text
    stochastic = output(*evaluate, "--stochastic")
    assert "KL" in stochastic and reward(stochastic) != reward(text)
    stronger = output(*evaluate, "--policy-options", '{"guidance": 6}', "--stochastic")
    assert "KL" in stronger and reward(stronger) != reward(stochastic)
    quiet = [output(*evaluate, "--stochastic", "--policy-options", text) for text in QUIET]
    assert quiet[0] == quiet[1] != stochastic  # options are put over the run's
    assert "5.0 decisions" in output(*evaluate, "--env-options", '{"num_steps": 5}')
    assert main([*evaluate, "--deterministic", "--stochastic"]) == 2


def test_rl_guidance_goes_from_the_untrained_network_past_the_run(run):
    evaluate = ["evaluate", str(run[0]), "--episodes", "4", "--samples", "0"]
    first, last = (read_table(run[0] / "eval.csv")[i] for i in (0, -1))
    rewards = [reward(output(*evaluate, "--rl-guidance", scale)) for scale in ("0", "1", "4")]
    expected = [f"{row['reward_mean']:.3f} ± {row['reward_se']:.3f}" for row in (first, last)]
    assert rewards[:2] == expected and rewards[2] not in expected


def test_play_draws_a_run_beside_the_untrained_model(run, tmp_path):
    text = output("play", "--model", str(run[0]), "--episodes", "3", "--seed", "1000000")
    folder = run[0] / "play"
    for label, name in {"Images": "images", "Untrained": "untrained", "In pairs": "before-after"}.items():
        assert f"{label + ':':12}{folder / name}.png" in text
    assert f"Denoising:  {folder / 'denoising.gif'}" in text and "untrained  " in text
    for name, episodes in {"images": 8, "untrained": 0}.items():  # the same seeds as in training
        shown, trained = read_grid(folder / f"{name}.png"), read_grid(run[0] / f"images/{episodes}.png")
        assert shown.captions == trained.captions[:3]
        assert np.array_equal(shown.images, trained.images[:3])
    assert Image.open(folder / "denoising.gif").n_frames == 4
    output("play", "--model", str(run[0]), "--episodes", "3", "--rl-guidance", "4", "--out", str(tmp_path))
    guided, plain = (read_grid(f / "untrained.png").captions for f in (tmp_path, folder))
    assert guided != plain  # the default seed is another
    assert not np.array_equal(read_grid(tmp_path / "images.png").images, read_grid(folder / "images.png").images)


@pytest.mark.parametrize("args", [["DiffusionAlign-v0"], ["--model", "emoji-diffusion"]])
def test_play_draws_an_environments_own_model_on_ones_own_prompt(args, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = output("play", *args, "--prompt", "dog face", "--episodes", "2", *STEPS)
    folder = tmp_path / "runs/play-DiffusionAlign-v0"
    assert "compressibility" in text and "untrained" not in text
    assert sorted(p.name for p in folder.iterdir()) == ["denoising.gif", "images.png"]
    grid = read_grid(folder / "images.png")
    assert grid.captions == ["dog face"] * 2 and not np.array_equal(*grid.images)


def test_a_run_plays_ones_own_prompt_with_its_own_options(run, tmp_path):
    output("play", "--model", str(run[0]), "--prompt", "cat face", "--episodes", "1", "--out", str(tmp_path))
    assert read_grid(tmp_path / "images.png").captions == ["cat face"]
    assert Image.open(tmp_path / "denoising.gif").n_frames == 4


def test_ddpo_trains_on_compressibility(tmp_path):
    options = ["--episodes-per-iteration", "4", "--eval-episodes", "4", "--episodes", "4", *STEPS]
    text = output("train", "DiffusionAlign-v0", "--agent", "ddpo", *options, "--out", str(tmp_path / "run"))
    assert "In pairs:" in text
    assert json.loads((tmp_path / "run/run.json").read_text())["experiment"]["agent"] == "ddpo"


def test_the_plot_of_a_run_without_divergences(run, tmp_path):
    assert output("plot", str(run[0]), "--out", str(tmp_path)).split() == [str(tmp_path / "learning.png")]


def test_models_are_listed():
    for args in (["list", "models"], ["assets"]):
        assert {"stories", "emoji-diffusion", "emoji-flow"} <= set(output(*args).split())


BAD = {
    "unknown word": (["play", "DiffusionAlign-v0", "--prompt", "a zyzzyva"], "words that the model does not know"),
    "unknown policy option": (["train", "FlowAlign-v0", "--policy-options", '{"gidance": 2}'], "gidance"),
    "policy options of text": (["play", "--policy-options", '{"guidance": 2}'], "policy_options are for image"),
    "sampler of another kind": (["play", "FlowAlign-v0", "--policy-options", '{"sampler": "ddim"}'], "flow model"),
    "pictures of text": (["play", "--episodes", "1", "--out", "x"], "LLMAlign-v0 makes no images"),
    "guidance without a run": (["evaluate", "emoji-flow", "--rl-guidance", "2"], "emoji-flow is no run"),
    "both modes": (["play", "FlowAlign-v0", "--deterministic", "--stochastic"], "exclude each other"),
    "no episodes": (["play", "FlowAlign-v0", "--episodes", "0"], "episodes=0"),
    "other shape": (["train", "FlowAlign-v0", "--env-options", '{"shape": [3, 8, 8]}'], "give the environment"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    args, message = BAD[case]
    assert main(args) == 2
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if not line.startswith("warning: ")]
    assert len(errors) == 1 and errors[0].startswith("error: ") and message in errors[0]
    assert captured.out == "" and not list(tmp_path.iterdir())


def test_rl_guidance_is_for_denoisers(tmp_path, capsys):
    args = ["--episodes-per-iteration", "4", "--group-size", "2", "--eval-episodes", "2", "--episodes", "4"]
    output("train", "TabularBandit-v0", *args, "--out", str(tmp_path / "run"))
    assert main(["evaluate", str(tmp_path / "run"), "--rl-guidance", "2"]) == 2
    assert "TabularBandit-v0 has no denoising policy" in capsys.readouterr().err


def test_play_films_a_simulator(tmp_path, capsys, monkeypatch) -> None:
    steps = []
    step = ManipulationAlignEnv.step
    monkeypatch.setattr(ManipulationAlignEnv, "step", lambda self, action: steps.append(1) or step(self, action))
    options = json.dumps({"task": "drawer-open", "max_steps": 5, "render_size": 64})
    command = ["play", "ManipulationAlign-v0", "--episodes", "2", "--env-options", options]
    assert main([*command, "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert len(steps) == 2 * 5, "each episode is simulated once"
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["01.gif", "02.gif"]
    assert "Episode 2" in text and f"Video: {tmp_path / '02.gif'}" in text
    with Image.open(tmp_path / "01.gif") as gif:
        assert gif.n_frames == 6
