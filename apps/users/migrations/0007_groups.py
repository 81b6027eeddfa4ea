"""The groups that a new installation has. They are data: superusers change them in the admin.

Whoever has the role teacher has the permissions of that group without being a member (see `users.backends`).
"""

from django.db import migrations, models

VIEW, ADD, CHANGE, DELETE = "view", "add", "change", "delete"
ALL = (VIEW, ADD, CHANGE, DELETE)
CONTENT = {"content.unit": ALL, "content.lesson": ALL}
ROUTES = {"inference.adapter": (VIEW,), "inference.route": (VIEW,), "inference.routechange": (VIEW,)}
GROUPS = {
    "teacher": {  # who may add items and courses changes their own
        "content.topic": (VIEW,),
        "content.item": (VIEW, ADD),
        "content.course": (VIEW, ADD),
        **CONTENT,
    },
    "content editor": {
        "content.topic": ALL,
        "content.item": ALL,
        "content.course": ALL,
        **CONTENT,
    },
    "reviewer": {
        "training.example": (VIEW, CHANGE),
        "training.review": (VIEW,),
        "training.comparison": (VIEW,),
        "training.vote": (ADD,),
    },
    "model owner": {
        "training.file": (VIEW, ADD, DELETE),
        "training.example": (VIEW, CHANGE, DELETE),
        "training.review": (VIEW,),
        "training.datasetversion": (VIEW, ADD, "train"),
        "training.run": (VIEW,),
        "training.runcheckpoint": (VIEW,),
        "training.schedule": ALL,
        "training.slot": (VIEW,),
        "django_celery_beat.crontabschedule": (VIEW, ADD),
        "training.evaluationset": (VIEW, ADD),
        "training.evaluationitem": (VIEW,),
        "training.evaluation": (VIEW, ADD),
        "training.gate": ALL,
        "training.comparison": (VIEW, ADD),
        "training.vote": (ADD,),
        **ROUTES,
        "inference.adapter": (VIEW, ADD),
        "inference.route": (VIEW, CHANGE),
        "feed.ranker": (VIEW, CHANGE),
        "feed.weights": (VIEW, ADD),
    },
    "operator": {
        "jobs.job": (VIEW, CHANGE, DELETE),
        "django_celery_beat.periodictask": ALL,
        "django_celery_beat.crontabschedule": ALL,
        "django_celery_beat.intervalschedule": ALL,
        **ROUTES,
        "training.run": (VIEW,),
        "training.schedule": (VIEW,),
        "training.slot": (VIEW,),
        "users.user": ALL,
        "users.token": (VIEW, DELETE),
    },
}


def make(apps, schema_editor):
    """Groups whose names are taken stay as they are: nobody is to get more than they had."""
    group_model = apps.get_model("auth", "Group")
    for name, models_ in GROUPS.items():
        group, made = group_model.objects.get_or_create(name=name)
        if made:
            group.permissions.set(
                _permission(apps, *model.split("."), action) for model, actions in models_.items() for action in actions
            )


def _permission(apps, app_label, model, action):
    """The row that Django makes once all migrations have run, if it is not there yet."""
    content_type, _ = apps.get_model("contenttypes", "ContentType").objects.get_or_create(
        app_label=app_label, model=model
    )
    codename = f"{action}_{model}" if action in ALL else action
    name = f"Can {action} {model}"
    permissions = apps.get_model("auth", "Permission").objects
    return permissions.get_or_create(content_type=content_type, codename=codename, defaults={"name": name})[0]


class Migration(migrations.Migration):
    dependencies = [
        ("users", "0006_desk"),
        ("auth", "0012_alter_user_first_name_max_length"),
        ("contenttypes", "0002_remove_content_type_name"),
    ]
    operations = [
        migrations.AddConstraint(
            "user",
            models.CheckConstraint(
                condition=models.Q(("is_staff", True), ("role__in", ("teacher", "staff")))
                | models.Q(models.Q(("role__in", ("teacher", "staff")), _negated=True), ("is_staff", False)),
                name="user_is_staff_by_role",
            ),
        ),
        migrations.RunPython(make, migrations.RunPython.noop),
    ]
