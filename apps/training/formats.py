"""The formats of examples: how a JSON line is read, and what a trainer takes of it. Pure functions.

chat           {"messages": [{"role", "content"}, ..., the assistant's]}; "weight": 0 excludes a turn from the loss
instruction    {"instruction", "input", "output"}
engagement     {"content": {type, subject, duration, tags}, "user_profile": {interests, level}, "expected_engagement"}
learning_path  {"goal", "current_level", "time_available", "learning_path": [...]}
query          {"query", "intent", "subject", "level"}; the last two may be empty
preference     {"messages", "chosen", "rejected"}, or as OpenAI has it {"input", "preferred_output",
               "non_preferred_output"}
thumb          {"messages": [..., the assistant's], "liked": true | false}

A file has one on each line, as JSON, or is a sheet: each column is a field, and what is no text is JSON in its cell.

An item of an evaluation set is one of these; a conversation or an instruction may have, beside its fields, those of
`Marks`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from django.db.models import TextChoices
from rest_framework.exceptions import ParseError

from apps.common.constants import Intent, Level, Subject, Task
from apps.common.parsers import loads

Record = dict[str, Any]
T = TypeVar("T")

ROLES = ("system", "developer", "user", "assistant")
PLAIN = (  # fields that are texts
    *("instruction", "input", "output", "query", "intent", "subject", "level", "goal", "current_level", "chosen"),
    *("rejected", "answer"),
)
SECONDS, MINUTES = 10**6, 10**7  # more is a slip of the pen


class Format(TextChoices):
    CHAT = "chat", "Chat"
    INSTRUCTION = "instruction", "Instruction"
    ENGAGEMENT = "engagement", "Engagement"
    LEARNING_PATH = "learning_path", "Learning path"
    QUERY = "query", "Query"
    PREFERENCE = "preference", "Preference pair"
    THUMB = "thumb", "Thumb up or down"


class Method(TextChoices):
    SUPERVISED = "supervised", "Supervised"
    DPO = "dpo", "Preference pairs (DPO)"
    KTO = "kto", "Thumbs (KTO)"


TASKS = {  # of what is imported
    Format.ENGAGEMENT: Task.ENGAGEMENT,
    Format.LEARNING_PATH: Task.LEARNING_PATH,
    Format.QUERY: Task.QUERY,
}
FORMATS = {  # that a method learns from
    Method.SUPERVISED: tuple(Format),
    Method.DPO: (Format.PREFERENCE,),
    Method.KTO: (Format.THUMB,),
}


class Marks(NamedTuple):
    """By what else than the reference a reply to an evaluation item is judged.

    answer: the final answer. hint: a hint was asked for, so that the answer must not be given away. level: whom the
    reply is for.
    """

    answer: str = ""
    hint: bool = False
    level: str = ""

    @property
    def given(self) -> Record:
        return {name: value for name, value in self._asdict().items() if value}


class Invalid(ValueError):
    """What is wrong with an example, in words for those who made it."""


# --- reading ---


Line = bytes | dict[str, str]  # of JSONL, or of a sheet: cells by their columns


def parse(line: Line, number: int) -> tuple[Format, Record]:
    """Read a line of a file. Raises `Invalid`, which names the line and the field."""
    return _parse(line, number, validate)


def parse_item(line: Line, number: int) -> tuple[Format, Record, Marks]:
    """The same of a line of an evaluation set."""
    return _parse(line, number, validate_item)


def _parse(line: Line, number: int, read: Callable[[Any], T]) -> T:
    name = f"line {number}"
    try:
        return read(loads(line, name, unique=True) if isinstance(line, bytes) else _of_cells(line, name))
    except ParseError as error:
        raise Invalid(str(error.detail)) from error
    except Invalid as error:
        raise Invalid(f"{name}: {error}") from error


def _of_cells(cells: dict[str, str], name: str) -> Record:
    """Without fields whose cells are empty, but for those that may be, or must not."""
    empty = ("subject", "level") if "query" in cells else ("input", "output")
    kept = {column: cell for column, cell in cells.items() if cell or column in empty}
    return {
        column: cell if column in PLAIN else loads(cell.encode(), f"{name}, column {column}", unique=True)
        for column, cell in kept.items()
    }


def validate(record: Any) -> tuple[Format, Record]:
    """The format of a record, and the record in its one form. Raises `Invalid`, which names the field."""
    if not isinstance(record, dict):
        raise Invalid(f"it is {_kind(record)}, not an object")
    for format_, marks, read in READERS:
        if any(mark in record for mark in marks):
            return format_, read(record)
    known = ", ".join(f'"{mark}"' for _, marks, _ in READERS for mark in marks)
    raise Invalid(f"it is of no known format: it has none of {known}")


def validate_item(record: Any) -> tuple[Format, Record, Marks]:
    """The same of an item of an evaluation set."""
    given: Record = {}
    if isinstance(record, dict):
        own = {"level"} if "query" in record else set()  # a query's level is its own field, not a mark
        given = {name: record[name] for name in Marks._fields if name in record and name not in own}
    format_, content = validate({name: record[name] for name in record if name not in given} if given else record)
    if given and format_ not in (Format.CHAT, Format.INSTRUCTION):
        raise Invalid(f'"{next(iter(given))}" goes with a conversation or an instruction')
    marks = Marks()
    if "answer" in given:
        answer = _field(given, "", "answer", (str, int, float), ITEM)
        marks = marks._replace(answer=_text({"answer": str(answer)}, "", "answer", ITEM).strip())
    if "hint" in given:
        marks = marks._replace(hint=_field(given, "", "hint", (bool,), ITEM))
    if "level" in given:
        marks = marks._replace(level=_choice(given, "", "level", Level.values, ITEM))
    if marks.hint and not marks.answer:
        raise Invalid(f'it has a "hint" but no "answer" that must not be given away (expected {ITEM})')
    return format_, content, marks


def _chat(record: Record) -> Record:
    _only(record, "", ("messages",), CHAT)
    messages = _messages(record, "messages", CHAT, ends_with="assistant")
    if not any(message["role"] == "assistant" and message.get("weight", 1) for message in messages):
        raise Invalid('messages has no assistant\'s turn to learn: all have "weight": 0')
    return {"messages": messages}


def _thumb(record: Record) -> Record:
    _only(record, "", ("messages", "liked"), THUMB)
    liked = _field(record, "", "liked", (bool,), THUMB)
    return {"messages": _messages(record, "messages", THUMB, ends_with="assistant"), "liked": liked}


def _preference(record: Record) -> Record:
    _only(record, "", ("messages", "chosen", "rejected"), PREFERENCE)
    messages = _messages(record, "messages", PREFERENCE, ends_with="user")
    chosen, rejected = (_text(record, "", name, PREFERENCE) for name in ("chosen", "rejected"))
    return _pair(messages, chosen, rejected)


def _openai_preference(record: Record) -> Record:
    _only(record, "", ("input", "preferred_output", "non_preferred_output"), OPENAI_PREFERENCE)
    question = _field(record, "", "input", (dict,), OPENAI_PREFERENCE)
    messages = _messages(question, "input.messages", OPENAI_PREFERENCE, ends_with="user")
    answers = []
    for name in ("preferred_output", "non_preferred_output"):
        output = _messages(record, name, OPENAI_PREFERENCE, ends_with="assistant", has_question=False)
        if len(output) > 1:
            raise Invalid(f"{name} has {len(output)} messages, not one (expected {OPENAI_PREFERENCE})")
        answers.append(output[0]["content"])
    return _pair(messages, *answers)


def _pair(messages: list[Record], chosen: str, rejected: str) -> Record:
    if chosen == rejected:
        raise Invalid("both answers are the same: there is no preference to learn")
    return {"messages": messages, "chosen": chosen, "rejected": rejected}


def _instruction(record: Record) -> Record:
    _only(record, "", ("instruction", "input", "output"), INSTRUCTION)
    given = _field({"input": "", **record}, "", "input", (str,), INSTRUCTION)
    instruction, output = (_text(record, "", name, INSTRUCTION) for name in ("instruction", "output"))
    return {"instruction": instruction, "input": given, "output": output}


def _engagement(record: Record) -> Record:
    _only(record, "", ("content", "user_profile", "expected_engagement"), ENGAGEMENT)
    content = _field(record, "", "content", (dict,), ENGAGEMENT)
    _only(content, "content", ("type", "subject", "duration", "tags"), ENGAGEMENT)
    profile = _field(record, "", "user_profile", (dict,), ENGAGEMENT)
    _only(profile, "user_profile", ("interests", "level"), ENGAGEMENT)
    return {
        "content": {
            "type": _text(content, "content", "type", ENGAGEMENT),
            "subject": _text(content, "content", "subject", ENGAGEMENT),
            "duration": _number(content, "content", "duration", 0, SECONDS, ENGAGEMENT),
            "tags": _texts(content, "content", "tags", ENGAGEMENT),
        },
        "user_profile": {
            "interests": _texts(profile, "user_profile", "interests", ENGAGEMENT),
            "level": _choice(profile, "user_profile", "level", Level.values, ENGAGEMENT),
        },
        "expected_engagement": _number(record, "", "expected_engagement", 0, 1, ENGAGEMENT),
    }


def _learning_path(record: Record) -> Record:
    _only(record, "", ("goal", "current_level", "time_available", "learning_path"), LEARNING_PATH)
    steps = _texts(record, "", "learning_path", LEARNING_PATH)
    if not steps:
        raise Invalid(f"learning_path is empty (expected {LEARNING_PATH})")
    return {
        "goal": _text(record, "", "goal", LEARNING_PATH),
        "current_level": _choice(record, "", "current_level", Level.values, LEARNING_PATH),
        "time_available": _number(record, "", "time_available", 0, MINUTES, LEARNING_PATH),
        "learning_path": steps,
    }


def _query(record: Record) -> Record:
    _only(record, "", ("query", "intent", "subject", "level"), QUERY)
    return {
        "query": _text(record, "", "query", QUERY),
        "intent": _choice(record, "", "intent", Intent.values, QUERY),
        "subject": _known(record, "subject", Subject.values, QUERY),
        "level": _known(record, "level", Level.values, QUERY),
    }


MESSAGE = '{"role": "user" | "assistant" | "system", "content": "..."}'
CHAT = f'{{"messages": [{MESSAGE}, ...]}}'
THUMB = f'{{"messages": [{MESSAGE}, ...], "liked": true | false}}'
PREFERENCE = f'{{"messages": [{MESSAGE}, ...], "chosen": "...", "rejected": "..."}}'
OPENAI_PREFERENCE = (
    '{"input": {"messages": [...]}, "preferred_output": [{"role": "assistant", "content": "..."}], '
    '"non_preferred_output": [{"role": "assistant", "content": "..."}]}'
)
ITEM = '{..., "answer": "...", "hint": true | false, "level": "..."}'
INSTRUCTION = '{"instruction": "...", "input": "...", "output": "..."}'
ENGAGEMENT = (
    '{"content": {"type": "...", "subject": "...", "duration": seconds, "tags": ["...", ...]}, '
    '"user_profile": {"interests": ["...", ...], "level": "..."}, "expected_engagement": 0 to 1}'
)
LEARNING_PATH = '{"goal": "...", "current_level": "...", "time_available": minutes, "learning_path": ["...", ...]}'
QUERY = '{"query": "...", "intent": "...", "subject": "..." | "", "level": "..." | ""}'

# Each format with the fields by which it is told from those below, and what reads it.
READERS: tuple[tuple[Format, tuple[str, ...], Callable[[Record], Record]], ...] = (
    (Format.THUMB, ("liked",), _thumb),
    (Format.PREFERENCE, ("chosen", "rejected"), _preference),
    (Format.PREFERENCE, ("preferred_output", "non_preferred_output"), _openai_preference),
    (Format.CHAT, ("messages",), _chat),
    (Format.INSTRUCTION, ("instruction", "output"), _instruction),
    (Format.ENGAGEMENT, ("user_profile", "expected_engagement"), _engagement),
    (Format.LEARNING_PATH, ("goal", "learning_path"), _learning_path),
    (Format.QUERY, ("query", "intent"), _query),
)


def _messages(record: Record, path: str, expected: str, ends_with: str, has_question: bool = True) -> list[Record]:
    owner, _, name = path.rpartition(".")
    messages = _field(record, owner, name, (list,), expected)
    for index, message in enumerate(messages):
        place = f"{path}[{index}]"
        if not isinstance(message, dict):
            raise Invalid(f"{place} is {_kind(message)}, not an object (expected {MESSAGE})")
        _choice(message, place, "role", ROLES, MESSAGE)
        _text(message, place, "content", MESSAGE)
        _only(message, place, ("role", "content", "weight"), MESSAGE)
        if message.get("weight", 1) not in (0, 1) or (message["role"] != "assistant" and "weight" in message):
            raise Invalid(f"{place}.weight must be 0 or 1, and only an assistant's message has it")
    if not messages:
        raise Invalid(f"{path} is empty (expected {expected})")
    if messages[-1]["role"] != ends_with:
        raise Invalid(f'{path}[{len(messages) - 1}].role is "{messages[-1]["role"]}": the last must be "{ends_with}"')
    if has_question and not any(message["role"] == "user" for message in messages):
        raise Invalid(f'{path} has no message of the role "user": there is no question')
    return list(messages)


def _only(record: Record, where: str, known: tuple[str, ...], expected: str) -> None:
    for name in record:
        if name not in known:
            raise Invalid(f'{where or "it"} has an unknown field "{name[:50]}" (expected {expected})')


def _field(record: Record, where: str, name: str, types: tuple[type, ...], expected: str) -> Any:
    if name not in record:
        raise Invalid(f'{where or "it"} has no "{name}" (expected {expected})')
    value = record[name]
    if type(value) not in types:
        raise Invalid(f"{_join(where, name)} is {_kind(value)}, not {KINDS[types[0]]} (expected {expected})")
    return value


def _text(record: Record, where: str, name: str, expected: str) -> str:
    value: str = _field(record, where, name, (str,), expected)
    if not value.strip():
        raise Invalid(f"{_join(where, name)} is empty (expected {expected})")
    return value


def _texts(record: Record, where: str, name: str, expected: str) -> list[str]:
    values: list[str] = _field(record, where, name, (list,), expected)
    return [_text({f"{name}[{i}]": value}, where, f"{name}[{i}]", expected) for i, value in enumerate(values)]


def _choice(record: Record, where: str, name: str, choices: tuple[str, ...] | list[str], expected: str) -> str:
    value = _text(record, where, name, expected)
    if value not in choices:
        raise Invalid(f'{_join(where, name)} is "{value[:50]}", not one of {", ".join(choices)}')
    return value


def _known(record: Record, name: str, choices: list[str], expected: str) -> str:
    """One of the choices, or empty where none is known."""
    return _choice(record, "", name, choices, expected) if _field(record, "", name, (str,), expected) else ""


def _number(record: Record, where: str, name: str, low: int, high: int, expected: str) -> float:
    value: float = _field(record, where, name, (float, int), expected)
    if not low <= value <= high:
        raise Invalid(f"{_join(where, name)} is not from {low} to {high}")
    return value


KINDS: dict[type, str] = {
    str: "a string",
    float: "a number",
    int: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def _kind(value: Any) -> str:
    return KINDS.get(type(value), "null")


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


# --- what is learnt ---


def training_form(format_: str, record: Record, method: str) -> Record | None:
    """What a trainer takes of an example; None where the method cannot learn from it.

    supervised: `{"messages"}`, of which the assistant's turns are learnt but for those of weight 0;
    dpo: `{"messages", "chosen", "rejected"}`; kto: `{"messages", "liked"}`, of which the last turn is learnt.
    """
    if format_ not in FORMATS[Method(method)]:
        return None
    if method != Method.SUPERVISED:
        return record
    match Format(format_):
        case Format.THUMB if not record["liked"]:
            return None
        case Format.THUMB:
            *context, answer = record["messages"]
            return {"messages": [*_unlearnt(context), answer]}
        case Format.PREFERENCE:
            return {"messages": [*_unlearnt(record["messages"]), _message("assistant", record["chosen"])]}
        case Format.CHAT:
            return {"messages": record["messages"]}
        case _:
            parts = parts_of(format_, record)
            return {"messages": [_message("user", parts.question), _message("assistant", parts.answer)]}


def evaluation_form(format_: str, record: Record, marks: Marks | None = None) -> Record | None:
    """What an evaluation takes: the conversation with the reference reply, and what judges another; None if there is
    no such reply."""
    form = training_form(format_, record, Method.SUPERVISED)
    if form is None:
        return None
    own: Record = {name: record[name] for name in ("expected_engagement", "learning_path", "intent") if name in record}
    return {**form, **own, **(marks.given if marks else {})}


class Parts(NamedTuple):
    """An example as texts. The problem of a conversation is its first question; its last one is what is answered."""

    problem: str
    question: str
    answer: str


def parts_of(format_: str, record: Record) -> Parts:
    match Format(format_):
        case Format.INSTRUCTION:
            question = "\n\n".join(filter(None, (record["instruction"], record["input"])))
            return Parts(question, question, record["output"])
        case Format.ENGAGEMENT:
            question = engagement_question(record["content"], record["user_profile"])
            return Parts(question, question, f"{record['expected_engagement']:.2f}")
        case Format.LEARNING_PATH:
            question = learning_path_question(record["goal"], record["current_level"], record["time_available"])
            return Parts(question, question, "\n".join(record["learning_path"]))
        case Format.QUERY:
            answer = QUERY_JOINT.join((record["intent"], record["subject"] or ANY, record["level"] or ANY))
            return Parts(record["query"], query_question(record["query"]), answer)
        case Format.PREFERENCE:
            asked = questions_of(record)
            return Parts(asked[0], asked[-1], f"{record['chosen']}\n\n{record['rejected']}")
    asked = questions_of(record)
    return Parts(asked[0], asked[-1], record["messages"][-1]["content"])


def questions_of(record: Record) -> list[str]:
    """What the learner said in a record that has messages."""
    return [message["content"] for message in record["messages"] if message["role"] == "user"]


def engagement_question(content: Record, user_profile: Record) -> str:
    return (
        "How likely is this learner to engage with this content? Answer with a number from 0 to 1.\n"
        f"Content: {content['type']}, subject {content['subject']}, {content['duration']:g} seconds, "
        f"tags: {', '.join(content['tags']) or 'none'}.\n"
        f"Learner: {user_profile['level']}, interests: {', '.join(user_profile['interests']) or 'none'}."
    )


def learning_path_question(goal: str, current_level: str, time_available: float) -> str:
    return (
        "Make a learning path, one step on each line.\n"
        f"Goal: {goal}\nPresent level: {current_level}\nTime available: {time_available:g} minutes a day"
    )


ANY, QUERY_JOINT = "any", ", "
QUERY_CHOICES = ((*Intent.values,), (*Subject.values, ANY), (*Level.values, ANY))  # of an answer's three parts


def query_question(query: str) -> str:
    return (
        "What does a learner want who searches for this? Answer with an intent, a subject or any, a level or any.\n"
        f"Search: {query}"
    )


def _unlearnt(messages: list[Record]) -> list[Record]:
    return [{**message, "weight": 0} if message["role"] == "assistant" else message for message in messages]


def _message(role: str, content: str) -> Record:
    return {"role": role, "content": content}
