"""The page at `/` in a real browser, without a mouse where that can be."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from esolm.pipeline.export.manifest import write_manifest
from tests.pipeline.serve.conftest import Server, serving

selenium = pytest.importorskip("selenium", reason="selenium is not installed")

from selenium.webdriver import Chrome, ChromeOptions, ChromeService, Keys  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402

pytestmark = [
    pytest.mark.check,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="needs chromium and its driver",
    ),
]
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-quic",
)  # fmt: skip


class Page:
    """The page as somebody uses it."""

    def __init__(self, driver: Chrome, server: Server) -> None:
        self.driver, self.server = driver, server
        driver.get(server.url)
        self.wait_for(lambda: self.id("model").text != "")

    def id(self, name: str) -> Any:
        return self.driver.find_element(By.ID, name)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def wait_for(self, condition: Callable[[], object], seconds: float = 20.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.driver.page_source[-2000:]
            time.sleep(0.01)

    def write(self, text: str) -> None:
        field = self.id("text")
        field.clear()
        field.send_keys(text)

    def set(self, name: str, value: float, side: str = "a") -> None:
        self.driver.execute_script(
            "arguments[0].value = arguments[1];"
            "arguments[0].dispatchEvent(new Event('input', {bubbles: true}))",
            self.id(f"settings-{side}-{name}"), str(value),
        )  # fmt: skip

    def fill(self) -> None:
        self.id("run").click()
        self.wait_for(lambda: self.id("said").get_attribute("textContent").startswith("Done"))

    def count(self, kind: str, side: str = "a") -> int:
        return len(self.all(f"#panel-{side} .out .{kind}"))

    def figures(self, side: str = "a") -> dict[str, str]:
        rows = self.all(f"#panel-{side} .figures div")
        return dict(row.text.split("\n") for row in rows)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    found = Chrome(options=options, service=ChromeService(shutil.which("chromedriver")))
    yield found
    found.quit()


@pytest.fixture
def page(driver: Chrome, server: Server) -> Page:
    return Page(driver, server)


def test_gaps_are_filled_before_ones_eyes(page: Page) -> None:
    page.write("def f(x):[[200]]return x")
    page.set("alpha_0", 0.3)
    page.id("run").click()
    seen = set()
    page.wait_for(
        lambda: (
            seen.add(page.count("blank"))
            or page.id("said").get_attribute("textContent").startswith("Done")
        )
    )
    assert len([count for count in seen if 0 < count < 200]) > 1
    assert page.count("blank") == 0
    diffusion, sequential = page.count("diffusion"), page.count("sequential")
    assert diffusion + sequential == 200
    assert diffusion
    figures = page.figures()
    assert figures["diffusion"] == str(diffusion)
    assert figures["left to right"] == str(sequential)
    assert int(figures["tokens/s"]) > 0
    expected = page.server.post(
        "/v1/infill", segments=["def f(x):", {"gap": 200}, "return x"], alpha_0=0.3, seed=0,
        likelihood=True,
    ).json()  # fmt: skip
    assert expected["nats_per_token"] > 0
    assert figures["nats per token"] == f"{expected['nats_per_token']:.2f}"
    assert figures["passes"] == str(expected["passes"])
    assert page.id("said").get_attribute("textContent") == f"Done: {expected['text']}"


def test_replay_goes_back_through_the_passes(page: Page) -> None:
    page.write("a[[20]]b")
    page.fill()
    slider = page.all("#panel-a .slider")[0]
    slider.send_keys(Keys.HOME)
    assert page.count("blank") == 20
    slider.send_keys(Keys.ARROW_RIGHT)
    assert 0 < page.count("blank") < 20
    shown = page.all("#panel-a .shown")[0]
    assert shown.text == f"1 of {page.figures()['passes']}"
    slider.send_keys(Keys.END)
    assert page.count("blank") == 0
    assert (
        slider.get_attribute("aria-valuetext")
        == f"pass {page.figures()['passes']} of " + (page.figures()["passes"])
    )


def test_stop_ends_the_request(page: Page) -> None:
    page.write("x[[3000]]")
    page.set("alpha_0", 0)
    page.id("run").click()
    page.wait_for(lambda: page.count("sequential") > 3)
    page.id("stop").click()
    page.wait_for(lambda: page.id("error").text == "stopped")
    page.server.wait_until_idle()
    assert page.count("blank") > 100
    assert not page.id("stop").is_enabled()


def test_two_settings_side_by_side(page: Page) -> None:
    page.write("x = [[24]]")
    page.id("two").click()
    page.set("alpha_0", 0, "a")
    page.set("alpha_0", 1, "b")
    page.fill()
    page.wait_for(lambda: page.count("blank", "b") == 0)
    assert (page.count("sequential"), page.count("diffusion")) == (24, 0)
    assert (page.count("sequential", "b"), page.count("diffusion", "b")) == (0, 24)


def test_confidence_is_said_to_be_biased(page: Page) -> None:
    """Also to those who hear the page."""
    field = page.id("settings-a-schedule")
    note = page.id(field.get_attribute("aria-describedby"))
    assert not note.is_displayed()
    said = "confidence is not the model's own distribution"
    for key, text in ((Keys.END, said), (Keys.HOME, "")):
        field.send_keys(key)
        page.wait_for(lambda expected=text: note.text == expected)


def test_adaptive_speculation_is_a_checkbox(page: Page) -> None:
    page.write("x[[200]]")
    page.set("alpha_0", 0)
    page.set("guesses", 8)
    passes = {}
    for is_adaptive in (False, True):
        assert page.id("settings-a-adaptive").is_selected() == is_adaptive
        page.fill()
        body = {"segments": ["x", {"gap": 200}], "seed": 0, "alpha_0": 0, "guesses": 8}
        expected = page.server.post("/v1/infill", **body, adaptive=is_adaptive).json()
        passes[is_adaptive] = page.figures()["passes"]
        assert passes[is_adaptive] == str(expected["passes"])
        page.id("settings-a-adaptive").send_keys(Keys.SPACE)
    assert passes[False] != passes[True]


def test_by_keyboard_alone(page: Page) -> None:
    """Tab by tab from the text to the button; everything on the way has a name."""
    page.id("text").send_keys(Keys.END, " and[[3]]")
    for _ in range(40):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        active = page.driver.switch_to.active_element
        assert active.accessible_name, active.get_attribute("outerHTML")
        if active.get_attribute("id") == "run":
            active.send_keys(Keys.ENTER)
            break
    page.wait_for(lambda: page.id("said").get_attribute("textContent").startswith("Done"))


def test_a_gap_is_inserted_where_the_cursor_is(page: Page) -> None:
    page.write("ab")
    page.id("text").send_keys(Keys.ARROW_LEFT)
    page.id("gap").click()
    assert page.id("text").get_attribute("value") == "a[[8]]b"


def test_text_stays_text(page: Page) -> None:
    markup = "<script>document.title='bad'</script><b>x</b>"
    page.write(f"{markup}[[2]]")
    page.fill()
    assert page.driver.title == "Eso-LM"
    assert page.all("#panel-a .out b") == []
    assert markup in page.all("#panel-a .out")[0].get_attribute("textContent")


def test_a_backslash_makes_text_of_a_gap(page: Page) -> None:
    r"""`\[[5]]` is text, and so is its backslash when it has one in front itself."""
    page.write(r"a[0] \[[5]]\n \\[[2]]\\[[x]] \\\[[7]]")
    page.fill()
    out = page.all("#panel-a .out")[0].get_attribute("textContent")
    assert out.startswith("a[0] [[5]]\\n \\")
    assert out.endswith(r"\\[[x]] \[[7]]")
    assert page.count("diffusion") + page.count("sequential") == 2


def test_settings_begin_with_the_bundles_defaults(
    driver: Chrome, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    """Also those outside of a slider's range and between its steps."""
    path = make_bundle()
    defaults = {"alpha_0": 0.33, "num_steps": 300, "schedule": "fixed", "temperature": 0.85,
                "top_p": 0.9, "top_k": 7, "guesses": 3}  # fmt: skip
    settings = {**defaults, "adaptive": True}
    (path / "generation_config.json").write_text(json.dumps(settings))
    (path / "export.json").unlink()
    write_manifest(path, {"step": 1})
    with serving(path, tmp_path) as server:
        page = Page(driver, server)
        for name, value in defaults.items():
            field = page.id(f"settings-a-{name.removeprefix('num_')}")
            assert field.get_attribute("value") == str(value), name
        assert page.id("settings-a-adaptive").is_selected()
        shown = [each.get_attribute("textContent") for each in page.all("#settings-b output")]
        assert shown == ["0.33", "300", "0.85", "0.9", "3"]
        page.write("x[[8]]")
        page.fill()
        expected = server.post("/v1/infill", segments=["x", {"gap": 8}], seed=0).json()
        assert page.id("said").get_attribute("textContent") == f"Done: {expected['text']}"


def test_errors_are_shown(page: Page) -> None:
    page.write("x[[9000]]")
    page.id("run").click()
    page.wait_for(lambda: "4096 at most" in page.id("error").text)
    page.write("x[[3]]")
    page.fill()
    assert page.id("error").text == ""


def test_a_second_filling_takes_the_place_of_the_first(page: Page) -> None:
    page.write("x[[3000]]")
    page.set("alpha_0", 0)
    page.id("run").click()
    page.wait_for(lambda: page.count("sequential") > 3)
    page.write("y[[3]]")
    page.fill()
    page.server.wait_until_idle()
    assert page.id("error").text == ""
    assert page.all("#panel-a .out")[0].get_attribute("textContent").startswith("y")
    assert not page.id("stop").is_enabled()


def test_a_server_that_goes_away_is_no_short_text(
    driver: Chrome, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    with serving(make_bundle(seq_len=4096), tmp_path) as server:
        page = Page(driver, server)
        page.write("x[[3000]]")
        page.set("alpha_0", 0)
        page.id("run").click()
        page.wait_for(lambda: page.count("sequential") > 3)
        server.process.kill()
        page.wait_for(lambda: page.id("error").text != "")
        assert page.count("blank") > 0
        assert page.id("said").get_attribute("textContent") == ""
        page.id("run").click()
        page.wait_for(lambda: "does not answer" in page.id("error").text)


@pytest.mark.parametrize(
    ("objective", "shown", "nats"),
    [("mdlm", {"steps", "schedule"}, r"n/a"), ("ar", set[str](), r"\d+\.\d\d")],
)
def test_only_settings_that_mean_something_are_shown(
    driver: Chrome,
    make_bundle: Callable[..., Path],
    tmp_path: Path,
    objective: str,
    shown: set[str],
    nats: str,
) -> None:
    with serving(make_bundle(objective=objective), tmp_path) as server:
        page = Page(driver, server)
        some = ("alpha_0", "steps", "schedule", "guesses", "adaptive")
        assert {name for name in some if page.id(f"settings-a-{name}").is_displayed()} == shown
        assert page.id("settings-a-temperature").is_displayed()
        page.write("x = [[3]]")
        page.fill()
        assert re.fullmatch(nats, page.figures()["nats per token"])


def test_narrow_and_dark(page: Page) -> None:
    def colour() -> str:
        return str(page.driver.execute_script("return getComputedStyle(document.body).color"))

    bright = colour()
    media = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    assert colour() != bright
    size = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.id("two").click()
    page.write("y" * 200 + "[[30]]")
    page.fill()
    assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 360
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_key_is_asked_for(
    driver: Chrome, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    with serving(make_bundle(), tmp_path, key="secret") as server:
        driver.get(server.url)
        field = driver.find_element(By.ID, "key")
        end = time.monotonic() + 10
        while not field.is_displayed():
            assert time.monotonic() < end
            time.sleep(0.02)
        assert "show the key" in driver.find_element(By.ID, "error").text
        assert driver.switch_to.active_element == field
        field.send_keys("secret")
        driver.find_element(By.ID, "run").click()
        said = driver.find_element(By.ID, "said")
        while not said.get_attribute("textContent").startswith("Done"):
            assert time.monotonic() < end, driver.find_element(By.ID, "error").text
            time.sleep(0.02)
        assert driver.find_element(By.ID, "model").text
