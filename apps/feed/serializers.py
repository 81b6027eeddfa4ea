from typing import Any

from rest_framework import serializers
from rest_framework.exceptions import ValidationError

from apps.common.constants import Level, Subject
from apps.common.serializers import FiniteField, StrictSerializer
from apps.content.models import DAY_S, Item
from apps.feed.entries import PARTS
from apps.feed.models import Event

EVENTS = 500  # of one call
PAGE, LARGEST_PAGE = 20, 100


class EventSerializer(StrictSerializer):
    item = serializers.UUIDField()
    type = serializers.ChoiceField(choices=Event.Type.choices)
    position = serializers.IntegerField(
        required=False, min_value=0, max_value=10_000, help_text="Where it was shown; 0 is the first."
    )
    seconds = FiniteField(
        required=False, min_value=0, max_value=DAY_S, help_text="How long the learner stayed; of a dwell."
    )
    client_id = serializers.CharField(
        required=False, max_length=100, help_text="Your name for the event: sent again, it is not kept again."
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if attrs["type"] == Event.Type.DWELL and "seconds" not in attrs:
            raise ValidationError({"seconds": ["A dwell has seconds."]})
        return attrs


class EventsSerializer(StrictSerializer):
    """All or none of them is kept."""

    events = serializers.ListField(child=EventSerializer(), min_length=1, max_length=EVENTS)

    def validate_events(self, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        known = Item.objects.only("id").in_bulk({event["item"] for event in events})
        unknown = {
            index: {"item": [f"There is no item {event['item']}."]}
            for index, event in enumerate(events)
            if event["item"] not in known
        }
        if unknown:
            raise ValidationError(unknown)  # type: ignore[arg-type]  # by index, as the list's own errors are
        return [event | {"item": known[event["item"]]} for event in events]


class AcceptedSerializer(serializers.Serializer[Any]):
    accepted = serializers.IntegerField(help_text="How many are new.")


class FeedQuerySerializer(serializers.Serializer[Any]):
    profile = serializers.ChoiceField(
        choices=["on", "off"], default="on", help_text="off: the same for everyone, without any personal data."
    )
    educational_share = FiniteField(
        required=False, min_value=0, max_value=1, help_text="Of what is shown; without it the one of your preferences."
    )
    subject = serializers.ChoiceField(choices=Subject.choices, required=False)
    kind = serializers.ChoiceField(choices=Item.Kind.choices, required=False)
    level = serializers.ChoiceField(choices=Level.choices, required=False)
    language = serializers.CharField(required=False, max_length=35)
    page_size = serializers.IntegerField(default=PAGE, min_value=1, max_value=LARGEST_PAGE)
    cursor = serializers.RegexField(r"^\d{1,9}\.\d{1,9}\Z", required=False, help_text="From `next`.")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        names = {"subject": "subject", "kind": "kind", "level": "level_known", "language": "language"}
        number, start = map(int, attrs["cursor"].split(".")) if "cursor" in attrs else (None, 0)
        return {
            "profiled": attrs["profile"] == "on",
            "share": attrs.get("educational_share"),
            "filters": {field: attrs[name] for name, field in names.items() if name in attrs},
            "size": attrs["page_size"],
            "number": number,
            "start": start,
        }


class CardSerializer(serializers.Serializer[Any]):
    """An item without its body, which `GET /content/items/{id}` has. Documents `content.selectors.item_card`."""

    id = serializers.UUIDField()
    title = serializers.CharField()
    kind = serializers.ChoiceField(choices=Item.Kind.choices)
    subject = serializers.ChoiceField(choices=Subject.choices)
    topics = serializers.ListField(child=serializers.CharField(), help_text="Slugs.")
    level = serializers.ChoiceField(choices=Level.choices, allow_null=True)
    language = serializers.CharField()
    duration = serializers.IntegerField(allow_null=True, help_text="Seconds that it takes.")
    tags = serializers.ListField(child=serializers.CharField())
    author = serializers.CharField(allow_blank=True)
    educational = serializers.FloatField(allow_null=True, help_text="How probable it is that it teaches.")
    quality = serializers.FloatField(allow_null=True, help_text="0 to 1.")
    created_at = serializers.DateTimeField()


class FeedReasonSerializer(serializers.Serializer[Any]):
    code = serializers.CharField()
    text = serializers.CharField(help_text="For the learner to read.")


class FeedEntrySerializer(serializers.Serializer[Any]):
    item = CardSerializer()
    reasons = FeedReasonSerializer(many=True)


class FeedSerializer(serializers.Serializer[Any]):
    next = serializers.CharField(allow_null=True)
    results = FeedEntrySerializer(many=True)


class PartSerializer(serializers.Serializer[Any]):
    name = serializers.ChoiceField(choices=PARTS)
    value = serializers.FloatField(help_text="0 to 1.")
    weight = serializers.FloatField()
    contribution = serializers.FloatField(help_text="value times weight.")


class WhySerializer(serializers.Serializer[Any]):
    item = serializers.UUIDField()
    score = serializers.FloatField(help_text="The sum of the contributions, before subjects and authors are mixed.")
    propensity = serializers.FloatField(help_text="Less than 1: it was drawn from so many, to be tried.")
    parts = PartSerializer(many=True)
    reasons = FeedReasonSerializer(many=True)


class PreferencesSerializer(StrictSerializer):
    educational_share = FiniteField(min_value=0, max_value=1)


class FollowSerializer(StrictSerializer):
    author = serializers.CharField(max_length=200)


class FollowListSerializer(serializers.Serializer[Any]):
    authors = serializers.ListField(child=serializers.CharField())
