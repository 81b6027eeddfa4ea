from typing import Any

from rest_framework import serializers

from apps.common.constants import Level, Subject
from apps.common.serializers import TextField
from apps.content.models import Item

LONGEST = 1000  # characters of a query
PAGE, LARGEST_PAGE = 20, 50


class SearchQuerySerializer(serializers.Serializer[Any]):
    q = TextField(max_length=LONGEST, help_text="What is searched for, in any words.")
    subject = serializers.ChoiceField(choices=Subject.choices, required=False)
    kind = serializers.ChoiceField(choices=Item.Kind.choices, required=False)
    level = serializers.ChoiceField(choices=Level.choices, required=False)
    language = serializers.CharField(required=False, max_length=35)
    page_size = serializers.IntegerField(default=PAGE, min_value=1, max_value=LARGEST_PAGE)
    cursor = serializers.IntegerField(default=0, min_value=0, max_value=10_000, help_text="From `next`.")


class SuggestQuerySerializer(serializers.Serializer[Any]):
    q = TextField(max_length=100, help_text="What has been typed so far.")


class UnderstoodSerializer(serializers.Serializer[Any]):
    text = serializers.CharField(help_text="As it was searched for: mended, where nobody wrote such a word.")
    corrected = serializers.BooleanField(help_text="Whether it was mended.")
    intent = serializers.CharField(
        allow_null=True, help_text="explain, practise, find_course, compare, define or off_topic; null: not known."
    )
    subject = serializers.CharField(allow_null=True, help_text="null: none, or not known.")
    level = serializers.CharField(allow_null=True, help_text="null: none, or not known.")
    adapter = serializers.CharField(allow_null=True, help_text="Of Gemma, where it understood; null: the head did.")
    degraded = serializers.BooleanField(help_text="No worker answered in time: only words were looked for.")


class HitSerializer(serializers.Serializer[Any]):
    id = serializers.UUIDField()
    title = serializers.CharField()
    kind = serializers.ChoiceField(choices=Item.Kind.choices)
    subject = serializers.ChoiceField(choices=Subject.choices)
    topics = serializers.ListField(child=serializers.CharField())
    level = serializers.CharField(allow_null=True)
    language = serializers.CharField()
    duration = serializers.IntegerField(allow_null=True)
    tags = serializers.ListField(child=serializers.CharField())
    author = serializers.CharField(allow_blank=True)
    educational = serializers.FloatField(allow_null=True)
    quality = serializers.FloatField(allow_null=True)
    created_at = serializers.DateTimeField()
    snippet = serializers.CharField(allow_blank=True, help_text="HTML; what was found is in <mark>.")
    score = serializers.FloatField()


class FacetsSerializer(serializers.Serializer[Any]):
    subject = serializers.DictField(child=serializers.IntegerField())
    kind = serializers.DictField(child=serializers.IntegerField())
    level = serializers.DictField(child=serializers.IntegerField())


class SearchSerializer(serializers.Serializer[Any]):
    query = UnderstoodSerializer()
    results = HitSerializer(many=True)
    facets = FacetsSerializer()
    next = serializers.CharField(allow_null=True)


class SuggestionsSerializer(serializers.Serializer[Any]):
    suggestions = serializers.ListField(child=serializers.CharField())
