"""What the services share can be imported where no service's libraries are installed."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ["alfworld", "matplotlib", "openai", "textworld", "torch", "transformers", "trl"]
DRAWING = ["agentprm.report", "agentprm.studies.figures"]
"""What loads matplotlib; commands import them when they draw."""
COMPUTING = [f"agentprm.models.{name}" for name in ("devices", "loading", "segments")]
"""What runs models; services import it that have the libraries."""

SCRIPT = f"""
import importlib, pkgutil, sys
for name in {HEAVY}:
    sys.modules[name] = None
import agentprm
for module in pkgutil.walk_packages(agentprm.__path__, "agentprm."):
    try:
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    except ModuleNotFoundError:
        print(module.name)
print(*(name for name in sys.modules if name.startswith("services")))
"""


def test_the_shared_package_loads_no_service_and_no_heavy_library() -> None:
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == sorted([*DRAWING, *COMPUTING])
