from django.urls import path

from apps.users import views

urlpatterns = [
    path("auth/register", views.Register.as_view()),
    path("auth/confirm", views.Confirm.as_view()),
    path("auth/confirm/resend", views.ConfirmationRequest.as_view()),
    path("auth/login", views.Login.as_view()),
    path("auth/logout", views.Logout.as_view()),
    path("auth/logout-all", views.LogoutAll.as_view()),
    path("auth/password", views.Password.as_view()),
    path("auth/tokens", views.TokenListCreate.as_view()),
    path("auth/tokens/<uuid:token_id>", views.TokenDetail.as_view()),
    path("me", views.Me.as_view()),
    path("me/export", views.MeExport.as_view()),
]
