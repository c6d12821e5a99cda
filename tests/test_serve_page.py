"""The page in a headless browser: a question is thought about, acted on, observed and answered.

Needs the `playwright` package and a Chromium on the path; skipped without them. With the variable
SCREENSHOTS set to a folder, pictures of every view are left there.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium on the path", allow_module_level=True)

from serving import ROOT, Script, serving  # noqa: E402

from agent.guides import CallRule  # noqa: E402
from agent.toolbox import ToolBox  # noqa: E402
from lora.rows import Row  # noqa: E402

MULTIPLY = {"name": "multiply_numbers", "arguments": {"first": 17.5, "second": 23}}
FORGED = "<img src=x onerror=alert(1)> <tool_call>"


def script(prompt: str) -> str:
    if "<tool_response>" in prompt:
        return "The product is 402.5."
    if "forged" in prompt:
        return FORGED.replace("<tool_call>", "< tool_call>")
    call = f"<tool_call>\n{json.dumps(MULTIPLY)}\n</tool_call>"
    return f"<think>multiply_numbers fits.</think>{call}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Script, str]]:
    batch = Script(script, seconds=0.01)
    with (
        ToolBox(ROOT / "agent" / "example_tools.py") as toolbox,
        serving(batch, adapters=("first", "second"), toolbox=toolbox) as url,
    ):
        yield batch, url


SIZES = {"phone": {"width": 390, "height": 844}, "desk": {"width": 1280, "height": 800}}


VIEWS = [("phone", "dark"), ("desk", "light")]
if "SCREENSHOTS" in os.environ:
    VIEWS += [("phone", "light"), ("desk", "dark")]


@pytest.fixture(params=VIEWS, ids=str)
def page(request: pytest.FixtureRequest, browser: Any, served: tuple[Script, str]) -> Iterator[Any]:
    size, scheme = request.param
    context = browser.new_context(viewport=SIZES[size], color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(15_000)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.goto(served[1])
    page.name = f"{size}-{scheme}"
    yield page
    assert not faults
    context.close()


def shoot(page: Any, name: str) -> None:
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        page.screenshot(path=str(Path(folder) / f"{page.name}-{name}.png"))
    # Nothing is wider than the screen: a phone would have to scroll sideways
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_question_is_thought_about_acted_on_observed_and_answered(
    page: Any, served: tuple[Script, str]
) -> None:
    page.fill("#question", "What is 17.5 times 23?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".answer")
    page.wait_for_selector("#send:visible")
    frames = page.locator(".frame")
    kinds = [frame.get_attribute("class").split()[1] for frame in frames.all()]
    assert kinds == ["think", "act", "observe", "answer"]
    texts = [frame.inner_text() for frame in frames.all()]
    assert "multiply_numbers fits." in texts[0] and '"second": 23' in texts[1]
    assert "402.5" in texts[2] and "The product is 402.5." in texts[3]
    assert page.locator(".writing").count() == 0
    shoot(page, "chat")
    page.click("#tab-tokens")
    page.wait_for_selector("#ids .trained")
    learned = "".join(page.locator("#ids .trained").all_inner_texts())
    assert learned.startswith("<think>multiply_numbers") and "402.5" in learned
    assert re.search(r"\d+ tokens, \d+ of them", page.inner_text("#counts"))
    page.locator("#ids .trained").first.scroll_into_view_if_needed()
    shoot(page, "tokens")


def test_under_constrain_the_tokens_say_what_the_grammar_allowed(
    page: Any, served: tuple[Script, str]
) -> None:
    pytest.importorskip("llguidance")
    with (
        ToolBox(ROOT / "agent" / "example_tools.py") as toolbox,
        serving(Script(script), toolbox=toolbox, rule=CallRule("constrained")) as url,
    ):
        page.goto(url)
        page.fill("#question", "What is 17.5 times 23?")
        page.keyboard.press("Enter")
        page.wait_for_selector(".answer")
        page.wait_for_selector("#send:visible")
        page.click("#tab-tokens")
        page.wait_for_selector("#ids .forced")
        assert page.is_visible("#rule")
        # Inside of the call, and nowhere else: not in thoughts, nor in the list of the tools
        text = "".join(page.locator("#ids .forced, #ids .held").all_inner_texts())
        assert text.replace("⏎\n", "").startswith('{"name": "multiply_numbers", "arguments"')
        assert text.rstrip().endswith("}⏎\n</tool_call>") and "fits" not in text
        page.locator("#ids .forced").first.click()
        assert ": 1 allowed: “" in page.inner_text("#allowed")
        page.locator("#ids .held").last.focus()
        assert re.search(r": \d+ allowed", page.inner_text("#allowed"))
        shoot(page, "grammar")


def test_adapter_scale_and_tools_are_sent(page: Any, served: tuple[Script, str]) -> None:
    batch, _ = served
    page.click("summary")
    page.select_option("#model", "second")
    page.focus("#scale")
    for _ in range(20):  # from 1 down to 0, by the keyboard alone
        page.keyboard.press("ArrowLeft")
    assert page.inner_text("#scale-value") == "0.00"
    page.uncheck("#tools input[value=count_days]")
    shoot(page, "settings")
    page.fill("#question", "What is 17.5 times 23?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".answer")
    page.wait_for_selector("#send:visible")
    assert batch.seen[-1].row == Row("second", 0.0)
    assert "count_days" not in batch.prompts[-1] and "convert_temperature" in batch.prompts[-1]


def test_calls_wait_for_a_yes_where_they_are_to(page: Any) -> None:
    page.click("summary")
    page.check("#ask")
    page.fill("#question", "What is 17.5 times 23?")
    page.click("#send")
    page.wait_for_selector("text=Do not run")
    shoot(page, "ask")
    page.keyboard.press("Tab")  # from Run to the other one
    page.keyboard.press("Enter")
    page.wait_for_selector(".answer")
    assert "does not want" in page.inner_text(".observe")


def test_what_was_written_is_never_markup(page: Any) -> None:
    page.fill("#question", "forged <b>bold</b>")
    page.keyboard.press("Enter")
    page.wait_for_selector("#send:visible")
    page.wait_for_selector(".answer")
    assert "<img" in page.inner_text(".answer") and page.locator("img, b").count() == 0
    assert "<b>bold</b>" in page.inner_text(".user")


def test_a_reply_can_be_stopped_and_the_chat_begun_anew(
    page: Any, served: tuple[Script, str]
) -> None:
    batch, _ = served
    batch.seconds = 0.2
    try:
        page.fill("#question", "What is 17.5 times 23?")
        page.keyboard.press("Enter")
        page.wait_for_selector(".think")
        page.click("#stop")
        page.wait_for_selector(".error")
        assert "stopped" in page.inner_text(".error")
        assert page.input_value("#question") == "What is 17.5 times 23?"
    finally:
        batch.seconds = 0.01
    page.click("#new")
    assert page.locator(".frame").count() == 0
    page.click("#tab-tokens")
    assert "Ask something first." in page.inner_text("#ids")


def test_a_question_may_come_before_the_models(browser: Any, served: tuple[Script, str]) -> None:
    page = browser.new_page()

    def later(route: Any) -> None:
        page.wait_for_timeout(500)
        route.continue_()

    page.route("**/v1/models", later)
    page.goto(served[1], wait_until="domcontentloaded")
    page.fill("#question", "What is 17.5 times 23?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".answer, .error")
    assert page.locator(".error").count() == 0
    page.close()


def test_every_control_has_a_name_and_is_reached_by_the_keyboard(page: Any) -> None:
    page.click("summary")
    names = "[...document.querySelectorAll('button, input, select, textarea')]"
    unnamed = page.evaluate(
        f"{names}.filter((x) => !x.labels?.length && !x.textContent.trim()).map((x) => x.id)"
    )
    assert unnamed == []
    page.focus("#tab-chat")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-tokens"
    assert page.is_visible("#tokens") and not page.is_visible("#chat")
