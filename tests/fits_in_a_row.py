"""`services.trainer.fits.process` for several fits, one after the other.

Processes that share a fit take longer to start, and to import torch, than the small fits of a test
take. Each directory that is given is that of a run, and holds the fit to do there as `fit.json`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState

from services.trainer.fits import process
from services.trainer.training.fitting import ignore


def main(after_each: Callable[[], None] = ignore) -> int:
    """Do the fits until one fails. They share the connection of the processes, and nothing else."""
    PartialState.destroy_process_group = ignore
    for run in sys.argv[1:]:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        sys.argv[1:] = ["--run", run, "--job", f"{run}/fit.json"]
        if (code := process.main()) != 0:
            return code
        after_each()
    torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
