"""A real browser without a window: what it loaded, what it complained of, and pages that are served to it."""

import contextlib
import functools
import http.server
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

DESKTOP, PHONE = 1280, 390
_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# The last two are for containers: no sandbox for root, and little shared memory.
_ARGUMENTS = ("--headless=new", "--disable-gpu", "--hide-scrollbars", "--no-sandbox", "--disable-dev-shm-usage")
_CHANGE = """
const [range, value] = arguments;
Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(range, value);
for (const name of ["input", "change"]) range.dispatchEvent(new Event(name, {bubbles: true}));
"""


def missing() -> str | None:
    """What a browser for the tests lacks here, or nothing."""
    if not any(map(shutil.which, _NAMES)) or not shutil.which("chromedriver"):
        return "no Chromium with its driver: apt-get install chromium chromium-driver"
    return None


class Browser:
    """Chromium. Ask for its pages through `open`, which forgets what earlier ones said."""

    def __init__(self):
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = next(path for path in map(shutil.which, _NAMES) if path)
        for argument in _ARGUMENTS:
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))

    def open(self, address: str, *, width: int) -> None:
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        self.driver.get_log("browser")
        self.driver.get(address)

    def run(self, script: str, *arguments):
        """What a piece of JavaScript returns."""
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str):
        return self.driver.find_element("css selector", selector)

    def wait(self, condition: Callable[[], object], *, seconds: float, what: str) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, seconds, 0.1).until(lambda _: condition(), f"not within {seconds} s: {what}")

    def slide(self, selector: str, value: float) -> None:
        """Moves a slider as a hand would."""
        self.run(_CHANGE, self.find(selector), value)

    def press(self, selector: str, key: str) -> None:
        """Presses a key on an element, such as `ARROW_RIGHT`."""
        from selenium.webdriver.common.keys import Keys

        self.find(selector).send_keys(getattr(Keys, key))

    def complaints(self) -> list[str]:
        """What the console says of errors since the page was opened."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def from_elsewhere(self) -> list[str]:
        """What the page loaded from another server than its own."""
        return self.run(
            "return performance.getEntriesByType('resource').map(entry => entry.name)"
            ".filter(name => !name.startsWith(location.origin) && !name.startsWith('data:'))"
        )

    def overflow(self) -> int:
        """By how many pixels the page is wider than the screen."""
        return self.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server of a folder."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
