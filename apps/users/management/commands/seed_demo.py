from typing import Any

from django.core.management.base import BaseCommand, CommandError

from apps.common.constants import Level
from apps.users.models import Role, User
from lyo import env

ACCOUNTS: dict[str, dict[str, Any]] = {
    "ada": {"role": Role.LEARNER, "level": Level.BEGINNER, "interests": ["mathematics", "machines"]},
    "charles": {"role": Role.LEARNER, "level": Level.ADVANCED, "interests": ["biology", "travel"]},
    "emmy": {"role": Role.TEACHER, "level": Level.ADVANCED, "interests": ["algebra", "physics"]},
}


class Command(BaseCommand):
    help = "Make the demo accounts of a local stack: a superuser, two learners and a teacher, all with its password."

    def handle(self, *args: Any, **options: Any) -> None:
        admin, password = env.local("admin_username"), env.local("admin_password")
        if not (admin and password):
            raise CommandError(f"{env.LOCAL_FILE} has no demo credentials: they are made by `make run`.")
        superuser = {"role": Role.STAFF, "is_superuser": True}
        for username, fields in {admin: superuser, **ACCOUNTS}.items():
            outcome = self.seed(username, password, {**fields, "email": f"{username}@demo.invalid"})
            self.stdout.write(f"{username} ({fields['role']}): {outcome}")

    def seed(self, username: str, password: str, fields: dict[str, Any]) -> str:
        """Make the account, or make its password work again; its profile stays as it is."""
        user, made = User.objects.get_or_create(username=username, defaults=fields)
        if user.email != fields["email"]:
            return "the name is somebody else's, left alone"
        if not user.check_password(password):
            user.set_password(password)
            user.save()
        return "made" if made else "there"
