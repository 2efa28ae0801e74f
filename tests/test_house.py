"""The floor plan holds: imports go down, nothing goes in circles, files stay short."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "vljax").rglob("*.py"))

# A room may import the rooms on lower floors, and those beside it that its line names.
FLOORS = (
    {"train", "generate", "evaluate", "examples", "export", "page"},
    {"doors"},
    {"systems"},
    {"training"},
    {"metrics", "pretrained"},
    {"data", "models", "diffusion"},
    {"ops"},
    {"config", "request", "files", "errors", "marks", "process"},
)
BESIDE = {
    "metrics": {"pretrained"},
    "diffusion": {"models"},
    "request": {"errors"},
    "config": {"errors", "files"},
    "files": {"errors"},
}
# Within a system: what each of its files may import of the others.
ROOMS = {
    "recipe": set(),
    "model": {"recipe"},
    "method": {"batch", "model", "recipe"},
    "batch": {"model", "prompt_to_prompt", "recipe"},
    "baselines": {"batch", "method", "model", "prompt_to_prompt", "recipe"},
    "methods": {"baselines", "batch", "method", "model", "recipe"},
    "certificate": {"model", "recipe"},
    "training": {"certificate", "method", "model", "recipe"},
    "paper": set(),
    "detection": {"method"},
    "use": {"baselines", "batch", "method", "methods", "model", "recipe"},
    "evaluation": {
        *("baselines", "batch", "detection", "maps", "method", "methods", "model", "paper"),
        *("probing", "recipe", "use"),
    },
    "probing": {"certificate", "method", "model", "recipe"},
    "maps": {"method", "model", "probing", "recipe"},
}


def imports(file):
    """The modules of vljax that a file imports, as tuples of names without `vljax`."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {tuple(name.split(".")[1:]) for name in names if name.startswith("vljax.")}
    return found


def place(file):
    return file.relative_to(ROOT / "vljax").with_suffix("").parts


def floor(room):
    return next((i for i, rooms in enumerate(FLOORS) if room in rooms), None)


def test_no_import_runs_up():
    rooms = {place(file)[0] for file in FILES} - {"__init__"}
    assert not [room for room in rooms if floor(room) is None], "rooms without a floor: see FLOORS"
    wrong = []
    for file in FILES:
        room = place(file)[0]
        if room == "__init__":
            continue  # the package's own names load what they name when they are asked for
        for module in imports(file):
            other = module[0]
            allowed = {room, "__version__", *BESIDE.get(room, ())}
            if other not in allowed and not (floor(other) or 0) > floor(room):
                wrong.append(f"{'.'.join(place(file))} imports {'.'.join(module)}")
    assert not wrong


SYSTEMS = sorted(
    p.name for p in (ROOT / "vljax" / "systems").iterdir() if p.is_dir() and p.name[0] != "_"
)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_knows_no_other_and_keeps_its_inner_order(system):
    for file in sorted((ROOT / "vljax" / "systems" / system).glob("*.py")):
        for module in imports(file):
            if module[0] != "systems" or len(module) < 2 or module[1] not in SYSTEMS:
                continue
            assert module[1] == system, f"{system} imports the system {module[1]}"
            inner = module[2] if len(module) > 2 else "__init__"
            if file.stem in ROOMS and inner in ROOMS:
                assert inner in ROOMS[file.stem], f"{system}: {file.stem} imports {inner}"


def test_modules_do_not_import_in_circles():
    modules = {place(file): file for file in FILES if file.stem != "__init__"}
    arrows = {
        name: {
            other
            for module in imports(file)
            for other in (module, module[:-1])
            if other in modules and other != name
        }
        for name, file in modules.items()
    }
    done, path = set(), []

    def walk(name):
        if name in path:
            raise AssertionError(" → ".join(".".join(n) for n in [*path[path.index(name) :], name]))
        if name not in done:
            path.append(name)
            for other in sorted(arrows[name]):
                walk(other)
            path.pop()
            done.add(name)

    for name in sorted(arrows):
        walk(name)


LONG = 500


@pytest.mark.parametrize("room", ["systems", "models", "data"])
def test_long_files_say_why_in_their_first_lines(room):
    for file in FILES:
        lines = file.read_text("utf-8").splitlines()
        if place(file)[0] == room and len(lines) > LONG:
            assert re.search(r"[Ll]ong", "\n".join(lines[:25])), f"{file} has {len(lines)} lines"


def test_no_file_is_a_drawer_of_strangers():
    assert not [file for file in FILES if file.stem in ("utils", "util", "common", "base", "misc")]
