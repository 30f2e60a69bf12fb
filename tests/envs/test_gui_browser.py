"""GUIBrowser-v0: live pages in a real Chromium, which may crash, hang, or be killed, but is never left behind."""

from __future__ import annotations

import copy
import gc
import importlib.util
import json
import math
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from aligngym.agents.policies.policy import Decision, Policy, RowNoise
from aligngym.agents.rollouts import step_through
from aligngym.envs.gui.browser import KINDS
from aligngym.envs.gui.pages import MINIWOB_TASKS
from aligngym.envs.gui.session import BrowserLost, BrowserSession

SHOP = """<!doctype html><title>Shop</title><style>
body {margin: 0; font: 16px sans-serif} body > * {position: absolute} .front {background: #fcc}
@keyframes turn {to {transform: rotate(1turn)}} #wheel {animation: turn 1s infinite linear; transition: all 5s}
</style>
<button style="left: 20px; top: 20px">Save</button>
<button style="left: 120px; top: 20px; width: 120px; height: 40px"><span>Deep</span> inside</button>
<a href="other.html" style="left: 20px; top: 80px">Other page</a>
<label style="left: 20px; top: 120px">Email <input></label>
<label style="left: 20px; top: 160px"><input type="checkbox"> Agree</label>
<select aria-label="Size" style="left: 300px; top: 120px"><option>S<option>M</select>
<button style="left: 300px; top: 20px" onclick="event.stopImmediatePropagation()">Silent</button>
<button style="left: 20px; top: 220px">Twin</button><button style="left: 120px; top: 220px">twin</button>
<button style="left: 20px; top: 280px; width: 150px; height: 50px">Covered</button>
<div class="front" style="left: 10px; top: 270px; width: 300px; height: 80px">A banner</div>
<button disabled style="left: 330px; top: 280px">Disabled</button>
<button style="left: 20px; top: 2000px">Far below</button><div id="wheel" style="left: 400px; top: 200px">+</div>
<script>
const seen = JSON.stringify([localStorage.length, sessionStorage.length, document.cookie, name, history.length]);
document.body.append(seen, Math.random());
localStorage.here = sessionStorage.here = name = 'before'; document.cookie = 'here=1';
</script>"""
SHOP_GOALS = {
    "click the Save button", "click the Deep inside button", "click the Other page link", "click the Email text field",
    "click the Agree checkbox", "click the Size drop-down", "click the Silent button",
}  # fmt: skip
TASKS = ["shop.html", "long.html", "out.html", "popup.html", "other.html", "dialog.html", "a & b?#.html"]
WHOLE = "position: fixed; inset: 0; width: 100vw; height: 100vh; font-size: 40px"
BUTTON = f'<!doctype html><title>One</title><button style="{WHOLE}" %s>Go</button>'
LONG = """<!doctype html><title>Long</title><body style="margin: 0; height: 3000px">
<button style="position: absolute; top: 0">Up</button><button style="position: fixed; top: 0; right: 0">Stay</button>"""


def action(kind: str, point: tuple[float, float] = (0.5, 0.5), text: str | bytes = b"") -> dict:
    raw = text.encode() if isinstance(text, str) else text
    return {
        "kind": np.int64(KINDS.index(kind)),
        "point": np.array(point, np.float32),
        "text": np.frombuffer(raw.ljust(32, b"\0"), np.uint8),
    }


def middle(element) -> tuple[float, float]:
    x0, y0, x1, y1 = element.box
    return (x0 + x1) / 2, (y0 + y1) / 2


def told(observation: dict) -> str:
    return observation["instruction"].tobytes().rstrip(b"\0").decode()


def same(a, b) -> bool:
    return all(np.array_equal(a[key], b[key]) for key in ("instruction", "screenshot"))


def make(**options):
    return gym.make("GUIBrowser-v0", **options).unwrapped


def processes(folder: str) -> list[int]:
    """Every process that belongs to a session: its command line names the folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if folder.encode() in file.read_bytes():
                found.append(int(file.parent.name))
        except OSError:
            pass
    return found


def chromium_of(session: BrowserSession) -> int:
    """The browser's main process."""
    lines = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in processes(session.folder)}
    (main,) = [pid for pid, line in lines.items() if b"chrom" in line.split(b"\0")[0] and b"--type=" not in line
               and b"crashpad" not in line.split(b"\0")[0]]  # fmt: skip
    return main


def gone(session: BrowserSession) -> bool:
    for _ in range(100):
        if not processes(session.folder) and not os.path.exists(session.folder):
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pages")
    pages = {
        "shop.html": SHOP,
        "other.html": "<!doctype html><h1>Nothing to click</h1>",
        "go.html": BUTTON % "",
        "hang.html": BUTTON % 'onclick="while (true) {}"',
        "stuck.html": "<script>while (true) {}</script>",
        "long.html": LONG,
        "dialog.html": BUTTON % """onclick="confirm('?'); alert('!')\"""",
        "a & b?#.html": BUTTON % "",
        "out.html": BUTTON.replace("button", "a") % 'href="http://example.com/"',
        "popup.html": BUTTON.replace("button", "a") % 'href="other.html" target="_blank"',
    }
    for name, text in pages.items():
        (root / name).write_text(text, "utf-8")
    return root


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
    for task in ("dialog.html", "a & b?#.html", "popup.html"):
        paged.reset(seed=0, options={"task": task})
        assert paged.step(action("click"))[1] == 1
    assert paged._browser().evaluate("() => location.pathname") == "/popup.html"
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
    for env, twin in ((miniwob, miniwob), (paged, other)):
        starts = [env.reset(seed=seed)[0] for seed in range(4)]
        env.step(action("type", (0.3, 0.3), "leave something"))
        for seed in (3, 1, 2, 0):
            again, _ = twin.reset(seed=seed)
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


@pytest.mark.parametrize("clicks_only", [False, True])
def test_check_env_finds_nothing(clicks_only: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*symmetric and normalized space")  # text is bytes
        env = gym.make("aligngym/GUIBrowser-v0", tasks=["click-test", "click-option"], clicks_only=clicks_only)
        check_env(env.unwrapped)
    env.close()


def test_rendering(folder) -> None:
    env = make(pages=folder, tasks=["go.html"], render_mode="rgb_array", height=60, width=101)
    observation, _ = env.reset(seed=0)
    assert observation["screenshot"].shape == (60, 101, 3) and np.array_equal(env.render(), observation["screenshot"])
    env.close()


@pytest.mark.parametrize("victim", ["browser", "driver"])
def test_a_killed_browser_is_an_invalid_episode_and_the_next_one_is_fine(folder, victim: str) -> None:
    env = make(pages=folder, tasks=["go.html"])
    start, _ = env.reset(seed=0)
    first = env._session
    os.kill(chromium_of(first) if victim == "browser" else first.pid, signal.SIGKILL)
    observation, reward, terminated, truncated, info = env.step(action("click"))
    assert math.isnan(reward) and not terminated and truncated and same(observation, start)
    assert ("fail" if victim == "browser" else "died") in info["invalid"] and info["task"] == "go.html"
    assert "reward/success" not in info and gone(first)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(action("click"))
    assert same(env.reset(seed=0)[0], start) and env._session is not first
    assert env.step(action("click"))[1] == 1
    env.close()


def test_a_page_that_hangs_is_an_invalid_episode(folder) -> None:
    env = make(pages=folder, tasks=["hang.html", "go.html", "stuck.html"])
    env.reset(seed=0, options={"task": "hang.html"})
    first = env._session
    first.timeout = env.timeout = 1.0
    _, reward, terminated, truncated, info = env.step(action("click"))
    assert math.isnan(reward) and not terminated and truncated and gone(first)
    assert info["invalid"] == "the browser did not answer click within 1 s"
    observation, _ = env.reset(seed=0, options={"task": "stuck.html"})
    assert not observation["screenshot"].any() and told(observation) == ""
    assert env.get_state()["lost"]
    _, reward, terminated, truncated, info = env.step(action("click"))
    assert math.isnan(reward) and not terminated and truncated and "did not answer open" in info["invalid"]
    env.timeout = 10.0
    env.reset(seed=0, options={"task": "go.html"})
    assert env.step(action("click"))[1] == 1
    env.close()


def test_nothing_outside_is_reached(tmp_path) -> None:
    """Counted at listeners: 127.0.0.2 stands for outside, another port of 127.0.0.1 for the machine's services."""
    reached: list[str] = []

    def listen(host: str, kind: int) -> int:
        server = socket.socket(socket.AF_INET, kind)
        server.bind((host, 0))

        def serve() -> None:
            while True:
                if kind == socket.SOCK_STREAM:
                    connection, _ = server.accept()
                    reached.append(f"{host} tcp {connection.recv(60)!r}")
                    connection.close()
                else:
                    reached.append(f"{host} udp {server.recvfrom(60)[0]!r}")

        if kind == socket.SOCK_STREAM:
            server.listen()
        threading.Thread(target=serve, daemon=True).start()
        return server.getsockname()[1]

    outside = f"127.0.0.2:{listen('127.0.0.2', socket.SOCK_STREAM)}"
    machine = f"127.0.0.1:{listen('127.0.0.1', socket.SOCK_STREAM)}"
    stun = f"127.0.0.2:{listen('127.0.0.2', socket.SOCK_DGRAM)}"
    (tmp_path / "index.html").write_text(f"""<!doctype html><title>Spy</title><button>Go</button>
    <link rel="preconnect" href="http://{outside}"><link rel="stylesheet" href="http://{outside}/a.css">
    <iframe src="http://{outside}/frame"></iframe><iframe src="http://{machine}/frame"></iframe>
    <img src="http://{outside}/i.png"><img src="http://localhost:{machine.split(":")[1]}/i.png"><script>
    window.failed = [];
    const fail = name => () => failed.push(name);
    for (const host of ["{outside}", "{machine}"]) {{
        fetch(`http://${{host}}/fetch`, {{mode: 'no-cors'}}).catch(fail('fetch'));
        navigator.sendBeacon(`http://${{host}}/beacon`, 'x');
        new WebSocket(`ws://${{host}}/socket`).onclose = fail('socket');
        const image = new Image(); image.onerror = fail('image'); image.src = `http://${{host}}/image`;
    }}
    const code = 'fetch("http://{outside}/w").catch(() => postMessage("worker fetch"));' +
        'new WebSocket("ws://{outside}/w").onclose = () => postMessage("worker socket")';
    new Worker(URL.createObjectURL(new Blob([code]))).onmessage = event => failed.push(event.data);
    new Worker(URL.createObjectURL(new Blob([code.replaceAll("{outside}", "{machine}")])));
    const peer = new RTCPeerConnection({{iceServers: [{{urls: 'stun:{stun}'}}]}});
    peer.createDataChannel('x'); peer.createOffer().then(offer => peer.setLocalDescription(offer));
    </script>""")
    probe = socket.create_connection(tuple(outside.split(":")))  # the listeners do count
    probe.close()
    session = BrowserSession(tmp_path, window=(300, 200), view=(0, 0, 300, 200), scale=1)
    session.open("index.html")
    wanted = ["fetch"] * 2 + ["image"] * 2 + ["socket"] * 2 + ["worker fetch", "worker socket"]
    for _ in range(50):
        failed = sorted(session.evaluate("() => failed"))
        if failed == wanted:
            break
        time.sleep(0.1)
    session.evaluate("() => new Promise(done => setTimeout(done, 500))")
    session.close()
    assert failed == wanted
    assert reached == ["127.0.0.2 tcp b''"]


def test_sessions_leave_nothing_behind(folder, tmp_path) -> None:
    options = {"window": (300, 200), "view": (0, 0, 300, 200), "scale": 1}
    closed, garbage = (BrowserSession(folder, **options) for _ in range(2))
    assert processes(closed.folder) and os.path.exists(closed.folder)
    closed.close()
    closed.close()
    assert gone(closed)
    with pytest.raises(BrowserLost, match="was closed"):
        closed.open("go.html")
    stand_in = type("Session", (), {"folder": garbage.folder})
    del garbage
    gc.collect()
    assert gone(stand_in)
    script = (
        "import gymnasium as gym, os, signal, sys\n"
        f"env = gym.make('aligngym:GUIBrowser-v0', pages={str(folder)!r}, tasks=['go.html']).unwrapped\n"
        "env.reset(seed=0)\nprint(env._session.folder)\nsys.stdout.flush()\n"
    )
    for end in ("", "os.kill(os.getpid(), signal.SIGKILL)"):
        done = subprocess.run([sys.executable, "-c", script + end], capture_output=True, text=True, timeout=60)
        stand_in = type("Session", (), {"folder": done.stdout.strip()})
        assert "aligngym-browser-" in stand_in.folder and gone(stand_in), f"ended by {end or 'itself'}"


@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
def test_gymnasiums_vectorisers(folder, kind) -> None:
    def one():
        return gym.make("GUIBrowser-v0", pages=folder, tasks=["go.html", "shop.html"], clicks_only=True, max_steps=2)

    options = {"shared_memory": False} if kind is AsyncVectorEnv else {}
    env = kind([one] * 2, autoreset_mode=AutoresetMode.SAME_STEP, **options)
    try:
        observation, _ = env.reset(seed=[3, 3])
        assert same(*({k: v[i] for k, v in observation.items()} for i in range(2)))
        ends = 0
        for _ in range(3):
            observation, rewards, terminated, truncated, infos = env.step(np.full((2, 2), 0.5, np.float32))
            assert observation in env.observation_space and np.isfinite(rewards).all()
            ends += (terminated | truncated).sum()
            for i in np.flatnonzero(terminated):
                assert rewards[i] == infos["final_info"]["reward/success"][i] == 1
        assert ends >= 2
    finally:
        env.close()


class Clicker(Policy):
    """Clicks around the middle."""

    first_observation_only = False

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.nn.Parameter(torch.full((2,), 0.5))

    @torch.no_grad()
    def act(self, observation, noise, deterministic=False) -> Decision:
        normal = torch.distributions.Normal(self.mean, 0.02)
        points = self.mean + 0.02 * noise.normal((2,))
        return Decision(points, normal.log_prob(points).sum(-1))


@pytest.mark.filterwarnings("ignore:.*The reward is a NaN value")
def test_agents_play_it_and_lost_episodes_are_marked(folder) -> None:
    tasks = (["hang.html"], ["go.html"])
    env = SyncVectorEnv(
        [lambda t=t: gym.make("GUIBrowser-v0", pages=folder, tasks=t, clicks_only=True, timeout=5) for t in tasks],
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    episodes = step_through(env, Clicker(), seeds=[0, 0], noise=RowNoise([1, 2]))
    env.close()
    assert episodes.valid.tolist() == [False, True]
    assert episodes.info["invalid"] == ["the browser did not answer click within 5 s", None]
    assert episodes.rewards[1].tolist() == [1.0] and episodes.terms["success"][1] == 1
    assert episodes.truncated.tolist() == [True, False] and episodes.terminated.tolist() == [False, True]
    assert episodes.info["task"] == ["hang.html", "go.html"]


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


def test_what_is_missing_is_named(folder, tmp_path, monkeypatch) -> None:
    env = make(pages=folder, tasks=["go.html"])
    monkeypatch.setenv("ALIGNGYM_CHROMIUM", str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match="apt-get install chromium"):
        env.reset(seed=0)
    monkeypatch.setenv("ALIGNGYM_CHROMIUM", "/bin/false")
    before = set(Path(os.environ.get("TMPDIR", "/tmp")).glob("aligngym-browser-*"))
    with pytest.raises(BrowserLost, match="failed to start"):
        env.reset(seed=0)
    assert set(Path(os.environ.get("TMPDIR", "/tmp")).glob("aligngym-browser-*")) <= before
    monkeypatch.delenv("ALIGNGYM_CHROMIUM")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"playwright.*aligngym\[gui\]"):
        env.reset(seed=0)
    with pytest.raises(ImportError, match=r"miniwob.*aligngym\[gui\]"):
        make()
