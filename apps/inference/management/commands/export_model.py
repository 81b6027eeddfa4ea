from apps.common.programs import ProgramCommand
from lyo import env


class Command(ProgramCommand):
    """With this project's settings."""

    help = "Write the model, with an adapter merged into it, as a Hugging Face folder or as a GGUF file."
    program = "workers.models.export"

    def given(self) -> list[str]:
        places = {"models": env.MODELS_DIR, "adapters": env.ADAPTERS_DIR, "exports": env.HOME / "exports"}
        return ["--model", env.MODEL, *(f"--{kind}-dir={folder}" for kind, folder in places.items())]
