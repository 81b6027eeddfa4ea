from django.urls import path

from apps.training import views

urlpatterns = [
    path("training/examples", views.ExampleList.as_view()),
    path("training/examples/<uuid:example_id>", views.ExampleDetail.as_view()),
    path("training/examples/<uuid:example_id>/review", views.ExampleReview.as_view()),
    path("training/dataset-versions", views.DataSetVersionListCreate.as_view()),
    path("training/dataset-versions/<uuid:version_id>", views.DataSetVersionDetail.as_view()),
    path("training/dataset-versions/<uuid:version_id>/records", views.DataSetVersionRecords.as_view()),
]

openai_urlpatterns = [
    path("files", views.FileListCreate.as_view()),
    path("files/<str:file_id>", views.FileDetail.as_view()),
    path("files/<str:file_id>/content", views.FileContent.as_view()),
]
