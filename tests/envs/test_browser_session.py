"""The browser behind GUIBrowser-v0: it may crash, hang, or be killed; it reaches nothing, and leaves nothing behind."""

from __future__ import annotations

import gc
import importlib.util
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from aligngym.agents.policies.policy import Decision, Policy, RowNoise
from aligngym.agents.rollouts import step_through
from aligngym.envs.gui.chromium import executable
from aligngym.envs.gui.session import BrowserLost, BrowserSession

from .live_pages import action, make, same, told, write_pages


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
    return write_pages(tmp_path_factory.mktemp("pages"))


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


@pytest.mark.slow
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


@pytest.mark.parametrize("kind", [pytest.param(SyncVectorEnv, marks=pytest.mark.slow), AsyncVectorEnv])
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
            observation, rewards, terminated, truncated, infos = env.step(np.full((2, 1, 2), 0.5, np.float32))
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
        points = self.mean + 0.02 * noise.normal((1, 2))
        return Decision(points, normal.log_prob(points).sum((1, 2)))


@pytest.mark.slow
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


def test_which_chromium_is_taken(tmp_path, monkeypatch) -> None:
    own = tmp_path / "browsers" / "chromium-1200" / "chrome-linux64" / "chrome"
    named, on_path = tmp_path / "mine", tmp_path / "bin" / "google-chrome"
    for file in (own, named, on_path):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(0o755)
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path / "browsers"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("ALIGNGYM_CHROMIUM", str(named))
    assert executable() == str(named)
    monkeypatch.delenv("ALIGNGYM_CHROMIUM")
    assert executable() == str(on_path)
    on_path.unlink()
    assert executable() == str(own)


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
