"""Processes that do not outlive who started them: they get SIGTERM when it ends, however it ends.

The kernel sees to it, on Linux only, and means the thread that started them: let it be one that
lasts as long as they should.
"""

from __future__ import annotations

import ctypes
import errno
import os
import runpy
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence

_PR_SET_PDEATHSIG = 1

# A few lines of Python that become the program: they run in a process of their own, whatever
# threads the parent has, where what `preexec_fn` runs between fork and exec may wait for ever.
_PRELUDE = f"""
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, {int(signal.SIGTERM)})
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


def bound(argv: Sequence[str], environment: Mapping[str, str] = os.environ) -> list[str]:
    """The command that runs `argv` as a process that ends with this one, which has to start it.

    Its process id is that of `argv`. Where this process ends before, `argv` is not run at all.

    Raises:
        FileNotFoundError: there is no such program on the PATH of `environment`.
    """
    program = shutil.which(argv[0], path=environment.get("PATH"))
    if program is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), argv[0])
    prelude = [sys.executable, "-I", "-S", "-c", _PRELUDE, str(os.getpid())]
    return [*prelude, program, *argv[1:]]


def main() -> None:
    """`python -m agentprm.lineage MODULE ...`: the same for a module that another program starts.

    Such as `accelerate`. It is asked for before the module imports anything, which may take
    seconds; a parent that ended even before is not noticed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    module = sys.argv.pop(1)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
