"""Runs that start by themselves: when there is enough that is new, and once for each time that they are due."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django_celery_beat.models import CrontabSchedule, PeriodicTask

from apps.training.models import Run, Schedule, Slot
from apps.training.serializers.runs import RecipeSerializer
from apps.training.services import schedules as services
from apps.training.tasks import look
from lyo import env
from tests.apps.training.conftest import add
from workers.training.recipe import CHOICES, INTEGERS, NUMBERS, Recipe

pytestmark = pytest.mark.django_db

NOON = datetime(2026, 11, 23, 12, 0, 30, tzinfo=UTC)
DAY = timedelta(days=1)


def examples(count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        add(f"What is {number} + 1?", str(number + 1))


@pytest.fixture
def nightly(db: None) -> Schedule:
    crontab = CrontabSchedule.objects.create(minute="0", hour="3")
    made = Schedule(name="nightly", crontab=crontab, task="tutoring", suffix="tutor", minimum_new=10)
    return services.schedule_save(schedule=made)


def due(schedule: Schedule, now: datetime = NOON) -> Slot:
    return services.schedule_look(schedule=schedule, now=now)


def end(run: Run | None, state: str = "succeeded") -> None:
    Run.objects.filter(id=run.id if run else None).update(state=state)


def test_beat_is_told_of_a_schedule_and_of_its_end(nightly: Schedule) -> None:
    beat = PeriodicTask.objects.get(training_schedule=nightly)
    assert (beat.task, json.loads(beat.args), beat.enabled) == ("training.look", [str(nightly.id)], True)
    nightly.enabled = False
    services.schedule_save(schedule=nightly)
    assert PeriodicTask.objects.get(id=beat.id).enabled is False
    services.schedule_delete(schedule=nightly)
    assert not PeriodicTask.objects.filter(id=beat.id).exists()


def test_enough_that_is_new_is_learnt(nightly: Schedule) -> None:
    nightly.recipe = {"max_steps": 30}
    nightly.save()
    examples(20)
    run = due(nightly).run
    assert run is not None
    assert (run.suffix, run.task, run.recipe, run.state) == ("tutor", "tutoring", {"max_steps": 30}, "queued")
    assert run.job is not None
    assert run.job.queue == "train"


def test_nothing_to_learn_says_so(nightly: Schedule) -> None:
    slot = due(nightly)
    assert (slot.run, slot.outcome) == (None, "No approved example matches, so there is nothing to train on.")


def test_too_little_that_is_new_waits_until_it_is_enough(nightly: Schedule) -> None:
    examples(20)
    end(due(nightly).run)
    assert due(nightly, NOON + DAY).outcome.startswith("The data are unchanged since ftjob-")
    examples(4, first=100)
    slot = due(nightly, NOON + 2 * DAY)
    assert (slot.run, slot.outcome.endswith(" new examples; 10 are needed.")) == (None, True)
    examples(20, first=200)
    assert due(nightly, NOON + 3 * DAY).run is not None


def test_a_run_under_way_is_not_overtaken_and_a_failed_one_is_tried_again(nightly: Schedule) -> None:
    examples(20)
    first = due(nightly).run
    assert due(nightly, NOON + DAY).outcome.endswith("has not ended.")
    end(first, "failed")
    second = due(nightly, NOON + 2 * DAY).run
    assert second not in (None, first)


@pytest.mark.django_db(transaction=True)
def test_two_beats_start_one_run(nightly: Schedule) -> None:
    examples(20)

    def beat(_: int) -> Any:
        try:
            return due(nightly).run
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as beats:
        runs = set(beats.map(beat, range(4)))
    assert len(runs) == Run.objects.count() == Slot.objects.count() == 1


def test_a_disabled_or_deleted_schedule_does_nothing(nightly: Schedule) -> None:
    examples(20)
    Schedule.objects.update(enabled=False)
    look(str(nightly.id))
    Schedule.objects.all().delete()
    look(str(nightly.id))
    assert (Run.objects.count(), Slot.objects.count()) == (0, 0)


@pytest.mark.parametrize(
    ("fields", "now", "expected"),
    [
        ({"minute": "0", "hour": "3"}, NOON, datetime(2026, 11, 23, 3, 0, tzinfo=UTC)),
        ({"minute": "0", "hour": "13"}, NOON, datetime(2026, 11, 22, 13, 0, tzinfo=UTC)),
        ({"minute": "*/15"}, NOON, datetime(2026, 11, 23, 12, 0, tzinfo=UTC)),
        ({"minute": "0", "hour": "0", "day_of_week": "0"}, NOON, datetime(2026, 11, 22, 0, 0, tzinfo=UTC)),
        ({"minute": "0", "hour": "0", "day_of_month": "1"}, NOON, datetime(2026, 11, 1, 0, 0, tzinfo=UTC)),
        ({"minute": "0", "hour": "3", "timezone": "Europe/Berlin"}, NOON, datetime(2026, 11, 23, 2, 0, tzinfo=UTC)),
    ],
)
def test_when_it_was_last_due(fields: dict[str, Any], now: datetime, expected: datetime) -> None:
    crontab = CrontabSchedule(**fields)
    crontab.clean_fields()
    assert services.last_due(crontab, now) == expected


# --- the admin ---

ADD = "/admin/training/schedule/add/"


def form(recipe: str) -> dict[str, Any]:
    crontab = CrontabSchedule.objects.get_or_create(minute="0", hour="3")[0]
    return {
        "name": "nightly",
        "enabled": "on",
        "crontab": crontab.id,
        "minimum_new": "10",
        "suffix": "tutor",
        "recipe": recipe,
        "slots-TOTAL_FORMS": "0",
        "slots-INITIAL_FORMS": "0",
    }


@pytest.mark.parametrize(
    ("recipe", "error"),
    [
        ('{"max_stepz": 3}', "max_stepz: Unknown field."),
        ('{"max_steps": 0}', "max_steps: Ensure this value is greater than or equal to 1."),
        ('{"method": "rl"}', 'method: "rl" is not a valid choice.'),
        ('{"learning_rate": "nan"}', "learning_rate: A valid number is required."),
        ('{"epochs": "auto"}', "epochs: A valid number is required."),
        ('{"accumulation": 9}', "accumulation: At most 8: see batch_size."),
        ('{"method": "kto", "accumulation": 5}', "accumulation: At most 4: see batch_size."),
        ('{"targets": []}', "targets: Ensure this field has at least 1 elements."),
        ("[1]", "Invalid data. Expected a dictionary, but got list."),
        ("{", "Enter a valid JSON."),
    ],
)
def test_a_recipe_that_cannot_be_trained_with_is_refused_by_its_field(
    admin_client: Client, recipe: str, error: str
) -> None:
    response = admin_client.post(ADD, form(recipe))
    assert response.status_code == 200
    assert response.context["adminform"].form.errors == {"recipe": [error]}
    assert not Schedule.objects.exists()


def test_a_crontab_that_names_no_time_is_refused_by_its_field(admin_client: Client) -> None:
    crontab = CrontabSchedule.objects.create(day_of_month="31", month_of_year="2")
    response = admin_client.post(ADD, {**form("{}"), "crontab": crontab.id})
    assert list(response.context["adminform"].form.errors) == ["crontab"]
    assert not Schedule.objects.exists()


@pytest.mark.parametrize("recipe", ["{}", "", '{"method": "kto", "r": 4, "max_steps": 20, "targets": ["q_proj"]}'])
def test_a_good_recipe_is_kept(admin_client: Client, recipe: str) -> None:
    assert admin_client.post(ADD, form(recipe)).status_code == 302
    assert Schedule.objects.get().recipe == json.loads(recipe or "{}")
    Recipe.of(Schedule.objects.get().recipe)


def test_the_form_and_the_trainer_agree_on_what_a_recipe_may_have() -> None:
    fields = RecipeSerializer().fields
    assert set(fields) == set(Recipe.__dataclass_fields__)
    for name, (low, high) in {**INTEGERS, **NUMBERS}.items():
        known = (fields[name].min_value, fields[name].max_value)  # type: ignore[attr-defined]
        assert known == ((low, env.MAX_LORA_RANK) if name == "r" else (low, high)), name
    for name in ("method", "dtype"):
        assert tuple(fields[name].choices) == CHOICES[name]  # type: ignore[attr-defined]
