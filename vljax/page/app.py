"""What the page answers to a browser.

| address | what it is |
|---|---|
| `/rooms/NAME?FIELD=VALUE…` | a room, its form filled with what the address says |
| `POST /rooms/NAME/draw` | JSON `{FIELD: [VALUE, …]}`; answers a request's id |
| `/jobs/ID`, `/jobs/ID/events` | its state, once, or as server-sent events until it is over |
| `POST /jobs/ID/cancel` | ends it |
| `/jobs/ID/results/N[?download]` | a picture with its settings embedded, or a text |
| `POST /uploads`, `/uploads/KEY` | a picture is given as a body, and shown |

Mistakes are answered as `{"error": …}` in the words of the command line.
"""

import asyncio
import contextlib
import hmac
import ipaddress
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any
from urllib.parse import urlencode, urlsplit

import jinja2
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vljax import __version__, files
from vljax.errors import UserError
from vljax.page.queue import Job, Queue, without_paths
from vljax.page.rooms import MOST_CHARACTERS, MOST_TEXTS, Room
from vljax.page.uploads import MOST_BYTES, MOST_PIXELS, Uploads, too_large

MOST_FORM_BYTES = 2**20
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine can have a page's address under this name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def make_app(rooms: Sequence[Room], token: str = "") -> Starlette:
    """The page of these rooms.

    Args:
        rooms: What can be asked, in their order.
        token: What every browser must know, or nothing where only this machine is listened to.
    """
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("vljax.page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    doors = {room.name: room for room in rooms}
    queue, uploads = Queue(), Uploads()

    def find_room(request: Request) -> Room:
        room = doors.get(request.path_params["room"])
        if room is None:
            raise HTTPException(404, "there is no such room")
        return room

    def find_job(request: Request) -> Job:
        job = queue.get(request.path_params["job"])
        if job is None:
            raise HTTPException(404, "that request is not kept any more: draw it again")
        return job

    async def home(_: Request) -> Response:
        return RedirectResponse(f"/rooms/{rooms[0].name}")

    async def show(request: Request) -> Response:
        room = find_room(request)
        # What an address holds is as little trusted as a form: too much of it is not shown.
        asked = {
            field.option.name: [
                text[:MOST_CHARACTERS]
                for text in request.query_params.getlist(field.option.name)[:MOST_TEXTS]
            ]
            for field in room.fields
        }
        given = bool(request.query_params)
        html = templates.get_template("room.html").render(
            room=room, rooms=rooms, values=asked, given=given, version=__version__,
            most_bytes=MOST_BYTES, most_pixels=MOST_PIXELS,
        )  # fmt: skip
        return HTMLResponse(html)

    async def draw(request: Request) -> Response:
        room = find_room(request)
        values = _form(await _body(request, MOST_FORM_BYTES))
        job = Job(room, values, await run_sync(room.ask, values, uploads.__getitem__))
        queue.put(job)
        return JSONResponse({"id": job.id})

    async def state(request: Request) -> Response:
        job = find_job(request)
        job.seen()
        return JSONResponse(job.told())

    async def events(request: Request) -> Response:
        job = find_job(request)
        return StreamingResponse(_events(job), media_type="text/event-stream")

    async def cancel(request: Request) -> Response:
        job = find_job(request)
        queue.cancel(job)
        return JSONResponse({"state": job.state})

    async def result(request: Request) -> Response:
        job, number = find_job(request), request.path_params["number"]
        if number >= len(job.files):
            raise HTTPException(404, "there is no such result")
        name, kind, data = job.files[number]
        headers = {"Cache-Control": "private, max-age=3600"}
        if "download" in request.query_params:
            headers["Content-Disposition"] = f'attachment; filename="{job.room.name}_{name}"'
        return Response(data, media_type=kind, headers=headers)

    async def upload(request: Request) -> Response:
        key, pixels = await run_sync(uploads.add, await _body(request, MOST_BYTES))
        return JSONResponse({"key": key, "height": pixels.shape[0], "width": pixels.shape[1]})

    async def uploaded(request: Request) -> Response:
        data = await run_sync(uploads.png, request.path_params["key"])
        headers = {"Cache-Control": "private, max-age=3600, immutable"}  # a key is of one content
        return Response(data, media_type="image/png", headers=headers)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await run_sync(queue.close)

    app = Starlette(
        routes=[
            Route("/", home),
            Route("/rooms/{room}", show),
            Route("/rooms/{room}/draw", draw, methods=["POST"]),
            Route("/jobs/{job}", state),
            Route("/jobs/{job}/events", events),
            Route("/jobs/{job}/cancel", cancel, methods=["POST"]),
            Route("/jobs/{job}/results/{number:int}", result),
            Route("/uploads", upload, methods=["POST"]),
            Route("/uploads/{key}", uploaded),
            Mount("/static", StaticFiles(packages=[("vljax.page", "static")])),
        ],
        exception_handlers={
            UserError: lambda _, error: _wrong(400, without_paths(str(error))),
            HTTPException: lambda _, error: _wrong(error.status_code, error.detail),
            Exception: lambda *_: _wrong(500, "this went wrong; the server's console says why"),
        },
        lifespan=lifespan,
    )
    app.state.queue = queue
    app.add_middleware(Guard, token=token)
    return app


def _wrong(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status)


def _form(data: bytes) -> dict[str, list[str]]:
    """The values that a browser sends.

    Raises:
        UserError: it sends something else.
    """
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or not all(
        isinstance(texts, list) and all(isinstance(text, str) for text in texts)
        for texts in values.values()
    ):
        raise UserError('the form cannot be read: send JSON {"field": ["text", …]}')
    return {
        files.printable(name): [files.printable(text) for text in texts]
        for name, texts in values.items()
    }


async def _body(request: Request, most: int) -> bytes:
    """What a browser sends, no more of it than may be.

    Raises:
        UserError: it is more.
        HTTPException: the browser went away meanwhile; nobody reads the answer.
    """
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise too_large() if most == MOST_BYTES else UserError("the form is too long")
            parts.append(part)
    except ClientDisconnect as error:
        raise HTTPException(400, "this was not sent to its end") from error
    return b"".join(parts)


async def _events(job: Job) -> AsyncIterator[str]:
    """The states of a request, from the present one on; a sign of life every few seconds."""
    loop, change = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is gone
            loop.call_soon_threadsafe(change.set)

    with job.watched_by(wake):
        while True:
            change.clear()
            is_over = job.is_over
            yield f"data: {json.dumps(job.told())}\n\n"
            if is_over:
                return
            try:
                await asyncio.wait_for(change.wait(), 5)
            except TimeoutError:
                yield ": still here\n\n"


class Guard:
    """Lets in who may come, and tells browsers to load nothing from elsewhere.

    Other sites' pages can send a browser here, by a name that they let point to this machine or by
    a form; both are refused. Whoever listens beyond this machine asks for the token.
    """

    def __init__(self, app: ASGIApp, token: str):
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                named = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(
                        (name.lower().encode(), value.encode())
                        for name, value in HEADERS.items()
                        if name.lower().encode() not in named
                    ),
                ]
            await send(message)

        answer = self._refusal(Request(scope)) or self._app
        await answer(scope, receive, send_guarded)

    def _refusal(self, request: Request) -> Response | None:
        """What is answered instead, or None."""
        host = request.headers.get("host", "")
        origin = request.headers.get("origin", f"//{host}")
        try:
            here, sender = urlsplit(f"//{host}"), urlsplit(origin).netloc
            # Browsers keep cookies by name alone: pages on other ports have theirs.
            name, cookie = here.hostname or "", f"vljax_token_{here.port or 80}"
        except ValueError:
            return PlainTextResponse("no page has such an address\n", 403)
        if not self._token and not is_loopback(name):
            return PlainTextResponse("this page is of this machine alone\n", 403)
        if request.method not in ("GET", "HEAD") and sender != host:
            return PlainTextResponse("this comes from another page\n", 403)
        if not self._token:
            return None
        if self._knows(request.cookies.get(cookie, "")):
            return None
        if not self._knows(request.query_params.get("token", "")):
            return PlainTextResponse(
                "open the address with its token, as the console shows it\n", 403
            )
        # The token leaves the address, which is there to be shared.
        rest = [
            (name, text) for name, text in request.query_params.multi_items() if name != "token"
        ]
        path = "/" + request.url.path.lstrip("/")
        answer = RedirectResponse(f"{path}?{urlencode(rest)}" if rest else path)
        # Lax: a link in a mail opens the page. What another page posts is refused by its origin.
        answer.set_cookie(cookie, self._token, httponly=True, samesite="lax")
        return answer

    def _knows(self, told: Any) -> bool:
        return hmac.compare_digest(told.encode(), self._token.encode())
