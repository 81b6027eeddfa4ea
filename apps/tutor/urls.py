from django.urls import path

from apps.tutor import views

urlpatterns = [
    path("tutor/conversations", views.ConversationListCreate.as_view()),
    path("tutor/conversations/<uuid:conversation_id>", views.ConversationDetail.as_view()),
    path("tutor/conversations/<uuid:conversation_id>/messages", views.MessageListCreate.as_view()),
    path(
        "tutor/conversations/<uuid:conversation_id>/messages/<uuid:message_id>/feedback",
        views.MessageFeedback.as_view(),
    ),
]
