"""The one place where a conversation becomes tokens: serving, training and evaluation all call `render`.

A turn is `<start_of_turn>user\\n…<end_of_turn>\\n`; Gemma 4 writes `<|turn>` and `<turn|>` for the marks. There is one
`<bos>`, roles alternate between `user` and `model`, and a system message is the head of the user's turn that follows.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Literal, NotRequired, TypedDict

from workers.models.tokenizer import Tokenizer
from workers.protocols import Refused

TURN_MARKS = (("<start_of_turn>", "<end_of_turn>"), ("<|turn>", "<turn|>"))
SPEAKERS = {"system": "user", "developer": "user", "user": "user", "assistant": "model"}
INSTRUCTIONS = ("system", "developer")


class Message(TypedDict):
    role: str
    content: str
    weight: NotRequired[int]  # 0: not to be learnt


def turn_marks(tokenizer: Tokenizer) -> tuple[int, int]:
    """The ids of the tokens that start and end a turn."""
    for start, end in TURN_MARKS:
        try:
            return tokenizer.control(start), tokenizer.control(end)
        except KeyError:
            continue
    raise Refused("unsupported_tokenizer", f"the model's tokenizer has none of Gemma's turn marks {TURN_MARKS}")


def render(tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
    """The prompt for `messages`; with `add_generation_prompt` it ends where the model's answer begins.

    Messages of one speaker in a row become one turn, parted by an empty line.
    """
    tokens = [tokenizer.bos]
    for _, turn in turns(tokenizer, messages):
        tokens += turn
    return tokens + answer_head(tokenizer) if add_generation_prompt else tokens


def turns(tokenizer: Tokenizer, messages: Sequence[Message]) -> Iterator[tuple[str, list[int]]]:
    """The turns that `render` joins: each one's speaker and tokens. Those of `model` begin with `answer_head`."""
    start, end = turn_marks(tokenizer)
    newline = tokenizer.encode("\n")
    for text in turn_texts(messages):
        yield text.partition("\n")[0], [start, *tokenizer.encode(text), end, *newline]


def turn_texts(messages: Sequence[Message]) -> Iterator[str]:
    """What stands between the marks of each turn: its speaker, a line's end, and its messages."""
    for speaker, group in groupby(messages, key=speaker_of):
        yield f"{speaker}\n" + "\n\n".join(message["content"].strip() for message in group)


def answer_head(tokenizer: Tokenizer) -> list[int]:
    """What stands before an answer, in its turn."""
    return [turn_marks(tokenizer)[0], *tokenizer.encode("model\n")]


def speaker_of(message: Message) -> str:
    try:
        return SPEAKERS[message["role"]]
    except KeyError:
        raise Refused("invalid_role", f"role {message['role']!r} is not one of {', '.join(SPEAKERS)}") from None


def fit(
    tokenizer: Tokenizer, messages: Sequence[Message], budget: int, overflow: Literal["refuse", "drop_oldest"]
) -> list[int]:
    """`render` within `budget` tokens.

    `drop_oldest` leaves out the oldest exchanges, whole: never instructions, the last exchange, or a part of a turn.
    Raises `Refused` where even that is too long. Every turn is tokenised once, and none that bytes alone rule out.
    """
    instructions = [message for message in messages if message["role"] in INSTRUCTIONS]
    dialogue = [message for message in messages if message["role"] not in INSTRUCTIONS]
    asks = [message["role"] == "user" for message in dialogue]
    exchanges = [i for i, ask in enumerate(asks) if i == 0 or (ask and not asks[i - 1])] or [0]
    longest, tokenizer = tokenizer.longest_token, tokenizer.remembering()

    def without(dropped: int) -> Sequence[Message]:
        return instructions + dialogue[exchanges[dropped] :] if dropped else messages

    def fits(dropped: int) -> bool:
        kept = without(dropped)
        least = sum(len(text.replace("▁", " ").encode()) for text in turn_texts(kept)) // longest
        return least <= budget and len(render(tokenizer, kept)) <= budget

    choices = range(len(exchanges) if overflow == "drop_oldest" else 1)
    dropped = bisect_left(choices, True, key=fits)
    if dropped == len(choices):
        needed = len(render(tokenizer, without(choices[-1])))
        raise Refused("context_length_exceeded", f"the messages take {needed} tokens; {budget} are left for them")
    return render(tokenizer, without(dropped))
