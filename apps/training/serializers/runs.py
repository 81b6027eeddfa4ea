from typing import Any
from uuid import UUID

from rest_framework import serializers
from rest_framework.exceptions import ValidationError

from apps.common.constants import Subject, Task
from apps.common.serializers import FiniteField, StrictSerializer
from apps.training.models import RunEvent, RunState
from apps.training.selectors.runs import LEARNING_RATE, METHODS
from apps.training.serializers.data import FileField
from lyo import env

EVENTS_LISTED = 100
BATCH_SIZE = 8  # of a recipe that does not say
RECIPE_METHODS = {shown: method for method, shown in METHODS.items()}


class AutoMixin:
    """OpenAI's "auto", which is the default: None, past the validators of numbers."""

    def run_validation(self, data: Any = serializers.empty) -> Any:
        return None if data == "auto" else super().run_validation(data)  # type: ignore[misc]


class AutoInteger(AutoMixin, serializers.IntegerField):
    pass


class AutoFloat(AutoMixin, FiniteField):
    pass


class HyperparametersSerializer(StrictSerializer):
    n_epochs = AutoFloat(min_value=0.001, max_value=1000, required=False)
    batch_size = AutoInteger(min_value=1, max_value=4096, required=False)
    learning_rate_multiplier = AutoFloat(
        min_value=1e-4, max_value=1000, required=False, help_text=f"Of {LEARNING_RATE}."
    )
    beta = AutoFloat(min_value=1e-4, max_value=100, required=False, help_text="Of dpo and kto.")


class MethodOptionsSerializer(StrictSerializer):
    hyperparameters = HyperparametersSerializer(default=dict)


class MethodSerializer(StrictSerializer):
    type = serializers.ChoiceField(choices=list(RECIPE_METHODS))
    supervised = MethodOptionsSerializer(default=dict)
    full = MethodOptionsSerializer(default=dict, help_text="All weights instead of an adapter. Lyo's own.")
    dpo = MethodOptionsSerializer(default=dict)
    kto = MethodOptionsSerializer(default=dict, help_text="Learns from thumbs. Lyo's own.")


class LoraSerializer(StrictSerializer):
    r = serializers.IntegerField(min_value=1, max_value=env.MAX_LORA_RANK, required=False)
    alpha = FiniteField(min_value=0.001, max_value=4096, required=False)
    dropout = FiniteField(min_value=0, max_value=0.9, required=False)
    targets = serializers.ListField(
        child=serializers.CharField(max_length=100),
        min_length=1,
        max_length=50,
        required=False,
        help_text='Ends of modules\' names, or ["all-linear"].',
    )


class TuningSerializer(StrictSerializer):
    """Fields of a recipe that the API has as they are."""

    max_steps = serializers.IntegerField(min_value=1, max_value=1_000_000, required=False)
    checkpoint_every = serializers.IntegerField(min_value=1, max_value=1_000_000, required=False)
    keep_checkpoints = serializers.IntegerField(min_value=1, max_value=1000, required=False)
    validate_every = serializers.IntegerField(min_value=1, max_value=1_000_000, required=False)
    patience = serializers.IntegerField(min_value=0, max_value=1000, required=False)
    accumulation = serializers.IntegerField(min_value=1, max_value=4096, required=False)
    warmup = FiniteField(min_value=0, max_value=1, required=False)
    max_grad_norm = FiniteField(min_value=1e-6, max_value=1e6, required=False)
    weight_decay = FiniteField(min_value=0, max_value=1, required=False)
    max_length = serializers.IntegerField(min_value=8, max_value=1_000_000, required=False)
    dtype = serializers.ChoiceField(choices=["bf16", "float32"], required=False)
    gradient_checkpointing = serializers.BooleanField(required=False)


TUNING = tuple(TuningSerializer().fields)
PARTS = {"sft": 1, "full": 1, "dpo": 1, "kto": 2}  # examples that a pass needs: kto compares each with its neighbour


class RecipeSerializer(TuningSerializer, LoraSerializer):
    """A recipe as the trainer takes it; a test holds the bounds to be those of `workers.training.recipe`."""

    method = serializers.ChoiceField(choices=list(PARTS), required=False)
    learning_rate = FiniteField(min_value=1e-8, max_value=1, required=False)
    batch_size = serializers.IntegerField(min_value=1, max_value=4096, required=False)
    epochs = FiniteField(min_value=1e-3, max_value=1000, required=False)
    beta = FiniteField(min_value=1e-4, max_value=100, required=False)
    seed = serializers.IntegerField(min_value=0, max_value=2**31 - 1, required=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        check_accumulation(attrs)
        return attrs


def check_accumulation(recipe: dict[str, Any]) -> None:
    most = recipe.get("batch_size", BATCH_SIZE) // PARTS[recipe.get("method", "sft")]
    if recipe.get("accumulation", 1) > most:
        raise ValidationError({"accumulation": [f"At most {most}: see batch_size."]})


class MixedFileSerializer(StrictSerializer):
    file = FileField()
    weight = FiniteField(min_value=0.001, max_value=1000, default=1.0)


class RunCreateSerializer(TuningSerializer):
    """OpenAI's fields; those from `lora` on, and those of a recipe, are Lyo's own."""

    model = serializers.CharField(max_length=200)
    training_file = FileField(required=False, help_text="Needed where there is no mixture.")
    validation_file = FileField(required=False, allow_null=True)
    method = MethodSerializer(required=False)
    hyperparameters = HyperparametersSerializer(required=False, help_text="Older than `method`, and supervised.")
    suffix = serializers.RegexField(r"^[a-zA-Z0-9][a-zA-Z0-9._-]*$", max_length=64, required=False, allow_null=True)
    seed = serializers.IntegerField(min_value=0, max_value=2**31 - 1, required=False, allow_null=True)
    metadata = serializers.DictField(child=serializers.CharField(max_length=512), required=False, allow_null=True)
    integrations = serializers.ListField(max_length=0, required=False, allow_null=True, help_text="There are none.")

    task = serializers.ChoiceField(choices=Task.choices, default="", allow_blank=True)
    subject = serializers.ChoiceField(choices=Subject.choices, default="", allow_blank=True)
    mixture = MixedFileSerializer(many=True, required=False, help_text="Files that are drawn from by weight.")
    lora = LoraSerializer(required=False)

    def validate_model(self, model: str) -> str:
        if model != env.MODEL:
            raise ValidationError(f"Only {env.MODEL} can be trained here.", code="model_not_found")
        return model

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """In the terms of `run_start`."""
        if ("training_file" in attrs) == bool(attrs.get("mixture")):
            raise ValidationError({"training_file": ["Either this or mixture is needed."]})
        files: dict[UUID, float] = {mixed["file"]: mixed["weight"] for mixed in attrs.get("mixture") or ()}
        if len(files) < len(attrs.get("mixture") or ()):
            raise ValidationError({"mixture": ["A file is named twice."]})
        if "training_file" in attrs:
            files = {attrs["training_file"]: 1.0}
        validation_file = attrs.get("validation_file")
        return {
            "files": files,
            "validation_files": [validation_file] if validation_file else [],
            "recipe": self._recipe(attrs),
            "suffix": (attrs.get("suffix") or "tuned").lower(),
            "task": attrs["task"],
            "subject": attrs["subject"],
            "metadata": attrs.get("metadata") or {},
        }

    def _recipe(self, attrs: dict[str, Any]) -> dict[str, Any]:
        method = attrs.get("method") or {"type": "supervised"}
        options = method.get(method["type"]) or {}
        asked = options.get("hyperparameters") or attrs.get("hyperparameters") or {}
        multiplier = asked.get("learning_rate_multiplier")
        recipe = {
            "method": RECIPE_METHODS[method["type"]],
            "epochs": asked.get("n_epochs"),
            "batch_size": asked.get("batch_size"),
            "learning_rate": multiplier and LEARNING_RATE * multiplier,
            "beta": asked.get("beta"),
            "seed": attrs.get("seed"),
            **attrs.get("lora", {}),
            **{name: attrs[name] for name in TUNING if name in attrs},
        }
        given = {name: value for name, value in recipe.items() if value is not None}
        check_accumulation(given)
        return given


class RunListQuerySerializer(serializers.Serializer[Any]):
    limit = serializers.IntegerField(min_value=1, max_value=EVENTS_LISTED, default=20)
    after = serializers.CharField(required=False, help_text="The id of the last one of the page before.")


# --- answers, for the schema ---


class RunErrorSerializer(serializers.Serializer[Any]):
    code = serializers.CharField()
    message = serializers.CharField()
    param = serializers.CharField(allow_null=True)


class RunSummarySerializer(serializers.Serializer[Any]):
    """Documents `run_summary`, which makes it."""

    id = serializers.CharField()
    object = serializers.CharField(help_text='"fine_tuning.job".')
    created_at = serializers.IntegerField(help_text="Unix time.")
    started_at = serializers.IntegerField(allow_null=True)
    finished_at = serializers.IntegerField(allow_null=True)
    estimated_finish = serializers.IntegerField(allow_null=True)
    model = serializers.CharField()
    fine_tuned_model = serializers.CharField(allow_null=True)
    organization_id = serializers.CharField()
    status = serializers.ChoiceField(choices=RunState.choices)
    training_file = serializers.CharField()
    validation_file = serializers.CharField(allow_null=True)
    result_files = serializers.ListField(child=serializers.CharField())
    trained_tokens = serializers.IntegerField(allow_null=True)
    error = RunErrorSerializer(allow_null=True)
    seed = serializers.IntegerField()
    hyperparameters = serializers.DictField()
    method = serializers.DictField()
    metadata = serializers.DictField(allow_null=True)
    integrations = serializers.ListField()
    suffix = serializers.CharField(help_text="Lyo's own, like all below.")
    dataset_version = serializers.CharField(help_text="Its digest.")
    examples = serializers.DictField(help_text="To train on and to validate with.")
    step = serializers.IntegerField()
    steps = serializers.IntegerField(allow_null=True)


class RunSerializer(RunSummarySerializer):
    """Documents `run_data`, which makes it."""

    recipe = serializers.DictField()
    mixture = MixedFileSerializer(many=True)
    result = serializers.DictField()


class RunListSerializer(serializers.Serializer[Any]):
    object = serializers.CharField(help_text='"list".')
    data = RunSummarySerializer(many=True)  # type: ignore[assignment] # a field, which the metaclass takes away
    has_more = serializers.BooleanField()


class RunEventSerializer(serializers.Serializer[Any]):
    id = serializers.CharField()
    object = serializers.CharField(help_text='"fine_tuning.job.event".')
    created_at = serializers.IntegerField()
    level = serializers.CharField(help_text=", ".join(RunEvent.Level.values))
    type = serializers.ChoiceField(choices=["message", "metrics"])
    message = serializers.CharField()
    data = serializers.DictField()  # type: ignore[assignment]


class RunEventListSerializer(serializers.Serializer[Any]):
    object = serializers.CharField(help_text='"list".')
    data = RunEventSerializer(many=True)  # type: ignore[assignment]
    has_more = serializers.BooleanField()


class RunCheckpointSerializer(serializers.Serializer[Any]):
    id = serializers.CharField()
    object = serializers.CharField(help_text='"fine_tuning.job.checkpoint".')
    created_at = serializers.IntegerField()
    fine_tuning_job_id = serializers.CharField()
    fine_tuned_model_checkpoint = serializers.CharField(help_text="Serves; of full tuning there is none.")
    step_number = serializers.IntegerField()
    metrics = serializers.DictField()


class RunCheckpointListSerializer(serializers.Serializer[Any]):
    object = serializers.CharField(help_text='"list".')
    data = RunCheckpointSerializer(many=True)  # type: ignore[assignment]
    first_id = serializers.CharField(allow_null=True)
    last_id = serializers.CharField(allow_null=True)
    has_more = serializers.BooleanField()
