"""What figures were taken under, which every measurement prints with them."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TypedDict


class Conditions(TypedDict):
    """The machine, and how busy it is."""

    cpu: str
    cores: int | None
    load: float
    """The load average of the last minute."""
    python: str


def conditions_now() -> Conditions:
    """Those of now."""
    return {
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }


def cpu() -> str:
    """The model of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
