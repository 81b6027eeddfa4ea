from django.urls import path

from apps.training.views import data, runs

urlpatterns = [
    path("training/examples", data.ExampleList.as_view()),
    path("training/examples/<uuid:example_id>", data.ExampleDetail.as_view()),
    path("training/examples/<uuid:example_id>/review", data.ExampleReview.as_view()),
    path("training/dataset-versions", data.DataSetVersionListCreate.as_view()),
    path("training/dataset-versions/<uuid:version_id>", data.DataSetVersionDetail.as_view()),
    path("training/dataset-versions/<uuid:version_id>/records", data.DataSetVersionRecords.as_view()),
]

openai_urlpatterns = [
    path("files", data.FileListCreate.as_view()),
    path("files/<str:file_id>", data.FileDetail.as_view()),
    path("files/<str:file_id>/content", data.FileContent.as_view()),
    path("fine_tuning/jobs", runs.RunListCreate.as_view()),
    path("fine_tuning/jobs/<str:job_id>", runs.RunDetail.as_view()),
    path("fine_tuning/jobs/<str:job_id>/cancel", runs.RunCancel.as_view()),
    path("fine_tuning/jobs/<str:job_id>/pause", runs.RunPause.as_view()),
    path("fine_tuning/jobs/<str:job_id>/resume", runs.RunResume.as_view()),
    path("fine_tuning/jobs/<str:job_id>/events", runs.RunEventList.as_view()),
    path("fine_tuning/jobs/<str:job_id>/checkpoints", runs.RunCheckpointList.as_view()),
]
