"""Who may what: every action of staff asks for a Django permission, over the API as in the admin."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from django.contrib import admin
from django.contrib.auth.models import Group, Permission
from django.test import Client, RequestFactory
from django.urls import URLPattern, URLResolver, get_resolver
from django_celery_beat.models import IntervalSchedule, PeriodicTask
from rest_framework.test import APIClient

from apps.common.views import HasPermission
from apps.users.models import Role, User
from apps.users.services import token_create

pytestmark = pytest.mark.django_db

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
LEARNERS = (  # where everybody who is logged in acts on what is theirs, or reads what is published
    *("api/v1/auth/", "api/v1/me", "api/v1/jobs", "api/v1/tutor/", "api/v1/feed", "api/v1/search"),
    *("v1/models", "v1/chat/completions", "v1/embeddings"),
)
NOT_OURS = ("api/schema/", "api/docs/")
VALUES = {"uuid": str(uuid4()), "str": "tutoring", "slug": "a", "int": "1", "path": "a"}


def patterns(found: Any, prefix: str = "") -> Iterator[tuple[str, URLPattern]]:
    for one in found:
        path = prefix + str(one.pattern)
        if isinstance(one, URLResolver):
            yield from patterns(one.url_patterns, path)
        else:
            yield path, one


def views() -> list[tuple[str, Any]]:
    """Path and class of every view of the API."""
    found = [(path, getattr(one.callback, "view_class", None)) for path, one in patterns(get_resolver().url_patterns)]
    return [(path, view) for path, view in found if path.startswith(("api/", "v1/")) and path not in NOT_OURS]


def url_of(path: str, pattern: URLPattern) -> str:
    """A URL of a pattern, of nothing that is there."""
    for name, converter in pattern.pattern.converters.items():
        kind = type(converter).__name__.removesuffix("Converter").lower().replace("string", "str")
        path = path.replace(f"<{kind}:{name}>", VALUES[kind])
    return f"/{path}"


def staff_actions() -> list[tuple[str, str, tuple[str, ...]]]:
    """Method, URL and permissions of all that is not everybody's."""
    urls = {
        path: url_of(path, one) for path, one in patterns(get_resolver().url_patterns) if path.startswith(("api", "v1"))
    }
    return [
        (method, urls[path], view.permissions[method])
        for path, view in views()
        if not path.startswith(LEARNERS)
        for method in METHODS
        if hasattr(view, method.lower()) and view.permissions.get(method)
    ]


def client_of(user: User) -> APIClient:
    return APIClient(HTTP_AUTHORIZATION=f"Bearer {token_create(user=user)[1]}")


def someone(role: str, *permissions: str) -> User:
    user = User.objects.create_user(uuid4().hex[:20], f"{uuid4().hex}@example.org", role=role)
    for name in permissions:
        app, codename = name.split(".")
        user.user_permissions.add(Permission.objects.get(content_type__app_label=app, codename=codename))
    return user


def test_every_action_of_staff_declares_the_permissions_that_it_asks_for() -> None:
    known = {f"{app}.{name}" for app, name in Permission.objects.values_list("content_type__app_label", "codename")}
    undeclared, unknown = [], []
    for path, view in views():
        if path.startswith(LEARNERS):
            continue
        if HasPermission not in view.permission_classes:
            undeclared.append(path)
        for method in METHODS:
            if hasattr(view, method.lower()):
                needed = view.permissions.get(method)
                if needed is None or (method != "GET" and not needed):
                    undeclared.append(f"{method} {path}")
                unknown += [name for names in needed or () for name in names.split(" or ") if name not in known]
    assert (undeclared, unknown) == ([], [])
    assert len(staff_actions()) > 35
    assert all(not path.startswith(LEARNERS) for path, _ in views() if "training" in path or "fine_tuning" in path)


@pytest.mark.parametrize("role", [Role.LEARNER, Role.STAFF])
def test_without_the_permissions_no_action_of_staff_is_open_to_anybody(role: str) -> None:
    client = client_of(someone(role))
    for method, url, needed in staff_actions():
        response = client.generic(method, url, "{}", content_type="application/json")
        assert response.status_code == 403, f"{method} {url}"
        body = response.json()
        said = body["error"]["message"] if "error" in body else body["errors"][0]["detail"]
        assert said == f"You need the permission {' and '.join(needed)}."


def test_with_just_the_declared_permissions_every_action_is_open_to_a_learner() -> None:
    for method, url, needed in staff_actions():
        client = client_of(someone(Role.LEARNER, *(names.split(" or ")[-1] for names in needed)))
        response = client.generic(method, url, "{}", content_type="application/json")
        assert response.status_code != 403, f"{method} {url}"


def test_without_the_permissions_no_page_of_the_admin_is_open_to_staff() -> None:
    client = Client(raise_request_exception=False)
    client.force_login(someone(Role.STAFF))
    everybodys = ("logout/", "password_change/", "password_change/done/", "jsi18n/", "login/", "", "search/")
    opened = []
    for path, one in patterns(get_resolver().url_patterns):
        if not path.startswith("admin/") or path.removeprefix("admin/") in everybodys or "(?P" in path:
            continue
        if any(name not in ("object_id", "content_type_id", "app_label") for name in one.pattern.converters):
            continue
        url = f"/{path.replace('<path:object_id>', str(uuid4())).replace('<int:content_type_id>', '1')}"
        if "<" in url:
            continue
        for method in ("get", "post"):
            response = getattr(client, method)(url)
            # A page of a row that is not there leads to the index, whoever asks.
            if response.status_code not in (302, 403, 404, 405):
                opened.append(f"{method} {url}: {response.status_code}")
    assert opened == []


def test_every_action_of_the_admin_declares_the_permissions_that_it_asks_for() -> None:
    declared, undeclared = [], []
    for model, desk in admin.site._registry.items():
        lists = (desk.actions_list, desk.actions_row, desk.actions_detail, desk.actions_submit_line)
        named = [(name, getattr(desk, name)) for names in lists for name in desk._extract_action_names(names)]
        for name, action in (*named, *((name, action) for action, name, _ in desk._get_base_actions())):
            asks = getattr(action, "allowed_permissions", None)
            (declared if asks else undeclared).append(f"{model._meta.label}: {name}")
    assert undeclared == []
    assert {"jobs.Job: cancel", "training.Run: pause_this", "inference.Route: roll_back"} < set(declared)


@pytest.mark.parametrize(
    ("model", "deed", "method", "path"),
    [
        ("training.Run", "pause_this", "POST", "v1/fine_tuning/jobs/<str:job_id>/pause"),
        ("training.Run", "resume_this", "POST", "v1/fine_tuning/jobs/<str:job_id>/resume"),
        ("training.Run", "cancel_this", "POST", "v1/fine_tuning/jobs/<str:job_id>/cancel"),
        ("inference.Adapter", "promote", "POST", "api/v1/training/adapters/<uuid:adapter_id>/promote"),
        ("inference.Adapter", "download", "GET", "api/v1/training/adapters/<uuid:adapter_id>/download"),
        ("inference.Route", "complete", "POST", "api/v1/training/routes/<str:task>/complete"),
        ("inference.Route", "roll_back", "POST", "api/v1/training/routes/<str:task>/rollback"),
        ("training.Example", "approve", "POST", "api/v1/training/examples/<uuid:example_id>/review"),
        ("training.Example", "reject", "POST", "api/v1/training/examples/<uuid:example_id>/review"),
        ("training.Example", "view", "GET", "api/v1/training/examples/<uuid:example_id>"),
        ("training.File", "view", "GET", "v1/files/<str:file_id>"),
        ("training.File", "delete", "DELETE", "v1/files/<str:file_id>"),
        ("training.Run", "view", "GET", "v1/fine_tuning/jobs/<str:job_id>"),
        ("training.Evaluation", "view", "GET", "api/v1/training/evaluations/<uuid:evaluation_id>"),
        ("training.Comparison", "view", "GET", "api/v1/training/comparisons/<uuid:comparison_id>"),
        ("inference.Adapter", "view", "GET", "api/v1/training/adapters/<uuid:adapter_id>"),
        ("inference.Route", "view", "GET", "api/v1/training/routes/<str:task>"),
    ],
)
def test_the_admin_asks_for_what_the_api_asks_for(
    model: str, deed: str, method: str, path: str, rf: RequestFactory
) -> None:
    """Who has what the API asks for may, who has all else may not. deed: an action of the admin, or view, delete."""
    desk = next(desk for one, desk in admin.site._registry.items() if one._meta.label == model)
    asks = getattr(getattr(desk, deed, None), "allowed_permissions", [deed])
    needed = dict(views())[path].permissions[method]
    names = {name.split(".")[1] for name in needed}
    names |= {name.replace("view_", "change_") for name in names}  # in the admin, who may change something may view it
    others = someone(Role.STAFF)
    others.user_permissions.set(Permission.objects.exclude(codename__in=names))
    for user, may in ((someone(Role.STAFF, *needed), True), (others, False)):
        request = rf.get("/")
        request.user = user
        assert all(getattr(desk, f"has_{name}_permission")(request) for name in asks) is may


def test_who_may_only_look_at_schedules_stops_none_of_them() -> None:
    client = Client()
    client.force_login(someone(Role.STAFF, "django_celery_beat.view_periodictask"))
    hourly = IntervalSchedule.objects.create(every=1, period="hours")
    task = PeriodicTask.objects.create(name="tidy", task="jobs.sweep", interval=hourly)
    url = "/admin/django_celery_beat/periodictask/"
    for action in ("disable_tasks", "toggle_tasks"):
        client.post(url, {"action": action, "_selected_action": [task.pk]})
        assert PeriodicTask.objects.get(pk=task.pk).enabled, action


# --- groups ---


def of_group(name: str) -> set[str]:
    rows = Group.objects.get(name=name).permissions.values_list("content_type__app_label", "codename")
    return {f"{app}.{codename}" for app, codename in rows}


def test_five_groups_are_shipped_and_each_has_what_its_work_needs() -> None:
    assert {"teacher", "content editor", "reviewer", "model owner", "operator"} <= set(
        Group.objects.values_list("name", flat=True)
    )
    assert {"content.view_item", "content.add_item", "content.add_course"} <= of_group("teacher")
    assert "content.change_item" not in of_group("teacher")
    assert {"content.change_item", "content.change_topic", "content.delete_course"} <= of_group("content editor")
    assert {"training.view_example", "training.change_example", "training.add_vote"} <= of_group("reviewer")
    assert {"training.train", "inference.change_route", "training.add_file"} <= of_group("model owner")
    assert {"jobs.change_job", "users.change_user", "inference.view_route"} <= of_group("operator")
    powers = {"inference.change_route", "training.train", "training.change_gate"}
    for name in ("teacher", "content editor", "reviewer", "operator"):
        assert powers.isdisjoint(of_group(name)), name
    for name in ("teacher", "content editor", "reviewer", "model owner"):
        assert not any(permission.startswith(("users.", "auth.", "tutor.")) for permission in of_group(name)), name


def test_a_permission_made_by_the_migration_is_the_one_that_is_asked_for() -> None:
    twice = Permission.objects.values_list("content_type", "codename")
    assert len(twice) == len(set(twice))
    for group in Group.objects.all():
        for permission in group.permissions.all():
            assert permission.content_type.model_class() is not None, permission


def test_a_model_owner_may_promote_and_an_operator_may_only_look() -> None:
    owner, operator = someone(Role.STAFF), someone(Role.STAFF)
    owner.groups.add(Group.objects.get(name="model owner"))
    operator.groups.add(Group.objects.get(name="operator"))
    url = "/api/v1/training/routes/tutoring"
    assert client_of(owner).post(f"{url}/rollback", {}).status_code == 404  # there is no route yet
    assert client_of(operator).get(url).status_code == 404
    assert client_of(operator).post(f"{url}/rollback", {}).status_code == 403


# --- teachers ---


def test_a_teacher_enters_the_admin_and_sees_what_a_teacher_may() -> None:
    teacher = someone(Role.TEACHER)
    assert teacher.is_staff
    assert not teacher.groups.exists()
    client = Client()
    client.force_login(teacher)
    assert client.get("/admin/").status_code == 200
    for path in ("item", "topic", "course", "item/add", "course/add"):
        assert client.get(f"/admin/content/{path}/").status_code == 200, path
    for path in ("content/topic/add", "users/user", "training/example", "inference/route", "jobs/job", "tutor/message"):
        assert client.get(f"/admin/{path}/").status_code == 403, path
    User.objects.filter(id=teacher.id).update(role=Role.LEARNER, is_staff=False)
    assert client.get("/admin/content/item/").status_code == 302
    assert not User.objects.get(id=teacher.id).has_perm("content.add_item")
