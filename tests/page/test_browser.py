"""The page in a real browser: the distribution's Chromium, without a screen."""

import io
import re
import shutil
import socket
import threading
import time

import numpy as np
import pytest
from PIL import Image

from vljax.data.pictures.images import encode_png
from vljax.page.rooms import Room
from vljax.systems import Result, load_system

pytest.importorskip("starlette")
uvicorn = pytest.importorskip("uvicorn")
playwright = pytest.importorskip("playwright.sync_api")
app = pytest.importorskip("vljax.page.app")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("quick_to_compile"),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here"),
]


@pytest.fixture(scope="module")
def painted():
    """The requests that reached the room with a mask."""
    return []


@pytest.fixture(scope="module")
def address(room, painted):
    """A server with a room that draws, and one that shows the mask that it was given."""

    def generate(model, config, request):
        painted.append(request)
        yield Result("edited.png", request.mask, request.edit_prompt or "", {"seed": "0"})

    shaped = load_system("shape_guided")
    form = Room(
        "shape_guided",
        "tiny",
        type(shaped)(**{**vars(shaped), "generate": generate}),
        room.config,
        None,
    )
    listening = socket.create_server(("127.0.0.1", 0))
    made = app.make_app([room, form])
    server = uvicorn.Server(uvicorn.Config(made, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(20)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = started.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["wide", "narrow"])
def page(browser, address, request):
    """A page that must not complain, nor ask anybody else."""
    width, height = request.param
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(60_000)
    wrong = []
    page.on("console", lambda told: wrong.append(told.text) if told.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request",
        lambda asked: (
            None if asked.url.startswith((address, "blob:", "data:")) else wrong.append(asked.url)
        ),
    )
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
    assert not wrong


def see(page, name, words):
    """Wait until an element says something."""
    told = page.locator(f"#{name}")
    playwright.expect(told).to_have_text(re.compile(words), timeout=60_000)


def test_draw_watch_and_come_back_by_the_address(page, address):
    page.goto(f"{address}/rooms/sdg")
    page.click("summary:has-text('Settings')")
    page.fill("#num_images", "2")
    page.fill("#batch_size", "2")
    page.fill("#seed", "5")
    page.keyboard.press("Control+Enter")
    see(page, "told", "^Done")
    assert page.locator("#strip button").count() == 3
    assert page.get_attribute("#after", "alt")
    assert "seed=5" in page.url
    page.reload()  # the same again, with its pictures
    page.wait_for_selector("#stage:visible")
    assert page.input_value("#seed") == "5"
    page.click("#form button[type=submit]")
    see(page, "told", "^Done")
    page.wait_for_selector("#history button")
    assert page.inner_text("#compiled").startswith("0 ")
    page.click("#compare")
    assert page.is_visible("#before")


def test_cancel_after_some_steps(page, address):
    page.goto(f"{address}/rooms/sdg?num_images=2&batch_size=2&sampler=ddpm&steps=1000")
    page.click("#form button[type=submit]")
    see(page, "tally", r"[1-9]\d* of 1000 steps")
    see(page, "told", "^Drawing$")  # which is read aloud, and not at every step
    page.click("#cancel")
    see(page, "told", "^Cancelled")


def give_a_photo(page, name):
    photo = encode_png(np.full((40, 80, 3), 200, np.uint8))
    page.set_input_files(
        "[data-name=image] input[type=file]",
        {"name": name, "mimeType": "image/png", "buffer": photo},
    )


def test_paint_a_mask_and_edit(page, address, painted):
    page.goto(f"{address}/rooms/shape_guided")
    give_a_photo(page, '"><img src=x onerror=alert(1)>.png')
    page.wait_for_selector(".easel:visible")
    playwright.expect(page.locator(".easel canvas")).to_have_attribute("width", "80")
    canvas = page.locator(".easel canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"], steps=8)
    page.mouse.up()
    page.fill("#edit_prompt", "<b>a red star</b>")
    before = len(painted)
    page.click("#form button[type=submit]")
    see(page, "told", "^Done")
    assert len(painted) == before + 1
    mask = painted[-1].mask[..., 0] > 127
    assert mask.shape == (40, 80)
    assert mask[20, 20:40].all()
    assert not mask[:, 50:].any()
    assert not mask[:10].any()
    assert page.inner_text("#caption") == "<b>a red star</b>"
    with page.expect_download() as download:
        page.click("#download")
    image = Image.open(io.BytesIO(download.value.path().read_bytes()))
    assert "a red star" in image.text["request"]
    # With keys alone: a dab in the middle.
    page.click(".easel .clear")
    canvas.focus()
    page.keyboard.press("Space")
    page.keyboard.press("Control+Enter")
    until = time.monotonic() + 60
    while len(painted) < before + 2 and time.monotonic() < until:
        page.wait_for_timeout(50)
    assert (painted[-1].mask[20, 40] > 127).all()


def test_a_mistake_is_told(page, address):
    page.goto(f"{address}/rooms/sdg?prompt=a+red+star")
    page.click("#form button[type=submit]")
    page.wait_for_selector("#error:visible")
    assert "no CLIP to be guided by" in page.inner_text("#error")
    playwright.expect(page.locator("#error")).to_be_in_viewport()


def test_what_came_before_can_be_chosen_while_something_is_drawn(page, address):
    page.goto(f"{address}/rooms/sdg?num_images=2&batch_size=2&seed=1")
    page.click("#form button[type=submit]")
    see(page, "told", "^Done")
    page.evaluate("for (const one of document.querySelectorAll('#steps')) one.value = '1000'")
    page.evaluate("document.querySelector('#sampler').value = 'ddpm'")
    page.click("#form button[type=submit]")
    see(page, "tally", r"[1-9]\d* of 1000 steps")
    first = page.locator("#history button").last
    first.focus()
    step = page.inner_text("#tally")
    playwright.expect(page.locator("#tally")).not_to_have_text(step)
    playwright.expect(first).to_be_focused()
    page.keyboard.press("Enter")
    see(page, "told", "^Done")
    assert page.input_value("#steps") == ""
    # One question that fails is no end of what is drawn.
    page.evaluate("""[window.asked, window.kept] = [0, window.fetch];
        window.fetch = async () => { asked += 1; throw Error(); }; 0""")
    until = time.monotonic() + 60
    while page.evaluate("asked") < 2 and time.monotonic() < until:
        page.wait_for_timeout(50)
    assert page.get_attribute("#history button >> nth=0", "aria-label").endswith(", drawing")
    page.evaluate("window.fetch = kept; 0")
    page.click("#history button >> nth=0")
    see(page, "told", "^D(rawing|one)")
    page.evaluate("document.querySelector('#cancel').click()")


def test_what_other_rooms_draw_is_asked_about(page, address):
    page.goto(f"{address}/rooms/sdg?num_images=2&batch_size=2&sampler=ddpm&steps=1000")
    page.click("#form button[type=submit]")
    see(page, "tally", r"[1-9]\d* of 1000 steps")
    with page.expect_response(re.compile(r"/jobs/[\w-]+$"), timeout=30_000):
        page.goto(f"{address}/rooms/shape_guided")
    page.goto(f"{address}/rooms/sdg")
    page.evaluate("""async () => {
        const [job] = JSON.parse(sessionStorage.getItem("vljax sdg"));
        await fetch(`/jobs/${job.id}/cancel`, {method: "POST"});
    }""")


def test_a_stroke_during_the_masks_upload_counts_the_next_time(page, address, painted):
    page.goto(f"{address}/rooms/shape_guided")
    give_a_photo(page, "a.png")
    canvas = page.locator(".easel canvas")
    playwright.expect(canvas).to_have_attribute("width", "80")
    canvas.focus()
    page.keyboard.press("Space")
    page.fill("#edit_prompt", "a red star")
    held = []
    page.route("**/uploads", lambda route: held.append(route))
    before = len(painted)
    page.keyboard.press("Control+Enter")
    while not held:
        page.wait_for_timeout(20)
    canvas.focus()
    for _ in range(8):
        page.keyboard.press("Shift+ArrowRight")
        page.keyboard.press("Space")
    held[0].continue_()
    see(page, "told", "^Done")
    page.unroute("**/uploads")
    page.keyboard.press("Control+Enter")
    until = time.monotonic() + 60
    while len(painted) < before + 2 and time.monotonic() < until:
        page.wait_for_timeout(50)
    first, second = (one.mask[..., 0] > 127 for one in painted[before:])
    assert second.sum() > first.sum() > 0
