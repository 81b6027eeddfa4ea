from django.urls import path

from apps.training.views import data

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
]
