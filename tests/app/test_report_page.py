"""The report as its reader has it: opened in a browser without a network, touched and keyed."""

import math
import shutil
from pathlib import Path

import pytest
from tiny_app import short_config

from tatscli.app.report.build import report
from tatscli.app.sample import short

api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")

STEPS = 200


@pytest.fixture(scope="module")
def folder(vqgan_run, gpt_run, shared) -> Path:
    """Two runs of stage one with curves of many points, one of stage two, and samples."""
    place = shared / "reported"
    for number, name in enumerate(("first", "a-second-run-with-quite-a-long-name-of-its-own")):
        run = shutil.copytree(vqgan_run, place / name)
        rows = (
            f"{step},{part}/l1,{(number + 1) * (math.exp(-step / 50) + noise * (step % 2)):.6g}\n"
            for step in range(STEPS)
            for part, noise in (("train", 0.1), ("val", 0))
        )
        (run / "metrics.csv").write_text("step,metric,value\n" + "".join(rows))
    shutil.copytree(gpt_run, place / "gpt")
    short(short_config(gpt_run, place / "samples", sample={"name": "short"}))
    return place


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])


@pytest.fixture(scope="module")
def page_file(folder) -> Path:
    return report([folder]).page


@pytest.fixture
def show(browser, page_file):
    """Opens the page; at the end nothing was asked of a network and nothing was complained of."""
    opened = []

    def call(width=1280, file=page_file, **options):
        context = browser.new_context(
            viewport={"width": width, "height": 800}, offline=True, **options
        )
        page = context.new_page()
        said, asked = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        opened.append((context, said, asked))
        return page

    yield call
    for context, said, asked in opened:
        context.close()
        assert not said
        assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]


def chart(page, number=0):
    svg = page.locator(".chart > svg").nth(number)
    svg.scroll_into_view_if_needed()
    return svg, svg.bounding_box()


def axis(svg, name="x"):
    return svg.locator(f"text.{name}").all_text_contents()


def drawn(svg):
    return [path.get_attribute("d") for path in svg.locator("path.line").all()]


def readout(page):
    figure = page.locator(".chart").first
    return figure.locator(".readout").inner_text(), figure.locator(".at").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_screen(show, width, scheme):
    page = show(width, color_scheme=scheme)
    for closed in page.locator("details > summary").all():
        closed.click()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    beyond = page.evaluate(
        """() => [...document.querySelectorAll("body *")].filter((node) =>
             node.getBoundingClientRect().right > innerWidth + 1).map((node) => node.outerHTML)"""
    )
    assert beyond == []
    # Light is light and dark is dark: text and ground are far apart in either.
    ground, ink = (
        sum(map(int, page.evaluate(f"getComputedStyle(document.body).{name}")[4:-1].split(",")))
        for name in ("backgroundColor", "color")
    )
    assert (ground > 600 and ink < 150) if scheme == "light" else (ground < 150 and ink > 600)


def test_text_can_be_read_on_its_ground(show):
    for scheme in ("light", "dark"):
        page = show(color_scheme=scheme)
        weakest = page.evaluate(
            """() => {
              const light = (colour) => {
                const [r, g, b] = colour.match(/[\\d.]+/g).map((v) => v / 255)
                  .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
              };
              const ground = (node) => {
                const colour = getComputedStyle(node).backgroundColor;
                return colour === "rgba(0, 0, 0, 0)" ? ground(node.parentElement) : colour;
              };
              const worst = [9, ""];
              for (const node of document.querySelectorAll("p, dt, dd, th, td, h1, h2, h3, h4, a,"
                  + " .pill, figcaption, summary, label, .readout span")) {
                if (!node.textContent.trim()) continue;
                const pair = [getComputedStyle(node).color, ground(node)].map(light).sort();
                const [low, high] = pair[0] < pair[1] ? pair : pair.reverse();
                const contrast = (high + 0.05) / (low + 0.05);
                if (contrast < worst[0]) worst.splice(0, 2, contrast, node.outerHTML);
              }
              return worst;
            }"""
        )
        assert weakest[0] >= 4.5, weakest


def test_a_video_plays_while_it_is_seen(show):
    page = show()
    video = page.locator("video:visible").last
    assert video.evaluate("v => v.readyState") == 0
    video.scroll_into_view_if_needed()
    page.wait_for_function("v => v.currentTime > 0.05", arg=video.element_handle())
    assert video.evaluate("v => [v.muted, v.loop, v.controls]") == [True, True, False]
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_function("v => v.paused", arg=video.element_handle())


def test_videos_are_paused_one_by_one_and_all_together(show):
    page = show()
    video = page.locator("video:visible").first
    video.scroll_into_view_if_needed()
    page.wait_for_function("v => !v.paused", arg=video.element_handle())
    button = page.locator(".play:visible").first
    assert button.get_attribute("aria-label").startswith("Pause: ")
    button.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("v => v.paused", arg=video.element_handle())
    assert button.get_attribute("aria-label").startswith("Play: ")
    page.keyboard.press("Enter")
    page.wait_for_function("v => !v.paused", arg=video.element_handle())
    page.get_by_role("button", name="Pause all videos").click()
    page.wait_for_function("() => [...document.querySelectorAll('video')].every(v => v.paused)")


def test_who_wants_no_motion_gets_none_until_asking(show):
    page = show(reduced_motion="reduce")
    video = page.locator("video:visible").first
    video.scroll_into_view_if_needed()
    page.wait_for_function("v => v.readyState >= 2", arg=video.element_handle())
    page.wait_for_timeout(150)
    assert video.evaluate("v => [v.paused, v.currentTime]") == [True, 0]
    page.locator(".play:visible").first.click()
    page.wait_for_function("v => v.currentTime > 0.05", arg=video.element_handle())


def test_a_chart_reads_out_what_is_pointed_at(show):
    page = show()
    svg, box = chart(page)
    ends = readout(page)
    assert ends[1] == "last"
    svg.hover(position={"x": box["width"] / 2, "y": 80})
    middle = readout(page)
    svg.hover(position={"x": box["width"] / 4, "y": 80})
    assert len({ends, middle, readout(page)}) == 3
    page.mouse.move(0, 0)
    assert readout(page) == ends


def test_a_run_that_ended_earlier_has_no_value_there(show, folder, tmp_path):
    short_run = shutil.copytree(folder / "first", tmp_path / "short-run")
    rows = (folder / "first" / "metrics.csv").read_text().splitlines(keepends=True)
    (short_run / "metrics.csv").write_text("".join(rows[: len(rows) // 4]))
    page = show(file=report([folder / "first", short_run], tmp_path / "page.html").page)
    svg, box = chart(page)
    assert readout(page)[0].count("–") == 0
    svg.hover(position={"x": box["width"] * 0.75, "y": 80})
    assert readout(page)[0].count("–") == 2


def test_dragging_zooms_all_charts_of_a_stage_and_reset_shows_all(show):
    page = show()
    svg, box = chart(page)
    whole = axis(svg), axis(svg, "y"), drawn(svg)
    reset = page.get_by_role("button", name="Reset zoom").first
    assert reset.is_disabled()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + 90, steps=3)
    assert svg.locator(".brush").count() == 1
    page.mouse.up()
    assert svg.locator(".brush").count() == 0
    near = axis(svg)
    assert near != whole[0]
    assert all(80 < float(step) < 150 for step in near)
    reset.click()
    assert (axis(svg), axis(svg, "y"), drawn(svg)) == whole


def test_the_wheel_zooms_with_ctrl_and_scrolls_without(show):
    page = show()
    svg, box = chart(page)
    svg.evaluate("svg => scrollBy(0, svg.getBoundingClientRect().top - 100)")
    whole, before = axis(svg), page.evaluate("scrollY")
    svg.hover(position={"x": box["width"] / 2, "y": 80})
    page.mouse.wheel(0, -50)
    page.wait_for_function("before => scrollY < before", arg=before)
    assert axis(svg) == whole
    svg.hover(position={"x": box["width"] / 2, "y": 80})
    page.keyboard.down("Control")
    page.mouse.wheel(0, -200)
    page.keyboard.up("Control")
    page.wait_for_function(
        "([svg, before]) => svg.querySelector('text.x').textContent !== before",
        arg=[svg.element_handle(), whole[0]],
    )


def test_two_fingers_zoom(show, browser):
    page = show(360, has_touch=True)
    svg, box = chart(page)
    whole = axis(svg)
    touch = page.context.new_cdp_session(page)
    y = box["y"] + 80

    def fingers(kind, *xs):
        points = [{"x": x, "y": y, "id": number} for number, x in enumerate(xs)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    fingers("touchStart", 150)
    fingers("touchStart", 150, 200)
    for spread in (20, 40, 60):
        fingers("touchMove", 150 - spread, 200 + spread)
    fingers("touchEnd")
    near = axis(svg)
    assert near != whole
    assert len(near) >= 2
    assert float(near[-1]) - float(near[0]) < STEPS / 2


def test_smoothing_and_the_log_scale_change_the_curves(show):
    page = show()
    svg, _ = chart(page)
    raw = drawn(svg)
    smoothing = page.get_by_label("Smoothing").first
    smoothing.focus()
    page.keyboard.press("End")
    smooth = drawn(svg)
    assert all(one != other for one, other in zip(raw, smooth, strict=True))
    assert svg.locator("path.raw").count() == len(raw)
    page.keyboard.press("Home")
    assert drawn(svg) == raw
    marks = axis(svg, "y")
    page.get_by_label("Log scale").first.check()
    assert axis(svg, "y") != marks
    assert drawn(svg) != raw


def test_a_run_can_be_taken_out_of_the_curves(show):
    page = show()
    svg, _ = chart(page)
    assert len(drawn(svg)) == 4
    button = page.locator(".legend button").first
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert len(drawn(svg)) == 2


def test_charts_answer_to_the_keyboard(show):
    page = show()
    svg, _ = chart(page)
    svg.focus()
    whole = axis(svg)
    page.keyboard.press("ArrowLeft")
    assert readout(page)[1] == f"step {STEPS}"
    page.keyboard.press("ArrowLeft")
    assert readout(page)[1] == f"step {STEPS - 1}"
    assert page.locator(".readout[aria-live=polite]").count() == 1
    page.keyboard.press("+")
    assert axis(svg) != whole
    near = drawn(svg)
    page.keyboard.press("Shift+ArrowLeft")
    assert drawn(svg) != near
    page.keyboard.press("Escape")
    assert axis(svg) == whole
    assert readout(page)[1] == "last"


def test_the_slider_chooses_the_step_of_the_pictures(show):
    page = show()
    steps = page.locator(".steps").first
    assert steps.locator("[data-step]:visible").get_attribute("data-step") == "3"
    steps.locator("[type=range]").focus()
    page.keyboard.press("ArrowLeft")
    assert steps.locator("[data-step]:visible").get_attribute("data-step") == "2"
    assert steps.locator("output").inner_text() == "2"
    assert steps.locator("[type=range]").get_attribute("aria-valuetext") == "step 2"


def test_headings_go_down_one_level_at_a_time(show):
    page = show()
    levels = page.evaluate(
        "() => [...document.querySelectorAll('h1,h2,h3,h4')].map(h => Number(h.tagName[1]))"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))


def test_a_name_that_is_a_program_does_nothing(show, folder, tmp_path):
    name = "<img src=x onerror=console.log('ran')><script>console.log('ran')<|script>"
    run = shutil.copytree(folder / "first", tmp_path / name)
    page = show(file=report([run], tmp_path / "page.html").page)
    assert page.locator("h1").inner_text() == name


def test_only_the_script_of_the_page_runs(browser, page_file, tmp_path):
    # What every name is escaped against, let through: the policy of the page still stops it.
    text = page_file.read_text(encoding="utf-8")
    broken = tmp_path / "broken.html"
    inserted = "<script>window.ran = 1</script><img src=x onerror='window.ran = 1'>"
    broken.write_text(text.replace("<main", f"{inserted}<main", 1), encoding="utf-8")
    page = browser.new_page()
    page.goto(broken.as_uri())
    page.wait_for_selector(".chart path.line")
    assert page.evaluate("window.ran") is None
    page.close()
