import csv
from io import BytesIO, StringIO
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from openpyxl import load_workbook
from pytest_django import DjangoAssertNumQueries

from apps.common.sheets import workbook_of
from apps.content.models import Course, Item, Topic
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


# --- sheets ---


def uploaded(client: Client, data: bytes, name: str = "items.csv", model: str = "item") -> Any:
    """The page that shows what a sheet would do."""
    sheet = SimpleUploadedFile(name, data)
    return client.post(f"/admin/content/{model}/import/", {"format": "0", "resource": "0", "import_file": sheet})


def kept(client: Client, page: Any, model: str = "item") -> None:
    confirmed = page.context["confirm_form"].initial
    assert client.post(f"/admin/content/{model}/process_import/", confirmed).status_code == 302


@pytest.mark.parametrize(
    ("model", "sheet", "error"),
    [
        (
            "item",
            b"key,title,topics\na,One,\nb,Two,math-halves;magic\n",
            "line 3, column topics: There is no topic 'magic'.",
        ),
        ("item", b"key,title\na,One\nb,Two\na,Three\n", "line 4, column key: 'a' is on line 2, too."),
        (
            "item",
            b'key,title,kind\na,"One\ntwo",lesson\nb,Two,song\n',
            "line 4, column kind: Value 'song' is not a valid choice.",
        ),
        *(
            (
                "item",
                b"key,title,duration\na,One,90\nb,Two," + text + b"\n",
                f"line 3, column duration: {text.decode().strip(chr(34))!r} is not a whole number.",
            )
            for text in (b"12.7", b'"12,5"', b"abc", b"1_000", b"inf")
        ),
        (
            "item",
            b"key,title,duration\na,One,99999\n",
            "line 2, column duration: Ensure this value is less than or equal to 86400.",
        ),
        (
            "topic",
            b"slug,name,subject,position\na,A,math,1.5\n",
            "line 2, column position: '1.5' is not a whole number.",
        ),
        ("topic", b"slug,name,subject,parent\na,A,math,magic\n", "line 2, column parent: There is no topic 'magic'."),
        (
            "topic",
            b"slug,name,subject,prerequisites\na,A,math,\nb,B,math,a;magic\n",
            "line 3, column prerequisites: There is no topic 'magic'.",
        ),
        ("topic", b"slug,name,subject\na,A,math\na,B,math\n", "line 3, column slug: 'a' is on line 2, too."),
    ],
)
def test_a_row_that_cannot_be_kept_whole_is_told_by_line_and_column(
    admin_client: Client, model: str, sheet: bytes, error: str
) -> None:
    topic_save(slug="math-halves", name="Halves", subject="math")
    page = uploaded(admin_client, sheet, model=model)
    rows = page.context["result"].invalid_rows
    assert [text for row in rows for text in row.error.messages] == [error]
    assert "confirm_form" not in page.context
    assert (Item.objects.count(), Topic.objects.count()) == (0, 1)


def test_whole_numbers_come_in_however_they_are_written(admin_client: Client) -> None:
    kept(admin_client, uploaded(admin_client, b"key,title,duration\na,A,12\nb,B,12.0\nc,C, 12 \nd,D,\n"))
    assert list(Item.objects.order_by("key").values_list("duration", flat=True)) == [12, 12, 12, None]


@pytest.mark.parametrize(
    ("sheet", "error"),
    [
        (b"key,titel\na,One\n", "There is no column &#x27;titel&#x27;"),
        (b"key,title\na,\xff\n", "line 2 is not UTF-8: byte 2 is invalid"),
        (b"key,title\na,One,more\n", "line 2: it does not have the 2 columns of the header"),
    ],
)
def test_a_sheet_that_cannot_be_read_whole_is_refused(admin_client: Client, sheet: bytes, error: str) -> None:
    page = uploaded(admin_client, sheet)
    assert error in page.content.decode()
    assert "confirm_form" not in page.context


def test_a_workbook_and_a_sheet_of_another_country_come_in(admin_client: Client) -> None:
    for number, (name, data) in enumerate(
        {
            "A.XLSX": workbook_of(["key", "title"], [["k", "One"]]),
            "b.csv": "key;title\r\nk;Zwei ü\r\n".encode("utf-16"),
            "c.csv": b"\xef\xbb\xbfkey\ttitle\nk\tThree\n",
        }.items()
    ):
        kept(admin_client, uploaded(admin_client, data, name))
        assert Item.objects.get().title == ("One", "Zwei ü", "Three")[number]


@pytest.mark.parametrize("format_", ["0", "1"])
def test_formulas_go_out_as_text_and_come_back_as_they_were(admin_client: Client, format_: str) -> None:
    titles = {"a": "=1+1", "b": "-2 is negative", "c": "@home", "d": "'=x"}
    for key, title in titles.items():
        item_create(user=None, key=key, title=title, author="+44")
    response = admin_client.post(f"{ADMIN}export/", {"format": format_, "resource": "0"})
    data = response.getvalue() if hasattr(response, "getvalue") else response.content
    sheet = (
        load_workbook(BytesIO(data)).active.iter_rows(values_only=True)
        if format_ == "1"
        else csv.reader(StringIO(data.decode()))
    )
    rows = {row[0]: row for row in sheet}
    assert {key: rows[key][1] for key in titles} == {key: f"'{title}" for key, title in titles.items()}
    assert {rows[key][10] for key in titles} == {"'+44"}
    Item.objects.update(title="changed", author="")
    kept(admin_client, uploaded(admin_client, data))
    assert dict(Item.objects.values_list("key", "title")) == titles


def test_what_is_no_more_so_when_it_is_confirmed_is_kept_whole_or_not_at_all(admin_client: Client) -> None:
    topic = topic_save(slug="math-halves", name="Halves", subject="math")
    page = uploaded(admin_client, b"key,title,topics\na,One,\nb,Two,math-halves\n")
    topic.delete()
    confirmed = page.context["confirm_form"].initial
    client = Client(raise_request_exception=False)
    client.force_login(User.objects.get(username="admin"))
    client.post(f"{ADMIN}process_import/", confirmed)
    assert not Item.objects.exists()


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
