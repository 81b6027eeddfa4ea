from django.urls import path

from apps.training.views import adapters, comparisons, data, evaluations, runs

urlpatterns = [
    path("training/examples", data.ExampleList.as_view()),
    path("training/examples/<uuid:example_id>", data.ExampleDetail.as_view()),
    path("training/examples/<uuid:example_id>/review", data.ExampleReview.as_view()),
    path("training/dataset-versions", data.DataSetVersionListCreate.as_view()),
    path("training/dataset-versions/<uuid:version_id>", data.DataSetVersionDetail.as_view()),
    path("training/dataset-versions/<uuid:version_id>/records", data.DataSetVersionRecords.as_view()),
    path("training/adapters", adapters.AdapterListCreate.as_view()),
    path("training/adapters/<uuid:adapter_id>", adapters.AdapterDetail.as_view()),
    path("training/adapters/<uuid:adapter_id>/download", adapters.AdapterDownload.as_view()),
    path("training/adapters/<uuid:adapter_id>/promote", adapters.AdapterPromote.as_view()),
    path("training/routes", adapters.RouteList.as_view()),
    path("training/routes/<str:task>", adapters.RouteDetail.as_view()),
    path("training/routes/<str:task>/changes", adapters.RouteChangeList.as_view()),
    path("training/routes/<str:task>/complete", adapters.RouteComplete.as_view()),
    path("training/routes/<str:task>/rollback", adapters.RouteRollback.as_view()),
    path("training/adapters/<uuid:adapter_id>/evaluate", evaluations.AdapterEvaluate.as_view()),
    path("training/evaluations", evaluations.EvaluationList.as_view()),
    path("training/evaluations/<uuid:evaluation_id>", evaluations.EvaluationDetail.as_view()),
    path("training/evaluation-sets", evaluations.EvaluationSetListCreate.as_view()),
    path("training/comparisons", comparisons.ComparisonListCreate.as_view()),
    path("training/comparisons/<uuid:comparison_id>", comparisons.ComparisonDetail.as_view()),
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
