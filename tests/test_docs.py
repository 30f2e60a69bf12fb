"""The documentation: its code runs, its links lead somewhere, and it names what the code has."""

import dataclasses
import inspect
import re
import sys
import types
from importlib import import_module
from pathlib import Path

import gymnasium
import pytest

from aligngym.agents.registry import AGENTS, agent_class
from aligngym.rewards import registry

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [page.name for page in PAGES]
CODE = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
LONG = {"cli.md"}  # its code is a whole training run; tests/examples runs the same, tiny
SLOW = {"gui-browser.md", "pearl.md", "robot.md"}  # seconds of browsers and simulators, which have tests of their own


def text_of(name):
    return next(page for page in PAGES if page.name == name).read_text("utf-8")


def missing(names, page):
    return sorted(name for name in names if f"`{name}`" not in text_of(page))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n
        for n in NAMES
        if n not in LONG and CODE.search(text_of(n))
    ],
)
def test_code_of_a_page_runs(name, tmp_path, monkeypatch):
    """The blocks of a page, in order, as one program in an empty folder; what it registers is forgotten again."""
    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))
    monkeypatch.setattr(gymnasium.envs.registration, "registry", gymnasium.registry.copy())
    page = types.ModuleType(f"docs_{name.removesuffix('.md').lower()}")
    monkeypatch.setitem(sys.modules, page.__name__, page)  # dataclasses look their module up
    monkeypatch.chdir(tmp_path)
    text = text_of(name)
    for block in CODE.finditer(text):
        # Empty lines in front give errors the page's own line numbers.
        code = "\n" * text[: block.start(1)].count("\n") + block[1]
        exec(compile(code, name, "exec"), page.__dict__)


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    page = next(page for page in PAGES if page.name == name)
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", there.read_text("utf-8"), re.M)
            assert anchor in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles], target


def test_every_option_of_the_agents_is_explained():
    configs = [agent_class(name).config_class for name in AGENTS]
    fields = {field.name for config in configs for field in dataclasses.fields(config)}
    assert not missing({*fields, *AGENTS} - {"grpo", "ppo", "dpo", "rwr"}, "agents.md")


def test_the_defaults_in_the_table_are_those_of_the_code():
    checked = 0
    every = grpo, ppo, *_ = [agent_class(name).config_class() for name in AGENTS]
    for line in text_of("agents.md").splitlines():
        names, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        options = re.findall(r"`(\w+)`", names)
        if not (line.startswith("| `") and options and all(any(o in vars(c) for c in every) for o in options)):
            continue  # no row of a table of options
        configs = [grpo, ppo] if len(cells) == 3 else [next(c for c in every if options[0] in vars(c))]
        for config, cell in zip(configs, cells, strict=False):
            values = tuple(getattr(config, option) for option in options)
            assert eval(cell.strip("`")) in (values, values[0]), names
            checked += 1
    assert checked > 40


@pytest.mark.parametrize(
    "target",
    [
        "text.llm_align:LLMAlignVectorEnv", "image.denoising:DenoisingVectorEnv", "gui.grounding:GUIGroundingVectorEnv",
        "bandit:TabularBanditVectorEnv",
    ],
)
def test_every_argument_and_option_of_the_environments_is_explained(target):
    module, name = target.split(":")
    cls = getattr(import_module(f"aligngym.envs.{module}"), name)
    assert not missing({*inspect.signature(cls).parameters, *cls.option_names, "reset_mask"}, "environments.md")


def test_every_environment_reward_alarm_and_wrapper_is_named():
    from aligngym import wrappers
    from aligngym.agents.alarms import KINDS
    from aligngym.envs import list_envs
    from aligngym.rewards import reward_names

    assert not missing(list_envs(), "environments.md")
    assert not missing([name for name in reward_names() if not name.startswith("test_")], "rewards.md")
    assert not missing(KINDS, "agents.md")
    assert not missing(wrappers.vector.__all__, "wrappers.md")


def test_every_logged_metric_is_explained(tmp_path):
    import aligngym
    from aligngym.agents.alarms import Alarms
    from aligngym.agents.callbacks import EvaluationCallback, read_table

    options = {"episodes_per_iteration": 16, "entropy_coef": 0.01, "group_size": 4}
    for agent in (aligngym.GRPO, aligngym.PPO, aligngym.DPO, aligngym.RWR):
        folder = tmp_path / agent.__name__
        own = {k: v for k, v in options.items() if hasattr(agent.config_class, k)}
        trained = agent("TabularBandit-v0", config=agent.config_class(**own), folder=folder)
        trained.learn(32, [EvaluationCallback(trained.env, 16), Alarms()])
        logged = {key for row in read_table(folder / "progress.csv") for key in row}
        logged = {re.sub(r"alarm/\w+", "alarm/<kind>", re.sub(r"term/\w+", "term/<name>", key)) for key in logged}
        assert len(logged) > 20
        assert not missing(logged, "agents.md")
