"""Finding titles by how their words begin, with an index that every Postgres has (pg_trgm is an extension)."""

from django.contrib.postgres.search import SearchQueryField, SearchVectorField
from django.db.models import BooleanField, Func

PLAIN = "regexp_replace(lower(%(expressions)s), '[^[:alnum:]]+', ' ', 'g')"  # words as they are, and nothing between


class TitleWords(Func):
    """The words of a title with their places, not stemmed: what a GIN index is made of."""

    template = f"to_tsvector('simple', {PLAIN})"
    output_field = SearchVectorField()


class Begun(Func):
    """Words one after the other of which the last has only begun; NULL where there is none."""

    template = f"(nullif(phraseto_tsquery('simple', {PLAIN})::text, '') || ':*')::tsquery"
    output_field = SearchQueryField()


class Has(Func):
    """Whether words are found in others."""

    template, arg_joiner = "%(expressions)s", " @@ "
    output_field = BooleanField()
