from typing import Any
from uuid import UUID

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.exceptions import NotFound

from apps.common.constants import Subject, Task
from apps.common.serializers import FiniteField, StrictSerializer
from apps.training.formats import Format, Method
from apps.training.models import DataSetVersion, Example, File, Review, Split, State
from apps.training.selectors.data import PURPOSE, file_get

FILES_LISTED = 10_000


class FileCreateSerializer(serializers.Serializer[Any]):
    file = serializers.FileField(max_length=255)
    purpose = serializers.ChoiceField(choices=[PURPOSE])
    subject = serializers.ChoiceField(
        choices=Subject.choices, default="", allow_blank=True, help_text="Lyo's own. What is said last holds."
    )
    task = serializers.ChoiceField(
        choices=Task.choices, default="", allow_blank=True, help_text="Lyo's own. Empty: as the format has it."
    )


class FileListQuerySerializer(serializers.Serializer[Any]):
    limit = serializers.IntegerField(min_value=1, max_value=FILES_LISTED, default=FILES_LISTED)
    after = serializers.CharField(required=False, help_text="The id of the last file of the page before.")
    order = serializers.ChoiceField(choices=["asc", "desc"], default="desc")
    purpose = serializers.CharField(default=PURPOSE)


class FileStatisticsSerializer(serializers.Serializer[Any]):
    lines = serializers.IntegerField()
    examples = serializers.IntegerField()
    duplicates = serializers.IntegerField()
    near_duplicates = serializers.IntegerField()
    masked = serializers.IntegerField(help_text="Lines in which personal data was masked.")


class FileSerializer(serializers.Serializer[File]):
    """Documents `file_data`, which makes it."""

    id = serializers.CharField()
    object = serializers.CharField(help_text='"file".')
    bytes = serializers.IntegerField()
    created_at = serializers.IntegerField(help_text="Unix time.")
    filename = serializers.CharField()
    purpose = serializers.ChoiceField(choices=[PURPOSE])
    status = serializers.CharField(help_text='"processed": its examples are there.')
    format = serializers.ChoiceField(choices=Format.choices, help_text="Lyo's own, like all below.")
    task = serializers.ChoiceField(choices=Task.choices)
    subject = serializers.ChoiceField(choices=Subject.choices)
    digest = serializers.CharField()
    statistics = FileStatisticsSerializer()


class FileListSerializer(serializers.Serializer[Any]):
    object = serializers.CharField(help_text='"list".')
    data = FileSerializer(many=True)  # type: ignore[assignment] # a field, which the metaclass takes away
    first_id = serializers.CharField(allow_null=True)
    last_id = serializers.CharField(allow_null=True)
    has_more = serializers.BooleanField()


class FileDeletedSerializer(serializers.Serializer[Any]):
    id = serializers.CharField()
    object = serializers.CharField(help_text='"file".')
    deleted = serializers.BooleanField()


class ExampleQuerySerializer(serializers.Serializer[Any]):
    task = serializers.ChoiceField(choices=Task.choices, required=False)
    subject = serializers.ChoiceField(choices=Subject.choices, required=False)
    format = serializers.ChoiceField(choices=Format.choices, required=False)
    state = serializers.ChoiceField(choices=State.choices, required=False)
    source = serializers.CharField(required=False)  # type: ignore[assignment] # a field, which the metaclass takes away


class ExampleSummarySerializer(serializers.ModelSerializer[Example]):
    """An example in a list: what is known of it, without its content."""

    class Meta:
        model = Example
        fields: tuple[str, ...] = ("id", "task", "subject", "format", "state", "source", "note", "hash", "created_at")
        read_only_fields = fields


class ExampleSerializer(ExampleSummarySerializer):
    class Meta(ExampleSummarySerializer.Meta):
        fields = (*ExampleSummarySerializer.Meta.fields, "content")
        read_only_fields = fields


class ReviewCreateSerializer(StrictSerializer):
    decision = serializers.ChoiceField(choices=Review.Decision.choices)
    content = serializers.JSONField(required=False, help_text="To edit: the example in a format of the import.")
    note = serializers.CharField(max_length=1000, default="", allow_blank=True)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if (attrs["decision"] == Review.Decision.EDIT) != ("content" in attrs):
            raise serializers.ValidationError({"content": ["Goes with the decision to edit, and only with it."]})
        return attrs


@extend_schema_field(OpenApiTypes.STR)
class FileField(serializers.Field[UUID, Any, str, Any]):
    """A file's id in the API; in services its primary key."""

    def to_internal_value(self, data: Any) -> UUID:
        try:
            return file_get(public_id=str(data)).id
        except NotFound as error:
            raise serializers.ValidationError(str(error.detail), code="file_not_found") from error

    def to_representation(self, data: Any) -> str:
        return File(id=data).public_id


class FilesField(serializers.ListField):
    child = FileField()

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_length=100, **kwargs)


class DataSetVersionCreateSerializer(StrictSerializer):
    method = serializers.ChoiceField(choices=Method.choices, default=Method.SUPERVISED)
    task = serializers.ChoiceField(choices=Task.choices, default="", allow_blank=True, help_text="Empty: all.")
    subject = serializers.ChoiceField(choices=Subject.choices, default="", allow_blank=True, help_text="Empty: all.")
    files = FilesField(default=list, help_text="Only the examples of these.")
    validation_files = FilesField(default=list, help_text="Whose problems make the validation part.")
    validation_share = FiniteField(min_value=0, max_value=0.9, default=0.1)


class DataSetVersionSerializer(serializers.ModelSerializer[DataSetVersion]):
    task = serializers.ChoiceField(choices=Task.choices, allow_blank=True, help_text="Empty: all.")
    subject = serializers.ChoiceField(choices=Subject.choices, allow_blank=True, help_text="Empty: all.")
    files, validation_files = FilesField(), FilesField()
    statistics = serializers.DictField(
        child=serializers.DictField(child=serializers.IntegerField()),
        help_text="How many examples there are in each part, and of each subject, format and source.",
    )

    class Meta:
        model = DataSetVersion
        fields = (
            "id",
            "method",
            "task",
            "subject",
            "files",
            "validation_files",
            "validation_share",
            "statistics",
            "digest",
            "erased_at",
            "created_at",
        )
        read_only_fields = fields


class ExportQuerySerializer(serializers.Serializer[Any]):
    split = serializers.ChoiceField(choices=Split.choices, default=Split.TRAIN)
