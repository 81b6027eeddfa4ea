from django.urls import path

from apps.inference import views

urlpatterns = [
    path("models", views.ModelList.as_view()),
    path("models/<path:model_id>", views.ModelDetail.as_view()),
    path("chat/completions", views.ChatCompletions.as_view()),
    path("embeddings", views.Embeddings.as_view()),
]
