from apps.common.programs import ProgramCommand


class Command(ProgramCommand):
    help = "How well a classifier of query intents, learned from one file, reads another."
    program = "workers.scoring.evaluation"

    def given(self) -> list[str]:
        return ["intent"]
