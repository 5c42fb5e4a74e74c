"""From any exception to one sentence, one mend and an exit status."""

from __future__ import annotations

import errno
from typing import Any, NamedTuple

from polyalign.errors import PolyalignError, nearest

USAGE, DEFECT, MEMORY, STOPPED = 2, 70, 71, 130


class Fault(NamedTuple):
    """What is wrong, what mends it, and the exit status."""

    what: str
    mend: str
    status: int


def explain(error: BaseException) -> Fault:
    """The sentence for an exception; what polyalign did not foresee is told as its own defect."""
    if isinstance(error, PolyalignError):
        return Fault(error.what, error.mend, error.exit_code)
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        return Fault("Stopped.", "", STOPPED)
    if hasattr(error, "format_message"):
        return Fault(*misused(error), USAGE)
    if isinstance(error, OSError) and error.errno is not None:
        return Fault(*refused(error), USAGE)
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
        return Fault(
            "The memory ran out.",
            "Lower --micro or --max-length, add --checkpointing, or train adapters (--no-full).",
            MEMORY,
        )
    if isinstance(error, ModuleNotFoundError) and error.name:
        return Fault(
            f"The package {error.name} is missing.", "See what else is: polyalign doctor", USAGE
        )
    brief = (str(error).strip().splitlines() or [""])[0][:300]
    return Fault(
        f"polyalign failed, which is a defect of its own: {type(error).__name__}: {brief}",
        "Run it again with --debug, and report what that prints.",
        DEFECT,
    )


def refused(error: OSError) -> tuple[str, str]:
    """What the operating system refused."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"No space is left on the disk{where}.", "Free space, or choose another --output."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"Permission denied{where}.",
            "Give yourself access to it, or choose another folder.",
        )
    if error.errno == errno.ENOENT:
        return f"There is no such file or folder{where}.", "Check the path."
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        return f"{error.strerror}{where}.", "Give another path, or move what lies there away."
    return f"The system refused: {error.strerror}{where}.", "Check the disk and the path."


def misused(error: Any) -> tuple[str, str]:
    """A command line that cannot be parsed; names are matched with what there is."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "polyalign"
    help_of = f"See: {path} --help"
    option = getattr(error, "option_name", None)
    name = type(error).__name__
    if name == "NoSuchOption" and option:
        return f"{path} has no option {option}.", _near_option(option, context) or help_of
    if name == "MissingParameter" and getattr(error, "param", None) is not None:
        parameter = error.param
        spelled = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.metavar
        return f"{path} needs {spelled or parameter.name.upper()}.", help_of
    what = str(error.format_message()).strip().splitlines()[0].rstrip(".")
    if what.startswith("Got unexpected extra argument"):
        what = f"{path} does not know what to do with {what[what.find('(') + 1 : -1]}"
    return f"{what}.", help_of


def _near_option(option: str, context: Any) -> str:
    if context is None:
        return ""
    known = [
        spelled
        for parameter in context.command.params
        for spelled in (*parameter.opts, *parameter.secondary_opts)
        if spelled.startswith("--")
    ]
    bare = option.lstrip("-")
    extra = getattr(context.command, "near", None)
    mend = extra(bare, context) if extra else ""
    return mend or nearest(option, [*known, "--help"])
