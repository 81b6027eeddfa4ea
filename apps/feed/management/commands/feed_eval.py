from apps.common.programs import ProgramCommand


class Command(ProgramCommand):
    help = "How well the feed foresees what people do next, beside well-known recommenders."
    program = "workers.scoring.feed.evaluation"
