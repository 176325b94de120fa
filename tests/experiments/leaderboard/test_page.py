"""The page in a real browser: Debian's chromium, driven by playwright."""

import shutil

import pytest
from PIL import Image

from experiments.leaderboard.board import main
from experiments.records.files import write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("there is no chromium to open the page in", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = pytest.mark.slow
RETENTION = "identity retention (sface) ↓"


@pytest.fixture(scope="module")
def page_file(benchmark_of, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    records = benchmark_of({"noise": 0.0, "aspl": 0.3, "simac": 0.1}, eps=(4, 16))
    records += benchmark_of({"simac": 0.05}, eps=(4,), customizer="lora")
    for record in records:
        write(record, folder / "records")
        if (record.attack, record.eps, record.identity) == ("aspl", 4, "2"):
            (folder / "strips").mkdir()
            Image.new("RGB", (120, 40), "teal").save(folder / "strips" / f"{record.name}.jpg")
    board = folder / "leaderboard"
    main(["--records", str(folder / "records"), "--output-dir", str(board)])
    return board / "index.html"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        # no sandbox: root may have none, and the page is our own
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, page_file):
    def opened(**options):
        page = browser.new_page(**options)
        page.requests, page.errors = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("console", lambda message: page.errors.append(message.text))
        page.goto(page_file.as_uri())
        return page

    return opened


def shown(page, column="method"):
    """The texts of a column in the rows that are visible, from the top."""
    headings = page.locator("thead th").all_inner_texts()
    k = headings.index(column)
    return [row.locator("> *").nth(k).inner_text() for row in page.locator("tr.row:visible").all()]


def test_sorting_by_any_column_both_ways(open_page):
    page = open_page()

    def heading(name):
        return page.get_by_role("columnheader", name=name)

    def means():
        return [float(text.split()[0]) for text in shown(page, RETENTION)]

    retention = heading(RETENTION)
    assert retention.get_attribute("aria-sort") == "none"
    for direction, reverse in (("ascending", False), ("descending", True)):
        retention.get_by_role("button").click()
        assert retention.get_attribute("aria-sort") == direction
        assert means() == sorted(means(), reverse=reverse)
    heading("eps").get_by_role("button").click()
    assert retention.get_attribute("aria-sort") == "none"
    assert shown(page, "eps") == ["4"] * 6 + ["16"] * 4  # numbers, not text
    for _ in range(2):  # rows without a rank stay last, whichever the direction
        heading("rank").get_by_role("button").click()
        assert all(text.startswith("- (") for text in shown(page, "rank")[-3:])
    for button in page.locator("thead button").all():
        button.click()
    assert not page.errors


def test_filters_narrow_the_rows_together(open_page):
    page = open_page()
    status = page.locator("output")
    assert status.inner_text() == "10 of 10 rows"
    page.get_by_label("Customizer").select_option("lora")
    assert shown(page) == ["simac", "none"]
    page.get_by_label("eps").select_option("16")
    assert (shown(page), status.inner_text()) == ([], "0 of 10 rows")
    page.get_by_label("Customizer").select_option("dreambooth")
    assert set(shown(page, "eps")) == {"16"}
    page.get_by_role("button", name="Show all").click()
    sync_api.expect(status).to_have_text("10 of 10 rows")
    page.get_by_label("Data set").select_option("portraits")
    assert len(shown(page)) == 10
    title = "base model tiny, surrogate tiny, as assumed, scored with sface"
    page.get_by_label("Setting").select_option(title)
    assert len(shown(page)) == 10


def test_a_row_opens_with_the_keyboard(open_page):
    page = open_page()
    button = page.locator("button.open").first
    assert button.inner_text() == "aspl"
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-expanded") == "true"
    detail = page.locator("tr.detail:visible")
    assert detail.count() == 1
    assert detail.get_attribute("id") == button.get_attribute("aria-controls")
    picture = detail.get_by_role("img", name="Pictures of identity 2")
    sync_api.expect(picture).to_have_js_property("naturalWidth", 120)
    identities = ",".join(map(str, range(12)))
    command = f"python run.py attack=aspl 'dataset.identities=[{identities}]'"
    assert detail.locator("pre").inner_text() == command
    page.keyboard.press("Space")
    assert button.get_attribute("aria-expanded") == "false"
    assert detail.count() == 0
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the next row's button comes next, and has no strip
    assert page.locator("tr.detail:visible").get_by_text("No pictures.").count() == 1
    focused = page.locator("button.open:focus-visible")
    assert focused.evaluate("element => getComputedStyle(element).outlineStyle") != "none"


def test_every_control_is_reached_by_tab(open_page):
    page = open_page()
    name = "document.activeElement.name || document.activeElement.innerText.split('\\n')[0]"
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(name))
    assert {"dataset", "customizer", "setting", "eps", "Show all"} <= reached
    assert {"method", "rank", RETENTION, f"{RETENTION[:-2]} against the placebo", "aspl"} <= reached
    assert {"How to read this", "What the columns are"} <= reached


@pytest.mark.parametrize(
    ("summary", "text"),
    [("What the columns are", "Face detection failure rate"), ("How to read this", "BCa")],
)
def test_explanations_open_with_the_keyboard(open_page, summary, text):
    page = open_page()
    meaning = page.get_by_text(text)
    assert (meaning.count(), meaning.is_visible()) == (1, False)
    page.get_by_text(summary).focus()
    page.keyboard.press("Enter")
    assert meaning.is_visible()
    assert page.get_by_text("† marks rows on so few identities").is_visible()


def test_nothing_is_fetched_but_pictures_of_the_repository(open_page, page_file):
    page = open_page()
    page.locator("button.open").first.click()
    figure = page.locator(".figures img")
    figure.scroll_into_view_if_needed()
    sync_api.expect(figure).to_have_js_property("complete", True)
    assert figure.evaluate("image => image.naturalWidth") > 100
    page.wait_for_load_state("networkidle")
    results = page_file.parents[1].as_uri()
    assert {url.rpartition(".")[2] for url in page.requests} == {"html", "jpg", "svg"}
    assert all(url.startswith(f"{results}/") for url in page.requests)
    assert not page.errors  # the console would tell what the page's policy blocks


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(open_page, scheme):
    page = open_page(color_scheme=scheme)

    def brightness(element, colour):
        style = page.evaluate(f"getComputedStyle({element}).{colour}")
        return sum(map(int, style[4:-1].split(",")))

    ground = brightness("document.body", "backgroundColor")
    ink = brightness("document.querySelector('tr.row td')", "color")
    assert (ground > 700 > 100 > ink) if scheme == "light" else (ground < 100 < 600 < ink)


def test_a_narrow_window_scrolls_the_table_alone(open_page):
    page = open_page(viewport={"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert page.locator(".scroll").evaluate("e => e.scrollWidth > e.clientWidth")
