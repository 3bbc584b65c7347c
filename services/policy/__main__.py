"""`python -m services.policy --registry RUN/checkpoints`."""

from __future__ import annotations

import sys

import torch
from transformers.utils.logging import disable_progress_bar

from agentprm.service import configure_logging, serve
from services.policy.app import build_app
from services.policy.settings import PolicySettings


def main() -> None:
    """Serve until told to stop."""
    settings = PolicySettings.from_command_line()
    configure_logging("policy", requests=settings.log_requests)
    disable_progress_bar()
    torch.set_num_threads(settings.threads)
    try:
        app = build_app(settings)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    serve(app, settings.host, settings.port)


if __name__ == "__main__":
    main()
