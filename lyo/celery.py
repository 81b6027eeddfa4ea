"""The Celery app. Routes and the beat schedule are in settings; which queue a job goes to is `jobs.dispatch`'s."""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "lyo.settings")

app = Celery("lyo")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
