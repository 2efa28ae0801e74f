"""The two exceptions that end a run with one line instead of a traceback."""


class UserError(ValueError):
    """A mistake in what vljax was given: a config field, a file, a flag.

    The message is one line that names the field, the value and the remedy. The doors
    (`python -m vljax.train` and its siblings) print it without a traceback and exit with 2.
    """


class RunError(RuntimeError):
    """A run that cannot go on though its input was right: a non-finite loss, a full disk.

    The message says where the run stands, what is kept, and how to go on. The doors exit with 1.
    """
