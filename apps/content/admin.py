import re
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import NON_FIELD_ERRORS, ValidationError
from django.db import transaction
from django.db.models import Q, QuerySet
from django.forms import ModelForm
from django.http import HttpRequest, HttpResponse
from import_export import fields, resources
from import_export.admin import ImportExportModelAdmin
from import_export.formats.base_formats import Format
from import_export.widgets import ForeignKeyWidget, IntegerWidget, ManyToManyWidget
from tablib import Dataset
from unfold.admin import ModelAdmin, TabularInline
from unfold.contrib.filters.admin import ChoicesDropdownFilter
from unfold.contrib.import_export.forms import ExportForm, ImportForm
from unfold.decorators import display

from apps.common.sheets import BadSheet, csv_of, sheet_of, workbook_of
from apps.content import services
from apps.content.html import sanitised
from apps.content.models import Course, Item, Lesson, Status, Topic, Unit
from apps.content.selectors import enrichment_progress, may_change

CIRCLE = "Its parents or its prerequisites lead back to the topic itself."
WHOLE_NUMBER = re.compile(r"([+-]?[0-9]{1,1000})(\.0+)?")
EDUCATIONAL = {"teaches": "success", "entertains": "info"}


class Csv(Format):
    """What comes in is found out by looking: .xlsx or text, in any of the encodings of `common.sheets`."""

    def __init__(self, encoding: str | None = None) -> None:
        """encoding: of text; there is nothing to choose."""

    def get_title(self) -> str:
        return "csv"

    def get_extension(self) -> str:
        return self.get_title()

    def get_content_type(self) -> str:
        return "text/csv"

    def can_import(self) -> bool:
        return True

    def can_export(self) -> bool:
        return True

    def create_dataset(self, in_stream: bytes) -> Dataset:
        sheet = sheet_of(in_stream)
        dataset = Dataset(headers=sheet.columns)
        dataset.lines = []
        for line, cells in sheet.rows:
            if len(cells) != len(sheet.columns):
                raise BadSheet(f"line {line}: it does not have the {len(sheet.columns)} columns of the header")
            dataset.append(cells)
            dataset.lines.append(line)
        return dataset

    def export_data(self, dataset: Dataset, **kwargs: Any) -> str | bytes:
        return csv_of(dataset.headers, dataset)


class Xlsx(Csv):
    def get_title(self) -> str:
        return "xlsx"

    def get_content_type(self) -> str:
        return "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"

    def export_data(self, dataset: Dataset, **kwargs: Any) -> str | bytes:
        return workbook_of(dataset.headers, dataset)


class WholeNumberWidget(IntegerWidget):
    def clean(self, value: Any, row: Any = None, **kwargs: Any) -> int | None:
        """Raises `ValueError` for a text that is no whole number, which import-export would cut down to one."""
        if self.is_empty(value):
            return None
        text = str(value).strip()
        if not (number := WHOLE_NUMBER.fullmatch(text)):
            raise ValueError(f"{text[:50]!r} is not a whole number.")
        return int(number[1])


class SheetResource(resources.ModelResource):
    """Rows by their keys. An error names the line and the column, and nothing that a sheet says is passed over."""

    WIDGETS_MAP = {
        kind: WholeNumberWidget if widget is IntegerWidget else widget
        for kind, widget in resources.ModelResource.WIDGETS_MAP.items()
    }
    TOPICS: tuple[str, ...] = ()  # columns that name topics

    def before_import(self, dataset: Any, **kwargs: Any) -> None:
        known = [field.column_name for field in self.get_user_visible_fields()]
        if unknown := [name for name in dataset.headers if name not in known]:
            raise ValidationError(f"There is no column {unknown[0]!r}: there are {', '.join(known)}.")
        self.lines: list[int] = dataset.lines
        self.seen: dict[str, int] = {}

    def before_import_row(self, row: dict[str, Any], row_number: int = 0, **kwargs: Any) -> None:
        (name,) = self._meta.import_id_fields
        key, line = str(row.get(name) or "").strip(), self.lines[row_number - 1]
        if not key:
            raise ValidationError({name: f"It has no {name}, by which it would be known again."})
        if (first := self.seen.setdefault(key, line)) != line:
            raise ValidationError({name: f"{key!r} is on line {first}, too."})
        for column in self.TOPICS:
            slugs = {slug.strip() for slug in str(row.get(column) or "").split(";") if slug.strip()}
            there = set(Topic.objects.filter(slug__in=slugs).values_list("slug", flat=True))
            if unknown := sorted(slugs - there):
                raise ValidationError({column: f"There is no topic {unknown[0]!r}."})

    def import_row(self, row: Any, instance_loader: Any, **kwargs: Any) -> Any:
        result = super().import_row(row, instance_loader, **kwargs)
        if result.validation_error:
            place = f"line {self.lines[kwargs['row_number'] - 1]}"
            result.validation_error = _placed(result.validation_error, place)
        return result


def _placed(error: ValidationError, place: str) -> ValidationError:
    if not hasattr(error, "error_dict"):
        return ValidationError([f"{place}: {text}" for text in error.messages])
    return ValidationError(
        {
            name: [
                f"{place}: {text}" if name == NON_FIELD_ERRORS else f"{place}, column {name}: {text}" for text in texts
            ]
            for name, texts in error.message_dict.items()
        }
    )


class TopicResource(SheetResource):
    TOPICS = ("parent", "prerequisites")
    parent = fields.Field("parent", "parent", ForeignKeyWidget(Topic, "slug"))
    prerequisites = fields.Field("prerequisites", "prerequisites", ManyToManyWidget(Topic, ";", "slug"))

    class Meta:
        model = Topic
        import_id_fields = ("slug",)
        fields = ("slug", "name", "subject", "parent", "prerequisites", "position")
        clean_model_instances = True

    def save_m2m(self, instance: Topic, row: Any, **kwargs: Any) -> None:
        super().save_m2m(instance, row, **kwargs)
        if services.topic_leads_to_itself(instance):
            raise ValidationError(CIRCLE)


class ItemResource(SheetResource):
    """Rows with the columns of a catalogue."""

    TOPICS = ("topics",)
    topics = fields.Field("topics", "topics", ManyToManyWidget(Topic, ";", "slug"))
    tags = fields.Field("tags", "tags")

    class Meta:
        model = Item
        import_id_fields = ("key",)
        skip_unchanged = True
        clean_model_instances = True
        fields = (
            "key",
            "title",
            "body",
            "kind",
            "subject",
            "topics",
            "level",
            "language",
            "duration",
            "tags",
            "author",
            "licence",
            "source_url",
            "status",
        )

    def before_import_row(self, row: dict[str, Any], row_number: int = 0, **kwargs: Any) -> None:
        """Of columns that a sheet has not, items keep what they have."""
        super().before_import_row(row, row_number, **kwargs)
        if "body" in row:
            row["body"] = sanitised(str(row["body"] or ""))
        if "tags" in row:
            row["tags"] = [tag.strip() for tag in str(row["tags"] or "").split(";") if tag.strip()]

    def before_save_instance(self, instance: Item, row: Any, **kwargs: Any) -> None:
        services.item_derive(instance)

    def dehydrate_tags(self, item: Item) -> str:
        return ";".join(item.tags)


class SheetAdmin(ModelAdmin, ImportExportModelAdmin):
    """Goes out and comes back as a spreadsheet. What comes in may be new, and may change what is there."""

    import_form_class, export_form_class = ImportForm, ExportForm
    import_formats: tuple[type[Format], ...] = (Csv,)  # which is any sheet
    export_formats: tuple[type[Format], ...] = (Csv, Xlsx)

    def get_import_data_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        """What was shown first and is no more so when it is confirmed is kept whole or not at all."""
        return {**super().get_import_data_kwargs(**kwargs), "rollback_on_validation_errors": True}

    def add_data_read_fail_error_to_form(self, form: Any, e: Exception) -> None:
        if isinstance(e, BadSheet):
            form.add_error("import_file", str(e))
        else:
            super().add_data_read_fail_error_to_form(form, e)

    def has_import_permission(self, request: HttpRequest) -> bool:
        return self.has_add_permission(request) and request.user.has_perm(f"content.change_{self.opts.model_name}")


class OwnAdmin(ModelAdmin):
    """Whoever has no permission to change all sees what is published, and changes what they made: teachers."""

    exclude = ("user",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows = super().get_queryset(request)
        if request.user.has_perm(f"content.change_{self.opts.model_name}"):
            return rows
        return rows.filter(Q(status=Status.PUBLISHED) | Q(user=request.user.pk))

    def has_change_permission(self, request: Any, obj: Any = None) -> bool:
        return may_change(request.user, obj) if obj else super().has_change_permission(request)

    def has_delete_permission(self, request: Any, obj: Any = None) -> bool:
        return may_change(request.user, obj, "delete") if obj else super().has_delete_permission(request)


class TopicForm(ModelForm):  # type: ignore[type-arg]
    def clean(self) -> dict[str, Any]:
        """Nothing comes before itself: tried, and taken back."""
        cleaned = super().clean() or {}
        if self.instance.pk and not self.errors:
            with transaction.atomic():
                Topic.objects.filter(pk=self.instance.pk).update(parent=cleaned["parent"])
                self.instance.prerequisites.set(cleaned["prerequisites"])
                if services.topic_leads_to_itself(self.instance):
                    self.add_error(None, CIRCLE)
                transaction.set_rollback(True)
        return cleaned


@admin.register(Topic)
class TopicAdmin(SheetAdmin):
    form = TopicForm
    resource_classes = [TopicResource]
    list_display = ("name", "slug", "subject", "parent", "position")
    list_filter = (("subject", ChoicesDropdownFilter),)
    list_select_related = ("parent",)
    search_fields = ("name", "slug")
    autocomplete_fields = ("parent", "prerequisites")


@admin.register(Item)
class ItemAdmin(OwnAdmin, SheetAdmin):
    resource_classes = [ItemResource]
    list_display = (
        "title",
        "kind",
        "subject",
        "level",
        "status",
        "educational",
        "quality",
        "enriched_at",
        "created_at",
    )
    list_filter = (
        ("kind", ChoicesDropdownFilter),
        ("subject", ChoicesDropdownFilter),
        ("level", ChoicesDropdownFilter),
        ("status", ChoicesDropdownFilter),
    )
    list_filter_submit = True
    list_select_related = ("enrichment",)
    search_fields = ("title", "text", "key")
    show_full_result_count = False
    autocomplete_fields = ("topics",)
    readonly_fields = ("key", "educational", "quality", "estimated_level", "enriched_at", "created_at", "updated_at")
    actions = ("archive",)
    list_before_template = "admin/enrichment.html"

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        return super().changelist_view(request, {**(extra_context or {}), "enrichment": enrichment_progress()})

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False  # what learners did with it stays: it is archived

    def save_model(self, request: HttpRequest, obj: Item, form: Any, change: bool) -> None:
        fields = {name: form.cleaned_data[name] for name in form.changed_data if name != "topics"}
        if change:
            services.item_update(item=obj, **fields)
        else:  # who is in the admin is logged in
            obj.pk = services.item_create(user=request.user, **fields).pk  # type: ignore[arg-type]

    @admin.action(description="Archive", permissions=["change"])
    def archive(self, request: HttpRequest, queryset: QuerySet[Item]) -> None:
        archived = services.item_archive(items=queryset)
        self.message_user(request, f"{archived} archived.", messages.SUCCESS)

    @display(description="Educational", label=EDUCATIONAL, empty_value="-")
    def educational(self, item: Item) -> tuple[str, str] | None:
        if not hasattr(item, "enrichment"):
            return None
        probability = item.enrichment.educational
        return "teaches" if probability >= 0.5 else "entertains", f"{probability:.2f}"

    @admin.display(description="Quality", empty_value="-", ordering="enrichment__quality")
    def quality(self, item: Item) -> str | None:
        return f"{item.enrichment.quality:.2f}" if hasattr(item, "enrichment") else None

    @admin.display(description="Estimated level", empty_value="-")
    def estimated_level(self, item: Item) -> str | None:
        return item.enrichment.level if hasattr(item, "enrichment") else None

    @admin.display(description="Enriched", empty_value="-", ordering="enrichment__enriched_at")
    def enriched_at(self, item: Item) -> Any:
        return item.enrichment.enriched_at if hasattr(item, "enrichment") else None


class LessonInline(TabularInline):
    model = Lesson
    extra = 0
    autocomplete_fields = ("item",)


class UnitInline(TabularInline):
    model = Unit
    extra = 0
    show_change_link = True


@admin.register(Course)
class CourseAdmin(OwnAdmin):
    list_display = ("title", "subject", "level", "language", "status", "created_at")
    list_filter = (("subject", ChoicesDropdownFilter), ("status", ChoicesDropdownFilter))
    list_filter_submit = True
    search_fields = ("title", "description")
    inlines = (UnitInline,)

    def save_model(self, request: Any, obj: Course, form: Any, change: bool) -> None:
        if not change:
            obj.user = request.user
        super().save_model(request, obj, form, change)


@admin.register(Unit)
class UnitAdmin(ModelAdmin):
    """Reached from its course."""

    list_display = ("title", "course", "position")
    list_select_related = ("course",)
    search_fields = ("title",)
    autocomplete_fields = ("course",)
    inlines = (LessonInline,)

    def get_readonly_fields(self, request: HttpRequest, obj: Unit | None = None) -> tuple[str, ...]:
        return ("course",) if obj else ()

    def has_module_permission(self, request: HttpRequest) -> bool:
        return False

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Units are added on the page of their course; here, to any."""
        return super().has_add_permission(request) and request.user.has_perm("content.change_course")

    def has_change_permission(self, request: Any, obj: Unit | None = None) -> bool:
        return super().has_change_permission(request) and (obj is None or may_change(request.user, obj.course))

    def has_delete_permission(self, request: Any, obj: Unit | None = None) -> bool:
        return super().has_delete_permission(request) and (obj is None or may_change(request.user, obj.course))
