"""How a model is trained: every choice of a run but its data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import ceil, cos, pi
from typing import Any, Literal, get_args

from workers.protocols import Refused

Method = Literal["sft", "full", "dpo", "kto"]
Dtype = Literal["bf16", "float32"]

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR = "all-linear"

INTEGERS = {
    "r": (1, 256),
    "batch_size": (1, 4096),
    "accumulation": (1, 4096),
    "validate_every": (1, 1_000_000),
    "patience": (0, 1000),
    "checkpoint_every": (1, 1_000_000),
    "keep_checkpoints": (1, 1000),
    "seed": (0, 2**31 - 1),
    "max_length": (8, 1_000_000),
}
NUMBERS = {
    "alpha": (1e-3, 4096),
    "dropout": (0, 0.9),
    "learning_rate": (1e-8, 1),
    "epochs": (1e-3, 1000),
    "warmup": (0, 1),
    "max_grad_norm": (1e-6, 1e6),
    "weight_decay": (0, 1),
    "beta": (1e-4, 100),
}
CHOICES = {"method": get_args(Method), "dtype": get_args(Dtype), "gradient_checkpointing": (False, True)}


@dataclass(frozen=True, slots=True)
class Recipe:
    """Raises `Refused` (`invalid_recipe`), which names the field, for values that cannot be trained with.

    A step is `batch_size` examples, computed in `accumulation` passes: more of them take less memory, and change the
    gradients by rounding only.
    """

    method: Method = "sft"  # full: supervised too, but all weights instead of an adapter
    r: int = 16
    alpha: float = 32
    dropout: float = 0.1  # of the adapter's input
    targets: tuple[str, ...] = ATTENTION  # ends of linear modules' names, or all-linear
    learning_rate: float = 3e-4
    batch_size: int = 8
    accumulation: int = 1
    epochs: float = 1
    max_steps: int | None = None  # instead of epochs
    warmup: float = 0.05  # share of the steps in which the learning rate rises
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    dtype: Dtype = "bf16"  # of products; trained weights and the optimiser's state are float32
    gradient_checkpointing: bool = False
    validate_every: int = 50  # steps
    patience: int = 0  # validations in a row without a lower loss that end the run; 0: none, the last weights count
    checkpoint_every: int = 50  # steps
    keep_checkpoints: int = 3
    seed: int = 0
    max_length: int = 1024  # tokens of an example
    beta: float = 0.1  # of dpo and kto: how dear it is to leave the base model

    def __post_init__(self) -> None:
        for names, kinds in ((INTEGERS, (int,)), (NUMBERS, (int, float))):
            for name, (low, high) in names.items():
                value = getattr(self, name)
                if type(value) not in kinds or not low <= value <= high:
                    kind = "a whole number" if kinds == (int,) else "a number"
                    raise invalid(name, value, f"{kind} from {low} to {high}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise invalid(name, getattr(self, name), " or ".join(map(str, choices)))
        if self.max_steps is not None and (type(self.max_steps) is not int or self.max_steps < 1):
            raise invalid("max_steps", self.max_steps, "a whole number from 1, or null")
        if not self.targets or not all(isinstance(target, str) and target for target in self.targets):
            raise invalid("targets", self.targets, f"a list of modules' names, or [{ALL_LINEAR!r}]")
        least = 2 if self.method == "kto" else 1  # an example is compared with its neighbour's answer
        if self.batch_size < least * self.accumulation:
            raise invalid("accumulation", self.accumulation, f"at most {self.batch_size // least}: see batch_size")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Recipe":
        """A recipe of JSON values; what is not given is the default."""
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise Refused("invalid_recipe", f"a recipe has no {unknown[0]}; it has {', '.join(known)}")
        targets = values.get("targets", ATTENTION)
        return cls(**{**values, "targets": tuple(targets) if isinstance(targets, list | tuple) else (targets,)})

    def json(self) -> dict[str, Any]:
        return {**asdict(self), "targets": list(self.targets)}

    @property
    def weights_dtype(self) -> str:
        """The dtype, as `workers.models.load.load` takes it, in which the model is to be loaded."""
        return "bfloat16" if self.dtype == "bf16" and self.method != "full" else "float32"

    def steps(self, examples: int) -> int:
        return self.max_steps or ceil(self.epochs * examples / self.batch_size)

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Of the step after `step` others: a linear rise, then half a cosine towards 0 (arXiv:1608.03983)."""
        rising = ceil(self.warmup * steps)
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        return self.learning_rate * (1 + cos(pi * (step - rising) / max(1, steps - rising))) / 2


def invalid(name: str, value: object, expected: str) -> Refused:
    return Refused("invalid_recipe", f"{name} is {value!r}; it must be {expected}")
