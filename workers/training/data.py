"""Examples as tokens, and which of them a step reads.

The tokens are those of `workers.models.template`, by which the model is served. What is learnt of a conversation are
the assistant's turns with the token that ends them. Nothing is padded: a pass reads its examples one behind the other.
"""

import codecs
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from workers.models.template import Message, answer_head, speaker_of, turn_marks, turns
from workers.models.tokenizer import Tokenizer
from workers.protocols import Refused
from workers.training.recipe import Method

FORMATS = {
    "sft": '{"messages": [...]}',
    "full": '{"messages": [...]}',
    "dpo": '{"messages": [...], "chosen": "...", "rejected": "..."}',
    "kto": '{"messages": [...], "liked": true}, the last message being the assistant\'s',
}


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation up to the last token to be learnt. `learnt` are the places of those tokens, at least one.

    `liked`, for kto alone: whether somebody approved of it.
    """

    tokens: tuple[int, ...]
    learnt: tuple[int, ...]
    liked: bool = True

    def with_answer_of(self, other: "Example") -> "Example":
        """This prompt with the other's answer."""
        start, begin = self.learnt[0], other.learnt[0]
        tokens = self.tokens[:start] + other.tokens[begin:]
        return Example(tokens, tuple(range(start, len(tokens))))


Item = tuple[Example, ...]  # what is drawn as one: an example, or for dpo the chosen and the rejected


@dataclass(frozen=True, slots=True)
class Task:
    """Items that are drawn in proportion to `weight` among the tasks of a run.

    `too_long` are the places, in what was given, of those that are left out because they exceed the recipe's length.
    """

    name: str
    items: tuple[Item, ...]
    weight: float = 1.0
    too_long: tuple[int, ...] = ()

    @property
    def digest(self) -> str:
        """Of all that its part in a run depends on."""
        decisive = [[[e.tokens, e.learnt, e.liked] for e in item] for item in self.items]
        return sha256(json.dumps([self.name, self.weight, decisive]).encode()).hexdigest()


def encode(
    tokenizer: Tokenizer,
    records: Sequence[Mapping[str, Any]],
    *,
    method: Method,
    max_length: int,
    name: str = "train",
    weight: float = 1.0,
) -> Task:
    """A task of JSON records (see `FORMATS`). Raises `Refused` (`invalid_example`, `no_examples`)."""
    items, too_long = [], []
    for index, record in enumerate(records):
        try:
            item = encode_one(tokenizer, record, method)
        except (KeyError, TypeError, AttributeError, Refused) as error:
            problem = str(error) if isinstance(error, Refused) else f"it is not of the form {FORMATS[method]}"
            raise Refused("invalid_example", f"{name}, example {index}: {problem}") from error
        if max(len(example.tokens) for example in item) > max_length:
            too_long.append(index)
        else:
            items.append(item)
    if not items:
        longer = f"all {len(too_long)} examples are longer than {max_length} tokens: raise max_length, or shorten them"
        raise Refused("no_examples", f"{name}: {longer if too_long else 'there is no example'}")
    return Task(name, tuple(items), weight, tuple(too_long))


def encode_one(tokenizer: Tokenizer, record: Mapping[str, Any], method: Method) -> Item:
    messages: list[Message] = record["messages"]
    if method == "dpo":
        answers = (record["chosen"], record["rejected"])
        return tuple(
            example_of(tokenizer, [*messages, {"role": "assistant", "content": answer}], last=True)
            for answer in answers
        )
    if method == "kto":
        return (example_of(tokenizer, messages, last=True, liked=bool(record["liked"])),)
    return (example_of(tokenizer, messages),)


def example_of(tokenizer: Tokenizer, messages: Sequence[Message], last: bool = False, liked: bool = True) -> Example:
    """last: only the last turn is learnt, which must be the assistant's; else every one of the assistant's is.

    But for those whose messages all have `"weight": 0`, as OpenAI's files have it.
    """
    head, end = len(answer_head(tokenizer)), turn_marks(tokenizer)[1]
    tokens = [tokenizer.bos]
    learnt: list[int] = []
    speaker = None
    weights = [any(m.get("weight", 1) for m in turn) for _, turn in groupby(messages, key=speaker_of)]
    for weight, (speaker, turn) in zip(weights, turns(tokenizer, messages), strict=True):
        if speaker == "model" and (weight or last):
            ended = len(tokens) + turn.index(end, head) + 1
            learnt = ([] if last else learnt) + list(range(len(tokens) + head, ended))
        tokens += turn
    if not learnt:
        raise Refused("invalid_example", "no message has the role assistant and a weight: there is nothing to learn")
    if last and speaker != "model":
        raise Refused("invalid_example", "the last message is not the assistant's")
    return Example(tuple(tokens[: learnt[-1] + 1]), tuple(learnt), liked)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The records of a file, one a line, in UTF-8, UTF-16 or UTF-32. Raises `Refused` with the number of a line that is
    not a JSON object."""
    records = []
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    encoding = json.detect_encoding(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        place = data[: error.start].decode(encoding, "ignore").count("\n") + 1
        raise Refused("invalid_example", f"{path}, line {place} is not {encoding}: {error.reason}") from error
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise Refused("invalid_example", f"{path}, line {number}: {error}") from error
        if not isinstance(record, dict):
            raise Refused("invalid_example", f"{path}, line {number} is not a JSON object")
        records.append(record)
    return records


class Sampler:
    """Which items a step reads: a function of `(seed, step)` alone.

    Draws go to the tasks so that at any moment each has had its share to within one; a task's items come in a new
    order in each of its epochs.
    """

    def __init__(self, tasks: Sequence[Task], batch_size: int, seed: int) -> None:
        self._tasks, self._batch_size, self._seed = tasks, batch_size, seed
        self._draws: list[tuple[int, int]] = []  # task, and how often it was drawn before
        self._counts = [0] * len(tasks)
        self._order = lru_cache(2 * len(tasks))(self._shuffled)

    def items(self, step: int) -> list[Item]:
        first = step * self._batch_size
        while len(self._draws) < first + self._batch_size:
            total, drawn = sum(task.weight for task in self._tasks), len(self._draws) + 1
            behind = [t.weight / total * drawn - had for t, had in zip(self._tasks, self._counts, strict=True)]
            chosen = behind.index(max(behind))
            self._draws.append((chosen, self._counts[chosen]))
            self._counts[chosen] += 1
        return [self._item(*draw) for draw in self._draws[first : first + self._batch_size]]

    def _item(self, task: int, draw: int) -> Item:
        items = self._tasks[task].items
        epoch, place = divmod(draw, len(items))
        return items[self._order(task, epoch)[place]]

    def _shuffled(self, task: int, epoch: int) -> list[int]:
        order = list(range(len(self._tasks[task].items)))
        Random(f"{self._seed} {task} {epoch}").shuffle(order)  # noqa: S311
        return order


def passes(items: Sequence[Item], count: int) -> list[list[Item]]:
    """The items in `count` parts of about the same number of tokens."""
    by_length = sorted(items, key=lambda item: sum(len(example.tokens) for example in item), reverse=True)
    return [by_length[part::count] for part in range(min(count, len(items)))]


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples one behind the other; the last token of each is only predicted, so it is not read.

    ids, positions: [tokens]; lengths: of the examples. wanted: [labels], the tokens after which a label is predicted;
    labels: [labels].
    """

    ids: Tensor
    positions: Tensor
    lengths: tuple[int, ...]
    wanted: Tensor
    labels: Tensor

    @classmethod
    def of(cls, examples: Sequence[Example], device: torch.device) -> "Batch":
        lengths = tuple(len(example.tokens) - 1 for example in examples)
        starts = [sum(lengths[:index]) for index in range(len(lengths))]
        ids = [token for example in examples for token in example.tokens[:-1]]
        positions = [position for length in lengths for position in range(length)]
        wanted = [start + place - 1 for start, e in zip(starts, examples, strict=True) for place in e.learnt]
        labels = [example.tokens[place] for example in examples for place in example.learnt]

        def tensor(values: list[int]) -> Tensor:
            return torch.tensor(values, device=device)

        return cls(tensor(ids), tensor(positions), lengths, tensor(wanted), tensor(labels))
