from django.urls import path

from apps.feed import views

urlpatterns = [
    path("feed", views.Feed.as_view()),
    path("feed/events", views.Events.as_view()),
    path("feed/preferences", views.Preferences.as_view()),
    path("feed/follows", views.Follows.as_view()),
    path("feed/<uuid:item_id>/why", views.Why.as_view()),
]
