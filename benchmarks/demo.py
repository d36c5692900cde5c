"""How soon `elt-zoo demo` shows a picture, and how soon the picture follows a slider, as a browser sees it.

    pip install 'elt_zoo[demo]' selenium && python benchmarks/demo.py

Requirement: the picture follows within 100 ms once its program is compiled. The script starts the command, opens its
page in Chromium without a window (the system's, with chromedriver) and moves a slider in the page itself. The time runs
from the move to the first change of the picture that the page's own script sees. Loops are moved to counts that were
sampled before, so that these times are those of the page alone; seeds are new each time, so that theirs are those of
the page and of sampling. The first picture is timed twice, without and with kept programs.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from elt_zoo.profile import environment

_FOLLOW = """
const [name, value, done] = arguments;
const range = document.querySelector(`#${name} input[type=range]`);
const shown = document.querySelector("#now");
const before = shown.innerHTML;
Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(range, value);
const started = performance.now();
new MutationObserver((_, observer) => {
  if (shown.innerHTML === before) return;
  observer.disconnect();
  done(performance.now() - started);
}).observe(shown, {childList: true, subtree: true, characterData: true, attributes: true});
for (const kind of ["input", "change"]) range.dispatchEvent(new Event(kind, {bubbles: true}));
"""


def browser() -> Any:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    driver = shutil.which("chromedriver")
    if driver is None:
        raise SystemExit("chromedriver is missing: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--disable-gpu", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    chrome = webdriver.Chrome(options=options, service=Service(driver))  # else Selenium looks for one to download
    chrome.set_script_timeout(600)
    return chrome


def start(model: str, port: int, cache: str) -> subprocess.Popen[str]:
    """The command, once it has said that its page can be opened."""
    command = [sys.executable, "-m", "elt_zoo", "demo", "--model", model, "--port", str(port)]
    kept = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=kept)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Open"):
            return process
    raise SystemExit(f"`{' '.join(command)}` ended before its page could be opened.")


def first_picture(driver: Any, port: int) -> None:
    driver.get(f"http://127.0.0.1:{port}/")
    while not driver.execute_script("return document.querySelectorAll('#viewed img').length"):
        time.sleep(0.02)


def follow(driver: Any, slider: str, values: Sequence[int]) -> str:
    milliseconds = sorted(driver.execute_async_script(_FOLLOW, slider, value) for value in values)
    late = milliseconds[round(0.9 * (len(milliseconds) - 1))]
    return f"median {statistics.median(milliseconds):.0f} ms, nine in ten within {late:.0f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits-dit")
    parser.add_argument("--port", type=int, default=7890)
    parser.add_argument("--moves", type=int, default=20)
    parser.add_argument("--rest", type=float, default=60.0, help="seconds for the other programs to be compiled")
    arguments = parser.parse_args()
    print(f"{arguments.model}, {environment()}, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as cache:
        for programs in ("compiled", "kept"):
            started = time.perf_counter()
            process = start(arguments.model, arguments.port, cache)
            opened = time.perf_counter() - started
            driver = browser()
            try:
                started = time.perf_counter()
                first_picture(driver, arguments.port)
                shown = time.perf_counter() - started
                print(
                    f"programs {programs}: {opened:.1f} s from the command to its address, {shown:.1f} s to the picture"
                )
                if programs == "kept":
                    time.sleep(arguments.rest)
                    moves = range(arguments.moves)
                    print(f"a slider of loops: {follow(driver, 'loops', [1 + move % 3 for move in moves])}")
                    print(f"a slider of seeds: {follow(driver, 'seed', [1 + move for move in moves])}")
            finally:
                driver.quit()
                process.terminate()
                process.wait()


if __name__ == "__main__":
    main()
