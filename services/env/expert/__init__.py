"""Experts: who knows what to do next.

`search` needs only the text; `advised` passes on what the game itself advises, as alfworld's
hand-coded expert does, or an environment of one's own.
"""
