from django.contrib.auth.hashers import Argon2PasswordHasher as DjangoArgon2PasswordHasher


class Argon2PasswordHasher(DjangoArgon2PasswordHasher):
    """Argon2id at OWASP's recommended cost. Django's default takes 100 MiB and eight lanes for each login at once."""

    memory_cost = 19_456  # KiB
    time_cost = 2
    parallelism = 1
