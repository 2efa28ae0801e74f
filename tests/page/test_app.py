"""The page's application: forms, drawing, limits, and what it never tells."""

import asyncio
import dataclasses
import io
import json
import re
import threading
import time
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from vljax.data.pictures.images import encode_png
from vljax.diffusion.progress import in_steps
from vljax.errors import UserError
from vljax.page import queue as queues
from vljax.page.queue import without_paths
from vljax.page.rooms import MOST_COUNT, fields, name_rooms
from vljax.page.uploads import MOST_BYTES, Uploads
from vljax.request import File, Picture, options
from vljax.systems import Result, load_system, names

pytest.importorskip("starlette")
from starlette.testclient import TestClient

from vljax.page.app import make_app

pytestmark = pytest.mark.usefixtures("quick_to_compile")
DRAW = {"num_images": ["2"], "batch_size": ["2"]}


@pytest.fixture(scope="module")
def client(room):
    with TestClient(make_app([room]), base_url="http://127.0.0.1") as client:
        yield client


def draw(client, values=None, room="sdg", **more):
    """A request's answer, with its id where there is one."""
    return client.post(f"/rooms/{room}/draw", json={**DRAW, **(values or {}), **more})


def finish(client, job):
    """The last state that the request's events tell."""
    lines = client.get(f"/jobs/{job}/events").text.splitlines()
    states = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    return states[-1]


def png(height=8, width=8):
    return encode_png(np.zeros((height, width, 3), np.uint8))


# Forms -------------------------------------------------------------------------------------------


class Form(HTMLParser):
    """What a page holds: fields by name, every tag, every attribute."""

    def __init__(self, html):
        super().__init__()
        self.fields, self.tags = {}, []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if name := attributes.get("data-name"):
            self.fields[name] = attributes["data-kind"]


@pytest.mark.parametrize("name", names())
def test_every_request_has_a_form(name, room):
    system = load_system(name)
    shown = dataclasses.replace(room, name=name, system=system)
    with TestClient(make_app([shown]), base_url="http://127.0.0.1") as client:
        html = client.get(f"/rooms/{name}").text
    form = Form(html)
    # All but the server's files and folders; each says what it does, and starts as it is given.
    wanted = [one for one in options(system.request) if one.form and one.type is not File]
    assert set(form.fields) == {one.name for one in wanted}
    ids = [given["id"] for _, given in form.tags if "id" in given]
    assert len(ids) == len(set(ids)), "two elements of one id"
    labelled = {given["for"] for tag, given in form.tags if tag == "label" and "for" in given}
    for one in wanted:
        kind = form.fields[one.name]
        assert (one.type == Picture) == (kind in ("picture", "mask"))
        assert (one.type is bool) == (kind == "switch")
        if kind in ("text", "choice", "slider", "number"):
            assert one.name in labelled
    assert shown.ask({one.option.name: one.default for one in shown.fields}, None) == (
        system.request()
    )
    for tag, given in form.tags:
        assert tag != "img" or "alt" in given
        assert not any(attribute.startswith("on") or attribute == "style" for attribute in given)


def test_what_is_wanted_comes_before_how_it_is_made():
    request = load_system("shape_guided").request
    said = [field.option.name for field in fields(request) if field.says]
    assert said[:4] == ["image", "mask", "source_prompt", "edit_prompt"]
    kinds = {field.option.name: field for field in fields(request)}
    assert kinds["mask"].kind == "mask"
    assert kinds["mask"].paints == "image"
    assert kinds["noise_mixing"].kind == "slider"
    assert not kinds["seed"].says
    assert kinds["reweight"].kind == "texts"


def test_sizes_and_words_to_draw_from_are_no_counts(room):
    shown = dataclasses.replace(room, system=load_system("text2image"))
    asked = shown.ask({"height": ["512"], "width": ["768"], "top_k": ["1000"]}, None)
    assert (asked.height, asked.width, asked.top_k) == (512, 768, 1000)
    with pytest.raises(UserError, match="--height=5000"):
        shown.ask({"height": ["5000"]}, None)


def test_what_takes_hours_is_the_command_lines_alone(room):
    shown = dataclasses.replace(room, system=load_system("voi"))
    with pytest.raises(UserError, match="--distill"):
        shown.ask({"distill": ["on"]}, None)


def test_rooms_of_one_system_have_different_names():
    assert name_rooms(["sdg", "voi", "sdg"]) == ["sdg", "voi", "sdg-2"]


# Drawing -----------------------------------------------------------------------------------------


def test_a_picture_comes_with_its_settings(client):
    job = draw(client, seed=["3"], prompt=["  "]).json()["id"]
    state = finish(client, job)
    assert state["state"] == "done"
    assert [one["name"] for one in state["results"]] == ["0000.png", "0001.png", "samples.png"]
    answer = client.get(f"/jobs/{job}/results/0?download")
    assert answer.headers["content-disposition"] == 'attachment; filename="sdg_0000.png"'
    image = Image.open(io.BytesIO(answer.content))
    assert image.size == (16, 16)
    assert image.text["seed"] == "3"
    assert json.loads(image.text["request"]) == {**DRAW, "seed": ["3"], "prompt": ["  "]}
    assert image.text["system"] == "sdg"


def test_what_is_changed_compiles_nothing(client):
    finish(client, draw(client).json()["id"])
    again = finish(client, draw(client, seed=["7"], scale_schedule=["constant"]).json()["id"])
    assert again["state"] == "done"
    assert again["compiled"] == 0
    other = finish(client, draw(client, steps=["3"]).json()["id"])
    assert other["compiled"] > 0


def test_a_permalink_draws_the_same_again(client):
    values = {"seed": ["5"], "prompt": [""]}
    first, second = (draw(client, values).json()["id"] for _ in range(2))
    finish(client, first), finish(client, second)
    pictures = [client.get(f"/jobs/{job}/results/0").content for job in (first, second)]
    assert pictures[0] == pictures[1]
    html = client.get("/rooms/sdg?seed=5&num_images=2&prompt=a+%22red%22+star&sampler=ddim").text
    form = Form(html)
    assert any(given.get("id") == "seed" and given["value"] == "5" for _, given in form.tags)
    assert "a &#34;red&#34; star</textarea>" in html
    assert any(given.get("value") == "ddim" and "selected" in given for _, given in form.tags)


def test_a_request_is_cancelled_while_it_is_drawn_and_while_it_waits(client):
    slow, waits = (draw(client, sampler=["ddpm"], steps=["1000"]).json()["id"] for _ in range(2))
    until = time.monotonic() + 60
    while client.get(f"/jobs/{slow}").json()["done"] < 1 and time.monotonic() < until:
        time.sleep(0.01)
    assert client.get(f"/jobs/{waits}").json()["place"] == 1
    client.post(f"/jobs/{waits}/cancel")
    assert finish(client, waits)["state"] == "cancelled"
    client.post(f"/jobs/{slow}/cancel")
    state = finish(client, slow)
    assert state["state"] == "cancelled"
    assert 0 < state["done"] < state["total"] == 1000
    assert finish(client, draw(client).json()["id"])["state"] == "done"  # and life goes on


def test_what_is_made_part_by_part_is_cancelled_between_two(client, room, monkeypatch):
    """As texts are written and pictures described, where no compiled program tells its steps."""
    begun, go_on = [], threading.Event()

    def parts(*_):
        for part in in_steps("writing", range(10)):
            begun.append(part)
            assert go_on.wait(60)
        yield Result("written.json", "{}")

    monkeypatch.setattr(type(room), "draw", parts)
    job = draw(client).json()["id"]
    until = time.monotonic() + 60
    while not begun and time.monotonic() < until:
        time.sleep(0.01)
    state = client.get(f"/jobs/{job}").json()
    assert (state["what"], state["done"], state["total"]) == ("writing", 0, 10)
    client.post(f"/jobs/{job}/cancel")
    go_on.set()
    state = finish(client, job)
    assert (state["state"], state["message"]) == ("cancelled", "")
    assert begun == [0]


def test_closing_does_not_wait_for_what_cannot_be_stopped(room, monkeypatch):
    monkeypatch.setattr(queues, "CLOSING", 0.1)
    begun, go_on = threading.Event(), threading.Event()

    def endless(*_):
        begun.set()
        go_on.wait(60)
        yield Result("written.json", "{}")

    monkeypatch.setattr(type(room), "draw", endless)
    queue = queues.Queue()
    queue.put(queues.Job(room, {}, None))
    assert begun.wait(60)
    queue.close()
    assert queue.is_drawing
    go_on.set()
    queue._worker.join(60)
    assert not queue.is_drawing


def test_what_nobody_waits_for_is_dropped(client, monkeypatch):
    monkeypatch.setattr(queues, "PATIENCE", -1.0)
    job = draw(client, steps=["999"]).json()["id"]
    time.sleep(0.2)
    state = client.get(f"/jobs/{job}").json()
    assert state["state"] == "cancelled"
    assert "nobody looked at it" in state["message"]


def test_the_queue_is_limited(client, monkeypatch):
    monkeypatch.setattr(queues, "MOST_WAITING", 0)
    answer = draw(client)
    assert answer.status_code == 400
    assert "waiting" in answer.json()["error"]


def test_what_waiting_requests_hold_is_limited(client, monkeypatch):
    key = client.post("/uploads", content=png()).json()["key"]
    monkeypatch.setattr(queues, "WAITING_BYTES", 8 * 8 * 3 - 1)
    answer = draw(client, {"image": [key]}, image_scale=["1"])
    assert answer.status_code == 400
    assert "give a smaller one" in answer.json()["error"]


# Mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"seed": ["many"]}, ["--seed=many", "whole number"]),
        ({"eta": ["high"]}, ["--eta=high", "a number"]),
        ({"eta": ["nan"]}, ["--eta=nan", "finite"]),
        ({"num_images": ["0"]}, ["--num_images=0", "1 or more"]),
        ({"num_images": ["1000000"]}, [f"at most {MOST_COUNT}"]),
        ({"sampler": ["magic"]}, ["--sampler=magic", "choose one of"]),
        ({"nothing": ["1"]}, ["--nothing"]),
        ({"prompt": ["x" * 5000]}, ["--prompt", "2,000 characters"]),
        ({"image": ["0" * 20]}, ["not kept any more"]),
        ({"image": ["/etc/passwd"]}, ["not kept any more"]),
    ],
)
def test_mistakes_are_told_in_the_words_of_the_command_line(client, values, words):
    answer = draw(client, values)
    assert answer.status_code == 400
    for word in words:
        assert word in answer.json()["error"]


def test_a_request_that_cannot_be_fails_with_its_reason(client):
    state = finish(client, draw(client, prompt=["a red star"]).json()["id"])
    assert state["state"] == "failed"
    assert "no CLIP to be guided by" in state["message"]
    assert "Traceback" not in json.dumps(state)


def test_an_unforeseen_error_tells_nothing_of_the_server(client, room, monkeypatch, capfd):
    def fails(*_):
        raise RuntimeError("at /secret/place")

    monkeypatch.setattr(type(room), "draw", fails)
    state = finish(client, draw(client).json()["id"])
    assert state["state"] == "failed"
    assert "secret" not in json.dumps(state)
    assert "/secret/place" in capfd.readouterr().err


@pytest.mark.parametrize("body", [b"", b"[]", b"[" * 100_000, b'{"seed": 3}', b'{"seed": [3]}'])
def test_a_form_that_is_none_is_refused(client, body):
    assert client.post("/rooms/sdg/draw", content=body).status_code == 400


def test_a_name_that_is_no_text_is_refused(client):
    answer = client.post("/rooms/sdg/draw", content=b'{"\\ud800": ["x"]}')
    assert answer.status_code == 400
    assert "no such field" in answer.json()["error"]


def test_who_goes_away_while_sending_is_no_failure_of_the_server(client):
    sent, messages = [], [{"type": "http.request", "body": b"{", "more_body": True}]

    async def receive():
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {
        **{"type": "http", "method": "POST", "path": "/rooms/sdg/draw", "query_string": b""},
        **{"headers": [(b"host", b"127.0.0.1")], "http_version": "1.1", "root_path": ""},
    }
    asyncio.run(client.app(scope, receive, send))
    assert sent[0]["status"] == 400


def test_paths_are_not_told():
    assert without_paths("/srv/runs/w/config.json is damaged") == "config.json is damaged"
    assert without_paths("--image: '~/photos/a.png'; and/or 3/4") == "--image: 'a.png'; and/or 3/4"


# Uploads -----------------------------------------------------------------------------------------


def header(width, height):
    """A PNG of a size, without its pixels."""
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    chunk = b"IHDR" + size + b"\x08\x02\x00\x00\x00"
    return (
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\r" + chunk + zlib.crc32(chunk).to_bytes(4, "big")
        + b"\x00\x00\x00\x00IDAT"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no picture"),
        (b"#!/bin/sh", "no picture"),
        (b"<svg onload=alert(1)>", "no picture"),
        (png()[:45], "damaged"),
        (header(10_000, 10_000), "million pixels"),
        (header(100_000, 100_000), "million pixels"),
        (bytes(MOST_BYTES + 1), "MiB"),
        (png(1, 2000), "longer than 20:1"),
        (png(41, 2), "longer than 20:1"),
    ],
)
def test_what_is_no_fitting_picture_is_refused(client, data, words):
    answer = client.post("/uploads", content=data)
    assert answer.status_code == 400
    assert words in answer.json()["error"]


def test_a_picture_is_kept_by_what_it_holds(client):
    first, second = (client.post("/uploads", content=png(4, 6)).json() for _ in range(2))
    assert first == second
    assert (first["height"], first["width"]) == (4, 6)
    back = client.get(f"/uploads/{first['key']}")
    assert Image.open(io.BytesIO(back.content)).size == (6, 4)
    assert "immutable" in back.headers["cache-control"]
    html = client.get(f"/rooms/sdg?image={first['key']}").text
    assert f'data-key="{first["key"]}"' in html


def test_the_oldest_pictures_are_forgotten(monkeypatch):
    monkeypatch.setattr("vljax.page.uploads.KEPT_BYTES", 400)
    uploads = Uploads()
    keys = [uploads.add(png(8, width))[0] for width in (8, 7, 6)]
    assert uploads[keys[-1]].shape == (8, 6, 3)
    with pytest.raises(UserError, match="give it again"):
        uploads[keys[0]]


# Safety ------------------------------------------------------------------------------------------

SCRIPT = '"><script>alert(1)</script><img src=x onerror=alert(1)>'


def test_nothing_that_is_given_becomes_a_tag(client):
    html = client.get("/rooms/sdg", params={"prompt": SCRIPT, "seed": SCRIPT, "image": SCRIPT}).text
    tags = Form(html).tags
    assert [given.get("src") for tag, given in tags if tag == "script"] == ["/static/page.js"]
    assert not any(given.get("src") == "x" for _, given in tags)
    answer = draw(client, sampler=[SCRIPT])
    assert answer.headers["content-type"] == "application/json"


def test_browsers_load_nothing_from_elsewhere(client):
    answer = client.get("/rooms/sdg")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for name in ("page.js", "easel.js", "page.css", "icon.svg"):
        text = client.get(f"/static/{name}").text
        assert len(text) > 100
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|innerHTML|eval\(", text)


@pytest.mark.parametrize(
    "path",
    ["/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/passwd", "/rooms/..%2f..%2fetc",
     "/jobs/../x", "/uploads/..%2f..%2fetc%2fpasswd", "/jobs/x/results/0", "/rooms/none", "/x"],
)  # fmt: skip
def test_no_path_of_the_server_is_reachable(client, path):
    answer = client.get(path)
    assert answer.status_code in (400, 404)
    assert "root:" not in answer.text
    assert "Traceback" not in answer.text


def test_other_pages_and_names_are_refused(client):
    for host in ("evil.example", "127.0.0.1.evil.example", "[x", ""):
        answer = client.get("/rooms/sdg", headers={"host": host})
        assert answer.status_code == 403
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    for host in ("127.0.0.2:80", "localhost", "[::1]:8080"):  # as `--host` takes them
        assert client.get("/rooms/sdg", headers={"host": host}).status_code == 200
    for origin in ("http://evil.example", "null", "http://[x"):
        answer = client.post("/rooms/sdg/draw", json=DRAW, headers={"origin": origin})
        assert answer.status_code == 403
    answer = client.post("/rooms/none/draw", json={}, headers={"origin": "http://127.0.0.1"})
    assert answer.status_code == 404


def test_a_page_for_others_asks_for_its_token(room):
    with TestClient(make_app([room], token="s3cret"), base_url="http://example.org") as client:
        for path in ("/", "/rooms/sdg?token=wrong", "/static/page.js", "/rooms/sdg?token=ü"):
            assert client.get(path).status_code == 403
        assert draw(client).status_code == 403
        answer = client.get("/rooms/sdg?seed=3&token=s3cret", follow_redirects=False)
        assert answer.headers["location"] == "/rooms/sdg?seed=3"
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        # Links from elsewhere open the page; another page's posts are refused all the same.
        assert "samesite=lax" in cookie
        origin = {"origin": "http://evil.example"}
        assert client.post("/rooms/sdg/draw", json=DRAW, headers=origin).status_code == 403
        # A page on another port of this machine has its own.
        assert cookie.startswith("vljax_token_80=")
        there = {"host": "example.org:8081"}
        assert client.get("/rooms/sdg", headers=there).status_code == 403
        answer = client.get("/?token=s3cret", headers=there, follow_redirects=False)
        assert answer.headers["set-cookie"].startswith("vljax_token_8081=")
        assert client.get("/rooms/sdg").status_code == 200  # by the cookie
        answer = client.get("//evil.example?token=s3cret", follow_redirects=False)
        assert not answer.headers.get("location", "/").startswith("//")
