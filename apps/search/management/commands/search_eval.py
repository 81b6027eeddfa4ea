import json
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.search.evaluation import BadFile, evaluated


class Command(BaseCommand):
    help = "How well search finds what people judged to fit, beside BM25: NDCG@10 and recall@100."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--docs", type=Path, required=True, help='JSONL: {"_id", "title", "text"}')
        parser.add_argument("--queries", type=Path, required=True, help='JSONL: {"_id", "text"}')
        parser.add_argument("--qrels", type=Path, required=True, help="tab-separated: query, document, gain")
        parser.add_argument("--json", type=Path, help="where the figures go as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            figures = evaluated(options["docs"], options["queries"], options["qrels"])
        except (BadFile, OSError) as error:
            raise CommandError(str(error)) from error
        except UnicodeDecodeError as error:
            raise CommandError("One of the files is not UTF-8.") from error
        self.stdout.write(f"{'':8}{'NDCG@10':>10}{'recall@100':>12}")
        for name, found in figures.items():
            self.stdout.write(f"{name:8}{found['ndcg']:10.4f}{found['recall']:12.4f}")
        if options["json"]:
            options["json"].write_text(json.dumps(figures, indent=2))
