from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from apps.common.constants import Subject, Task
from apps.common.serializers import FiniteField, StrictSerializer
from apps.inference.models import Adapter, Route, RouteChange
from apps.inference.selectors import AdapterState, canary_test
from apps.training.selectors.adapters import adapter_metrics

ANY_SUBJECT: dict[str, Any] = {"choices": Subject.choices, "default": "", "allow_blank": True}


class AdapterQuerySerializer(serializers.Serializer[Any]):
    name = serializers.CharField(required=False)
    task = serializers.ChoiceField(choices=Task.choices, required=False)
    subject = serializers.ChoiceField(choices=Subject.choices, required=False)
    state = serializers.ChoiceField(choices=AdapterState.ALL, required=False)


class AdapterMetricsSerializer(serializers.Serializer[Any]):
    """Documents `adapter_metrics`, which makes it."""

    training = serializers.DictField(help_text="Step and losses.")
    evaluations = serializers.DictField(
        child=serializers.DictField(),
        help_text="By task, or task/subject: id, passed and failures of the last one; its report, of one adapter.",
    )


class AdapterSummarySerializer(serializers.ModelSerializer[Adapter]):
    """An adapter in a list: without its licence and the reports of its evaluations."""

    state = serializers.ChoiceField(choices=AdapterState.ALL)
    task = serializers.ChoiceField(choices=Task.choices, allow_blank=True, help_text="Empty: none in particular.")
    subject = serializers.ChoiceField(choices=Subject.choices, allow_blank=True, help_text="Empty: all.")
    seed = serializers.SerializerMethodField()
    recipe = serializers.DictField()
    metrics = serializers.SerializerMethodField()

    class Meta:
        model = Adapter
        fields: tuple[str, ...] = (
            "id",
            "name",
            "digest",
            "base_model",
            "base_digest",
            "state",
            "task",
            "subject",
            "dataset_version",
            "recipe",
            "seed",
            "metrics",
            "size",
            "erased_at",
            "created_at",
        )
        read_only_fields = fields

    def get_seed(self, adapter: Adapter) -> int | None:
        seed: int | None = adapter.recipe.get("seed")
        return seed

    @extend_schema_field(AdapterMetricsSerializer)
    def get_metrics(self, adapter: Adapter) -> dict[str, Any]:
        return adapter_metrics(adapter, reports=False)


class AdapterSerializer(AdapterSummarySerializer):
    class Meta(AdapterSummarySerializer.Meta):
        fields = (*AdapterSummarySerializer.Meta.fields, "licence")
        read_only_fields = fields

    @extend_schema_field(AdapterMetricsSerializer)
    def get_metrics(self, adapter: Adapter) -> dict[str, Any]:
        return adapter_metrics(adapter, reports=True)


class AdapterUploadSerializer(StrictSerializer):
    file = serializers.FileField(
        help_text="A .zip, .tar, .tar.gz or .tar.bz2 of the folder that PEFT's save_pretrained wrote."
    )
    suffix = serializers.RegexField(r"^[\w.-]{1,64}\Z", help_text="A word of its name.")
    task = serializers.ChoiceField(choices=Task.choices, default="", allow_blank=True, help_text="That it is for.")
    subject = serializers.ChoiceField(**ANY_SUBJECT, help_text="That it is for; empty: all.")
    licence = serializers.CharField(max_length=10_000, default="", allow_blank=True)


class JobAcceptedSerializer(serializers.Serializer[Any]):
    """Documents the 202 of an upload, which has `job_accepted` in it."""

    job = serializers.DictField(help_text="Its result will have `adapter`, the name, and `id`.")
    events = serializers.CharField()
    skipped = serializers.ListField(
        child=serializers.CharField(), help_text="Members of the archive that are no files of an adapter."
    )


class BelievedSerializer(StrictSerializer):
    """The state in which the caller believes the route: if it is another, 409, and nothing is changed."""

    if_live = serializers.CharField(
        max_length=200, required=False, allow_null=True, help_text="Name of the live adapter; null: none."
    )
    if_canary = serializers.CharField(
        max_length=200, required=False, allow_null=True, help_text="Name of the canary; null: none."
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        believed = {place: attrs.pop(f"if_{place}") for place in ("live", "canary") if f"if_{place}" in attrs}
        return {**attrs, "believed": believed}


class AdapterPromoteSerializer(BelievedSerializer):
    task = serializers.ChoiceField(choices=Task.choices)
    subject = serializers.ChoiceField(**ANY_SUBJECT, help_text="Empty: all that have no route of their own.")
    canary_share = FiniteField(
        allow_null=True, default=None, max_value=1, help_text="Above 0: as the canary of so many users; null: live."
    )
    override_reason = serializers.CharField(
        max_length=1000, default="", allow_blank=True, help_text="Why, although the gate holds it back."
    )

    def validate_canary_share(self, share: float | None) -> float | None:
        if share is not None and share <= 0:
            raise serializers.ValidationError("Must be above 0.")
        return share


class RouteQuerySerializer(serializers.Serializer[Any]):
    subject = serializers.ChoiceField(**ANY_SUBJECT, help_text="Empty: the task's own route.")


class RouteChangeCreateSerializer(BelievedSerializer):
    subject = serializers.ChoiceField(**ANY_SUBJECT, help_text="Empty: the task's own route.")
    reason = serializers.CharField(max_length=1000, default="", allow_blank=True)


class ArmSerializer(serializers.Serializer[Any]):
    n = serializers.IntegerField(help_text="People; each counts once, by the first outcome that they had.")
    bad = serializers.IntegerField()
    rate = serializers.FloatField(allow_null=True)


class TestedMeasureSerializer(serializers.Serializer[Any]):
    live, canary = ArmSerializer(), ArmSerializer()
    difference = serializers.ListField(
        child=serializers.FloatField(), help_text="Confidence sequence of the canary's rate less live's."
    )
    margin = serializers.FloatField(help_text="The difference that it may have.")
    evidence = serializers.FloatField(help_text="E-value against a difference of no more.")
    threshold = serializers.FloatField(help_text="The evidence at which the canary is rolled back.")
    worse = serializers.BooleanField()


class CanaryTestSerializer(serializers.Serializer[Any]):
    """Documents `canary_test`, which makes it."""

    live = serializers.CharField(allow_null=True)
    canary = serializers.CharField()
    alpha = serializers.FloatField()
    measures = serializers.DictField(child=TestedMeasureSerializer(), help_text="`failed` and `thumbs_down`.")


class RouteSerializer(serializers.ModelSerializer[Route]):
    subject = serializers.ChoiceField(choices=Subject.choices, allow_blank=True, help_text="Empty: all others.")
    live = serializers.SlugRelatedField(slug_field="name", read_only=True, allow_null=True)  # type: ignore[var-annotated]
    canary = serializers.SlugRelatedField(slug_field="name", read_only=True, allow_null=True)  # type: ignore[var-annotated]
    test = serializers.SerializerMethodField()

    class Meta:
        model = Route
        fields = ("task", "subject", "live", "canary", "canary_share", "canary_started_at", "test", "updated_at")
        read_only_fields = fields

    @extend_schema_field(CanaryTestSerializer(allow_null=True))
    def get_test(self, route: Route) -> dict[str, Any] | None:
        return canary_test(route)


class RouteChangeSerializer(serializers.ModelSerializer[RouteChange]):
    before, after = serializers.DictField(), serializers.DictField()
    user = serializers.SlugRelatedField(slug_field="username", read_only=True, allow_null=True)  # type: ignore[var-annotated]
    overridden = serializers.ListField(child=serializers.CharField())
    test = CanaryTestSerializer(allow_null=True)

    class Meta:
        model = RouteChange
        fields = ("action", "before", "after", "user", "reason", "evaluation_id", "overridden", "test", "created_at")
        read_only_fields = fields
