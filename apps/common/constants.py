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
    QUERY = "query", "Query understanding"


class Intent(TextChoices):
    """What a learner wants who searches."""

    EXPLAIN = "explain", "Have it explained"
    PRACTISE = "practise", "Practise"
    FIND_COURSE = "find_course", "Find a course"
    COMPARE = "compare", "Compare"
    DEFINE = "define", "Have it defined"
    OFF_TOPIC = "off_topic", "Something else than to learn"


class Level(TextChoices):
    BEGINNER = "beginner", "Beginner"
    INTERMEDIATE = "intermediate", "Intermediate"
    ADVANCED = "advanced", "Advanced"
