from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from apps.common.constants import Subject, Task
from apps.common.serializers import JobSummarySerializer, StrictSerializer
from apps.training.models import Evaluation, EvaluationSet


class EvaluationCreateSerializer(StrictSerializer):
    task = serializers.ChoiceField(choices=Task.choices)
    subject = serializers.ChoiceField(choices=Subject.choices, default="", allow_blank=True, help_text="Empty: all.")
    limit = serializers.IntegerField(
        min_value=1, max_value=100_000, default=None, help_text="Items of each evaluation set; all if not given."
    )


class EvaluationQuerySerializer(serializers.Serializer[Any]):
    adapter = serializers.UUIDField(required=False)
    task = serializers.ChoiceField(choices=Task.choices, required=False)


class EstimateSerializer(serializers.Serializer[Any]):
    n = serializers.IntegerField(required=False, help_text="Items; not in differences, which are of the same items.")
    mean = serializers.FloatField()
    low = serializers.FloatField(help_text="Of the 95% interval.")
    high = serializers.FloatField()


class MeasureSerializer(serializers.Serializer[Any]):
    better = serializers.ChoiceField(choices=["higher", "lower"])
    candidate = EstimateSerializer()
    live = EstimateSerializer(allow_null=True, help_text="Null where the base model is live.")
    base = EstimateSerializer()
    difference_to_live = EstimateSerializer(allow_null=True)
    difference_to_base = EstimateSerializer()


class SourceSerializer(serializers.Serializer[Any]):
    kind = serializers.CharField(help_text="An evaluation set, or the validation part of the adapter's data.")
    version = serializers.CharField()
    items = serializers.IntegerField()


class AdaptersSerializer(serializers.Serializer[Any]):
    candidate = serializers.CharField()
    live = serializers.CharField(allow_null=True)
    base = serializers.CharField(allow_null=True, help_text="Always null: no adapter.")


class ReportSerializer(serializers.Serializer[Any]):
    """Documents the result of an evaluation's job, which `workers.tasks.evaluate` makes."""

    model = serializers.CharField()
    model_digest = serializers.CharField()
    adapters = AdaptersSerializer()
    sets = serializers.DictField(child=SourceSerializer(), help_text="Where the problems are from, by name.")
    items = serializers.IntegerField(help_text="Problems that all were judged by.")
    too_long = serializers.IntegerField(help_text="Problems that were left out: they do not fit into the context.")
    measures = serializers.DictField(child=MeasureSerializer(), help_text="By name: those that the problems allow.")


class EvaluationSummarySerializer(serializers.ModelSerializer[Evaluation]):
    """An evaluation in a list: its verdict, without the report."""

    adapter = serializers.UUIDField(source="adapter_id")
    adapter_name = serializers.CharField(source="adapter.name")
    state = serializers.SerializerMethodField(help_text="Of its job; null once that is deleted.")
    failures = serializers.ListField(child=serializers.CharField(), help_text="Why the gate holds it back.")

    class Meta:
        model = Evaluation
        fields: tuple[str, ...] = (
            "id",
            "adapter",
            "adapter_name",
            "task",
            "subject",
            "limit",
            "job",
            "state",
            "replies_done",
            "replies_total",
            "passed",
            "failures",
            "created_at",
        )
        read_only_fields = fields

    @extend_schema_field(serializers.CharField(allow_null=True))
    def get_state(self, evaluation: Evaluation) -> str | None:
        return evaluation.job.state if evaluation.job else None


class EvaluationSerializer(EvaluationSummarySerializer):
    report = ReportSerializer(allow_null=True)

    class Meta(EvaluationSummarySerializer.Meta):
        fields = (*EvaluationSummarySerializer.Meta.fields, "report")
        read_only_fields = fields


class EvaluationAcceptedSerializer(serializers.Serializer[Any]):
    """A 202: the job, where to follow it, and the evaluation that it will fill."""

    job = JobSummarySerializer()
    events = serializers.CharField()
    evaluation = EvaluationSerializer()


class EvaluationSetCreateSerializer(serializers.Serializer[Any]):
    file = serializers.FileField(
        max_length=255,
        help_text='JSONL: examples, which may have "answer", "hint" and "level" beside their own fields.',
    )
    name = serializers.RegexField(r"^[\w.-]+\Z", max_length=100, help_text="With it, a set gets its next version.")
    task = serializers.ChoiceField(choices=Task.choices)


class EvaluationSetSerializer(serializers.ModelSerializer[EvaluationSet]):
    items_count = serializers.IntegerField()

    class Meta:
        model = EvaluationSet
        fields = ("id", "name", "version", "task", "digest", "items_count", "created_at")
        read_only_fields = fields
