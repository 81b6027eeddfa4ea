import pytest
from rest_framework.test import APIClient

from apps.content.models import Item, Unit
from tests.apps.content.conftest import Make

pytestmark = pytest.mark.django_db

COURSES = "/api/v1/content/courses"


def test_a_course_has_units_and_lessons_in_order(make: Make, teacher: APIClient, learner: APIClient) -> None:
    first, second, third = (make(title=title) for title in ("first", "second", "third"))
    units = [
        {"title": "Begin", "lessons": [second["id"], first["id"]]},
        {"title": "Go on", "lessons": [third["id"]]},
    ]
    made = teacher.post(COURSES, {"title": "Fractions", "subject": "math", "units": units})
    assert made.status_code == 201
    shown = learner.get(f"{COURSES}/{made.json()['id']}").json()
    assert [(unit["title"], [lesson["title"] for lesson in unit["lessons"]]) for unit in shown["units"]] == [
        ("Begin", ["second", "first"]),
        ("Go on", ["third"]),
    ]
    changed = teacher.patch(f"{COURSES}/{shown['id']}", {"units": [{"title": "All", "lessons": [first["id"]]}]}).json()
    assert [unit["title"] for unit in changed["units"]] == ["All"]
    assert (changed["title"], Unit.objects.count(), Item.objects.count()) == ("Fractions", 1, 3)


def test_units_are_whole_also_in_a_part_of_a_course(teacher: APIClient) -> None:
    url = f"{COURSES}/{teacher.post(COURSES, {'title': 'C'}).json()['id']}"
    refused = teacher.patch(url, {"units": [{"lessons": []}]})
    assert (refused.status_code, refused.json()["errors"][0]["attr"]) == (400, "units.0.title")
    changed = teacher.patch(url, {"units": [{"title": "A"}]}).json()
    assert (changed["title"], changed["units"]) == ("C", [{"title": "A", "lessons": []}])


def test_an_archived_lesson_is_left_out(make: Make, teacher: APIClient, learner: APIClient) -> None:
    kept, archived = make(title="kept"), make(title="archived")
    course = teacher.post(
        COURSES, {"title": "C", "units": [{"title": "U", "lessons": [kept["id"], archived["id"]]}]}
    ).json()
    teacher.delete(f"/api/v1/content/items/{archived['id']}")
    lessons = learner.get(f"{COURSES}/{course['id']}").json()["units"][0]["lessons"]
    assert [lesson["title"] for lesson in lessons] == ["kept"]


def test_lessons_are_items_that_exist_each_once(make: Make, teacher: APIClient) -> None:
    item, nobody = make()["id"], "00000000-0000-4000-8000-000000000000"
    for lessons, detail in (([nobody], f"There is no item {nobody}."), ([item, item], "An item is named twice.")):
        refused = teacher.post(COURSES, {"title": "C", "units": [{"title": "U", "lessons": lessons}]})
        error = refused.json()["errors"][0]
        assert (refused.status_code, error["attr"], error["detail"]) == (400, "units.0.lessons", detail)


def test_who_may_see_and_change_it(teacher: APIClient, learner: APIClient, staff: APIClient) -> None:
    url = f"{COURSES}/{teacher.post(COURSES, {'title': 'C', 'status': 'draft'}).json()['id']}"
    assert [client.get(url).status_code for client in (teacher, staff, learner)] == [200, 200, 404]
    assert learner.post(COURSES, {"title": "C"}).status_code == 403
    assert learner.delete(url).status_code == 403
    assert teacher.delete(url).status_code == 204
    assert teacher.get(url).status_code == 404
