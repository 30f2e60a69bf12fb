"""What every use of Chromium here has in common: finding it, its flags, the loopback rule, serving a folder."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--font-render-hinting=none",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


def executable() -> str:
    """Path of Chromium: ``$ALIGNGYM_CHROMIUM``, else the first one on the path, else the one playwright installed.

    Raises:
        FileNotFoundError: if there is none.
    """
    chosen = os.environ.get("ALIGNGYM_CHROMIUM")
    installed = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or Path.home() / ".cache/ms-playwright")
    own = [str(path) for path in sorted(installed.glob("chromium-*/chrome-linux*/chrome"))]
    found = chosen or next(filter(None, [*map(shutil.which, NAMES), *own[-1:]]), None)
    if not found or not Path(found).exists():
        raise FileNotFoundError(
            f"no Chromium: {found or ', '.join(NAMES)} was not found. Install it (Debian: apt-get install chromium; "
            "elsewhere: playwright install chromium), or name one in ALIGNGYM_CHROMIUM"
        )
    return found


def arguments() -> list[str]:
    """Command line flags. As root Chromium cannot use its own sandbox, which is then switched off."""
    return [*ARGUMENTS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]


def sync_playwright() -> Any:
    """Playwright's context manager.

    Raises:
        ImportError: without playwright, naming the extra.
    """
    try:
        from playwright.sync_api import sync_playwright as start
    except ImportError as error:
        raise ImportError(f"live pages need playwright: pip install 'aligngym[gui]' ({error})") from error
    return start()


def is_loopback(url: str) -> bool:
    """Whether a request stays on this machine: 127.0.0.1, or no network at all."""
    parts = urlsplit(url)
    return parts.scheme in ("data", "blob", "about") or parts.hostname == "127.0.0.1"


def loopback_only(context: Any) -> None:
    """Make a browser context of playwright abort every other request, WebSockets included."""
    context.route(
        lambda url: not is_loopback(url), lambda route: route.abort("addressunreachable")
    )
    context.route_web_socket(lambda url: not is_loopback(url), lambda socket: socket.close())


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def serve(folder: str | Path) -> Iterator[str]:
    """Serve a folder on a free port of 127.0.0.1; yields ``http://127.0.0.1:<port>``."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
