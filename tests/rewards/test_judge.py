"""A judge behind a real HTTP server on this machine."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from aligngym.rewards import JudgeReward


class Handler(BaseHTTPRequestHandler):
    """Answers by what stands in the prompt; counts requests, and the largest number of slow ones at once."""

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.requests.append((self.path, dict(self.headers), body))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client gave up, as it should
            self.reply(body["messages"][0]["content"])

    def reply(self, text):
        content = "Score: 10? No, quoted.\nIt is fine. Score: 7.5"
        if "[flaky]" in text and sum("[flaky]" in b["messages"][0]["content"] for *_, b in self.server.requests) < 3:
            self.send_error(503)
            return
        for code in (400, 429, 500):
            if f"[{code}]" in text:
                self.send_error(code)
                return
        if "[hang]" in text:
            self.server.release.wait(10)
        if "[plain]" in text:
            content = "I cannot say."
        if "[high]" in text:
            content = "**Score:** 11"
        if "[sleep]" in text:  # over before the answer is sent: the client may ask again as soon as it has that
            with self.server.lock:
                self.server.active += 1
                self.server.most = max(self.server.most, self.server.active)
            time.sleep(0.2)
            with self.server.lock:
                self.server.active -= 1
        data = json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()
        if "[html]" in text:
            data = b"<html>"
        if "[other]" in text:
            data = b'{"error": "none"}'
        if "[huge]" in text:
            data = b"x" * 2_000_000
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if "[drip]" in text:
            for byte in data:
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)
        else:
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.requests, server.active, server.most = [], 0, 0
    server.lock, server.release = threading.Lock(), threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()


def judge(server, **options):
    options = {"timeout": 5.0, "backoff": 0.01, **options}
    return JudgeReward(f"http://127.0.0.1:{server.server_port}/v1", "grader", **options)


def test_a_request_and_its_score(server, monkeypatch):
    monkeypatch.setenv("TEST_JUDGE_KEY", "abc")
    reward = judge(server, api_key_variable="TEST_JUDGE_KEY", extra={"seed": 3, "response_format": {"type": "text"}})
    chat = [{"role": "user", "content": "the question {braces}"}]
    assert reward([[{"role": "assistant", "content": "the reply"}]], [chat]) == [0.75]  # the last score counts
    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer abc"
    assert body["model"] == "grader" and body["temperature"] == 0.0 and body["seed"] == 3
    message = body["messages"][0]["content"]
    assert "user: the question {braces}" in message and "the reply" in message
    assert "abc" not in json.dumps(reward.to_dict())


def test_template_columns_pattern_and_scale(server):
    reward = judge(
        server, template="{rubric}: {completion} after {prompt}", pattern=r"fine\. Score: (\d)", low=5, high=9
    )
    assert reward(["text"], ["question"], rubric=["be kind"]) == [0.5]
    assert server.requests[0][2]["messages"][0]["content"] == "be kind: text after question"
    missing = reward.score(["text"], ["question"])
    assert missing.reasons == ["KeyError: 'rubric'"]


def test_failures_are_invalid_with_a_reason(server):
    kinds = ["[plain]", "[high]", "[400]", "[html]", "[other]", "[huge]", "[500]", "good"]
    scores = judge(server, retries=1).score(kinds)
    assert np.isnan(scores.values[:-1]).all() and scores.values[-1] == 0.75
    expected = [
        "no score in the judge's reply 'I cannot say.'",
        "the judge's score 11 lies outside [0, 10]",
        "HTTP 400 Bad Request",
        "JSONDecodeError",
        "the reply is no chat completion",
        "the reply is larger than 1048576 bytes",
        "OSError: HTTP 500 Internal Server Error",
    ]
    for reason, beginning in zip(scores.reasons, expected, strict=False):
        assert reason.startswith(beginning), reason
    assert scores.reasons[6].endswith("(after 2 attempts)") and scores.reasons[-1] is None
    sent = [body["messages"][0]["content"] for *_, body in server.requests]
    assert sum("[400]" in text for text in sent) == 1 and sum("[500]" in text for text in sent) == 2


def test_a_flaky_server_is_asked_again(server):
    assert judge(server, retries=2)(["[flaky]"]) == [0.75]
    assert len(server.requests) == 3


@pytest.mark.parametrize("kind", ["[hang]", "[drip]"])
def test_a_slow_server_times_out(server, kind):
    begun = time.monotonic()
    scores = judge(server, timeout=0.3, retries=0).score([kind])
    assert time.monotonic() - begun < 5
    assert scores.reasons[0].startswith("TimeoutError") and scores.reasons[0].endswith("(after 1 attempts)")


def test_requests_run_at_once_but_not_more_than_allowed(server):
    assert judge(server, concurrency=3)(["[sleep]"] * 9) == [0.75] * 9
    assert 2 <= server.most <= 3


def test_hostile_text(server):
    scores = judge(server).score(["", "\x00", "lone \ud83d", "\u202eשלום", "x" * 1_000_000, "{completion} {0}"])
    assert scores.scored.all()


def test_no_server_and_no_key(monkeypatch):
    monkeypatch.delenv("TEST_JUDGE_KEY", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    nobody = JudgeReward("http://127.0.0.1:9/v1", "m", retries=0, timeout=2.0)
    assert "URLError" in nobody.score(["a"]).reasons[0]
    keyless = JudgeReward("http://127.0.0.1:9/v1", "m", api_key_variable="TEST_JUDGE_KEY")
    assert keyless.score(["a"]).reasons == ["the environment variable TEST_JUDGE_KEY (api_key_variable) is not set"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "file:///etc/passwd"}, "url must start with http"),
        ({"template": "rate {prompt}"}, "template must contain {completion}"),
        ({"pattern": r"\d"}, "pattern must have a group"),
        ({"low": 3.0, "high": 3.0}, "low must be below high"),
        ({"timeout": 0}, "needs timeout > 0"),
        ({"retries": -1}, "retries >= 0"),
        ({"concurrency": 0}, "concurrency >= 1"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        JudgeReward(**{"url": "http://127.0.0.1:9/v1", "model": "m", **options})
