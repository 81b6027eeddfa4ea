"""The Celery app. The beat schedule is in settings; which task and queue serve a job, `jobs.dispatch` says."""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "lyo.settings")

app = Celery("lyo")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
