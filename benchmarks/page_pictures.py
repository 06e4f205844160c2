"""Pictures of the page of `esolm serve`: a screenshot and the animation of a filling.

    python benchmarks/page_pictures.py --bundle runs/demo/bundle --out docs/images

Needs chromium, chromedriver and selenium. The animation goes through the passes with the page's
own slider, so it shows each of them, and not how long it took.
"""

import argparse
import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

TEXT = "def read(self, path):[[24]]\n        return [[6]]\n\nclass Reader:[[30]]\n"
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
)  # fmt: skip
STEPS, SEED, TEMPERATURE = 12, 3, 0.7
FRAME_MS, LAST_FRAME_MS, COLOURS = 140, 2500, 64


def main() -> None:
    """Writes serve.png and serve.gif, if there are a bundle and a browser."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("runs/demo/bundle"))
    parser.add_argument("--out", type=Path, default=Path("runs/pictures"))
    arguments = parser.parse_args()
    if not (arguments.bundle.is_dir() and shutil.which("chromium")):
        print(f"no pictures: they need {arguments.bundle} (make demo) and chromium")
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    with served(arguments.bundle) as url, browser() as driver:
        driver.get(url)
        fill(driver)
        screenshot(driver).save(arguments.out / "serve.png", optimize=True)
        save_animation(frames(driver), arguments.out / "serve.gif")
    for name in ("serve.png", "serve.gif"):
        print(f"{arguments.out / name}: {(arguments.out / name).stat().st_size / 1e3:.0f} kB")


@contextmanager
def served(bundle: Path) -> Iterator[str]:
    """The address of a server over the bundle."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "esolm", "serve", str(bundle)]
    variables = {key: value for key, value in os.environ.items() if key != "ESOLM_API_KEY"}
    process = subprocess.Popen(
        [*command, "--port", str(port), "--name", "demo"], stdout=sys.stderr, env=variables
    )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: process.poll() is not None or answers(url), 90)
        if process.poll() is not None:
            raise SystemExit(f"the server has ended: {' '.join(command)} says why")
        yield url
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    """Whether the server is there."""
    try:
        return bool(urllib.request.urlopen(f"{url}/ready", timeout=5).status == 200)
    except urllib.error.URLError:
        return False


def wait_for(condition: Any, seconds: float) -> None:
    """Raises TimeoutError if it does not come true."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"nothing happened within {seconds:g} s")
        time.sleep(0.05)


@contextmanager
def browser() -> Iterator[Any]:
    """Chromium, with a window of two panels and twice the pixels."""
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    with tempfile.TemporaryDirectory() as profile:
        options = ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = Chrome(options=options, service=ChromeService(shutil.which("chromedriver")))
        try:
            size = {"width": 960, "height": 1060, "deviceScaleFactor": 1, "mobile": False}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            yield driver
        finally:
            driver.quit()


def fill(driver: Any) -> None:
    """One text under two settings, to its end."""
    settings = {"steps": STEPS, "seed": SEED, "temperature": TEMPERATURE}
    values: dict[str, object] = {
        f"settings-{side}-{name}": value for side in "ab" for name, value in settings.items()
    }
    values |= {"text": TEXT, "settings-a-alpha_0": 0.5, "settings-b-alpha_0": 1}
    driver.execute_script("document.getElementById('two').click()")
    for field, value in values.items():
        put(driver, f"document.getElementById('{field}')", value)
    driver.execute_script("document.getElementById('run').click()")
    said = "return document.getElementById('said').textContent"
    wait_for(lambda: driver.execute_script(said).startswith("Done"), 60)


def put(driver: Any, field: str, value: object) -> None:
    """Sets a field as somebody would who types."""
    driver.execute_script(
        f"const field = {field}; field.value = arguments[0];"
        "field.dispatchEvent(new Event('input', {bubbles: true}))",
        str(value),
    )


def screenshot(driver: Any) -> Image.Image:
    """The whole page, however long."""

    height = driver.execute_script("return document.documentElement.scrollHeight")
    size = {"width": 960, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    time.sleep(0.5)  # the last tokens still fade in
    return Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")


def frames(driver: Any) -> list[Image.Image]:
    """Both panels after each pass."""
    media = {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    sliders = "document.querySelectorAll('.slider')"
    passes = [int(driver.execute_script(f"return {sliders}[{side}].max")) for side in range(2)]
    # The panels stand still while their text grows.
    driver.execute_script(
        "for (const each of document.querySelectorAll('article'))"
        "each.style.minHeight = each.getBoundingClientRect().height + 'px'"
    )
    found = []
    for number in range(max(passes) + 1):
        for side, last in enumerate(passes):
            put(driver, f"{sliders}[{side}]", min(number, last))
        panels = driver.find_element("css selector", ".panels")
        found.append(Image.open(io.BytesIO(panels.screenshot_as_png)).convert("RGB"))
    return found


def save_animation(pictures: list[Image.Image], path: Path) -> None:
    """A GIF with the colours of its last picture, which has all of them."""
    last = pictures[-1].quantize(COLOURS)
    reduced = [each.quantize(palette=last, dither=Image.Dither.NONE) for each in pictures]
    times = [FRAME_MS] * (len(reduced) - 1) + [LAST_FRAME_MS]
    reduced[0].save(path, save_all=True, append_images=reduced[1:], duration=times, loop=0,
                    optimize=True)  # fmt: skip


if __name__ == "__main__":
    main()
