"""The games of an environment of the user's own; see `agentprm.environment`."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import orjson
from pydantic import TypeAdapter, ValidationError

from agentprm.environment import Environment
from agentprm.protocol import Game, Id, Text
from agentprm.validation import first_error
from services.env.games.base import Games
from services.env.games.index import DataError

_NAME = re.compile(r"(?P<module>\w+(\.\w+)*):(?P<attribute>\w+)")
_METHODS = ("games", "reset", "step")
_GAMES = TypeAdapter(list[Game])
_IDS = TypeAdapter(list[Id])
_TASKS = TypeAdapter(list[Text])


def load_environment(name: str) -> type[Environment]:
    """The class that `name` says, as `package.module:Class`.

    Raises:
        DataError: there is none, or it has not the methods of an environment.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise DataError(f"an environment is named as module:Class, not as {name!r}")
    try:
        found = getattr(importlib.import_module(match["module"]), match["attribute"])
    except (ImportError, AttributeError) as error:
        raise DataError(
            f"no environment {name}: {error}; modules are looked for in the current directory, on "
            "PYTHONPATH and among the installed packages"
        ) from error
    except Exception as error:  # whatever the module raises as it is imported
        raise DataError(f"{name} cannot be imported: {error!r}") from error
    missing = [method for method in _METHODS if not callable(getattr(found, method, None))]
    if missing or not isinstance(found, type):
        what = f"has no {', '.join(missing)}" if missing else "is no class"
        raise DataError(f"{name} {what}; agentprm.environment says what an environment is")
    return cast("type[Environment]", found)


@dataclass(frozen=True)
class OwnGames(Games):
    """What the class says there are."""

    environment: type[Environment]

    @classmethod
    def of(cls, environment: type[Environment]) -> OwnGames:
        """Ask the class for its games, and check them.

        Raises:
            DataError: it names none, two by one id, or something else than games.
        """
        asked = f"{environment.__name__}.games()"
        try:
            listed = _GAMES.validate_python(list(environment.games()))
            _IDS.validate_python([game.id for game in listed])
            _TASKS.validate_python([game.task for game in listed])
        except ValidationError as error:
            raise DataError(f"{asked}: {first_error(error)}") from error
        except Exception as error:  # whatever the class raises, or that it is no static method
            what = "; it is a @staticmethod that takes nothing"
            hint = what if isinstance(error, TypeError) else ""
            raise DataError(f"{asked}: {error!r}{hint}") from error
        games = {game.id: game for game in sorted(listed, key=lambda game: game.id)}
        if not games:
            raise DataError(f"{asked} names no games")
        if len(games) < len(listed):
            raise DataError(f"{asked} names {len(listed) - len(games)} games by ids of others")
        return cls(games, environment)

    @property
    def name(self) -> str:
        """The class name."""
        return self.environment.__name__

    @property
    def description(self) -> str:
        """The first line of the class's docstring."""
        return (inspect.getdoc(self.environment) or self.name).partition("\n")[0]

    @cached_property
    def data_version(self) -> str:
        """Twelve hexadecimal digits of the games' ids and tasks."""
        content = orjson.dumps([game.model_dump() for game in self.games.values()])
        return hashlib.sha256(content).hexdigest()[:12]

    def source(self, game: Game) -> str:
        """The id: the class knows its games by it."""
        return game.id
