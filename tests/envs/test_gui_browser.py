"""GUIBrowser-v0: live pages in a real Chromium: what is shown, what actions do, how it is judged."""

from __future__ import annotations

import copy
import json
import math
import pickle
import re
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from aligngym.agents.grpo import GRPO, GRPOConfig
from aligngym.agents.policies.clicker import ClickerPolicy
from aligngym.envs.gui.pages import MINIWOB_TASKS

from .live_pages import SHOP_GOALS, TASKS, action, make, middle, same, told, write_pages


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_pages(tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="module")
def miniwob():
    env = make()
    yield env
    env.close()


@pytest.fixture(scope="module")
def paged(folder):
    env = make(pages=folder, tasks=TASKS, timeout=20)
    yield env
    env.close()


def solution(env, task: str, instruction: str) -> list[dict]:
    """Actions that do what the instruction says, from the elements that are on the screen."""
    elements = env.elements()
    named = {element.name: middle(element) for element in elements}
    fields = [middle(e) for e in elements if e.role in ("text field", "password field")]
    quoted = re.findall(r'"([^"]*)"', instruction)
    if task in ("click-button", "click-link"):
        return [action("click", named[quoted[0]])]
    if task in ("click-checkboxes", "click-option"):
        wanted = re.fullmatch("Select (.*) and click Submit.", instruction)[1].split(", ")
        return [action("click", named[name]) for name in wanted if name != "nothing"] + [
            action("click", named["Submit"])
        ]
    if task == "enter-text":
        return [action("type", fields[0], quoted[0]), action("click", named["Submit"])]
    if task == "login-user":
        return [*(action("type", f, t) for f, t in zip(fields, quoted, strict=True)), action("click", named["Login"])]
    if task == "scroll-text-2":
        far = 1.0 if "bottom" in instruction else 0.0
        return [action("click", fields[0]), *[action("scroll", (0.5, far))] * 4, action("click", named["Submit"])]
    simple = {
        "click-button-sequence": ["ONE", "TWO"],
        "click-dialog": ["Close"],
        "click-tab": [instruction.removeprefix("Click on ").rstrip(".")],
        "click-test": ["Click Me!"],
        "click-test-2": ["ONE"],
        "focus-text": [""],
    }
    return [action("click", named[name]) for name in simple[task]]


@pytest.mark.parametrize("task", MINIWOB_TASKS)
def test_every_default_task_can_be_done(miniwob, task: str) -> None:
    for seed in (1, 2, 3):
        observation, _ = miniwob.reset(seed=seed, options={"task": task})
        actions = solution(miniwob, task, told(observation))
        for step in actions[:-1]:
            observation, reward, terminated, truncated, info = miniwob.step(step)
            assert observation in miniwob.observation_space
            assert (reward, terminated, truncated, info) == (0, False, False, {})
        _, reward, terminated, truncated, info = miniwob.step(actions[-1])
        assert (reward, terminated, truncated) == (1, True, False)
        assert info["task"] == task and info["prompt"] == told(observation) and info["reward/success"] == 1
        assert info["completion"].count(";") == len(actions) - 1 and "invalid" not in info


def test_doing_the_wrong_thing_earns_what_the_task_says(miniwob) -> None:
    miniwob.reset(seed=0, options={"task": "click-test-2"})
    wrong = {e.name: middle(e) for e in miniwob.elements()}["TWO"]
    _, reward, terminated, truncated, info = miniwob.step(action("click", wrong))
    assert (reward, terminated, truncated, info["reward/success"]) == (-1, True, False, 0)
    with pytest.raises(gym.error.ResetNeeded):
        miniwob.step(action("click"))


def test_the_instruction_is_not_in_the_picture_and_the_task_fills_it(miniwob) -> None:
    observation, _ = miniwob.reset(seed=0, options={"task": "click-test"})
    top = observation["screenshot"][:4, :280]
    assert (top == 255).all(), "the top is the task's own white, not the yellow bar of the instruction"
    (element,) = miniwob.elements()
    x0, y0, x1, y1 = (round(v * n) for v, n in zip(element.box, (384, 288, 384, 288), strict=True))
    drawn = np.argwhere((observation["screenshot"][:, :280] < 250).any(-1))
    assert np.abs(drawn.min(0) - [y0, x0]).max() <= 2 and np.abs(drawn.max(0) - [y1, x1]).max() <= 2


def test_done_ends_and_so_does_the_budget(folder) -> None:
    env = make(pages=folder, tasks=["shop.html"], max_steps=2)
    env.reset(seed=0)
    assert env.step(action("done"))[1:4] == (0, True, False)
    env.reset(seed=0)
    assert env.step(action("scroll"))[1:4] == (0, False, False)
    _, reward, terminated, truncated, info = env.step(action("type", (0.99, 0.99), "é\n"))
    assert (reward, terminated, truncated, info["reward/success"]) == (0, False, True, 0)
    assert info["completion"] == "scroll(0.500, 0.500); type(0.990, 0.990, 'é\\n')"
    env.reset(seed=0)
    env.step(action("click", (0.99, 0.99)))
    assert env.step(action("done"))[2:4] == (True, False), "never both"
    env.close()


def test_every_element_that_can_be_clicked_is_a_goal_and_nothing_else(paged) -> None:
    seen = set()
    for seed in range(200):
        observation, _ = paged.reset(seed=seed, options={"task": "shop.html"})
        if told(observation) in seen:
            continue
        seen.add(told(observation))
        (target,) = [e for e in paged.elements() if told(observation) == f"click the {e.name} {e.role}"]
        x, y = middle(target)
        miss = paged.step(action("click", (0.99, 0.99)))
        assert miss[1:] == (0, False, False, {})
        _, reward, terminated, _, info = paged.step(action("click", (x, y)))
        assert (reward, terminated, info["reward/success"]) == (1, True, 1), told(observation)
        if len(seen) == len(SHOP_GOALS):
            break
    assert seen == SHOP_GOALS


def test_pages_cannot_be_left_for_elsewhere(paged) -> None:
    before, _ = paged.reset(seed=0, options={"task": "out.html"})
    after, reward, terminated, *_ = paged.step(action("click"))
    assert reward == 1 and terminated and np.array_equal(before["screenshot"], after["screenshot"])
    for task in ("dialog.html", "close.html", "a & b?#.html", "popup.html"):
        paged.reset(seed=0, options={"task": task})
        assert paged.step(action("click"))[1] == 1
    assert paged._browser().evaluate("() => location.pathname") == "/popup.html"
    paged.reset(seed=0, options={"task": "form.html"})
    assert paged.step(action("click"))[1] == 1
    assert paged._browser().evaluate("() => location.pathname") == "/sent", "the step did not wait for what it led to"
    paged.reset(seed=0, options={"task": "shop.html"})
    link = next(middle(e) for e in paged.elements() if e.role == "link")
    followed, *_ = paged.step(action("click", link))
    assert paged._browser().evaluate("() => document.body.innerText") == "Nothing to click"
    assert not same(followed, paged.reset(seed=0, options={"task": "shop.html"})[0])


def test_pages_without_a_goal_are_not_drawn(paged) -> None:
    with pytest.raises(ValueError, match="none of 20 drawn tasks has a goal"):
        paged.reset(seed=0, options={"task": "other.html"})
    with pytest.raises(gym.error.ResetNeeded):
        paged.step(action("click"))
    assert told(paged.reset(seed=0)[0])


def test_scrolling_moves_what_is_under_the_last_click(paged) -> None:
    paged.reset(seed=0, options={"task": "long.html"})
    for point, expected in (((0.5, 1.0), 384), ((0.5, 0.75), 576), ((0.2, 0.0), 192), ((0.5, 0.5), 192)):
        paged.step(action("scroll", point))
        assert paged._browser().evaluate("() => scrollY") == expected


def test_typed_text_is_cleaned(miniwob) -> None:
    for text, expected in (("a b, é!", "a b, é!"), (b"x\xffy\0hidden", "xy"), (b"a\x01\x7fb", "ab"), (b"", "")):
        miniwob.reset(seed=0, options={"task": "enter-text"})
        (field,) = [middle(e) for e in miniwob.elements() if e.role == "text field"]
        miniwob.step(action("type", field, text))
        assert miniwob._browser().evaluate("() => document.querySelector('#tt').value") == expected


def test_one_seed_is_one_task_goal_and_picture(miniwob, paged, folder) -> None:
    other = make(pages=folder, tasks=list(paged.source.names), timeout=20)
    for env, twin, options in ((miniwob, miniwob, {}), (paged, other, {"task": "shop.html"})):
        starts = [env.reset(seed=seed, options=options)[0] for seed in range(4)]
        env.step(action("type", (0.3, 0.3), "leave something"))
        for seed in (3, 1, 2, 0):
            again, _ = twin.reset(seed=seed, options=options)
            assert same(again, starts[seed]), "it depends on what was there before"
        assert not all(same(starts[0], start) for start in starts)
    steps = [action("type", (0.2, 0.33), "abc"), action("scroll", (0.5, 0.9)), action("click", (0.98, 0.02))]
    for env in (paged, other):
        env.reset(seed=0, options={"task": "shop.html"})
    for step in steps:
        (a, *ours), (b, *theirs) = paged.step(step), other.step(step)
        assert same(a, b) and ours == theirs
    other.close()


def test_state_copies_and_pickles_go_on_alike(miniwob) -> None:
    observation, _ = miniwob.reset(seed=5, options={"task": "login-user"})
    actions = solution(miniwob, "login-user", told(observation))
    middle_of_it = miniwob.step(actions[0])[0]
    state = json.loads(json.dumps(miniwob.get_state()))
    copies = [copy.deepcopy(miniwob), pickle.loads(pickle.dumps(miniwob))]

    def go_on(env):
        outcomes = [env.step(step) for step in actions[1:]]
        assert outcomes[-1][1:3] == (1, True)
        return [o[0] for o in outcomes] + [env.reset()[0]]

    expected = go_on(miniwob)
    for env in copies:
        assert all(same(a, b) for a, b in zip(go_on(env), expected, strict=True))
        env.close()
    miniwob.set_state(state)
    assert json.loads(json.dumps(miniwob.get_state())) == state
    assert np.array_equal(miniwob._screen, middle_of_it["screenshot"])
    assert all(same(a, b) for a, b in zip(go_on(miniwob), expected, strict=True))
    with pytest.raises(ValueError, match="state is of the task 'nothing'"):
        miniwob.set_state({**state, "task": "nothing"})


@pytest.mark.parametrize("clicks_only", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_check_env_finds_nothing(clicks_only: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*symmetric and normalized space")  # text is bytes
        env = gym.make("aligngym/GUIBrowser-v0", tasks=["click-test", "click-option"], clicks_only=clicks_only)
        check_env(env.unwrapped)
    env.close()


@pytest.mark.slow
def test_the_clicker_acts_here_and_agents_train_it_on_single_clicks(folder) -> None:
    rows = [lambda: gym.make("GUIBrowser-v0", pages=folder, tasks=["go.html"], clicks_only=True, max_steps=1)] * 2
    env = SyncVectorEnv(rows, autoreset_mode=AutoresetMode.SAME_STEP)
    policy = ClickerPolicy.from_pretrained(freeze_page=True)
    agent = GRPO(env, policy, GRPOConfig(episodes_per_iteration=4, group_size=2, advantage="none", learning_rate=1e-3))
    record = agent.collect()
    assert record.actions.shape == (4, 1, 1, 2) and record.valid.all()
    assert agent.learn(4).policy.version == 1
    env.close()


def test_rendering(folder) -> None:
    env = make(pages=folder, tasks=["go.html"], render_mode="rgb_array", height=60, width=101)
    observation, _ = env.reset(seed=0)
    assert observation["screenshot"].shape == (60, 101, 3) and np.array_equal(env.render(), observation["screenshot"])
    env.close()


def test_bad_arguments_are_named(folder, tmp_path, miniwob) -> None:
    for options, message in (
        ({"max_steps": 0}, "max_steps is 0"),
        ({"height": 0}, "height is 0"),
        ({"max_text_bytes": -1}, "max_text_bytes is -1"),
        ({"scale": 0.0}, "scale is 0.0"),
        ({"timeout": math.nan}, "timeout is nan"),
        ({"tasks": ["click-nothing"]}, r"tasks has \['click-nothing'\]"),
        ({"tasks": []}, r"tasks is \[\]"),
        ({"tasks": "click-test"}, "tasks is 'click-test'"),
        ({"pages": tmp_path}, "expected a folder with .html files"),
        ({"pages": folder, "tasks": ["click-test"]}, r"tasks has \['click-test'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**options)
    with pytest.raises(ValueError, match="render_mode is 'braille'"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Gymnasium says so too
        make(render_mode="braille")
    with pytest.raises(ValueError, match=r"unknown keys \['promt'\]"):
        miniwob.reset(options={"promt": 1})
    with pytest.raises(ValueError, match=r"options\['task'\] is 'x'"):
        miniwob.reset(options={"task": "x"})
    with pytest.raises(gym.error.ResetNeeded):
        make().step(action("click"))
    with pytest.raises(gym.error.ResetNeeded):
        make().elements()
    miniwob.reset(seed=0)
    before = miniwob.get_state()
    for wrong in (action("click", (0.5, 1.5)), {**action("click"), "kind": 4}, np.zeros(2, np.float32), "click"):
        with pytest.raises(gym.error.InvalidAction):
            miniwob.step(wrong)
    assert miniwob.get_state() == before, "a refused action changed the episode"
