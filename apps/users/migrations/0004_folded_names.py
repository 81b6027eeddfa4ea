"""Names and email addresses are unique without regard to case and width: their folded forms come beside them.

Of accounts whose names now are the same, the oldest keeps it; the others get a number, as in `ann-2`. Of those whose
addresses are the same, the others get `<id>@duplicate.invalid`. Each change is printed, with what was there before.
"""

from itertools import count

from django.db import migrations

import apps.users.models
from apps.common.names import folded

NAME_LENGTH = 150


def fold(state, schema_editor):
    users = state.get_model("users", "User").objects.using(schema_editor.connection.alias)
    rows = list(users.order_by("date_joined", "pk").values_list("pk", "username", "email"))
    taken = {folded(name) for _, name, _ in rows}
    names, addresses = set(), set()
    for pk, name, address in rows:
        new_name, new_address = apps.users.models.User.normalize_username(name)[:NAME_LENGTH], address
        if folded(new_name) in names:
            new_name = numbered(new_name, taken)
            taken.add(folded(new_name))
        if folded(address) in addresses:
            new_address = f"{pk}@duplicate.invalid"
        names.add(folded(new_name))
        addresses.add(folded(new_address))
        users.filter(pk=pk).update(
            username=new_name, username_key=folded(new_name), email=new_address, email_key=folded(new_address)
        )
        for before, after in ((name, new_name), (address, new_address)):
            if after != before:
                print(f"\n  account {pk}: {before!r} is an older account's, this one's is {after!r} now", end="")


def numbered(name, taken):
    """The name with the first number with which nobody has it."""
    candidates = (f"{name[: NAME_LENGTH - len(ending)]}{ending}" for ending in (f"-{n}" for n in count(2)))
    return next(candidate for candidate in candidates if folded(candidate) not in taken)


class Migration(migrations.Migration):
    dependencies = [("users", "0003_consent_text")]

    operations = [
        migrations.AddField("user", "username_key", apps.users.models.FoldedField(null=True, of="username")),
        migrations.AddField("user", "email_key", apps.users.models.FoldedField(null=True, of="email")),
        migrations.RunPython(fold, migrations.RunPython.noop),
    ]
