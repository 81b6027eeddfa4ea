import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from apps.content.models import Course, Item
from apps.content.services import course_create, item_create, topic_save
from apps.users.models import Role, User

pytestmark = pytest.mark.django_db

ADMIN = "/admin/content/item/"
FORM = {"title": "Halves", "kind": "lesson", "subject": "math", "language": "en", "status": "published"}


def test_a_body_is_sanitised_and_its_author_kept(admin_client: Client, admin_user: User) -> None:
    body = "<p>Two <script>evil()</script>halves</p>"
    assert admin_client.post(f"{ADMIN}add/", {**FORM, "body": body}).status_code == 302
    item = Item.objects.get()
    assert (item.body, item.text, item.user) == ("<p>Two halves</p>", "Two halves", admin_user)


def test_all_that_is_changed_is_kept_and_nothing_else(admin_client: Client) -> None:
    item = item_create(user=None, title="Halves", body="<p>one</p>", tags=["x"], author="Tess")
    form = {**FORM, "body": "<p>one</p>", "tags": "x", "author": "Tess"}
    page = f"{ADMIN}{item.id}/change/"
    assert admin_client.get(page).status_code == 200
    Item.objects.update(licence="given meanwhile")
    changed = {**form, "licence": "given meanwhile", "title": "Thirds", "status": "draft", "level": "advanced"}
    assert admin_client.post(page, changed).status_code == 302
    found = Item.objects.get()
    assert (found.title, found.status, found.level, found.tags) == ("Thirds", "draft", "advanced", ["x"])
    assert (found.text, found.licence, found.source != item.source) == ("one", "given meanwhile", True)


def test_a_topic_does_not_come_before_itself(admin_client: Client) -> None:
    first = topic_save(slug="a", name="A", subject="math")
    second = topic_save(slug="b", name="B", subject="math", prerequisites=[first])
    form = {"slug": "a", "name": "A", "subject": "math", "position": 0}
    page = f"/admin/content/topic/{first.id}/change/"
    assert b"lead back to the topic itself" in admin_client.post(page, {**form, "prerequisites": [second.id]}).content
    assert not first.prerequisites.exists()
    assert admin_client.post(page, {**form, "name": "Alpha"}).status_code == 302
    sheet = SimpleUploadedFile(
        "topics.csv", b"slug,name,subject,parent,prerequisites,position\na,A,math,,b,0\n", "text/csv"
    )
    shown = admin_client.post(
        "/admin/content/topic/import/", {"format": "0", "resource": "0", "import_file": sheet}
    ).context["result"]
    assert shown.has_errors() or shown.has_validation_errors()
    assert not first.prerequisites.exists()


def test_items_are_archived_not_deleted(admin_client: Client) -> None:
    item = item_create(user=None, title="Halves")
    admin_client.post(ADMIN, {"action": "archive", "_selected_action": [item.id]})
    assert Item.objects.get().status == "archived"
    assert admin_client.post(f"{ADMIN}{item.id}/delete/", {"post": "yes"}).status_code == 403


def test_a_list_costs_the_same_whatever_its_length(
    admin_client: Client, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    for number in range(20):
        item_create(user=None, title=str(number))
    with django_assert_max_num_queries(7):
        assert admin_client.get(ADMIN).status_code == 200


def test_a_spreadsheet_goes_out_and_comes_back(admin_client: Client) -> None:
    topic = topic_save(slug="math-halves", name="Halves", subject="math")
    item_create(user=None, key="a", title="One", body="<p>1</p>", topics=[topic], tags=["x", "y"], subject="math")
    exported = admin_client.post(f"{ADMIN}export/", {"format": "0", "resource": "0"})
    assert exported.content.decode().splitlines() == [
        "key,title,body,kind,subject,topics,level,language,duration,tags,author,licence,source_url,status",
        "a,One,<p>1</p>,article,math,math-halves,,en,,x;y,,,,published",
    ]
    sheet = "key,title,body,kind,subject,topics,tags\na,Uno,<p>1<script>evil()</script></p>,video,math,math-halves,z\n"
    upload = SimpleUploadedFile("items.csv", sheet.encode(), "text/csv")
    page = admin_client.post(f"{ADMIN}import/", {"format": "0", "resource": "0", "import_file": upload})
    confirmed = page.context["confirm_form"].initial
    assert Item.objects.get().title == "One"  # shown first, kept when it is confirmed
    assert admin_client.post(f"{ADMIN}process_import/", confirmed).status_code == 302
    item = Item.objects.get()
    assert (item.title, item.kind, item.body, item.text, item.tags) == ("Uno", "video", "<p>1</p>", "1", ["z"])


def test_a_sheet_changes_only_the_columns_that_it_has(admin_client: Client) -> None:
    item = item_create(user=None, key="a", title="One", body="<p>1</p>", tags=["x"])
    upload = SimpleUploadedFile("items.csv", b"key,title\na,Uno\n", "text/csv")
    page = admin_client.post(f"{ADMIN}import/", {"format": "0", "resource": "0", "import_file": upload})
    admin_client.post(f"{ADMIN}process_import/", page.context["confirm_form"].initial)
    found = Item.objects.get()
    assert (found.title, found.body, found.text, found.tags) == ("Uno", "<p>1</p>", "1", ["x"])
    assert found.source != item.source  # so that models read it again


def test_a_row_without_a_key_is_refused(admin_client: Client) -> None:
    upload = SimpleUploadedFile("items.csv", b"key,title\n,One\n", "text/csv")
    page = admin_client.post(f"{ADMIN}import/", {"format": "0", "resource": "0", "import_file": upload})
    assert "It has no key" in page.content.decode()
    assert not Item.objects.exists()


@pytest.mark.parametrize("path", ["item/import/", "item/export/", "item/process_import/", "topic/import/"])
def test_sheets_need_the_permission(path: str, db: None) -> None:
    nobody = Client()
    nobody.force_login(User.objects.create_user("sid", "sid@example.org", role=Role.STAFF, is_staff=True))
    assert nobody.post(f"/admin/content/{path}").status_code == 403


def test_a_row_with_an_error_is_told_before_anything_is_kept(admin_client: Client) -> None:
    upload = SimpleUploadedFile("items.csv", b"key,title,kind\na,One,song\n", "text/csv")
    page = admin_client.post(f"{ADMIN}import/", {"format": "0", "resource": "0", "import_file": upload})
    assert "song" in page.content.decode()
    assert page.context["result"].has_validation_errors()
    assert not Item.objects.exists()


@pytest.mark.parametrize("name", ["item", "topic", "course", "unit"])
def test_pages_open_for_those_who_may(admin_client: Client, name: str) -> None:
    course = course_create(user=None, title="C", units=[{"title": "U", "lessons": [item_create(user=None, title="a")]}])
    for page in ("", "add/"):
        assert admin_client.get(f"/admin/content/{name}/{page}").status_code == 200
    assert admin_client.get(f"/admin/content/course/{course.id}/change/").status_code == 200
    assert admin_client.get(f"/admin/content/unit/{course.units.get().id}/change/").status_code == 200
    nobody = Client()
    nobody.force_login(User.objects.create_user("sid", "sid@example.org", role=Role.STAFF, is_staff=True))
    assert nobody.get(f"/admin/content/{name}/").status_code == 403
    assert Course.objects.count() == 1


# --- teachers ---


def desk_of(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def test_a_teacher_changes_her_own_and_nobody_elses(db: None) -> None:
    tess, tom = (User.objects.create_user(n, f"{n}@example.org", role=Role.TEACHER) for n in ("tess", "tom"))
    hers = item_create(user=tess, title="Halves", status="draft")
    course = course_create(user=tess, title="C", units=[{"title": "U", "lessons": [hers]}])
    unit = course.units.get()
    own, others = desk_of(tess), desk_of(tom)
    assert own.post(f"{ADMIN}{hers.id}/change/", {**FORM, "title": "Thirds"}).status_code == 302
    assert Item.objects.get().title == "Thirds"
    assert others.post(f"{ADMIN}{hers.id}/change/", {**FORM, "title": "Mine"}).status_code in (302, 403)
    Item.objects.update(status="published")
    assert others.get(f"{ADMIN}{hers.id}/change/").status_code == 200  # to look at
    for page in (f"{ADMIN}{hers.id}/change/", f"/admin/content/course/{course.id}/change/"):
        assert others.post(page, {**FORM, "title": "Mine"}).status_code == 403
    for page in (f"/admin/content/unit/{unit.id}/change/", f"/admin/content/unit/{unit.id}/delete/"):
        assert others.post(page, {"title": "Mine", "post": "yes"}).status_code == 403
    assert others.post("/admin/content/unit/add/", {}).status_code == 403
    assert others.post(f"/admin/content/course/{course.id}/delete/", {"post": "yes"}).status_code == 403
    others.post(ADMIN, {"action": "archive", "_selected_action": [hers.id]})
    assert (Item.objects.get().status, Item.objects.get().title, unit.course.title) == ("published", "Thirds", "C")
    for path in ("item/import/", "topic/import/"):
        assert others.post(f"/admin/content/{path}").status_code == 403


def test_a_course_made_in_the_admin_is_its_makers(db: None) -> None:
    tess = User.objects.create_user("tess", "tess@example.org", role=Role.TEACHER)
    form = {"title": "C", "subject": "math", "level": "beginner", "language": "en", "status": "published"}
    inline = {"units-TOTAL_FORMS": "0", "units-INITIAL_FORMS": "0"}
    assert desk_of(tess).post("/admin/content/course/add/", {**form, **inline}).status_code == 302
    assert Course.objects.get().user == tess
