"""The words of ALFWorld's text engine, of our prompts, of the expert's reasons, of world models.

A word is a class name (`cabinet`), a number with the space before it (` 3`), or a phrase that the
engine prints as a whole, with the spaces around it. Concatenating the words gives the text back.
Sources: the object classes of `alfworld.gen.constants`, the grammar `alfred.twl2` of alfworld 0.4
(`move X to Y`) and the text of the games generated before it (`put X in/on Y`, `loc 12`).
"""

from __future__ import annotations

from pathlib import Path

PAD = "<pad>"
UNKNOWN = "<unk>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
END = "<|end|>"
SPECIAL = (PAD, UNKNOWN, USER, ASSISTANT, END)

NAMES = tuple((Path(__file__).parent / "names.txt").read_text().split())

NUMBERS = tuple(f" {n}" for n in range(61))

COMMANDS = (
    "go to ", "take ", " from ", "move ", " to ", "put ", " in/on ", "open ", "close ", "examine ",
    "use ", "heat ", "clean ", "cool ", "slice ", " with ", "inventory", "look", "help",
)  # fmt: skip

OBSERVATIONS = (
    "-= Welcome to TextWorld, ALFRED! =-\n\n",
    "You are in the middle of a room. Looking quickly around you, you see ",
    "You arrive at ",
    "On the ",
    "The ",
    "You open the ",
    "You close the ",
    "You pick up the ",
    " from the ",
    "You move the ",
    " to the ",
    "You put the ",
    " in/on the ",
    "You heat the ",
    "You clean the ",
    "You cool the ",
    "You sliced the ",
    " using the ",
    " with the ",
    "You turn on the ",
    "You turn off the ",
    "You don't see any switch on the ",
    "You are facing the ",
    "Next to it, you see ",
    "You are carrying: ",
    "You are not carrying anything.",
    "Nothing happens.",
    "nothing",
    "There's nothing special about ",
    "This ",
    "This is a ",
    "normal ",
    "hot ",
    "cold ",
    "sliced ",
    "hot and clean ",
    "cool and clean ",
    " is on.",
    " is off.",
    " is open. In it, you see ",
    " is closed.",
    ". In it, you see ",
    ", you see ",
    "a ",
    "an ",
    ", a ",
    ", an ",
    ", and a ",
    ", and an ",
    ", and ",
    ", ",
    ". On the ",
    ". The ",
    ". ",
    ".",
    "\n",
    "\n\n",
)

HELP = (
    "Available commands:\n",
    "  look:                             look around your current location\n",
    "  inventory:                        check your current inventory\n",
    "  go to (receptacle):               move to a receptacle\n",
    "  open (receptacle):                open a receptacle\n",
    "  close (receptacle):               close a receptacle\n",
    "  take (object) from (receptacle):  take an object from a receptacle\n",
    "  move (object) to (receptacle):  place an object in or on a receptacle\n",
    "  put (object) in/on (receptacle):  place an object in or on a receptacle\n",
    "  examine (something):              examine a receptacle or an object\n",
    "  use (object):                     use an object\n",
    "  heat (object) with (receptacle):  heat an object using a receptacle\n",
    "  clean (object) with (receptacle): clean an object using a receptacle\n",
    "  cool (object) with (receptacle):  cool an object using a receptacle\n",
    "  slice (object) with (object):     slice an object using a sharp object",
)

TASKS = (
    "\n\nYour task is to: ",
    "Your task is to: ",
    "put some ",
    "put two ",
    "put a ",
    "find two ",
    "find ",
    "look at ",
    "examine the ",
    "heat some ",
    "clean some ",
    "cool some ",
    "some ",
    "two ",
    " and put it in ",
    " and put them in ",
    " and ",
    " in ",
    " on ",
    " under the ",
)

ANSWERS = (
    "REASON: ",
    "\nACTION: ",
    "ACTION: ",
    "one done . ",
    "have ",
    " . ",
    " . put in ",
    " . heat",
    " . clean",
    " . cool",
    " . use ",
)

STATE_PROMPT = (
    "You act in a text world to complete a task.\n\nTask: ",
    "What happened so far:\n",
    "OBSERVATION: ",
    "Possible actions: ",
    "; ",
    "Answer with two lines:\nREASON: what you are after, in a few words\n"
    "ACTION: the one command to carry out now",
)

WORLD = ("\nNow possible: ", "\nNo longer possible: ", "\nThe task is done.")

PHRASES = (*COMMANDS, *OBSERVATIONS, *HELP, *TASKS, *ANSWERS, *STATE_PROMPT, *WORLD)
WORDS = (*SPECIAL, *NAMES, *NUMBERS, *PHRASES)
