"""Words that several apps share."""

from django.db.models import TextChoices


class Subject(TextChoices):
    MATH = "math", "Mathematics"
    PHYSICS = "physics", "Physics"
    CHEMISTRY = "chemistry", "Chemistry"
    BIOLOGY = "biology", "Biology"
    PROGRAMMING = "programming", "Programming"
    STUDY = "study", "Study plans and methods"
    GENERAL = "general", "General"


class Task(TextChoices):
    """What a model is trained, evaluated and routed for."""

    TUTORING = "tutoring", "Tutoring"
    ENGAGEMENT = "engagement", "Engagement"
    LEARNING_PATH = "learning_path", "Learning paths"


class Level(TextChoices):
    BEGINNER = "beginner", "Beginner"
    INTERMEDIATE = "intermediate", "Intermediate"
    ADVANCED = "advanced", "Advanced"
