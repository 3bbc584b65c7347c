"""Facts of ALFWorld that its games and the engines for them share."""

from __future__ import annotations

GAME_FILE = "game.tw-pddl"
"""The file of a game, in the directory of its trial."""

LIGHT = "look_at_obj_in_light"
"""The task type in which a thing is to be looked at in the light of a lamp."""
PLACE_TYPES = {
    (1, None): "pick_and_place_simple",
    (1, "clean"): "pick_clean_then_place_in_recep",
    (1, "hot"): "pick_heat_then_place_in_recep",
    (1, "cool"): "pick_cool_then_place_in_recep",
    (2, None): "pick_two_obj_and_place",
}
"""The other task types, by how many things are to be put somewhere and how they are changed."""
TASK_TYPES = frozenset({LIGHT, *PLACE_TYPES.values()})
"""The six task types."""
