from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from apps.common.constants import Task
from apps.common.serializers import JobSummarySerializer, StrictSerializer
from apps.inference.models import Adapter
from apps.training.models import Comparison, EvaluationSet
from apps.training.selectors.comparisons import comparison_results


class ComparisonCreateSerializer(StrictSerializer):
    task = serializers.ChoiceField(choices=Task.choices)
    judge = serializers.ChoiceField(choices=Comparison.Judge.choices)
    count = serializers.IntegerField(min_value=1, max_value=1000, default=50, help_text="Prompts, at most.")
    adapter = serializers.PrimaryKeyRelatedField(
        queryset=Adapter.objects.all(),
        pk_field=serializers.UUIDField(),
        default=None,
        allow_null=True,
        help_text="Null: the base model.",
    )
    evaluation_set = serializers.PrimaryKeyRelatedField(
        queryset=EvaluationSet.objects.all(),
        pk_field=serializers.UUIDField(),
        default=None,
        allow_null=True,
        help_text="Null: recent prompts, masked and approved, of learners who consented to training.",
    )


class WinRateSerializer(serializers.Serializer[Any]):
    n = serializers.IntegerField()
    wins = serializers.IntegerField()
    ties = serializers.IntegerField()
    losses = serializers.IntegerField()
    win_rate = serializers.FloatField(help_text="A tie counts half.")
    low = serializers.FloatField(help_text="Of the 95% interval.")
    high = serializers.FloatField()


class ComparisonResultsSerializer(serializers.Serializer[Any]):
    model = WinRateSerializer(allow_null=True)
    people = WinRateSerializer(allow_null=True)


class ComparisonSerializer(serializers.ModelSerializer[Comparison]):
    adapter_name = serializers.CharField(source="adapter.name", allow_null=True, default=None)
    state = serializers.SerializerMethodField(help_text="Of its job; null once that is deleted.")
    pairings_count = serializers.IntegerField()
    answered_count = serializers.IntegerField()

    class Meta:
        model = Comparison
        fields: tuple[str, ...] = (
            "id",
            "task",
            "adapter",
            "adapter_name",
            "opponent",
            "judge",
            "judge_model",
            "evaluation_set",
            "job",
            "state",
            "pairings_count",
            "answered_count",
            "created_at",
        )
        read_only_fields = fields

    @extend_schema_field(serializers.CharField(allow_null=True))
    def get_state(self, comparison: Comparison) -> str | None:
        return comparison.job.state if comparison.job else None


class ComparisonDetailSerializer(ComparisonSerializer):
    results = serializers.SerializerMethodField()

    class Meta(ComparisonSerializer.Meta):
        fields: tuple[str, ...] = (*ComparisonSerializer.Meta.fields, "results")
        read_only_fields = fields

    @extend_schema_field(ComparisonResultsSerializer)
    def get_results(self, comparison: Comparison) -> dict[str, Any]:
        return comparison_results(comparison)


class ComparisonAcceptedSerializer(serializers.Serializer[Any]):
    """A 202: the job, where to follow it, and the comparison that it will fill."""

    job = JobSummarySerializer()
    events = serializers.CharField()
    comparison = ComparisonSerializer()
