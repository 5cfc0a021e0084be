"""The console in a real browser: a marketer's day, from logging in to a live campaign.

Every page is watched: no script error, no breach of the content security policy, no sideways
scrolling on a phone, and the basics of accessibility that a program can check.
"""

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from flask import Flask
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from sqlalchemy import Engine
from werkzeug.security import generate_password_hash
from werkzeug.serving import make_server

from service import db
from service.app import create_app
from service.config import Config
from service.imports import command
from service.models import User
from tests.loop import Loop, running

pytestmark = pytest.mark.browser

PASSWORD = "a long enough password"
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
FEATURES = [
    {"kind": "number", "key": "recency_days", "name": "Days since the last visit",
     "centre": 15, "scale": 9},
    {"kind": "category", "key": "channel", "name": "Channel", "values": ["app", "web"]},
]  # fmt: skip
# Each returns a list of what is wrong with the page.
CHECKS = {
    "fields without a label": """() => [...document.querySelectorAll(
        'input:not([type=hidden]), select, textarea')]
        .filter(field => !field.labels.length && !field.getAttribute('aria-label'))
        .map(field => field.name)""",
    "buttons and links without a name": """() => [...document.querySelectorAll('a, button')]
        .filter(one => !one.textContent.trim() && !one.querySelector('[aria-label]')
            && !one.getAttribute('aria-label') && one.tabIndex >= 0)
        .map(one => one.outerHTML)""",
    "pictures without a text": """() => [...document.querySelectorAll('img:not([alt])')]
        .map(one => one.src)""",
    "repeated ids": """() => [...document.querySelectorAll('[id]')].map(one => one.id)
        .filter((id, place, all) => all.indexOf(id) !== place)""",
    "references to nothing": """() => ['aria-describedby', 'aria-labelledby', 'for']
        .flatMap(name => [...document.querySelectorAll(`[${name}]`)]
            .flatMap(one => one.getAttribute(name).trim().split(/\\s+/))
            .filter(id => !document.getElementById(id)))""",
    "landmarks": """() => [...(document.querySelectorAll('main').length === 1 ? [] : ['main']),
        ...(document.querySelectorAll('h1').length === 1 ? [] : ['h1']),
        ...(document.documentElement.lang ? [] : ['lang'])]""",
    "skipped heading levels": """() => {
        const levels = [...document.querySelectorAll('h1, h2, h3, h4')]
            .map(one => Number(one.tagName[1]));
        return levels.filter((level, place) => place && level > levels[place - 1] + 1); }""",
    "small targets": """() => [...document.querySelectorAll('button, .button, .menu a, .tabs a')]
        .filter(one => one.checkVisibility() && !one.classList.contains('hidden-text'))
        .map(one => [one.textContent.trim(), one.getBoundingClientRect()])
        .filter(([, box]) => box.height < 43.5 || box.width < 43.5)
        .map(([text, box]) => `${text} ${box.width}x${box.height}`)""",
    "current tabs out of sight": """() => [...document.querySelectorAll('.tabs [aria-current]')]
        .filter(one => { const box = one.getBoundingClientRect();
            return box.left < 0 || box.right > innerWidth; })
        .map(one => one.textContent.trim())""",
    "faint texts": """() => {
        const channel = value => value <= 0.03928 ? value / 12.92
            : ((value + 0.055) / 1.055) ** 2.4;
        const parse = text => text.match(/[\\d.]+/g).map(Number);
        const light = ([r, g, b]) => 0.2126 * channel(r / 255) + 0.7152 * channel(g / 255)
            + 0.0722 * channel(b / 255);
        const behind = one => { for (; one; one = one.parentElement) {
            const colour = parse(getComputedStyle(one).backgroundColor);
            if (colour.length < 4 || colour[3] > 0.99) return colour; }
            return [255, 255, 255]; };
        return [...document.querySelectorAll('main *, nav *')]
            .filter(one => [...one.childNodes].some(n => n.nodeType === 3 && n.data.trim())
                && one.checkVisibility() && !one.closest('.hidden-text, svg, noscript, option'))
            .map(one => { const a = light(parse(getComputedStyle(one).color)) + 0.05;
                const b = light(behind(one)) + 0.05;
                return [one.textContent.trim().slice(0, 40), Math.max(a, b) / Math.min(a, b)]; })
            .filter(([, ratio]) => ratio < 4.5).map(([text, ratio]) => `${text}: ${ratio}`); }""",
}


# As patient as with clicks: a loaded machine is no fault.
expect.set_options(timeout=15_000)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    found = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if found is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium, or set CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def shop(config: Config, engine: Engine) -> Iterator[Loop]:
    """A host with one campaign, by features, that has seen customers; somebody may log in."""
    with db.transaction(engine) as session:
        password = generate_password_hash(PASSWORD, method="pbkdf2:sha256:1")
        session.add(
            User(email="ana@shop.example", name="Ana", role="admin", password_hash=password)
        )
    with running(config, engine) as loop:
        number = loop.launch(holdout=0.1, policy={"name": "linear_thompson"}, features=FEATURES)
        for _ in range(2):
            loop.shop(75)
            loop.carry()
            loop.learn(number)
        yield loop


@contextmanager
def served(app: Flask) -> Iterator[str]:
    """Serve an application on a free port of this machine."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def console(config: Config, shop: Loop) -> Iterator[str]:
    app = create_app(config, runtime=shop.runtime)
    with served(app) as address:
        yield address
    app.extensions["barter.engine"].dispose()


class Visitor:
    """A person at a browser, and everything that the browser complained about meanwhile."""

    def __init__(self, context: BrowserContext, address: str) -> None:
        self.page: Page = context.new_page()
        self.complaints: list[str] = []
        self._address = address
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self._hear(message.type, message.text))
        # The browser fires this event for inline styles and scripts alike.
        context.add_init_script(
            "document.addEventListener('securitypolicyviolation',"
            " event => console.error('CSP ' + event.violatedDirective))"
        )

    def _hear(self, kind: str, text: str) -> None:
        # Refused forms answer 422, which the browser notes as a failure to load.
        if kind in ("error", "warning") and "status of 422" not in text:
            self.complaints.append(text)

    def go(self, path: str) -> None:
        self.page.goto(self._address + path)

    def log_in(self) -> None:
        self.go("/login")
        self.page.get_by_label("E-mail").fill("ana@shop.example")
        self.page.get_by_label("Password").fill(PASSWORD)
        self.page.get_by_role("button", name="Log in").click()
        expect(self.page.get_by_role("heading", level=1)).to_have_text("Campaigns")

    def check(self) -> None:
        """Look over the page as it is now."""
        wrong = {
            name: found for name, code in CHECKS.items() if (found := self.page.evaluate(code))
        }
        assert wrong == {}, self.page.url
        wide = self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{self.page.url} scrolls sideways by {wide} pixels"
        assert self.complaints == [], self.page.url


@pytest.fixture(params=["light", "dark"])
def visitor(request: pytest.FixtureRequest, chromium: Browser, console: str) -> Iterator[Visitor]:
    """A visitor at a desk in light colours, or on a phone in dark ones."""
    width = 1280 if request.param == "light" else 360
    context = chromium.new_context(
        viewport={"width": width, "height": 800}, color_scheme=request.param
    )
    context.set_default_timeout(15_000)
    yield Visitor(context, console)
    context.close()


def test_a_marketers_day(visitor: Visitor, tmp_path: Path) -> None:
    page = visitor.page
    visitor.log_in()
    visitor.check()
    _create_with_a_mistake(visitor)
    page.get_by_role("button", name="Launch now").click()
    expect(page.get_by_text("Launched.")).to_be_visible()
    visitor.check()
    visitor.go("/campaigns")
    row = page.get_by_role("row", name="Winter coats")
    expect(row.get_by_text("Running", exact=True)).to_be_visible()
    _look_at_live_data(visitor)


def _create_with_a_mistake(visitor: Visitor) -> None:
    page = visitor.page
    page.get_by_role("link", name="New campaign").click()
    page.get_by_label("Name", exact=True).first.fill("Winter coats")
    percent = page.locator("#arms-1-percent")
    percent.fill("120")
    percent.blur()
    beside = page.locator("#arms-1-percent-error")
    expect(beside).to_contain_text("Must lie between")
    page.get_by_role("button", name="Review").last.click()
    expect(beside).to_contain_text("Must lie between")
    expect(percent).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_role("alert")).to_contain_text("One answer needs another look")
    visitor.check()
    percent.fill("12")
    page.get_by_role("button", name="Add an offer").click()
    expect(page.locator("#arms-2-name")).to_be_focused()
    page.locator("#arms-2-name").fill("Free mug")
    page.locator("#arms-2-kind").select_option("gift")
    page.locator("#arms-2-gift").fill("Mug")
    page.locator("#arms-2-cost").fill("2.50")
    expect(page.locator("#arms-2-percent")).to_be_hidden()
    page.get_by_role("button", name="Give it only if… offer 3").click()
    expect(page.locator("#arms-2-only_if-0-attribute")).to_be_focused()
    page.locator("#arms-2-only_if-0-attribute").fill("product_stock")
    page.locator("#arms-2-only_if-0-op").select_option(">=")
    page.locator("#arms-2-only_if-0-value").fill("5")
    page.get_by_role("button", name="Add a segment").click()
    page.locator("#segments-0-name").fill("Loyal")
    page.locator("#segments-0-rules-0-attribute").fill("recency_days")
    page.locator("#segments-0-rules-0-op").select_option("<=")
    page.locator("#segments-0-rules-0-value").fill("14")
    _declare_features(visitor)
    visitor.check()
    page.get_by_role("button", name="Review").last.click()
    expect(page.get_by_text("5 % always get “No discount”")).to_be_visible()
    expect(page.get_by_text("recency_days is at most 14")).to_be_visible()
    expect(page.get_by_text("“Free mug”: Gift: Mug, only if product_stock is at")).to_be_visible()
    expect(page.get_by_text("Visits: a number, typically 10 ± 5.")).to_be_visible()
    visitor.check()


def _declare_features(visitor: Visitor) -> None:
    """Declare two features, with a mistake, and choose a way of sharing out that needs them."""
    page = visitor.page
    way = page.locator("[name=policy][value=linear_thompson]")
    way.check()
    beside = page.locator("#policy-error")
    expect(beside).to_contain_text("declare at least one")
    page.get_by_role("button", name="Add a feature").click()
    expect(page.locator("#features-0-key")).to_be_focused()
    page.locator("#features-0-key").fill("visits")
    page.locator("#features-0-centre").fill("10")
    page.locator("#features-0-scale").fill("0")
    page.get_by_role("button", name="Add a feature").click()
    expect(page.locator("#features-1-key")).to_be_focused()
    page.locator("#features-1-key").fill("channel")
    page.locator("#features-1-kind").select_option("category")
    expect(page.locator("#features-1-centre")).to_be_hidden()
    page.locator("#features-1-values").fill("app\nweb")
    page.get_by_role("button", name="Review").last.click()
    expect(page.locator("#features-0-scale-error")).to_contain_text("greater than 0")
    visitor.check()
    page.locator("#features-0-scale").fill("5")
    expect(way).to_be_checked()
    expect(beside).to_be_empty()
    logistic = page.locator("[name=policy][value=logistic_thompson]")
    expect(logistic).to_be_hidden()
    page.locator("[name=objective][value=conversion]").check()
    expect(logistic).to_be_visible()
    page.locator("[name=objective][value=profit]").check()


def _look_at_live_data(visitor: Visitor) -> None:
    page = visitor.page
    visitor.go("/campaigns/spring")
    boxes = page.locator(".chart")
    heights = [box.bounding_box() for box in boxes.all()]
    expect(page.locator(".chart svg.marks").nth(2)).to_be_visible(timeout=20_000)
    drawn = [box.bounding_box() for box in boxes.all()]
    assert [one and one["height"] for one in heights] == [one and one["height"] for one in drawn]
    visitor.check()
    page.locator("summary").first.click()
    expect(page.get_by_role("columnheader", name="Until").first).to_be_visible()
    for path in ("plan", "decisions", "history", "edit", "pause"):
        visitor.go(f"/campaigns/spring/{path}")
        visitor.check()
    visitor.go("/campaigns/spring/decisions?reason=policy")
    page.get_by_role("link", name="Why").first.click()
    expect(page.get_by_text("to the last bit")).to_be_visible()
    expect(page.get_by_role("img", name="The offers side by side")).to_be_visible()
    expect(page.get_by_role("heading", name="What was known")).to_be_visible()
    expect(page.get_by_text("Not told: taken as if unknown")).to_be_visible()
    for path in ("keys", "people", "audit", "decisions", "account", "campaigns/new"):
        visitor.check()
        visitor.go(f"/{path}")
    visitor.check()


def test_the_live_page_follows_without_jumping(chromium: Browser, console: str, shop: Loop) -> None:
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    visitor = Visitor(context, console)
    page = visitor.page
    visitor.log_in()
    visitor.go("/campaigns/spring")
    expect(page.locator(".chart svg.marks").nth(2)).to_be_visible(timeout=20_000)
    before = page.locator(".figure .value").first.text_content()
    marks = page.locator(".chart svg.marks").first.element_handle()
    shop.shop(20)
    shop.carry()
    expect(page.locator(".figure .value").first).not_to_have_text(before or "", timeout=10_000)
    # The chart was given new rows, not drawn anew.
    assert marks is not None
    assert marks.evaluate("one => one.isConnected")
    assert visitor.complaints == []
    context.close()


def test_a_file_is_imported_seen_and_taken_back(
    chromium: Browser, console: str, engine: Engine, config: Config, tmp_path: Path
) -> None:
    # Without transitions, colours are final as soon as the scheme changes.
    context = chromium.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    context.set_default_timeout(15_000)
    visitor = Visitor(context, console)
    page = visitor.page
    visitor.log_in()
    page.get_by_role("link", name="Data", exact=True).click()
    expect(page.get_by_text("Nothing imported yet")).to_be_visible()
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("a,b\n1,2\n")
    _upload(page, wrong)
    expect(page.locator("#file-error")).to_contain_text("No column holds unit")
    visitor.check()
    _upload(page, _receipts(tmp_path))
    expect(page.get_by_text("Waiting to be read")).to_be_visible()
    visitor.check()
    command.waiting(engine, config, threading.Event())
    # The page follows by itself, and shows what was found once it is there.
    expect(page.get_by_role("heading", name="Rows by day")).to_be_visible(timeout=20_000)
    expect(page.locator(".chart svg.marks").nth(3)).to_be_visible(timeout=20_000)
    expect(page.get_by_text("1 of 91 rows were refused")).to_be_visible()
    for path in ("", "/data", "/data/1/undo", "/customers", "/products", "/recommendations"):
        visitor.go(path or "/data/1")
        for width, scheme in ((360, "dark"), (1280, "light")):
            page.set_viewport_size({"width": width, "height": 800})
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            visitor.check()
    _look_at_a_customer(visitor)
    visitor.go("/data/1")
    page.get_by_role("link", name="Take it back").press("Enter")
    page.get_by_role("button", name="Take it back").press("Enter")
    expect(page.get_by_text("This import was taken back")).to_be_visible()
    visitor.check()
    context.close()


def _receipts(folder: Path) -> Path:
    """Return a file of three months of receipts with a gap and a row that cannot be."""
    path = folder / "receipts.csv"
    days = [f"2026-{month:02d}-{day:02d}" for month in (3, 4, 5) for day in range(1, 31)]
    rows = [f"ana,p{place % 4},b{place},2,{3 + place % 5}.50,0.5,{day}" for place, day in
            enumerate(days)]  # fmt: skip
    header = "customer_id,product_id,basket_id,quantity,paid,discount,date"
    path.write_text("\n".join([header, *rows, "ana,p1,b,1,-1,0,2026-03-01"]) + "\n")
    return path


def _upload(page: Page, path: Path) -> None:
    page.get_by_label("File", exact=True).set_input_files(path)
    page.get_by_role("button", name="Import", exact=True).click()


def _look_at_a_customer(visitor: Visitor) -> None:
    page = visitor.page
    visitor.go("/customers")
    page.get_by_label("Customer’s identifier").fill("ana")
    page.get_by_label("Customer’s identifier").press("Enter")
    expect(page.get_by_role("heading", name="Last receipts")).to_be_visible()
    expect(page.locator(".chart svg.marks")).to_be_visible(timeout=20_000)
    visitor.check()


def test_everything_works_with_the_keyboard_and_without_scripts(
    chromium: Browser, console: str
) -> None:
    context = chromium.new_context(java_script_enabled=False)
    visitor = Visitor(context, console)
    page = visitor.page
    visitor.go("/login")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    visitor.log_in()
    for name in ("Skip to content", "Barter", "Campaigns"):
        page.keyboard.press("Tab")
        expect(page.locator(":focus")).to_contain_text(name)
    page.get_by_role("link", name="New campaign").focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Add an offer").click()
    page.locator("#arms-2-name").fill("Second")
    page.locator("#arms-2-kind").select_option("amount")
    page.locator("#arms-2-amount").fill("3")
    page.get_by_role("button", name="Add a feature").press("Enter")
    page.get_by_role("button", name="Add a feature").press("Enter")
    page.locator("#features-0-key").fill("member")
    page.locator("#features-0-kind").select_option("boolean")
    expect(page.locator("#features-0-scale")).to_be_hidden()
    page.get_by_role("button", name="Remove feature 2").press("Enter")
    expect(page.locator("#features-0-key")).to_have_value("member")
    page.locator("#name").fill("By keyboard")
    page.locator("#name").press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Read it once more")
    page.get_by_role("button", name="Launch now").press("Enter")
    expect(page.get_by_text("Launched.")).to_be_visible()
    page.get_by_role("link", name="Pause").press("Enter")
    page.get_by_role("button", name="Pause").press("Enter")
    expect(page.get_by_text("Paused: everyone gets").first).to_be_visible()
    visitor.go("/campaigns/spring")
    picture = page.locator("noscript img").first
    expect(picture).to_be_visible()
    assert page.request.get(console + str(picture.get_attribute("src"))).status == 200
    context.close()
