from typing import Any

from rest_framework import serializers

from apps.common.constants import Level, Subject
from apps.common.serializers import StrictSerializer, TextField
from apps.content.models import BODY, DAY_S, LESSONS, UNITS, Course, Item, Status, Topic, slug_validator
from apps.users.models import language_validator


class TopicSerializer(serializers.ModelSerializer[Topic]):
    parent = serializers.CharField(source="parent.slug", read_only=True, allow_null=True, default=None)  # type: ignore[assignment]  # it hides the serializer's own
    prerequisites = serializers.SlugRelatedField(slug_field="slug", read_only=True, many=True)  # type: ignore[var-annotated]

    class Meta:
        model = Topic
        fields = ("slug", "name", "subject", "parent", "prerequisites", "position")
        read_only_fields = fields


class TopicQuerySerializer(serializers.Serializer[Any]):
    subject = serializers.ChoiceField(choices=Subject.choices, required=False)
    parent = serializers.CharField(  # type: ignore[assignment]  # as above
        required=False, source="parent__slug", help_text="A topic's slug."
    )


class ItemSummarySerializer(serializers.ModelSerializer[Item]):
    """An item in a list: without its body."""

    topics = serializers.SlugRelatedField(slug_field="slug", read_only=True, many=True)  # type: ignore[var-annotated]
    source_url = serializers.CharField(read_only=True, help_text="Empty: none.")
    level = serializers.SerializerMethodField(help_text="As its author has it, or as estimated; null: not known yet.")
    educational = serializers.SerializerMethodField(
        help_text="The probability that it teaches, rather than entertains."
    )
    quality = serializers.SerializerMethodField(help_text="0 to 1.")
    enriched_at = serializers.SerializerMethodField(help_text="When it was estimated; null: not yet.")

    class Meta:
        model = Item
        fields: tuple[str, ...] = (
            "id",
            "title",
            "kind",
            "subject",
            "topics",
            "level",
            "language",
            "duration",
            "tags",
            "author",
            "licence",
            "source_url",
            "status",
            "educational",
            "quality",
            "enriched_at",
            "created_at",
            "updated_at",
        )
        read_only_fields = fields

    def get_level(self, item: Item) -> str | None:
        return item.level or _of_enrichment(item, "level")

    def get_educational(self, item: Item) -> float | None:
        return _of_enrichment(item, "educational")

    def get_quality(self, item: Item) -> float | None:
        return _of_enrichment(item, "quality")

    def get_enriched_at(self, item: Item) -> str | None:
        return _of_enrichment(item, "enriched_at")


class ItemSerializer(ItemSummarySerializer):
    class Meta(ItemSummarySerializer.Meta):
        fields = (*ItemSummarySerializer.Meta.fields, "body")
        read_only_fields = fields


def _of_enrichment(item: Item, name: str) -> Any:
    return getattr(item.enrichment, name) if hasattr(item, "enrichment") else None


class ItemQuerySerializer(serializers.Serializer[Any]):
    subject = serializers.ChoiceField(choices=Subject.choices, required=False)
    kind = serializers.ChoiceField(choices=Item.Kind.choices, required=False)
    level = serializers.ChoiceField(choices=Level.choices, required=False, source="level_known")
    topic = serializers.CharField(required=False, source="topics__slug", help_text="A topic's slug.")
    language = serializers.CharField(required=False)
    tag = serializers.CharField(required=False)
    status = serializers.ChoiceField(
        choices=Status.choices, required=False, help_text="Others than published: those that you may change."
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if "tag" in attrs:
            attrs["tags__contains"] = [attrs.pop("tag")]
        return attrs


class TopicsField(serializers.ListField):
    """Slugs, in; topics, out."""

    child = serializers.CharField(max_length=80)

    def to_internal_value(self, data: Any) -> list[Topic]:
        slugs = super().to_internal_value(data)
        found = Topic.objects.in_bulk(slugs, field_name="slug")
        if unknown := [slug for slug in slugs if slug not in found]:
            raise serializers.ValidationError(f"There is no topic {unknown[0]!r}.", code="does_not_exist")
        return [found[slug] for slug in dict.fromkeys(slugs)]


class ItemWriteSerializer(StrictSerializer):
    """An item as it is made, or, with `partial`, changed."""

    title = TextField(max_length=200)
    body = TextField(max_length=BODY, default="", allow_blank=True, help_text="HTML; it is sanitised.")
    kind = serializers.ChoiceField(choices=Item.Kind.choices, default=Item.Kind.ARTICLE)
    subject = serializers.ChoiceField(choices=Subject.choices, default=Subject.GENERAL)
    topics = TopicsField(default=list, max_length=20, help_text="Slugs.")
    level = serializers.ChoiceField(
        choices=Level.choices, default="", allow_blank=True, help_text="Empty: to be estimated."
    )
    language = serializers.CharField(default="en", max_length=35, validators=[language_validator])
    duration = serializers.IntegerField(
        min_value=1, max_value=DAY_S, default=None, allow_null=True, help_text="Seconds that it takes."
    )
    tags = serializers.ListField(child=serializers.CharField(max_length=50), max_length=20, default=list)
    author = serializers.CharField(max_length=200, default="", allow_blank=True)
    licence = serializers.CharField(max_length=200, default="", allow_blank=True)
    source_url = serializers.URLField(max_length=1000, default="", allow_blank=True)
    status = serializers.ChoiceField(choices=Status.choices, default=Status.PUBLISHED)


class CatalogueItemSerializer(ItemWriteSerializer):
    """A line of a catalogue: an item, and the name by which a later import knows it again."""

    key = serializers.CharField(max_length=200)


class CatalogueTopicSerializer(StrictSerializer):
    """A line of a catalogue that is a topic. What it names comes before it."""

    slug = serializers.CharField(max_length=80, validators=[slug_validator])
    name = serializers.CharField(max_length=120)
    subject = serializers.ChoiceField(choices=Subject.choices)
    parent = serializers.SlugRelatedField(  # type: ignore[assignment]  # as above
        slug_field="slug", queryset=Topic.objects.all(), default=None, allow_null=True
    )
    prerequisites = TopicsField(default=list, max_length=50)
    position = serializers.IntegerField(min_value=0, max_value=100_000, default=0)


class LessonSerializer(serializers.ModelSerializer[Item]):
    class Meta:
        model = Item
        fields = ("id", "title", "kind", "subject", "duration", "status")
        read_only_fields = fields


class CourseSerializer(serializers.ModelSerializer[Course]):
    class Meta:
        model = Course
        fields: tuple[str, ...] = (
            "id",
            "title",
            "description",
            "subject",
            "level",
            "language",
            "status",
            "created_at",
            "updated_at",
        )
        read_only_fields = fields


class UnitSerializer(serializers.Serializer[Any]):
    title = serializers.CharField()
    lessons = LessonSerializer(many=True)


class CourseDetailSerializer(CourseSerializer):
    units = serializers.SerializerMethodField()

    class Meta(CourseSerializer.Meta):
        fields = (*CourseSerializer.Meta.fields, "units")
        read_only_fields = fields

    def get_units(self, course: Course) -> list[dict[str, Any]]:
        return [
            {
                "title": unit.title,
                "lessons": LessonSerializer(
                    [place.item for place in unit.places.all() if place.item.status == Status.PUBLISHED], many=True
                ).data,
            }
            for unit in course.units.all()
        ]


class LessonsField(serializers.ListField):
    """Ids, in; items, out."""

    child = serializers.UUIDField()
    name = "id"

    def to_internal_value(self, data: Any) -> list[Item]:
        named = super().to_internal_value(data)
        items = Item.objects.exclude(status=Status.ARCHIVED).only("id", "key")
        found = items.in_bulk(named, field_name=self.name)
        if unknown := [one for one in named if one not in found]:
            raise serializers.ValidationError(f"There is no item {unknown[0]}.", code="does_not_exist")
        if len(found) < len(named):
            raise serializers.ValidationError("An item is named twice.", code="unique")
        return [found[one] for one in named]


class UnitWriteSerializer(StrictSerializer):
    title = serializers.CharField(max_length=200)
    lessons = LessonsField(default=list, max_length=LESSONS, help_text="Ids of items, in order.")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """A unit is whole, also where only a part of its course is given: then REST framework asks for no field."""
        if "title" not in attrs:
            raise serializers.ValidationError({"title": [self.fields["title"].error_messages["required"]]})
        return {"lessons": [], **attrs}


class CourseWriteSerializer(StrictSerializer):
    title = serializers.CharField(max_length=200)
    description = serializers.CharField(max_length=5000, default="", allow_blank=True)
    subject = serializers.ChoiceField(choices=Subject.choices, default=Subject.GENERAL)
    level = serializers.ChoiceField(choices=Level.choices, default=Level.BEGINNER)
    language = serializers.CharField(default="en", max_length=35, validators=[language_validator])
    status = serializers.ChoiceField(choices=Status.choices, default=Status.PUBLISHED)
    units = serializers.ListField(child=UnitWriteSerializer(), default=list, max_length=UNITS)


class KeysField(LessonsField):
    """Items by their keys."""

    child = serializers.CharField(max_length=200)  # type: ignore[assignment]
    name = "key"


class CatalogueUnitSerializer(UnitWriteSerializer):
    lessons = KeysField(default=list, max_length=LESSONS)


class CatalogueCourseSerializer(CourseWriteSerializer):
    """A line of a catalogue that is a course."""

    key = serializers.CharField(max_length=200)
    units = serializers.ListField(child=CatalogueUnitSerializer(), default=list, max_length=UNITS)


class CourseQuerySerializer(serializers.Serializer[Any]):
    subject = serializers.ChoiceField(choices=Subject.choices, required=False)
    level = serializers.ChoiceField(choices=Level.choices, required=False)
    language = serializers.CharField(required=False)
    status = serializers.ChoiceField(choices=Status.choices, required=False)
