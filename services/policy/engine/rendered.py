"""A long conversation as segments of text, rendered once instead of once per message.

`agentprm.encoding.encode` renders every beginning of a conversation to see where its messages end,
which takes seconds for hundreds of them. Most templates render a message the same wherever it
stands. So here each is rendered behind a short conversation, and all together must be what the
template makes of the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from jinja2 import TemplateError

from agentprm.protocol import Message

ASKED = (Message(role="user", content="x"),)
"""A short conversation."""
ANSWERED = (*ASKED, Message(role="assistant", content="y"))
"""The same with its answer."""

Render = Callable[[Sequence[Message], bool], str]
"""The text of messages; with True up to where the assistant's next one begins."""


def rest(render: Render, messages: Sequence[Message], known: int) -> tuple[str, list[str]] | None:
    """The text up to where the assistant answers, and the segments of `messages[known:]` in it.

    They are those that `encode` makes. None where the template does not render these messages one
    by one as it renders the whole, or refuses them.
    """
    try:
        whole = render(messages, True)
        begin = render(messages[:known], messages[known].role == "assistant")
        segments = list(_segments(render, messages, known))
    except (TemplateError, ValueError):
        return None
    return (whole, segments) if begin + "".join(segments) == whole else None


def _segments(render: Render, messages: Sequence[Message], known: int) -> Iterator[str]:
    roles = [message.role for message in messages]
    for k in range(known, len(messages)):
        asked = k + 1 == len(messages) or roles[k + 1] == "assistant"
        if roles[k] == "assistant":
            yield _behind(render, ASKED, [messages[k]], asked=True, asks=False)
            if asked:  # again, without a message between
                yield _behind(render, ANSWERED, [], asked=False, asks=True)
        else:
            before = ANSWERED if k and roles[k - 1] == "assistant" else ASKED
            yield _behind(render, before, [messages[k]], asked=False, asks=asked)


def _behind(
    render: Render,
    before: Sequence[Message],
    more: Sequence[Message],
    *,
    asked: bool,
    asks: bool,
) -> str:
    """What `more` adds to the text of the conversation `before`.

    `asked` and `asks`: whether the text before, and that with `more`, lead up to an answer.
    """
    beginning = render(before, asked)
    text = render([*before, *more], asks)
    if not text.startswith(beginning):
        raise ValueError("the chat template rewrites what stands before a message")
    return text[len(beginning) :]
