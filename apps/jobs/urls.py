from django.urls import path

from apps.jobs import views

urlpatterns = [
    path("jobs", views.JobList.as_view()),
    path("jobs/<uuid:job_id>", views.JobDetail.as_view()),
    path("jobs/<uuid:job_id>/cancel", views.JobCancel.as_view()),
    path("jobs/<uuid:job_id>/events", views.JobEvents.as_view(), name="job-events"),
]
