"""The tiny model of about a million parameters, made from scratch: for ALFWorld's text, or for the
words of other texts that it is shown.
"""

from services.trainer.tiny.model import create_tiny

__all__ = ["create_tiny"]
