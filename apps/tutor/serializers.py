from typing import Any

from rest_framework import serializers

from apps.common.constants import Level, Subject
from apps.common.serializers import FiniteField, JobSummarySerializer, StrictSerializer, TextField
from apps.tutor.models import Conversation, Feedback, Message
from apps.tutor.selectors import message_data
from lyo import env


class ConversationCreateSerializer(StrictSerializer):
    subject = serializers.ChoiceField(choices=Subject.choices, default=Subject.GENERAL)
    level = serializers.ChoiceField(choices=Level.choices, default=None, help_text="Your own level if not given.")


class ConversationSerializer(serializers.ModelSerializer[Conversation]):
    class Meta:
        model = Conversation
        fields = ("id", "subject", "level", "title", "created_at")
        read_only_fields = fields


class MessageAskSerializer(StrictSerializer):
    content = TextField(max_length=16_000, trim_whitespace=False)
    max_tokens = serializers.IntegerField(min_value=1, max_value=env.CONTEXT_TOKENS // 2, default=256)
    temperature = FiniteField(min_value=0, max_value=2, default=0.7)
    seed = serializers.IntegerField(min_value=0, max_value=2**63 - 1, default=None, allow_null=True)

    def validate_content(self, content: str) -> str:
        if not content.strip():
            raise serializers.ValidationError("This field may not be blank.", code="blank")
        return content


class FeedbackSerializer(StrictSerializer):
    rating = serializers.ChoiceField(choices=Feedback.Rating.choices)
    reason = serializers.CharField(max_length=1000, default="", allow_blank=True)


class MessageSerializer(serializers.Serializer[Message]):
    """Documents `message_data`, which makes it."""

    id = serializers.UUIDField()
    position = serializers.IntegerField()
    role = serializers.ChoiceField(choices=Message.Role.choices)
    content = serializers.CharField(help_text="Empty while the answer is being made.")
    finish_reason = serializers.CharField(allow_null=True, help_text="stop, length, cancelled, failed; null before.")
    model = serializers.CharField(allow_null=True)
    adapter = serializers.CharField(allow_null=True, help_text="Null is the base model.")
    job = serializers.UUIDField(allow_null=True)
    feedback = FeedbackSerializer(allow_null=True)
    created_at = serializers.DateTimeField()

    def to_representation(self, instance: Message) -> dict[str, Any]:
        return message_data(instance)


class TurnSerializer(serializers.Serializer[Any]):
    """A 202: the job, the answer's message that it will fill, and where to follow it."""

    job = JobSummarySerializer()
    message = MessageSerializer()
    events = serializers.CharField()
