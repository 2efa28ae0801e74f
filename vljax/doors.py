"""What the doors share: flags, JAX's start, loading a model, how errors end."""

import argparse
import contextlib
import difflib
import errno
import functools
import inspect
import logging
import os
import re
import runpy
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from vljax import files
from vljax.config import check, completed, flatten, from_workdir
from vljax.errors import RunError, UserError
from vljax.process import keep_house
from vljax.request import add_flags, from_flags
from vljax.systems import System, load_system
from vljax.training import weights


def parse_config(argv: Sequence[str]) -> tuple[ConfigDict | None, list[str]]:
    """Take `--config` and `--config.*` out of a command line.

    Args:
        argv: The arguments, without the program's name.

    Returns:
        The config (None without `--config`), locked against unknown fields, and the other
        arguments.

    Raises:
        UserError: the config file or an override is wrong, or `--` ends the flags.
    """
    argv = _joined(argv)
    if "--" in argv:
        raise UserError("--: nothing after it would be read; leave it out")
    file = _recipe_file(argv)
    recipe = None if file is None else _recipe(file)
    if recipe is not None:
        _check_values_given(argv, recipe)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=["", *argv])
    try:
        rest = values(["", *argv], known_only=True)[1:]
        config = values.config
    except (flags.Error, AttributeError, KeyError) as error:
        raise UserError(_explain(argv, error)) from error
    if recipe is None:
        if any(argument.startswith("--config.") for argument in rest):
            raise UserError("--config.FIELD=VALUE needs --config FILE.py to change: give both")
        return None, rest
    check(config, recipe)
    return config, rest


@contextlib.contextmanager
def explaining(argv: Sequence[str]) -> Iterator[None]:
    """What a changed config makes impossible is its author's mistake, not a traceback.

    `check` refuses values that no run can have. Values that only together, or only in one network,
    cannot be show when the model is built abstractly, as an error of whatever lies deepest. Where
    the command line changes fields, the fields are named and that error is the reason; the recipe
    as it stands is ours to keep right, and keeps its traceback.

    Raises:
        UserError: something went wrong, and the command line changes the recipe.
    """
    try:
        yield
    except (UserError, RunError):
        raise
    except (Exception, RecursionError) as error:
        changed = [argument for argument in _joined(argv) if argument.startswith("--config")]
        if not any("." in argument.split("=")[0] or ":" in argument for argument in changed):
            raise
        reason = str(error).strip().partition("\n")[0] or "no reason given"
        fields = " ".join(changed if len(changed) == 1 else changed[1:])
        raise UserError(
            f"{fields}: no model can be built of this ({type(error).__name__}: {reason}); give "
            "values nearer to the recipe's"
        ) from error


#: The trained examples that come with the package, a folder each.
EXAMPLES = Path(__file__).parent / "examples"


def example(name: str) -> Path:
    """The folder of an example, which is as a run's.

    Raises:
        UserError: there is none of this name.
    """
    known = sorted(file.parent.name for file in EXAMPLES.glob("*/config.json"))
    if name not in known:
        raise UserError(f"--example={name}: choose one of {', '.join(known)}")
    return EXAMPLES / name


def read_workdir(path: Path) -> ConfigDict:
    """The config of a run; fields that its version did not have yet are those of today.

    Raises:
        UserError: there is none, it is damaged, or its system is none.
    """
    config = from_workdir(path)
    added = completed(config, load_system(config.system).get_config())
    if added:
        told = f"{path / 'config.json'} is of an older version: {', '.join(added)} taken as usual"
        print(told, file=sys.stderr)
    return config


class Run(NamedTuple):
    """A trained model and what is asked of it.

    Attributes:
        system: Whose it is.
        config: Its config.
        model: With its weights, a run's or published ones.
        asked: The system's `request` or `judging`, or the door's own, from the command line.
        out: Where results go; means nothing to a door that has a place of its own for them.
        workdir: The run, or None for published weights.
    """

    system: System
    config: ConfigDict
    model: Any
    asked: Any
    out: Path
    workdir: Path | None


def open_run(
    argv: Sequence[str],
    prog: str,
    about: str | None,
    folder: str | None,
    asks: Literal["request", "judging"] | type,
) -> Run:
    """Read the command line of a door that uses a model, and load the model.

    Args:
        argv: The arguments, without the program's name.
        prog: The door's module.
        about: The door's description.
        folder: Where in the workdir results go, when `--out` is not given; None for a door that
            has a place of its own for them, and no such flag.
        asks: Which of the system's dataclasses the flags make, or one of the door's own.

    Raises:
        UserError: a flag, the config, the workdir or the weights are wrong, or nothing can be
            written where results go.
        SystemExit: unknown flags (exit code 2), or help was asked for.
    """
    config, rest = parse_config(argv)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--workdir", type=files.expanded, help="the run whose model to use")
    common.add_argument("--example", help="instead: a trained example of this name", metavar="NAME")
    if folder:
        common.add_argument(
            "--out", type=files.expanded, help=f"where results go (default: WORKDIR/{folder})"
        )
    parser = argparse.ArgumentParser(
        prog,
        usage=f"python -m {prog} (--workdir DIR | --example NAME | --config FILE.py[:DATA]) …",
        description=about,
        parents=[common],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = common.parse_known_args(rest)[0]
    if known.workdir is not None and known.example is not None:
        raise UserError("--workdir and --example: give one of them")
    workdir = example(known.example) if known.example else known.workdir
    if config is None:
        if workdir is None:
            parser.parse_args([argument for argument in rest if argument in ("-h", "--help")])
            raise UserError(
                "give --workdir DIR of a training run, --example NAME, or --config with weights"
            )
        config = read_workdir(workdir)
    system = load_system(config.system)
    wanted = asks if isinstance(asks, type) else getattr(system, asks)
    add_flags(parser, wanted)
    args = parser.parse_args(rest)
    asked = from_flags(wanted, args)
    out = Path()
    if folder:
        if args.out is None and args.workdir is None:
            raise UserError("--out is missing: give a folder for the results")
        out = args.out or workdir / folder
        _check_writable(out)

    model = open_model(argv, system, config, workdir)
    return Run(system, config, model, asked, out, workdir)


def _check_writable(out: Path) -> None:
    """Make the folder of results, and write there: better now than after all the work.

    Raises:
        UserError: it cannot be made, or not be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out) as file:
            file.write(b"results")
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"--out={out}: no results can be written there ({reason}); give another folder"
        ) from error


def open_model(
    argv: Sequence[str], system: System, config: ConfigDict, workdir: Path | None
) -> Any:
    """Start JAX, and load a model with a run's weights, or published ones.

    Args:
        argv: The arguments, which a mistake names.
        system: Whose model it is.
        config: Its config.
        workdir: The run, or None for published weights alone.

    Raises:
        UserError: no model can be built of the config, or weights are nowhere or damaged.
    """
    start_jax(config, distributed=False)
    with explaining(argv):
        skeleton = jax.eval_shape(lambda: system.make_model(config))
        return weights.load_model(skeleton, config, workdir)


def _joined(argv: Sequence[str]) -> list[str]:
    """`--config.field value` as `--config.field=value`."""
    joined: list[str] = []
    for argument in argv:
        previous = joined[-1] if joined else ""
        if re.fullmatch(r"--config(\.[\w.]+)?", previous) and not argument.startswith("--"):
            joined[-1] = f"{previous}={argument}"
        else:
            joined.append(argument)
    return joined


def _recipe_file(argv: Sequence[str]) -> str | None:
    """The value of `--config`, a file and what follows its colon; None where there is none.

    Raises:
        UserError: there is no such file.
    """
    found = [a.partition("=")[2] for a in argv if a == "--config" or a.startswith("--config=")]
    if not found:
        return None
    file = found[-1].split(":", 1)[0]
    if not file or not os.path.isfile(file):
        folder = Path(file).parent
        listed = sorted(str(p) for p in folder.glob("*.py")) if os.path.isdir(folder) else []
        raise UserError(
            f"--config={file[:200]}: no such file; recipes here: {', '.join(listed) or 'none'}"
        )
    return found[-1]


def _recipe(file: str) -> ConfigDict:
    """The config of `--config` as the file has it.

    Raises:
        UserError: the recipe raises it, or cannot be run.
    """
    path, *data_dir = file.split(":", 1)
    try:
        return runpy.run_path(path)["get_config"](*data_dir)
    except UserError:
        raise
    except Exception as error:  # whatever a recipe does
        reason = " ".join(str(error).split())
        raise UserError(
            f"--config={file}: {type(error).__name__}: {reason}; mend the recipe"
        ) from error


def _check_values_given(argv: Sequence[str], recipe: ConfigDict) -> None:
    """Refuse a field without a value, for which absl would take the flag that follows.

    Raises:
        UserError: there is one, which is no switch.
    """
    known = flatten(recipe.to_dict())
    for argument in argv:
        usual = known.get(argument.removeprefix("--config."), True)
        if argument.startswith("--config.") and not isinstance(usual, bool):
            raise UserError(
                f"{argument}: its value is missing; give {argument}=VALUE, such as {usual}"
            )


def _explain(argv: Sequence[str], error: Exception) -> str:
    """One line on a wrong override: the field, the value, the remedy."""
    if isinstance(error, flags.IllegalFlagValueError):
        field, value, reason = re.match(  # type: ignore[union-attr]
            r"flag (\S+?)=(.*?): (.*)", str(error).replace("\n", " ")
        ).groups()
        return f"{field}={value}: {reason}; give a value of the field's type"
    file = _recipe_file(argv)
    assert file is not None
    known = flatten(_recipe(file).to_dict())
    for argument in argv:
        if match := re.match(r"--config\.([\w.]+)", argument):
            field = match.group(1)
            if field not in known:
                return f"--config.{field}: {file} has no such field; {_nearest(field, known)}"
    return f"--config: {' '.join(str(error).split())}"


def _nearest(field: str, known: Iterable[str]) -> str:
    """What was meant by a field that there is not, or else all that its section has."""
    names = field.split(".")
    starts = [
        "".join(f"{name}." for name in names[:depth]) for depth in reversed(range(len(names)))
    ]
    start = next(start for start in starts if any(name.startswith(start) for name in known))
    below = [name.removeprefix(start) for name in known if name.startswith(start)]
    if close := difflib.get_close_matches(field.removeprefix(start), below, n=1, cutoff=0.5):
        return f"did you mean {start}{close[0]}?"
    beside = sorted({start + name.partition(".")[0] for name in below})
    return f"choose among {', '.join(beside)}"


def start_jax(config: ConfigDict, distributed: bool) -> None:
    """Join the other processes where there are any, and keep compiled programs.

    A process joins a run of several when `VLJAX_COORDINATOR` (host:port), `VLJAX_NUM_PROCESSES`
    and `VLJAX_PROCESS_ID` are set, or with `distributed` on clusters that JAX knows (TPU pods,
    SLURM). Processes that compute on CPUs compile anew.

    Raises:
        UserError: what is set does not describe a run of several processes.
    """
    _quieten_storage()
    if config.compilation_cache:
        folder = files.expanded(config.compilation_cache)
        jax.config.update("jax_compilation_cache_dir", str(folder))
    if coordinator := os.environ.get("VLJAX_COORDINATOR"):
        told = [os.environ.get(f"VLJAX_{name}", "") for name in ("NUM_PROCESSES", "PROCESS_ID")]
        if not all(map(str.isdecimal, told)) or not int(told[1]) < int(told[0]):
            raise UserError(
                f"VLJAX_NUM_PROCESSES={told[0]} VLJAX_PROCESS_ID={told[1]}: beside "
                f"VLJAX_COORDINATOR={coordinator} give how many processes there are, and which of "
                "them this is, from 0"
            )
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal():
            raise UserError(
                f"VLJAX_COORDINATOR={coordinator}: give the first process's host:port, such as "
                "10.0.0.1:1234"
            )
        jax.distributed.initialize(coordinator, int(told[0]), int(told[1]))
    elif distributed:
        try:
            jax.distributed.initialize()
        except ValueError as error:  # it found no cluster
            raise UserError(
                f"--distributed: JAX knows no cluster here ({error}); leave it out, or set "
                "VLJAX_COORDINATOR, VLJAX_NUM_PROCESSES and VLJAX_PROCESS_ID"
            ) from error
    if jax.process_count() > 1 and jax.default_backend() == "cpu":
        # Only the first process finds its programs among the kept ones. On CPUs a kept program may
        # sum over processes in another order than the same one just compiled, and both wait.
        jax.config.update("jax_compilation_cache_dir", None)


def _quieten_storage() -> None:
    """A failed write or read of a checkpoint reaches the user once, through `Checkpoints`.

    Without this, every array's traceback would be printed as well: by Orbax (absl's logger) and
    asyncio, by the coroutines left behind, and by TensorStore's threads, whose errors have no
    object (those of Python's own threads go to `threading.excepthook`).
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)

    def unraisable(args: "sys.UnraisableHookArgs") -> None:
        if args.object is not None and not inspect.iscoroutine(args.object):
            sys.__unraisablehook__(args)

    sys.unraisablehook = unraisable


def door(main: Callable[[Sequence[str]], int]) -> Callable[[], None]:
    """Make a door of `main(argv) -> exit code`: mistakes end in one line instead of a traceback."""

    @functools.wraps(main)
    def run() -> None:
        keep_house()
        try:
            code = main(sys.argv[1:])
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            code = 2
        except RunError as error:
            print(f"stopped: {error}", file=sys.stderr)
            code = 1
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                print(f"error: {str(error)[:200]}: give a shorter path", file=sys.stderr)
                sys.exit(2)
            if not files.lacks_room(error):
                raise
            print(f"stopped: {error}: make room and start again", file=sys.stderr)
            code = 1
        sys.stdout.flush()
        sys.exit(code)

    return run
