"""The fits of a run, one a module, and the processes that they are done in."""
