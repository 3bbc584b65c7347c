"""`python -m agentprm.cli` is `agentprm`."""

from agentprm.cli import app

app(prog_name="agentprm")
