"""Headless Chromium, driven over the DevTools protocol as a person would drive it.

One browser for a module, a context (its own cookies and storage) for each page. What a
page logs as an error, throws, or has refused by its Content-Security-Policy is kept: a
page that is left with some fails the test, unless it has taken them.
"""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from support.browser import QUIET, find_browser
from support.processes import WAIT_S, eventually
from websockets.sync.client import connect

if TYPE_CHECKING:
    from support.processes import Machine, Program

KEYS: Final = {
    "Enter": ("Enter", 13, "\r"),
    "Tab": ("Tab", 9, ""),
    "Escape": ("Escape", 27, ""),
    "Delete": ("Delete", 46, ""),
    "ArrowDown": ("ArrowDown", 40, ""),
    "ArrowUp": ("ArrowUp", 38, ""),
    "ArrowRight": ("ArrowRight", 39, ""),
    "ArrowLeft": ("ArrowLeft", 37, ""),
    " ": ("Space", 32, " "),
}
SHIFT: Final = 8
_WAIT: Final = """
new Promise((done, fail) => {
  const until = performance.now() + %d;
  const look = async () => {
    let value;
    try { value = await (%s); } catch (error) { value = undefined; }
    if (value) done(value instanceof Node ? true : value);
    else if (performance.now() > until) done(null);
    else requestAnimationFrame(look);
  };
  look();
})
"""


class PageError(AssertionError):
    """The page did not do what the test waits for."""


class Chromium:
    """A running browser."""

    def __init__(self, machine: Machine) -> None:
        browser = find_browser(machine)
        self._profile = tempfile.mkdtemp(prefix="chromium")
        self._program: Program = machine.start(
            browser.path, *QUIET, "--remote-debugging-port=0",
            "--remote-allow-origins=*", f"--user-data-dir={self._profile}",
            "about:blank",
        )  # fmt: skip
        told = Path(self._profile) / "DevToolsActivePort"
        eventually(lambda: told.exists() and told.read_text().count("\n") == 1, "port")
        port, path = told.read_text().splitlines()
        self._stack = ExitStack()
        self._socket = self._stack.enter_context(
            connect(f"ws://127.0.0.1:{port}{path}", max_size=None, proxy=None)
        )
        self._numbers = itertools.count(1)
        self._events: dict[str, list[dict[str, Any]]] = {}

    def close(self) -> None:
        self._stack.close()
        self._program.process.terminate()
        self._program.wait()
        shutil.rmtree(self._profile, ignore_errors=True)

    def ask(self, method: str, session: str = "", **params: object) -> dict[str, Any]:
        """Send a command; return its result; keep the events that come meanwhile."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        self._socket.send(json.dumps(message))
        until = time.monotonic() + 2 * WAIT_S
        while True:
            came = json.loads(self._socket.recv(timeout=until - time.monotonic()))
            if came.get("id") == number:
                if "error" in came:
                    raise PageError(f"{method}: {came['error']}")
                result: dict[str, Any] = came["result"]
                return result
            if "method" in came:
                self._events.setdefault(came.get("sessionId", ""), []).append(came)

    def take_events(self, session: str) -> list[dict[str, Any]]:
        """Return the events of a page since the last time."""
        self.ask("Browser.getVersion")  # what has happened before has come by then
        return self._events.pop(session, [])

    def open(self, url: str = "about:blank", width: int = 1280) -> Page:
        """Open a page in a context of its own."""
        context = self.ask("Target.createBrowserContext")["browserContextId"]
        target = self.ask(
            "Target.createTarget", url="about:blank", browserContextId=context
        )["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        page = Page(self, session["sessionId"], context)
        page.resize(width)
        if url != "about:blank":
            page.go(url)
        return page


class Page:
    """A tab of a browser."""

    def __init__(self, browser: Chromium, session: str, context: str) -> None:
        self._browser = browser
        self._session = session
        self._context = context
        self.errors: list[str] = []
        """What went wrong in the page, as its console has it."""
        self._expects_refusals = False
        self.requests: list[dict[str, Any]] = []
        """That the page has sent: url, method, headers."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        self.look()
        self._browser.ask(
            "Target.disposeBrowserContext", browserContextId=self._context
        )
        if kind is None:
            assert [one for one in self.errors if not self._is_expected(one)] == []

    def ask(self, method: str, **params: object) -> dict[str, Any]:
        return self._browser.ask(method, self._session, **params)

    def look(self) -> None:
        """Take what has happened."""
        for event in self._browser.take_events(self._session):
            params = event["params"]
            match event["method"]:
                case "Runtime.exceptionThrown":
                    details = params["exceptionDetails"]
                    told = details.get("exception", {}).get("description", "")
                    self.errors.append(told or details["text"])
                case "Runtime.consoleAPICalled" if params["type"] == "error":
                    said = [one.get("value", "") for one in params["args"]]
                    self.errors.append(" ".join(map(str, said)))
                case "Log.entryAdded" if params["entry"]["level"] == "error":
                    entry = params["entry"]
                    self.errors.append(f"{entry['text']} {entry.get('url', '')}")
                case "Network.requestWillBeSent":
                    self.requests.append(params["request"])
                case _:
                    pass

    def take_errors(self) -> list[str]:
        """Return what went wrong, which the test expects.

        The browser may say of a refusal (a status of 4xx) after the page has it: such
        ones are expected from here on.
        """
        self.look()
        self._expects_refusals = True
        errors, self.errors = self.errors, []
        return errors

    def _is_expected(self, error: str) -> bool:
        return self._expects_refusals and error.startswith("Failed to load resource")

    # Seeing --------------------------------------------------------------------------

    def go(self, url: str) -> None:
        """Load another page, or the same anew."""
        self.ask("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'", f"{url} is loaded")

    def run(self, script: str) -> Any:  # noqa: ANN401 - what JavaScript has
        """Return the value of an expression; promises are waited for."""
        found = self.ask(
            "Runtime.evaluate", expression=script, awaitPromise=True,
            returnByValue=True, userGesture=True,
        )  # fmt: skip
        if "exceptionDetails" in found:
            raise PageError(json.dumps(found["exceptionDetails"], indent=1)[:2_000])
        return found["result"].get("value")

    def wait(self, script: str, what: str = "", within_s: float = WAIT_S) -> Any:  # noqa: ANN401 - what JavaScript has
        """Wait until an expression is true; return its value."""
        found = None
        until = time.monotonic() + within_s
        while not found:
            left_s = until - time.monotonic()
            if left_s <= 0:
                raise PageError(
                    f"never: {what or script}\n{self.text()[:3_000]}\n{self.errors}"
                )
            try:
                found = self.run(_WAIT % (min(left_s, 5) * 1_000, script))
            except PageError as error:  # a page that was just left
                if "navigated or closed" not in str(error) and "context" not in str(
                    error
                ):
                    raise
        return found

    def text(self) -> str:
        """Return what a person reads."""
        return str(self.run("document.body ? document.body.innerText : ''"))

    def wait_text(self, words: str, within_s: float = WAIT_S) -> None:
        """Wait until a person reads these words."""
        self.wait(
            f"document.body.innerText.includes({json.dumps(words)})", words, within_s
        )

    def screenshot(self, path: Path) -> None:
        shot = self.ask("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    # Doing ---------------------------------------------------------------------------

    def resize(self, width: int, height: int = 900) -> None:
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height,
            deviceScaleFactor=1, mobile=width < 500,
        )  # fmt: skip

    def scheme(self, name: str) -> None:
        """Prefer ``light`` or ``dark``."""
        feature = {"name": "prefers-color-scheme", "value": name}
        self.ask("Emulation.setEmulatedMedia", features=[feature])

    def click(self, element: str) -> None:
        """Press the mouse on an element, given as an expression, once it is there."""
        self.release(self.hold(element))

    def hold(self, element: str) -> list[float]:
        """Press the mouse there, without the release; return where that is."""
        box: list[float] = self.wait(
            f"""(() => {{ const e = {element}; if (!e) return null;
            e.scrollIntoView({{block: 'center'}});
            const b = e.getBoundingClientRect(), x = b.x + b.width / 2,
            y = b.y + b.height / 2, top = document.elementFromPoint(x, y);
            return b.width && top && (e.contains(top) || top.contains(e))
            ? [x, y] : null; }})()""",
            f"{element} can be clicked",
        )
        self._mouse("mousePressed", box)
        return box

    def release(self, box: list[float]) -> None:
        """Let go of the mouse."""
        self._mouse("mouseReleased", box)

    def _mouse(self, kind: str, box: list[float]) -> None:
        self.ask("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1],
            button="left", clickCount=1)  # fmt: skip

    def type(self, text: str) -> None:
        """Type where the focus is."""
        self.ask("Input.insertText", text=text)

    def press(self, key: str, modifiers: int = 0) -> None:
        """Press and release a key."""
        code, number, text = KEYS[key]
        params = {"key": key, "code": code, "windowsVirtualKeyCode": number,
            "modifiers": modifiers}  # fmt: skip
        down = "keyDown" if text else "rawKeyDown"
        self.ask("Input.dispatchKeyEvent", type=down, text=text, **params)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **params)
