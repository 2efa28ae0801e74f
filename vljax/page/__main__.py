"""A page for trained systems: `python -m vljax.page --workdir runs/scenes`.

Models are runs' (`--workdir`, which may be repeated), or published weights under a recipe
(`--config configs/sdg_lsun.py:/data/bedroom --config.pretrained.diffusion=lsun_bedroom.pt`).
Only this machine can open the page, unless `--host` says otherwise; then its address has a token.
"""

import argparse
import contextlib
import os
import secrets
import socket
import sys
from collections.abc import Sequence

from vljax import files
from vljax.doors import door, example, open_model, parse_config, read_workdir
from vljax.errors import UserError
from vljax.page.rooms import Room, name_rooms
from vljax.systems import load_system


def main(argv: Sequence[str]) -> int:
    """Open the page and serve it until it is interrupted; returns the exit code.

    Raises:
        UserError: a flag, a config, a workdir, weights or the address are wrong.
    """
    try:
        import uvicorn

        from vljax.page.app import is_loopback, make_app
    except ImportError as error:
        raise UserError(
            f"the page needs {error.name}: install it with pip install 'vljax[page]'"
        ) from error
    config, rest = parse_config(argv)
    parser = argparse.ArgumentParser(
        "vljax.page",
        usage="python -m vljax.page (--workdir DIR … | --example NAME … | --config FILE.py)",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--workdir",
        type=files.expanded,
        action="extend",
        nargs="+",
        default=[],
        help="runs to show",
    )
    parser.add_argument(
        "--example", action="extend", nargs="+", default=[], help="examples to show"
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--port", type=int, default=8080, help="0 for a free one")
    args = parser.parse_args(rest)
    args.workdir += [example(name) for name in args.example]
    if config is None and not args.workdir:
        raise UserError(
            "give --workdir DIR of a training run, --example NAME, or --config with weights"
        )
    if config is not None and len(args.workdir) > 1:
        raise UserError("--config is of one run: give one --workdir beside it, or none")
    listening = _listen(args.host, args.port)

    found = [(read_workdir(one) if config is None else config, one) for one in args.workdir]
    found = found or [(config, None)]
    rooms = []
    for name, (recipe, workdir) in zip(
        name_rooms([recipe.system for recipe, _ in found]), found, strict=True
    ):
        system = load_system(recipe.system)
        model = open_model(argv, system, recipe, workdir)
        title = workdir.resolve().name if workdir else "published weights"
        rooms.append(Room(name, title, system, recipe, model))

    token = "" if is_loopback(args.host) else secrets.token_urlsafe(16)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"open http://{shown}:{port}/{f'?token={token}' if token else ''}", flush=True)
    app = make_app(rooms, token)
    settings = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    # Ctrl-C is how a page ends; the server has closed by the time it hands it on.
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(settings).run(sockets=[listening])
    if app.state.queue.is_drawing:
        # Ending as usual, the interpreter would abort under the program that is still running.
        sys.stdout.flush()
        os._exit(0)
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """A socket at the address.

    Raises:
        UserError: it cannot be had.
    """
    try:
        family = socket.getaddrinfo(host, port)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--host={host} --port={port}: {error}; give another, or --port=0 for a free one"
        ) from error


run = door(main)

if __name__ == "__main__":
    run()
