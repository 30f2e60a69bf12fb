"""The command line: what each command prints and writes, and that bad input is one sentence and an exit code."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from aligngym.agents.callbacks import read_jsonl, read_table
from aligngym.agents.checkpoint import load_checkpoint
from aligngym.agents.experiment import Experiment, best_of_n_returns, find_checkpoint, train
from aligngym.agents.grpo import GRPOConfig
from aligngym.agents.registry import AGENTS
from aligngym.agents.report import Report
from aligngym.cli import COMMANDS, main

SMALL = ["--episodes-per-iteration", "8", "--group-size", "4", "--eval-episodes", "4"]
TEXT = ["LLMAlign-v0", "--max-new-tokens", "6", *SMALL]
BANDIT = ["TabularBandit-v0", *SMALL]


def run_python(*args, **kwargs):
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=300, **kwargs)


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    """A short run on LLMAlign-v0 and what the command printed."""
    folder = tmp_path_factory.mktemp("runs") / "text"
    done = run_python("-m", "aligngym.cli", "train", *TEXT, "--episodes", "16", "--out", str(folder))
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture(scope="module")
def bandit_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "bandit"
    assert main(["train", *BANDIT, "--episodes", "16", "--out", str(folder)]) == 0
    return folder


def test_training_prints_the_report_and_nothing_else(text_run):
    folder, done = text_run
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Evaluation reward on held-out episodes")
    assert lines[1].split()[0] == "before" and "±" in lines[1] and "KL 0.00" in lines[1]
    assert lines[2].split()[0] == "after" and lines[3].split()[0] == "gain"
    assert sum(line.startswith("Sample ") for line in lines) == 3
    assert (
        sum(line.startswith("  before [") for line in lines)
        == sum(line.startswith("  after  [") for line in lines)
        == 3
    )
    assert f"Curve:      {folder / 'learning.png'}" in lines and (folder / "learning.png").exists()
    assert "16/16 episodes" in done.stderr and "Traceback" not in done.stderr and "Loading" not in done.stderr


def test_a_run_holds_all_that_describes_it(text_run):
    folder, _ = text_run
    written = json.loads((folder / "run.json").read_text())
    assert written["experiment"]["max_new_tokens"] == 6 and written["config"]["group_size"] == 4
    assert len(read_jsonl(folder / "samples.jsonl")) % 3 == 0
    for name in ("best", "last"):
        load_checkpoint(folder / name)
    assert any(folder.glob("events.out.tfevents*"))
    logged = [row for path in folder.glob("progress*.csv") for row in read_table(path)]
    assert any("alarm/no_signal" in row for row in logged)
    assert str(Report.of(folder)) in text_run[1].stdout.replace(f"Curve:      {folder / 'learning.png'}\n", "")


def test_evaluate_a_run_a_checkpoint_and_a_model(text_run, capsys):
    folder, _ = text_run
    for target in (str(folder), str(folder / "best")):
        assert main(["evaluate", target, "--episodes", "4", "--samples", "1"]) == 0
        out = capsys.readouterr().out
        assert "reward" in out and "KL" in out and "6.0 decisions" in out and out.count("Episode ") == 1
    args = [
        "--episodes",
        "4",
        "--samples",
        "2",
        "--max-new-tokens",
        "5",
        "--reward",
        '{"type": "length", "low": 1, "high": 9}',
    ]
    assert main(["evaluate", "stories", *args]) == 0
    out = capsys.readouterr().out
    assert "KL" not in out and "5.0 decisions" in out and out.count("completion: ") == 2


def test_evaluation_repeats_what_training_reported(text_run, capsys):
    folder, _ = text_run
    assert main(["evaluate", str(folder), "--episodes", "4", "--samples", "0"]) == 0
    last = read_table(folder / "eval.csv")[-1]
    assert f"{last['reward_mean']:.3f} ± {last['reward_se']:.3f}" in capsys.readouterr().out


def test_play_prints_episodes_of_the_given_prompt(text_run, capsys):
    assert main(["play", "--model", str(text_run[0]), "--prompt", "A cat sat", "--episodes", "2"]) == 0
    out = capsys.readouterr().out
    assert out.count("Episode ") == 2 and out.count("prompt: A cat sat") == 2 and "reward " in out


def test_plot_draws_both_figures_and_keeps_best_of_n(text_run, tmp_path, capsys):
    folder, _ = text_run
    assert main(["plot", str(folder), "--best-of", "2", "--prompts", "3", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "learning.png"), str(tmp_path / "frontier.png")]
    assert [row["n"] for row in read_table(folder / "best_of_n.csv")] == [1, 2]


def test_best_of_n_draws_from_the_untrained_policy():
    returns = best_of_n_returns(Experiment(max_new_tokens=24), prompts=2, n=3)
    assert returns.shape == (2, 3)
    assert len(set(returns.ravel())) > 3  # other actions from the same state
    with pytest.raises(ValueError, match="no tokens"):
        best_of_n_returns(Experiment(env="TabularBandit-v0"), 2, 2)
    with pytest.raises(ValueError, match="prompts=0"):
        best_of_n_returns(Experiment(), 0, 2)


def test_a_resumed_run_is_the_uninterrupted_one(bandit_run, tmp_path):
    whole = tmp_path / "whole"
    assert main(["train", *BANDIT, "--episodes", "32", "--out", str(whole)]) == 0
    assert main(["train", "--resume", str(bandit_run), "--episodes", "32"]) == 0
    for name in ("policy", "optimizer"):
        tensors = [load_checkpoint(run / "last")[0][name] for run in (whole, bandit_run)]
        assert all(torch.equal(value, tensors[1][key]) for key, value in tensors[0].items())
    assert find_checkpoint(bandit_run)[0].name in ("last", "episodes-000000032")


def test_resuming_refuses_other_settings(text_run, capsys):
    folder = str(text_run[0])
    for args, message in {
        ("--episodes", "32", "--learning-rate", "0.5"): "learning_rate (saved 5e-05, given 0.5)",
        ("--episodes", "32", "--seed", "1"): "seed (saved 0, given 1)",
        ("--episodes", "32", "--agent", "ppo"): "run of grpo, not of ppo",
        ("--episodes", "16"): "has seen 16 episodes already",
    }.items():
        assert main(["train", "--resume", folder, *args]) == 2
        assert message in capsys.readouterr().err


def test_ppo_has_its_own_options(tmp_path):
    args = ["--agent", "ppo", "--gae-lambda", "0.9", "--episodes-per-iteration", "8", "--eval-episodes", "4"]
    assert (
        main(["train", "LLMAlign-v0", *args, "--max-new-tokens", "4", "--episodes", "8", "--out", str(tmp_path / "p")])
        == 0
    )
    assert json.loads((tmp_path / "p/run.json").read_text())["config"]["gae_lambda"] == 0.9


def test_environments_of_gymnasium_train_too(tmp_path, capsys):
    args = ["--agent", "ppo", "--episodes-per-iteration", "8", "--eval-episodes", "4", "--episodes", "8"]
    assert main(["train", "CartPole-v1", *args, "--out", str(tmp_path / "c")]) == 0
    out = capsys.readouterr().out
    assert "gain" in out and "Sample" not in out


def test_runs_get_new_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = GRPOConfig(episodes_per_iteration=8, group_size=4)
    experiment = Experiment(env="TabularBandit-v0", episodes=8, eval_episodes=2)
    folders = [train(experiment, config).folder.as_posix() for _ in range(2)]
    assert folders == ["runs/TabularBandit-v0-grpo-seed0", "runs/TabularBandit-v0-grpo-seed0-2"]


def test_small_models_get_one_thread_and_the_user_decides(tmp_path):
    try:
        for threads, expected in (("0", 1), ("2", 2)):
            torch.set_num_threads(3)
            args = ["--episodes", "8", "--threads", threads, "--out", str(tmp_path / threads)]
            assert main(["train", *BANDIT, *args]) == 0
            assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(1)


BAD = {
    "unknown command": (["trian"], "unknown command 'trian'"),
    "unknown environment": (["train", "LLMAlgn-v0"], "aligngym list envs"),
    "unknown agent": (["train", "--agent", "dqn"], "unknown agent 'dqn'; there are: grpo, ppo"),
    "unknown reward": (["train", "--reward", "sentimnt"], "unknown reward 'sentimnt'"),
    "reward that is no JSON": (["train", "--reward", '{"type": '], "reward is no JSON"),
    "reward file that is missing": (["train", "--reward", "none.json"], "none.json"),
    "options that are no JSON": (["train", "--env-options", "{"], "env_options is '{'"),
    "options that are no object": (["train", "--env-options", "[1]"], "expected a JSON object"),
    "unknown option": (["train", "--env-options", '{"colour": 1}'], "LLMAlign-v0 takes no colour; it takes: prompts"),
    "missing prompts": (["train", "--prompts", "none.jsonl"], "none.jsonl does not exist"),
    "empty prompts": (["train", "--prompts", "empty.jsonl"], "there are no prompts"),
    "overlong prompt": (["train", "--env-options", '{"max_prompt_tokens": 2}'], "more than max_prompt_tokens=2"),
    "context too short": (["train", "--max-new-tokens", "100000"], "the context of 'stories' has"),
    "missing asset": (["train", "--model", "smollm2-135m"], "aligngym assets smollm2"),
    "folder that is no model": (["train", "--model", "./folder"], "./folder"),
    "model without tokens": (["train", "CartPole-v1", "--model", "stories"], "CartPole-v1 has no tokens"),
    "reward of another environment": (["train", "CartPole-v1", "--reward", "bleu"], "CartPole-v1 takes no reward"),
    "folder in use": (["train", "--out", "folder"], "folder is not empty"),
    "run that is missing": (["train", "--resume", "none"], "no folder of a run"),
    "run without checkpoint": (["train", "--resume", "fresh"], "no checkpoint yet"),
    "run that is damaged": (["evaluate", "damaged"], "run.json cannot be read"),
    "no episodes to evaluate": (["evaluate", "stories", "--episodes", "0"], "episodes=0"),
    "plot of nothing": (["plot", "none"], "is it the folder of a run?"),
    "plot without runs": (["plot"], "at least one run"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGNGYM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_text("x")
    (tmp_path / "empty.jsonl").write_text("")
    for name, text in {"fresh": json.dumps({"experiment": {}, "config": {}}), "damaged": "{"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text)
    (tmp_path / "damaged/last").mkdir()
    (tmp_path / "damaged/last/state.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    args, message = BAD[case]
    assert main(args) == 2
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if not line.startswith("warning: ")]
    assert len(errors) == 1 and errors[0].startswith("error: ") and message in errors[0]
    assert "Traceback" not in captured.err and captured.out == ""
    assert sorted(tmp_path.rglob("*")) == before  # no folder of a run that never began


@pytest.mark.parametrize(
    "args", [["--group-size", "3"], ["--episodes", "0"], ["--learning-rate", "fast"], ["--nosuch", "1"]]
)
def test_options_outside_their_range_are_refused(args, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", *args])
    assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_corrupted_checkpoint_is_refused_and_kept(bandit_run, tmp_path, capsys):
    import shutil

    run = shutil.copytree(bandit_run, tmp_path / "run")
    weights = run / "last/policy.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert main(["evaluate", str(run / "last"), "--episodes", "2"]) == 2
    assert "policy.safetensors" in capsys.readouterr().err
    for state in run.rglob("state.json"):
        state.write_text("garbage")
    assert main(["train", "--resume", str(run), "--episodes", "64"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "damaged" in error and weights.exists()


def test_debug_shows_where(capsys):
    assert main(["train", "--reward", "nosuch", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [(KeyError("x"), "KeyError: 'x' (--debug shows where)"), (BrokenPipeError("of a process"), "of a process")],
)
def test_errors_that_are_no_bad_input_name_their_kind(error, said, monkeypatch, capsys):
    def broken():
        """Broken."""
        raise error

    monkeypatch.setitem(COMMANDS, "list", (broken, ""))
    assert main(["list"]) == 2
    assert capsys.readouterr().err == f"error: {said}\n"


def test_ctrl_c_saves_and_says_where(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "aligngym.cli", "train", *BANDIT, "--episodes", "10000000", "--out", str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 300
        while not any(len(p.read_text().splitlines()) > 2 for p in folder.glob("progress*.csv")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert f"saved in {folder / 'last'}" in err and "Traceback" not in err
    assert load_checkpoint(folder / "last")[1]["episodes"] % 8 == 0


def test_ctrl_c_elsewhere_is_quiet(monkeypatch, capsys):
    def interrupted():
        """Interrupted."""
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "list", (interrupted, ""))
    assert main(["list"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("command", ["--help", "list", "list --help"])
def test_output_that_nobody_reads_ends_the_command_quietly(command):
    run = [sys.executable, "-m", "aligngym.cli", *command.split()]
    with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait() == 141


def test_warnings_are_one_line(monkeypatch, capsys):
    import warnings

    def warn():
        """Warn."""
        warnings.warn("look out", stacklevel=1)

    monkeypatch.setitem(COMMANDS, "list", (warn, ""))
    assert main(["list"]) == 0
    assert capsys.readouterr().err == "warning: look out\n"


def test_list_and_help_load_nothing_heavy():
    heavy = "{'torch', 'transformers', 'matplotlib', 'stable_baselines3'}"
    for args in (["list"], ["--help"], ["evaluate", "--help"], ["plot", "--help"]):
        code = (
            "import sys; from aligngym.cli import main\n"
            f"try: main({args})\nexcept SystemExit: pass\nfound = {heavy} & set(sys.modules)\nassert not found, found"
        )
        done = run_python("-c", code, env={**os.environ, "PYTHONWARNINGS": "ignore"})
        assert done.returncode == 0, done.stderr


def test_list_shows_everything_or_one_table(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("LLMAlign-v0", "TabularBandit-v0", "grpo", "ppo", "stories", "story_sentiment"))
    assert main(["list", "agents"]) == 0
    out = capsys.readouterr().out
    assert "grpo" in out and "LLMAlign-v0" not in out


def test_usage_names_every_command(capsys):
    for args in ([], ["--help"], ["-h"]):
        assert main(args) == 0
        out = capsys.readouterr().out
        assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_example(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"aligngym {command}" in capsys.readouterr().out.split("options")[0].replace("usage: ", "", 1)


@pytest.mark.parametrize("agent", AGENTS)
def test_options_of_every_agent_have_names_of_their_own(agent, capsys):
    with pytest.raises(SystemExit) as left:
        main(["train", "--agent", agent, "--help"])
    assert left.value.code == 0 and "--eval-episodes" in capsys.readouterr().out


def test_help_of_train_explains_the_options_of_the_agent(capsys):
    expected = {
        "grpo": ("--advantage", "share an initial state", "how many episodes;"), "iql": ("how many updates;",),
        "ppo": ("--gae-lambda", "Monte-Carlo return"), "parl": ("how many steps;",),
    }  # fmt: skip
    for agent, words in expected.items():
        with pytest.raises(SystemExit):
            main(["train", "--agent", agent, "--help"])
        out = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert all(word in out for word in words), agent


def test_assets_shows_what_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ALIGNGYM_CACHE", str(tmp_path))
    assert main(["assets"]) == 0
    out = capsys.readouterr().out
    assert "stories" in out and "run `aligngym assets smollm2`" in out


def test_data_check_finds_what_is_wrong_by_row(tmp_path, capsys):
    bad, held_out = tmp_path / "bad.jsonl", tmp_path / "eval.jsonl"
    rows = ["A cat.", "", "A dog.", "A cat.", "word " * 100]
    bad.write_text("\n".join(json.dumps({"prompt": row}) for row in rows))
    held_out.write_text(json.dumps({"prompt": "A dog."}))
    assert main(["data", "check", str(bad), "--against", str(held_out)]) == 1
    out = capsys.readouterr().out
    assert "5 prompts" in out
    for line in ("is empty: rows 1", "repetition of an earlier row: rows 3", "longer than 64 tokens: rows 4", "rows 2"):
        assert line in out
    good = tmp_path / "good.jsonl"
    good.write_text(json.dumps({"prompt": [{"role": "user", "content": "Hi"}]}))
    assert main(["data", "check", str(good)]) == 0
    assert main(["data", "check", str(held_out), "--column", "text"]) == 2
