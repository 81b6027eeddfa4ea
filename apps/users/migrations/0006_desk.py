from django.db import migrations


def teachers_may_enter(apps, schema_editor):
    apps.get_model("users", "User").objects.filter(role="teacher").update(is_staff=True)


class Migration(migrations.Migration):
    """Teachers may enter the admin, too; what they may do there is a matter of permissions."""

    dependencies = [("users", "0005_account_fields")]
    operations = [
        migrations.RemoveConstraint("user", "user_is_staff_by_role"),
        migrations.RunPython(teachers_may_enter, migrations.RunPython.noop),
    ]
