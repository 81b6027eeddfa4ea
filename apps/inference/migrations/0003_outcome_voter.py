import django.utils.timezone
from django.db import migrations, models


class Migration(migrations.Migration):
    """Outcomes from before do not say whose they are, so that they are counted no more: a canary's test begins anew."""

    dependencies = [("inference", "0002_query_task")]
    operations = [
        migrations.AddField("outcome", "voter", models.CharField(blank=True, default="", help_text="Keyed hash of whose it was, who counts once; empty: not counted.", max_length=64)),
        migrations.AddField("outcome", "recorded_at", models.DateTimeField(default=django.utils.timezone.now)),
        migrations.AddField("outcome", "rated_at", models.DateTimeField(blank=True, null=True)),
        migrations.AlterField("outcome", "failed", models.BooleanField(help_text="By the fault of the model or the adapter.")),
        migrations.AlterField("outcome", "thumb_up", models.BooleanField(blank=True, help_text="As it was first given.", null=True)),
    ]
