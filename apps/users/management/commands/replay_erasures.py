from typing import Any

from django.core.management.base import BaseCommand

from apps.users.services import erasures_replay


class Command(BaseCommand):
    help = "Erase again those who are in LYO_ERASURES_FILE, after a database was restored by other means than ours."

    def handle(self, *args: Any, **options: Any) -> None:
        self.stdout.write(f"{erasures_replay()} erased again")
