from io import StringIO

from django.core.management import call_command


def test_the_openapi_schema_is_valid_and_complete() -> None:
    call_command("spectacular", "--validate", "--fail-on-warn", stdout=StringIO())
