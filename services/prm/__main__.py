"""`python -m services.prm --port 8003 --registry RUN/checkpoints`."""

import sys

import torch
from transformers.utils import logging

from agentprm.service import configure_logging, serve
from services.prm.app import build_app
from services.prm.settings import PRMServiceSettings


def main() -> None:
    """Run the service until it is told to stop."""
    settings = PRMServiceSettings.from_command_line()
    configure_logging("prm", requests=settings.log_requests)
    logging.disable_progress_bar()
    torch.set_num_threads(settings.threads)
    try:
        app = build_app(settings)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    serve(app, settings.host, settings.port)


if __name__ == "__main__":
    main()
