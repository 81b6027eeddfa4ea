from django.urls import path

from apps.content import views

urlpatterns = [
    path("content/topics", views.TopicList.as_view()),
    path("content/topics/<slug:slug>", views.TopicDetail.as_view()),
    path("content/items", views.ItemListCreate.as_view()),
    path("content/items/<uuid:item_id>", views.ItemDetail.as_view()),
    path("content/courses", views.CourseListCreate.as_view()),
    path("content/courses/<uuid:course_id>", views.CourseDetail.as_view()),
]
