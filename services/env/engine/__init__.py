"""Engines: what plays a game. `base` says what an engine is; each other module is one of them."""
