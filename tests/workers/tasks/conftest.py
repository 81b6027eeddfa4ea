from tests.apps.feed.conftest import ann, catalogue  # noqa: F401 - fixtures
