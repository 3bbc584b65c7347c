"""The report of a run: one self-contained HTML page."""

from agentprm.report._page import render_report

__all__ = ["render_report"]
