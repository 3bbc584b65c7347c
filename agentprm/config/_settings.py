"""What every group of settings is."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class Settings(BaseModel):
    """A group of settings. Unknown names are errors, and so are numbers that JSON cannot hold."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        """Of a part that is given in part, the rest is the default of this group, as in
        `Evaluation.sampling`, and not of the part's class."""
        if not isinstance(given, dict):
            return given
        completed = dict(given)
        for name, value in given.items():
            default = cls.model_fields[name].default if name in cls.model_fields else None
            if isinstance(value, dict) and isinstance(default, BaseModel):
                completed[name] = default.model_dump(exclude_unset=True) | value
        return completed
