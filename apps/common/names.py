"""When two names are the same name, however they are written."""

import unicodedata


def folded(name: str) -> str:
    """The name without its case and width, for comparisons: caseless compatibility matching (Unicode, D146).

    Folding may undo the normal form, and the normal form may bring capitals back, so both are done twice.
    """
    for _ in range(2):
        name = unicodedata.normalize("NFKC", name).casefold()
    return unicodedata.normalize("NFKC", name)
