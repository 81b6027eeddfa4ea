from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import GinIndex
from django.contrib.postgres.search import SearchVector, SearchVectorField
from django.core.validators import MaxValueValidator, RegexValidator
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Left
from pgvector.django import HnswIndex, VectorField

from apps.common.constants import Level, Subject
from apps.common.models import TimestampedModel
from apps.common.titles import TitleWords
from apps.users.models import language_validator

EMBEDDING = 384  # dimensions of the packaged MiniLM
DAY_S = 86_400
BODY = 200_000  # characters of an item's body
TITLE = 200
LESSONS, UNITS = 500, 100  # of a unit, and of a course
SEARCHED = 100_000  # characters of a text that can be found: Postgres takes a megabyte of words

slug_validator = RegexValidator(r"^[a-z0-9]+(-[a-z0-9]+)*\Z", "Must be lower-case words joined by hyphens.")


class Status(models.TextChoices):
    DRAFT = "draft", "Draft"
    PUBLISHED = "published", "Published"
    ARCHIVED = "archived", "Archived"


class Topic(TimestampedModel):
    """A node of a subject's tree. Its prerequisites are what a learner should have mastered before."""

    slug = models.CharField(max_length=80, unique=True, validators=[slug_validator])
    name = models.CharField(max_length=120)
    subject = models.CharField(max_length=20, choices=Subject.choices)
    parent = models.ForeignKey("self", null=True, blank=True, on_delete=models.PROTECT, related_name="children")
    prerequisites = models.ManyToManyField("self", symmetrical=False, blank=True, related_name="leads_to")
    position = models.PositiveIntegerField(default=0, help_text="Among its siblings, in the order of teaching.")

    class Meta:
        ordering = ["subject", "position", "slug"]
        indexes = [GinIndex(TitleWords("name"), name="topic_name_words")]
        constraints = [models.CheckConstraint(condition=~Q(parent=F("id")), name="topic_is_not_its_own_parent")]

    def __str__(self) -> str:
        return self.name


class ItemManager(models.Manager["Item"]):
    def get_queryset(self) -> models.QuerySet["Item"]:
        """Without `words`, which only search reads, in the database."""
        return super().get_queryset().defer("words")


class Item(TimestampedModel):
    """Something to read, watch or do. An archived one is shown to nobody, and what learners did with it stays."""

    class Kind(models.TextChoices):
        ARTICLE = "article", "Article"
        VIDEO = "video", "Video"
        EXERCISE = "exercise", "Exercise"
        POST = "post", "Post"
        LESSON = "lesson", "Lesson"

    key = models.CharField(
        max_length=200, unique=True, null=True, blank=True, help_text="Its name in the catalogue that it came from."
    )
    title = models.CharField(max_length=200)
    body = models.TextField(blank=True, help_text="HTML, sanitised.")
    text = models.TextField(editable=False, help_text="Of the body, without its tags: what models and search read.")
    source = models.CharField(max_length=64, editable=False, default="", help_text="sha256 of what models read.")
    kind = models.CharField(max_length=10, choices=Kind.choices, default=Kind.ARTICLE)
    subject = models.CharField(max_length=20, choices=Subject.choices, default=Subject.GENERAL)
    topics = models.ManyToManyField(Topic, blank=True, related_name="items")
    level = models.CharField(max_length=20, choices=Level.choices, blank=True, help_text="Empty: as estimated.")
    language = models.CharField(max_length=35, default="en", validators=[language_validator])
    duration = models.PositiveIntegerField(
        null=True, blank=True, validators=[MaxValueValidator(DAY_S)], help_text="Seconds that it takes."
    )
    tags = ArrayField(models.CharField(max_length=50), size=20, default=list, blank=True)
    author = models.CharField(max_length=200, blank=True)
    licence = models.CharField(max_length=200, blank=True)
    source_url = models.URLField(max_length=1000, blank=True)
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.PUBLISHED)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    words = models.GeneratedField(
        expression=SearchVector("title", weight="A", config="english")
        + SearchVector(Left("text", SEARCHED), weight="B", config="english"),
        output_field=SearchVectorField(),
        db_persist=True,
    )

    objects = ItemManager()

    class Meta:
        ordering = ["-created_at", "-id"]
        indexes = [
            GinIndex(fields=["words"], name="item_words"),
            models.Index(fields=["status", "-created_at", "-id"], name="item_newest"),
            models.Index(fields=["subject", "-created_at", "-id"], name="item_of_subject"),
            GinIndex(fields=["tags"], name="item_tags"),
            GinIndex(TitleWords("title"), name="item_title_words"),
        ]

    def __str__(self) -> str:
        return self.title


class Enrichment(models.Model):
    """What models found in an item. It is out of date once `source` is not the item's, or the models are others."""

    item = models.OneToOneField(Item, primary_key=True, on_delete=models.CASCADE, related_name="enrichment")
    source = models.CharField(max_length=64, help_text="sha256 of what was read.")
    model = models.CharField(max_length=100, blank=True, help_text="That made the embedding.")
    models_digest = models.CharField(max_length=64, help_text="sha256 of it and of the heads on it.")
    embedding = VectorField(dimensions=EMBEDDING)
    educational = models.FloatField(help_text="The probability that it teaches, rather than entertains.")
    quality = models.FloatField(help_text="0 to 1.")
    level = models.CharField(max_length=20, choices=Level.choices)
    topics = models.JSONField(default=list, help_text="Slugs of the topics that it is most alike, best first.")
    enriched_at = models.DateTimeField()

    class Meta:
        indexes = [
            HnswIndex(name="enrichment_embedding", fields=["embedding"], opclasses=["vector_ip_ops"]),
            models.Index(fields=["models_digest"], name="enrichment_models"),
            models.Index(fields=["-enriched_at"], name="enrichment_last"),
        ]

    def __str__(self) -> str:
        return f"{self.item_id}: {self.educational:.2f}"


class Course(TimestampedModel):
    """Units in order, of lessons in order."""

    key = models.CharField(
        max_length=200, unique=True, null=True, blank=True, help_text="Its name in the catalogue that it came from."
    )
    title = models.CharField(max_length=200)
    description = models.TextField(blank=True, max_length=5000)
    subject = models.CharField(max_length=20, choices=Subject.choices, default=Subject.GENERAL)
    level = models.CharField(max_length=20, choices=Level.choices, default=Level.BEGINNER)
    language = models.CharField(max_length=35, default="en", validators=[language_validator])
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.PUBLISHED)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )

    class Meta:
        ordering = ["-created_at", "-id"]
        indexes = [GinIndex(TitleWords("title"), name="course_title_words")]

    def __str__(self) -> str:
        return self.title


class Unit(models.Model):
    course = models.ForeignKey(Course, on_delete=models.CASCADE, related_name="units")
    title = models.CharField(max_length=200)
    position = models.PositiveIntegerField()
    lessons = models.ManyToManyField(Item, through="Lesson", related_name="units")

    class Meta:
        ordering = ["position"]
        constraints = [models.UniqueConstraint(fields=["course", "position"], name="unit_position")]

    def __str__(self) -> str:
        return self.title


class Lesson(models.Model):
    """An item's place in a unit."""

    unit = models.ForeignKey(Unit, on_delete=models.CASCADE, related_name="places")
    item = models.ForeignKey(Item, on_delete=models.CASCADE, related_name="+")
    position = models.PositiveIntegerField()

    class Meta:
        ordering = ["position"]
        constraints = [
            models.UniqueConstraint(fields=["unit", "position"], name="lesson_position"),
            models.UniqueConstraint(fields=["unit", "item"], name="lesson_once_in_unit"),
        ]

    def __str__(self) -> str:
        return str(self.item)
