from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.common.constants import Level
from apps.common.names import folded
from apps.users.models import Role, User
from apps.users.selectors import DEMO
from lyo import env

ACCOUNTS: dict[str, dict[str, Any]] = {
    "ada": {"role": Role.LEARNER, "level": Level.BEGINNER, "interests": ["mathematics", "machines"]},
    "charles": {"role": Role.LEARNER, "level": Level.ADVANCED, "interests": ["biology", "travel"]},
    "emmy": {"role": Role.TEACHER, "level": Level.ADVANCED, "interests": ["algebra", "physics"]},
}


class Command(BaseCommand):
    help = "Make the demo accounts of a local stack: a superuser, two learners and a teacher, all with its password."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--real", action="store_true", help="Also where the database is no local stack's own.")

    def handle(self, *args: Any, **options: Any) -> None:
        if env.local("database_url") != env.DATABASE_URL and not options["real"]:
            self.stdout.write("LYO_DATABASE_URL names a real server: no demo accounts there without --real.")
            return
        admin, password = env.local("admin_username"), env.local("admin_password")
        if not (admin and password):
            raise CommandError(f"{env.LOCAL_FILE} has no demo credentials: they are made by `make run`.")
        superuser = {"role": Role.STAFF, "is_superuser": True}
        for username, fields in {admin: superuser, **ACCOUNTS}.items():
            outcome = self.seed(username, password, {**fields, "email": f"{username}{DEMO}"})
            self.stdout.write(f"{username} ({fields['role']}): {outcome}")

    def seed(self, username: str, password: str, fields: dict[str, Any]) -> str:
        """Make the account. One that is there stays as it is, its password too."""
        user = User.objects.filter(username_key=folded(username)).first()
        if user is None:
            User.objects.create_user(username, password=password, **fields)
            return "made"
        if user.email != fields["email"]:
            return "the name is somebody else's, left alone"
        return "there" if user.check_password(password) else "there, with a password of its own"
