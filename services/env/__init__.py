"""The environment service: ALFWorld games as sessions over HTTP."""
