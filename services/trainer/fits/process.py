"""`accelerate launch ... -m services.trainer.fits.process --job JOB`: one process of a fit."""

from __future__ import annotations

import sys

from agentprm.lineage import die_with_parent


def main() -> int:
    """Do the fit in step with the other processes. The exit code is 0 when it is done."""
    die_with_parent()
    # Torch and TRL, whose imports take seconds in which the parent may end.
    from services.trainer.fits.part import take_part

    return take_part()


if __name__ == "__main__":
    sys.exit(main())
