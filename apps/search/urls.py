from django.urls import path

from apps.search import views

urlpatterns = [
    path("search", views.Search.as_view()),
    path("search/suggest", views.Suggest.as_view()),
]
