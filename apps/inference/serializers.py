"""The form of requests and, for the schema, of answers. Validation is strict about types and lenient about extras."""

import json
from collections.abc import Mapping
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail, ValidationError

from apps.common.serializers import TextField
from apps.common.tokens import too_long
from apps.inference.json_schemas import schema_fault
from lyo import env

MAX_MESSAGES = 2048
MAX_TEXTS = 256
MAX_LOGPROBS = 20_000  # of all tokens of all choices, with their alternatives
MAX_TEXT_LENGTH = 32_000
MAX_SCHEMA_LENGTH = 20_000
DIMENSIONS = 384
TOO_MANY = "Ensure this field has no more than {max_length} elements; it has %(show_value)d."

# Parameters that a job's sampling takes as they are.
SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
)

# Parameters that would change the answer and that we do not have, each with the values that ask for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "web_search_options": (),
}


class OpenAISerializer(serializers.Serializer[Any]):
    """Ignores fields that it does not know and reads null as "not given": OpenAI's clients send both.

    `apps.common.schema` documents that null.
    """

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, Mapping):
            data = {name: value for name, value in data.items() if value is not None}
        return super().to_internal_value(data)


class ExactField(serializers.Field[Any, Any, Any, Any]):
    """Takes JSON's own type alone: "5" is not a number, and 1 is not true."""

    json_types: tuple[type, ...]

    def to_internal_value(self, data: Any) -> Any:
        if type(data) not in self.json_types:
            self.fail("invalid")
        return super().to_internal_value(data)


class StringField(ExactField, TextField):
    json_types = (str,)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"trim_whitespace": False, **kwargs})


class IntegerField(ExactField, serializers.IntegerField):
    """Takes 5.0 too, which in JSON is 5."""

    json_types = (int,)

    def to_internal_value(self, data: Any) -> Any:
        return super().to_internal_value(int(data) if isinstance(data, float) and data.is_integer() else data)


class AnswerLengthField(IntegerField):
    """Takes the tokens of an answer, of which the context bounds how many there can be."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(min_value=1, max_value=env.CONTEXT_TOKENS, required=False, **kwargs)

    def run_validators(self, value: int) -> None:
        if value > env.CONTEXT_TOKENS:
            raise ValidationError([too_long(f"an answer of {value} is asked for.")])
        super().run_validators(value)


class NumberField(ExactField, serializers.FloatField):
    json_types = (int, float)


class BooleanField(ExactField, serializers.BooleanField):
    json_types = (bool,)


class StringsField(serializers.ListField):
    """A list of strings; one string stands for a list of it."""

    default_error_messages = {"max_length": TOO_MANY}

    def to_internal_value(self, data: Any) -> list[str]:
        return [self.child.run_validation(data)] if isinstance(data, str) else super().to_internal_value(data)


TEXT_PART = {
    "type": "object",
    "properties": {"type": {"type": "string", "enum": ["text"]}, "text": {"type": "string"}},
    "required": ["type", "text"],
}


@extend_schema_field({"oneOf": [{"type": "string"}, {"type": "array", "items": TEXT_PART}]})
class ContentField(serializers.Field[str, Any, Any, Any]):
    """Text, or parts of it, which are joined."""

    default_error_messages = {
        "invalid": "Must be a string or a list of parts.",
        "unsupported_part": 'Part {index} is not {{"type": "text", "text": "..."}}; only text is supported.',
    }

    def to_internal_value(self, data: Any) -> str:
        if isinstance(data, str):
            return data
        if not isinstance(data, list):
            self.fail("invalid")
        for index, part in enumerate(data):
            match part:
                case {"type": "text", "text": str()}:
                    continue
            self.fail("unsupported_part", index=index)
        return "".join(part["text"] for part in data)


@extend_schema_field({"type": "object"})
class SchemaField(serializers.Field[str, Any, Any, Any]):
    """A JSON schema that the worker can follow, as compact text."""

    default_error_messages = {
        "invalid": "Must be a JSON schema, which is an object.",
        "max_length": f"Must be no longer than {MAX_SCHEMA_LENGTH} characters without spaces; it has {{length}}.",
        "unsupported_schema": "{fault}",
    }

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, dict):
            self.fail("invalid")
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        if len(text) > MAX_SCHEMA_LENGTH:
            self.fail("max_length", length=len(text))
        request = self.context.get("request")
        if fault := schema_fault(data, text, user_id=request.user.pk if request else None):
            self.fail("unsupported_schema", fault=fault)
        return text


# --- chat ---


class ChatMessageSerializer(OpenAISerializer):
    """One turn of the conversation."""

    role = serializers.ChoiceField(choices=["system", "developer", "user", "assistant"])
    content = ContentField()

    def validate_role(self, role: str) -> str:
        return "system" if role == "developer" else role


class StreamOptionsSerializer(OpenAISerializer):
    """Have no effect without `stream`."""

    include_usage = BooleanField(default=False, help_text="A last chunk tells the usage.")


class JsonSchemaSerializer(OpenAISerializer):
    """`strict` changes nothing: the answer always follows the schema."""

    name = StringField(max_length=64)
    description = StringField(required=False, allow_blank=True)
    schema = SchemaField()
    strict = BooleanField(required=False)


class ResponseFormatSerializer(OpenAISerializer):
    """JSON is compact. It is cut off where the answer reaches its greatest length."""

    type = serializers.ChoiceField(choices=["text", "json_object", "json_schema"])
    json_schema = JsonSchemaSerializer(required=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """The schema of it, if any."""
        match attrs:
            case {"type": "json_schema", "json_schema": {"schema": schema}}:
                return {"schema": schema}
            case {"type": "json_schema"}:
                raise ValidationError({"json_schema": [ErrorDetail("This field is required.", code="required")]})
            case {"type": "json_object"}:
                return {"schema": '{"type":"object"}'}
        return {}


class ChatCompletionCreateSerializer(OpenAISerializer):
    """Parameters of OpenAI's that are not listed are ignored where they cannot change the answer, else refused."""

    model = StringField()
    messages = serializers.ListField(
        child=ChatMessageSerializer(), min_length=1, max_length=MAX_MESSAGES, error_messages={"max_length": TOO_MANY}
    )
    max_completion_tokens = AnswerLengthField(
        help_text=f"Default {env.DEFAULT_MAX_TOKENS}, or what the context has room for."
    )
    max_tokens = AnswerLengthField(help_text="Older name of max_completion_tokens.")
    temperature = NumberField(min_value=0, max_value=2, default=1.0, help_text="0 takes the likeliest token.")
    top_p = NumberField(min_value=0, max_value=1, default=1.0)
    presence_penalty = NumberField(min_value=-2, max_value=2, default=0.0)
    frequency_penalty = NumberField(min_value=-2, max_value=2, default=0.0)
    top_k = IntegerField(min_value=0, max_value=2**31 - 1, default=0, help_text="0 keeps all tokens. Not OpenAI's.")
    min_p = NumberField(
        min_value=0, max_value=1, default=0.0, help_text="As a share of the likeliest token's. Not OpenAI's."
    )
    repetition_penalty = NumberField(
        min_value=0.1, max_value=10, default=1.0, help_text="1 changes nothing. Not OpenAI's."
    )
    response_format = ResponseFormatSerializer(default=dict)
    stop = StringsField(child=StringField(max_length=256), max_length=4, default=list, help_text="Up to four.")
    seed = IntegerField(
        min_value=-(2**63), max_value=2**63 - 1, default=None, help_text="The same seed gives the same answer."
    )
    n = IntegerField(
        min_value=1, max_value=env.GENERATIONS_AT_ONCE, default=1, help_text="Choices, each of its own seed."
    )
    logprobs = BooleanField(default=False)
    top_logprobs = IntegerField(min_value=0, max_value=20, default=0)
    stream = BooleanField(default=False)
    stream_options = StreamOptionsSerializer(default=dict)
    user = StringField(required=False, allow_blank=True, help_text="Ignored: the token tells who asks.")

    def to_internal_value(self, data: Any) -> Any:
        value = super().to_internal_value(data)
        refused = {
            name: [ErrorDetail("This parameter is not supported.", code="unsupported_parameter")]
            for name, harmless in UNSUPPORTED.items()
            if data.get(name) is not None and data[name] not in harmless
        }
        if refused:
            raise ValidationError(refused)
        return value

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """In the terms of `chat_create`."""
        if attrs["top_logprobs"] and not attrs["logprobs"]:
            raise ValidationError({"top_logprobs": ["Needs logprobs to be true."]})
        tokens = attrs["n"] * (attrs.get("max_completion_tokens") or attrs.get("max_tokens") or env.DEFAULT_MAX_TOKENS)
        if attrs["logprobs"] and (probabilities := tokens * (1 + attrs["top_logprobs"])) > MAX_LOGPROBS:
            problem = (
                f"These are up to {probabilities} log-probabilities, of at most {MAX_LOGPROBS}: ask for fewer tokens."
            )
            raise ValidationError({"top_logprobs": [problem]})
        sampling = {
            "max_tokens": attrs.get("max_completion_tokens") or attrs.get("max_tokens"),
            **{name: attrs[name] for name in SAMPLING},
            "logprobs": attrs["top_logprobs"] if attrs["logprobs"] else None,
            "json_schema": attrs["response_format"].get("schema"),
        }
        return {
            "model": attrs["model"],
            "messages": attrs["messages"],
            "sampling": sampling,
            "n": attrs["n"],
            "stream": attrs["stream"],
            "include_usage": attrs["stream_options"].get("include_usage", False),
        }


# --- embeddings ---


class EmbeddingCreateSerializer(OpenAISerializer):
    """Texts to turn into vectors."""

    model = StringField()
    input = StringsField(
        child=StringField(
            max_length=MAX_TEXT_LENGTH, error_messages={"invalid": "Must be a string; tokens are not supported."}
        ),
        allow_empty=False,
        max_length=MAX_TEXTS,
        help_text=f"One text or up to {MAX_TEXTS}. Of each, the first 256 tokens count.",
    )
    encoding_format = serializers.ChoiceField(choices=["float", "base64"], default="float")
    dimensions = IntegerField(min_value=DIMENSIONS, max_value=DIMENSIONS, required=False)
    user = StringField(required=False, allow_blank=True, help_text="Ignored: the token tells who asks.")


# --- answers, for the schema ---


class ModelSerializer(serializers.Serializer[Any]):
    id = serializers.CharField()
    object = serializers.CharField(help_text='"model".')
    created = serializers.IntegerField(help_text="When it was registered here, in Unix time.")
    owned_by = serializers.CharField()
    max_model_len = serializers.IntegerField(help_text="Tokens that a prompt and its answer may have together.")


class ModelListSerializer(serializers.Serializer[Any]):
    object = serializers.CharField(help_text='"list".')
    data = ModelSerializer(many=True)  # type: ignore[assignment] # a field, which the metaclass takes away


class TopLogprobSerializer(serializers.Serializer[Any]):
    token = serializers.CharField()
    logprob = serializers.FloatField()
    bytes = serializers.ListField(
        child=serializers.IntegerField(), help_text="Joined, those of an answer's tokens are its text."
    )


class TokenLogprobSerializer(TopLogprobSerializer):
    top_logprobs = TopLogprobSerializer(many=True)


class LogprobsSerializer(serializers.Serializer[Any]):
    content = TokenLogprobSerializer(many=True)


class AnswerSerializer(serializers.Serializer[Any]):
    role = serializers.ChoiceField(choices=["assistant"])
    content = serializers.CharField()


class ChoiceSerializer(serializers.Serializer[Any]):
    index = serializers.IntegerField()
    message = AnswerSerializer()
    logprobs = LogprobsSerializer(allow_null=True)
    finish_reason = serializers.ChoiceField(choices=["stop", "length"])


class EmbeddingUsageSerializer(serializers.Serializer[Any]):
    prompt_tokens = serializers.IntegerField()
    total_tokens = serializers.IntegerField()


class PromptTokensDetailsSerializer(serializers.Serializer[Any]):
    cached_tokens = serializers.IntegerField(help_text="Of the prompt, found in the cache instead of computed.")


class UsageSerializer(EmbeddingUsageSerializer):
    completion_tokens = serializers.IntegerField()
    prompt_tokens_details = PromptTokensDetailsSerializer()


class ChatCompletionSerializer(serializers.Serializer[Any]):
    id = serializers.CharField()
    object = serializers.CharField(help_text='"chat.completion".')
    created = serializers.IntegerField()
    model = serializers.CharField()
    system_fingerprint = serializers.CharField(allow_null=True, help_text="Of the model's weights.")
    choices = ChoiceSerializer(many=True)
    usage = UsageSerializer()


@extend_schema_field({"oneOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string", "format": "byte"}]})
class VectorField(serializers.Field[Any, Any, Any, Any]):
    pass


class EmbeddingSerializer(serializers.Serializer[Any]):
    object = serializers.CharField(help_text='"embedding".')
    index = serializers.IntegerField()
    embedding = VectorField()


class EmbeddingListSerializer(serializers.Serializer[Any]):
    object = serializers.CharField(help_text='"list".')
    data = EmbeddingSerializer(many=True)  # type: ignore[assignment]
    model = serializers.CharField()
    usage = EmbeddingUsageSerializer()
