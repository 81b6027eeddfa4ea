from rest_framework import serializers

from apps.jobs.models import Job


class ListedJobSerializer(serializers.ModelSerializer[Job]):
    """A job in a list: without what came of it, which may be much."""

    queue_position = serializers.IntegerField(allow_null=True, help_text="1 is next; null once the job is not waiting.")
    error = serializers.DictField(allow_null=True, help_text="`code` and `detail` of a failed or errored job.")

    class Meta:
        model = Job
        fields: tuple[str, ...] = (
            "id",
            "kind",
            "state",
            "attempt",
            "queue_position",
            "error",
            "created_at",
            "started_at",
            "finished_at",
            "deadline_at",
        )
        read_only_fields = fields


class JobSerializer(ListedJobSerializer):
    result = serializers.DictField(
        source="told",
        allow_null=True,
        help_text="What came of it, but for vectors and log-probabilities; its fields depend on the kind.",
    )

    class Meta(ListedJobSerializer.Meta):
        fields = (*ListedJobSerializer.Meta.fields, "result")
        read_only_fields = fields
