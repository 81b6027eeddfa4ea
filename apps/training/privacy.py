"""Personal data becomes placeholders such as `<EMAIL_ADDRESS>`, named as presidio names them.

Presidio itself is not used: its recognisers bring spaCy along (390 MB), fetch a list of domains while they run, and
take `obj.name` for an address. Here as there phone numbers are libphonenumber's, and the check digits of cards and
accounts are verified. What looks like arithmetic is left alone.
"""

import re
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import Any

from phonenumbers import Leniency, PhoneNumberMatch, PhoneNumberMatcher
from stdnum import iban, luhn

EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
USER_INFO = re.compile(r"(?<=://)[^\s/?#@<>]+(?=@)")
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
# Visa, Mastercard, American Express, Discover; whole or in groups.
CARD = re.compile(
    r"(?<![\d.])(?:(?:4\d{3}|5[1-5]\d\d|2[2-7]\d\d|6011|65\d\d)(?P<gap>[ -]?)\d{4}(?P=gap)\d{4}(?P=gap)\d{4}"
    r"|3[47]\d\d(?P<wide>[ -]?)\d{6}(?P=wide)\d{5})(?![\d.]*\d)"
)
IP = re.compile(r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[23][0-9a-fA-F]{3}:[0-9a-fA-F:]*[0-9a-fA-F:])(?![\w:]|\.\d)")
LONG_NUMBER = re.compile(r"\d(?:[\s()./-]*\d){6}")  # the least that can be a phone's
DECIMAL = re.compile(r"\d+[.,]\d+|.*\(\d*[.,]\d.*")
YEARS = re.compile(r"\(?[12]\d{3}\D+[12]\d{3}\)?")
OPERATORS = tuple("+-*/^=<>%−–×÷·$€£")  # noqa: RUF001 - the signs that maths is written with
REGIONS = ("US", "GB", "DE", "FR")  # whose national numbers are known; international ones are everywhere
CONSTANTS = ("role", "level", "current_level")  # fields whose values are ours
MIN_NAME = 3  # shorter ones are variables more often than people


Mask = Callable[[str, tuple[str, ...]], str]


def mask(text: str, names: Iterable[str] = ()) -> str:
    """`text` without personal data; `names` are masked as whole words, whatever their case."""
    text = USER_INFO.sub("<CREDENTIALS>", text)
    text = EMAIL.sub("<EMAIL_ADDRESS>", text)
    text = IBAN.sub(_where(iban.is_valid, "<IBAN_CODE>"), text)
    text = CARD.sub(_where(lambda card: luhn.is_valid(re.sub("[ -]", "", card)), "<CREDIT_CARD>"), text)
    text = IP.sub(_where(_is_public, "<IP_ADDRESS>"), text)
    text = _mask_phones(text)
    if known := sorted({name for name in names if len(name) >= MIN_NAME}, key=len, reverse=True):
        text = re.sub(
            rf"(?<![\w<])(?:{'|'.join(map(re.escape, known))})(?![\w>])", "<PERSON>", text, flags=re.IGNORECASE
        )
    return text


def mask_record(value: Any, names: Iterable[str] = (), masked: Mask = mask) -> Any:
    """A JSON value with every text in it masked, by `mask` or what remembers its results."""
    if isinstance(value, str):
        return masked(value, tuple(names))
    if isinstance(value, list):
        return [mask_record(item, names, masked) for item in value]
    if isinstance(value, dict):
        return {name: item if name in CONSTANTS else mask_record(item, names, masked) for name, item in value.items()}
    return value


def _where(holds: Callable[[str], bool], placeholder: str) -> Callable[[re.Match[str]], str]:
    return lambda match: placeholder if holds(match[0]) else match[0]


def _is_public(address: str) -> bool:
    """Addresses of a private network, as lessons use them, are nobody's."""
    try:
        return ip_address(address).is_global
    except ValueError:
        return False


def _mask_phones(text: str) -> str:
    if not LONG_NUMBER.search(text):
        return text
    for region in REGIONS:
        found = PhoneNumberMatcher(text, region, leniency=Leniency.VALID)
        for match in reversed([match for match in found if _is_written_as_phone(match, text, region)]):
            text = f"{text[: match.start]}<PHONE_NUMBER>{text[match.end :]}"
    return text


def _is_written_as_phone(match: PhoneNumberMatch, text: str, region: str) -> bool:
    """Not a plain number, a decimal one, or a term: what is no international number must be grouped as phones are."""
    raw = match.raw_string
    if raw.startswith("+"):
        return True
    before, after = text[: match.start].rstrip()[-1:], text[match.end :].lstrip()[:1]
    if raw.isdecimal() or DECIMAL.fullmatch(raw) or YEARS.fullmatch(raw) or before in OPERATORS or after in OPERATORS:
        return False
    return raw.startswith("0") or any(PhoneNumberMatcher(raw, region, leniency=Leniency.STRICT_GROUPING))
