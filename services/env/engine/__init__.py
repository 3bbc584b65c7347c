"""Engines: what plays a game. `base` says what an engine is.

`textworld` is the reference, the alfworld package in a pool of processes; `inprocess` offers the
compiled engine, which prints the same characters and is the default; `own` plays an environment of
one's own.
"""
