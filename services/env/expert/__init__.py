"""Experts: who knows what to do next. `search` needs only the text; `handcoded` is alfworld's."""
