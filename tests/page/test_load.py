"""The page under load, a dialogue with branches, and a scan of all that it answers."""

import http.client
import json
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.page.conftest import ROOT, random_room
from vljax.page import queue as queues

uvicorn = pytest.importorskip("uvicorn")
app = pytest.importorskip("vljax.page.app")

pytestmark = pytest.mark.usefixtures("quick_to_compile")
ONE = {"num_images": ["1"], "batch_size": ["1"]}
MANY = 50  # people


@pytest.fixture(scope="module")
def server(room):
    """The port of a server with a dialogue's room beside the room of pictures."""
    small = (
        *("model_channels=8", "norm_groups=4", "num_head_channels=8"),
        *("channel_mult=(1.0,)", "attention_resolutions=()"),
    )
    clip = (
        *("embed_dim=16", "vision_width=16", "vision_layers=1", "patch_size=8"),
        *("text_width=16", "text_layers=1", "head_channels=8"),
    )
    dialogue = random_room(
        *("--config", str(ROOT / "configs" / "cdd_icm_iclevr.py"), "--config.compilation_cache="),
        *(f"--config.model.diffusion.{field}" for field in small),
        *(f"--config.model.clip.{field}" for field in clip),
        *("--config.model.features=16", "--config.data.image_size=16"),
        *("--config.samples.steps=trailing3", "--config.data.scenes.size=60"),
    )
    listening = socket.create_server(("127.0.0.1", 0))
    made = app.make_app([room, dialogue])
    server = uvicorn.Server(uvicorn.Config(made, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join(20)


@pytest.fixture
def ask(server):
    """What the server answers: status, headers and body."""

    def asked(method, path, body=None):
        line = http.client.HTTPConnection("127.0.0.1", server, timeout=60)
        try:
            line.request(method, path, json.dumps(body) if isinstance(body, dict) else body)
            answer = line.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            line.close()

    return asked


@pytest.fixture
def draw(ask):
    """The last state of a request of a room."""

    def drawn(room, values):
        status, _, body = ask("POST", f"/rooms/{room}/draw", values)
        assert status == 200, body
        job = json.loads(body)["id"]
        events = ask("GET", f"/jobs/{job}/events")[2].decode()
        return json.loads(events.strip().rpartition("data: ")[2])

    return drawn


def test_fifty_at_once_are_drawn_one_after_the_other(ask, draw):
    """Each gets its own picture, the one that it gets alone."""
    alone = {}
    for seed in ("0", str(MANY - 1)):
        state = draw("sdg", {**ONE, "seed": [seed]})
        alone[seed] = ask("GET", f"/jobs/{state['id']}/results/0")[2]
    with ThreadPoolExecutor(MANY) as people:
        asked = [{**ONE, "seed": [str(seed)]} for seed in range(MANY)]
        states = list(people.map(lambda values: draw("sdg", values), asked))
        pictures = list(
            people.map(lambda state: ask("GET", f"/jobs/{state['id']}/results/0")[2], states)
        )
    assert [state["state"] for state in states] == ["done"] * MANY
    assert sum(state["compiled"] for state in states) == 0
    assert len(set(pictures)) == MANY
    assert all(pictures[int(seed)] == picture for seed, picture in alone.items())


def test_who_hangs_up_is_not_drawn_for(server, ask, draw, monkeypatch):
    values = {**ONE, "sampler": ["ddpm"], "steps": ["1000"]}
    job = json.loads(ask("POST", "/rooms/sdg/draw", values)[2])["id"]
    with socket.create_connection(("127.0.0.1", server)) as line:
        line.sendall(f"GET /jobs/{job}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        heard = b""
        while b'"drawing"' not in heard:
            heard += line.recv(4096)
    monkeypatch.setattr(queues, "PATIENCE", 0.0)
    after = draw("sdg", ONE)  # waits for the end of the other
    assert after["state"] == "done"
    left = json.loads(ask("GET", f"/jobs/{job}")[2])
    assert left["state"] == "cancelled"
    assert left["done"] < left["total"] == 1000


def test_a_dialogue_goes_on_takes_back_and_branches(ask, draw):
    first, second, other = "add a red circle", "add a blue star", "add a large green cube"
    whole = draw("cdd_icm", {"say": [first, second], "seed": ["3"]})
    assert whole["state"] == "done", whole["message"]
    assert [one["name"] for one in whole["results"]] == ["turn_1.png", "turn_2.png", "dialogue.png"]
    assert whole["results"][1]["settings"]["say"] == second

    def given(state, number):
        """The key of a result that is given back as the picture to begin with."""
        picture = ask("GET", f"/jobs/{state['id']}/results/{number}")[2]
        return json.loads(ask("POST", "/uploads", picture)[2])["key"]

    def pixels(state, number):
        return ask("GET", f"/uploads/{given(state, number)}")[2]

    # The second turn is taken back: said again it is the same, said otherwise a branch.
    back = {"image": [given(whole, 0)], "turn": ["2"], "seed": ["3"]}
    again = draw("cdd_icm", {**back, "say": [second]})
    branch = draw("cdd_icm", {**back, "say": [other]})
    assert [state["state"] for state in (again, branch)] == ["done", "done"]
    assert [state["compiled"] for state in (again, branch)] == [0, 0]
    assert pixels(again, 0) == pixels(whole, 1)
    assert pixels(branch, 0) != pixels(whole, 1)


SCRIPT = '"><script>alert(1)</script><img src=x onerror=alert(1)>'


def test_no_answer_holds_a_path_a_traceback_or_a_script(ask, draw):
    """A scan of everything that a browser can be answered, mistakes among it."""
    failed = draw("sdg", {**ONE, "prompt": [SCRIPT]})
    mute = draw("cdd_icm", {"say": [SCRIPT], "seed": ["1"]})
    upload = json.loads(ask("POST", "/uploads", ask("GET", f"/jobs/{mute['id']}/results/0")[2])[2])
    answers = [
        ask("GET", "/rooms/sdg"),
        ask("GET", "/rooms/cdd_icm?say=%22%3E%3Cscript%3Ealert(1)%3C%2Fscript%3E"),
        *(ask("GET", f"/jobs/{state['id']}{end}") for state in (failed, mute)
          for end in ("", "/events", "/results/0", "/results/0?download", "/results/9")),
        ask("GET", f"/uploads/{upload['key']}"),
        ask("GET", "/uploads/none"),
        ask("GET", "/nowhere/%3Cscript%3Ealert(1)%3C%2Fscript%3E"),
        ask("POST", "/uploads", b"<script>alert(1)</script>"),
        ask("POST", "/rooms/sdg/draw", {"sampler": [SCRIPT]}),
        ask("POST", "/rooms/sdg/draw", {SCRIPT: ["1"]}),
        ask("POST", "/rooms/sdg/draw", {"image": ["/etc/passwd"]}),
        ask("POST", "/rooms/sdg/draw", b"{"),
        ask("PUT", "/rooms/sdg", b""),
    ]  # fmt: skip
    place = re.compile(rf"{re.escape(str(ROOT))}|site-packages|/usr/|/home/|\.py\b")
    for status, headers, body in answers:
        kind = {name.lower(): value for name, value in headers.items()}["content-type"]
        assert status < 500
        if kind == "image/png":
            continue
        text = body.decode()
        assert "Traceback" not in text
        assert not place.search(text), place.search(text)
        # JSON, events and plain text are never read as a page; in a page no tag is ours to give.
        if kind.startswith("text/html"):
            assert "<script>" not in text
            assert "onerror=alert(1)>" not in text
        else:
            assert kind.startswith(("application/json", "text/event-stream", "text/plain"))
            assert {k.lower(): v for k, v in headers.items()}["x-content-type-options"] == "nosniff"
    assert failed["state"] == "failed"
    assert mute["state"] == "done"
