"""The tiny model of about a million parameters, made from scratch for ALFWorld's text."""

from services.trainer.tiny.model import create_tiny

__all__ = ["create_tiny"]
