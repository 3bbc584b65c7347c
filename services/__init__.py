"""The processes of AgentPRM. None imports another: between them there is only HTTP and Redis."""
