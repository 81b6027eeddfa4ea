from apps.common.programs import ProgramCommand


class Command(ProgramCommand):
    help = "How well a classifier of two kinds of content, learned from one file, reads another."
    program = "workers.scoring.evaluation"

    def given(self) -> list[str]:
        return ["content"]
