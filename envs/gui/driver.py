"""The process that drives a browser: answers calls, one JSON object a line, and leaves nothing behind when it ends.

Run by :mod:`.session` as ``python -m aligngym.envs.gui.driver FOLDER SETTINGS``. It outlives neither its caller nor a
single unanswered call: when its input closes, it kills the browser, removes the folder and exits.
"""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .chromium import arguments, serve, sync_playwright

FLAGS = (
    "--disable-smooth-scrolling",
    # All but the session's own server goes to a proxy that does not exist: workers' sockets and preconnections too,
    # which no request handler sees. What is no TCP (WebRTC) may not go around it.
    "--proxy-server=http://nowhere.invalid:1",
    "--webrtc-ip-handling-policy=disable_non_proxied_udp",
    "--force-webrtc-ip-handling-policy=disable_non_proxied_udp",
)
# Run before any script of a page: nothing moves by itself, nothing is random, and the page stays.
STILL_JS = """
window.close = () => {};
const still = new CSSStyleSheet();
still.replaceSync(`*, *::before, *::after {animation: none !important; transition: none !important;
    scroll-behavior: auto !important; caret-color: transparent !important}`);
document.adoptedStyleSheets = [still];
{
    let state = 1;  // mulberry32
    Math.random = () => {
        state = state + 0x6D2B79F5 | 0;
        let t = Math.imul(state ^ state >>> 15, 1 | state);
        t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t;
        return ((t ^ t >>> 14) >>> 0) / 4294967296;
    };
}
"""
FRAME_JS = "() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))"
LOADED_JS = "async () => { if (window.jQuery?.fx) jQuery.fx.off = true; await document.fonts.ready; }"
FORGET_JS = "() => { window.name = ''; sessionStorage.clear(); }"
KEYS = {"\n": "Enter", "\t": "Tab"}
NAVIGATION = {  # the events of the DevTools protocol that begin and end one
    "Page.frameScheduledNavigation": "Page.frameClearedScheduledNavigation",
    "Page.frameStartedLoading": "Page.frameStoppedLoading",
}
LOADING = 3.0  # seconds that a navigation which a click began is waited for


def remove(folder: str) -> None:
    """Kill the process groups whose command lines name ``folder``, but not the caller's own; then delete it."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError, ValueError):
            if folder.encode() in file.read_bytes():
                group = os.getpgid(int(file.parent.name))
                if group != os.getpgrp():
                    os.killpg(group, signal.SIGKILL)
    for _ in range(100):  # what is dying may still write
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.exists(folder):
            return
        time.sleep(0.02)


class Driver:
    """One page of one browser, which reaches ``address`` and nothing else.

    Args:
        browser: of playwright.
        address: ``http://127.0.0.1:<port>``, where the pages are.
        window: width and height of the viewport, in CSS pixels.
        view: left, top, width and height of what screenshots show of it.
        scale: screenshot pixels per CSS pixel.
    """

    def __init__(self, browser: Any, address: str, window: list[int], view: list[float], scale: float) -> None:
        self.address, self.busy, self.signals = address, set[str](), list[str]()
        width, height = window
        self.clip = {**dict(zip(("x", "y", "width", "height"), view, strict=True)), "scale": 1}
        context = browser.new_context(
            viewport={"width": width, "height": height},
            device_scale_factor=scale,
            reduced_motion="reduce",
            color_scheme="light",
            locale="en-US",
            timezone_id="UTC",
            service_workers="block",
            accept_downloads=False,
        )
        outside = re.compile(rf"^(?!{re.escape(address)}/)")
        # "aborted" leaves the page where it is when a link leads outside.
        context.route(outside, lambda route: route.abort("aborted"))
        context.route_web_socket(re.compile(""), lambda socket: socket.close())
        context.add_init_script(STILL_JS)
        self.page = context.new_page()
        context.on("page", lambda popup: popup.close())
        self.devtools = context.new_cdp_session(self.page)
        # Without it screenshots have CSS pixels.
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        self.devtools.send("Emulation.setDeviceMetricsOverride", metrics)
        self.devtools.send("Page.enable")
        main = self.devtools.send("Page.getFrameTree")["frameTree"]["frame"]["id"]
        # The renderer tells them in the order in which it answers, so a click's are here before FRAME_JS is done.
        for begin, end in NAVIGATION.items():
            self.devtools.on(begin, lambda event, name=begin: self._mark(event["frameId"] == main, name, True))
            self.devtools.on(end, lambda event, name=begin: self._mark(event["frameId"] == main, name, False))
        self.devtools.on("Runtime.bindingCalled", lambda event: self.signals.append(event["payload"]))
        self.devtools.send("Runtime.enable")
        self.devtools.send("Runtime.addBinding", {"name": "aligngymSignal"})

    def _mark(self, ours: bool, name: str, begins: bool) -> None:
        """A navigation of the page itself begins or ends."""
        if ours:
            (self.busy.add if begins else self.busy.discard)(name)

    def _settle(self) -> None:
        """Wait until what was done is drawn, or the page that it led to."""
        self.evaluate(FRAME_JS)
        if self.busy:
            deadline = time.monotonic() + LOADING
            while self.busy and time.monotonic() < deadline:
                self.page.wait_for_timeout(10)
            self.evaluate(FRAME_JS)

    def open(self, path: str) -> None:
        """Load a page as if nothing had been opened before."""
        if self.page.url.startswith(self.address):
            self.evaluate(FORGET_JS)
        self.page.goto("about:blank")
        self.devtools.send("Page.resetNavigationHistory")
        self.devtools.send("Storage.clearDataForOrigin", {"origin": self.address, "storageTypes": "all"})
        self.page.goto(f"{self.address}/{quote(path)}", wait_until="load")
        self.devtools.send("Page.resetNavigationHistory")  # "back" would lead to the blank page
        self.page.mouse.move(-1, -1)
        self.evaluate(LOADED_JS)
        self.signals.clear()

    def evaluate(self, script: str, argument: Any = None) -> Any:
        """What a JavaScript function returns in the page; waits for the next one if the page is being left."""
        for _ in range(20):
            try:
                return self.page.evaluate(script, argument)
            except Exception as error:
                if "context was destroyed" not in str(error):
                    raise
                self.page.wait_for_load_state("load")
        return self.page.evaluate(script, argument)

    def click(self, x: float, y: float) -> None:
        """Press and release the left button there, in CSS pixels."""
        self.page.mouse.click(x, y)
        self._settle()

    def type(self, text: str) -> None:
        """Press the keys for ``text``; a newline is Enter, a tab is Tab."""
        for part in re.split(r"([\n\t])", text):
            if part in KEYS:
                self.page.keyboard.press(KEYS[part])
            else:
                self.page.keyboard.type(part)
        self._settle()

    def scroll(self, x: float, y: float, pixels: float) -> None:
        """Turn the wheel over a point, all in CSS pixels; downwards for positive ``pixels``."""
        self.page.mouse.move(x, y)
        self.page.mouse.wheel(0, pixels)
        self._settle()

    def signalled(self) -> list[str]:
        """What the page has passed to ``aligngymSignal`` since it was opened, whichever page it is by now."""
        return self.signals

    def screenshot(self) -> str:
        """PNG of the view in base64."""
        options = {"format": "png", "optimizeForSpeed": True, "clip": self.clip}
        shot = self.devtools.send("Page.captureScreenshot", options)
        return str(shot["data"])


def _listen(folder: str, requests: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        requests.put(line)
    remove(folder)  # the caller is gone
    os.killpg(0, signal.SIGKILL)


def main(folder: str, settings: str) -> None:
    """Start a browser whose every file is in ``folder``, say so, and answer calls until the input closes."""
    given, answers = json.loads(settings), sys.stdout
    sys.stdout = sys.stderr  # nothing else may write among the answers
    requests = queue.SimpleQueue[str]()
    threading.Thread(target=_listen, args=(folder, requests), daemon=True).start()

    def answer(**reply: Any) -> None:
        answers.write(json.dumps(reply) + "\n")
        answers.flush()

    try:
        with serve(given.pop("root")) as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=given.pop("executable"),
                args=[*arguments(), *FLAGS, f"--proxy-bypass-list=<-loopback>;{address.removeprefix('http://')}"],
                chromium_sandbox=os.geteuid() != 0,
            )
            driver = Driver(browser, address, **given)
            answer(result=address)
            while True:
                call = json.loads(requests.get())
                answer(result=getattr(driver, call["name"])(*call["arguments"]))
    except Exception as error:  # whatever it is, this browser is of no more use
        answer(error=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}")


if __name__ == "__main__":
    main(*sys.argv[1:])
