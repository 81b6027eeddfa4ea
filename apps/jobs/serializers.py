from rest_framework import serializers

from apps.jobs.models import Job


class JobSerializer(serializers.ModelSerializer[Job]):
    queue_position = serializers.IntegerField(allow_null=True, help_text="1 is next; null once the job is not waiting.")
    result = serializers.DictField(allow_null=True, help_text="What came of it; its fields depend on the kind.")
    error = serializers.DictField(allow_null=True, help_text="`code` and `detail` of a failed or errored job.")

    class Meta:
        model = Job
        fields = (
            "id",
            "kind",
            "state",
            "attempt",
            "queue_position",
            "result",
            "error",
            "created_at",
            "started_at",
            "finished_at",
            "deadline_at",
        )
        read_only_fields = fields
