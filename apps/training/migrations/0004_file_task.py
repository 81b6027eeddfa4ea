from django.db import migrations, models

TASKS = ("engagement", "learning_path", "query")  # formats whose examples are for the task of that name


def of_format(apps, schema_editor):
    for task in TASKS:
        apps.get_model("training", "File").objects.filter(format=task).update(task=task)
    train = apps.get_model("auth", "Permission").objects.filter(content_type__app_label="training", codename="train")
    train.update(name="Can begin, pause, resume and cancel runs")


class Migration(migrations.Migration):
    dependencies = [("training", "0003_query_task"), ("auth", "0012_alter_user_first_name_max_length")]
    operations = [
        migrations.AddField(
            "file",
            "task",
            models.CharField(
                choices=[
                    ("tutoring", "Tutoring"),
                    ("engagement", "Engagement"),
                    ("learning_path", "Learning paths"),
                    ("query", "Query understanding"),
                ],
                default="tutoring",
                max_length=20,
            ),
        ),
        migrations.AlterModelOptions(
            "datasetversion",
            {
                "ordering": ["-created_at", "-id"],
                "permissions": [("train", "Can begin, pause, resume and cancel runs")],
                "verbose_name": "data set version",
            },
        ),
        migrations.RunPython(of_format, migrations.RunPython.noop),
    ]
