"""A PRM from the logs of an agent that is not ours: what it is fitted on, and its fit."""
