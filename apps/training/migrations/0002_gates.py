"""The gates that a new installation has. They are data: staff change them in the admin."""

from django.db import migrations

GATES = {
    "tutoring": [
        ("nll", "better_than_base", 0.0),
        ("nll", "not_worse_than_live", 0.05),
        ("turn_end", "bound", 0.9),
        ("answer_leak", "bound", 0.1),
        ("exact_match", "not_worse_than_live", 0.1),
    ],
    "engagement": [("auc", "bound", 0.6), ("calibration_error", "bound", 0.15), ("auc", "not_worse_than_live", 0.05)],
    "learning_path": [("validity", "bound", 0.9), ("nll", "not_worse_than_live", 0.05)],
}


def make(apps, schema_editor):
    gate = apps.get_model("training", "Gate")
    for task, rows in GATES.items():
        for measure, kind, value in rows:
            gate.objects.get_or_create(task=task, measure=measure, kind=kind, defaults={"value": value})


class Migration(migrations.Migration):
    dependencies = [("training", "0001_initial")]
    operations = [migrations.RunPython(make, migrations.RunPython.noop)]
