"""Engines: what plays a game behind a session."""
