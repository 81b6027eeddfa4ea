import pytest

from apps.training.privacy import mask, mask_record


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to ada.l+x@mail.example.org!", "write to <EMAIL_ADDRESS>!"),
        ("call +49 30 901820 today", "call <PHONE_NUMBER> today"),
        ("(030) 901820 in Berlin", "<PHONE_NUMBER> in Berlin"),
        ("call (202) 555-0143, or 202-555-0123.", "call <PHONE_NUMBER>, or <PHONE_NUMBER>."),
        ("020 7946 0958 in London, 06 12 34 56 78 in Paris", "<PHONE_NUMBER> in London, <PHONE_NUMBER> in Paris"),
        ("https://ada:secret@host.example/x?y=1", "https://<CREDENTIALS>@host.example/x?y=1"),
        ("my server is 8.8.8.8.", "my server is <IP_ADDRESS>."),
        ("and 2001:4860:4860::8888", "and <IP_ADDRESS>"),
        ("pay with 4111 1111 1111 1111", "pay with <CREDIT_CARD>"),
        ("pay with 378282246310005", "pay with <CREDIT_CARD>"),
        ("to DE89 3704 0044 0532 0130 00 please", "to <IBAN_CODE> please"),
        ("to GB82WEST12345698765432", "to <IBAN_CODE>"),
    ],
)
def test_personal_data_becomes_what_it_is(text: str, masked: str) -> None:
    assert mask(text) == masked
    assert mask(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        "12 + 7 = 19",
        "x_1 + x_2 = 10, f(3) = 9",
        "2125551234 + 1 = 2125551235",
        "so $156.25 – (0.20)156.25 or $125",  # noqa: RUF001
        "(0.20)156.2500 and .0712345678",
        "1/2 x (168 / 4) = 21 balloons, Montesquieu (1689 -1755)",
        "123456789 * 987654321 = 121932631112635269",
        "0.3333333333 and 0.0712345678, 3.14159265358979",
        "1 000 000 000 or 1 234 567 890 or 1,234,567,890",
        "20! = 2432902008176640000",
        "2^64 = 18446744073709551616",
        "5 12 13 8 15 17 are two triples",
        "from 1914-07-28 to 1918-11-11, in 1066, on 14.10.1066, at 12:30:45",
        "800 - 200 - 4000 = -3400",
        "https://docs.example.org/a@b and obj.name = std::string",
        "127.0.0.1, 192.168.0.1 and chapter 1.2.3",
        "4111 1111 1111 1112",  # no card: its check digit is wrong
        "DE89 3704 0044 0532 0130 01",
        "5:30 for 16 people, 3:2, a::b, 10:20:30",
        "H2SO4, C6H12O6, 6.02214076e23",
    ],
)
def test_what_is_taught_is_left_alone(text: str) -> None:
    assert mask(text) == text


def test_names_are_masked_as_whole_words_whatever_their_case() -> None:
    names = ["ada_l", "Ada", "King Noel", "Al"]
    text = "ada and ADA, Adam, ada_l, King Noel's, al, (Ada)"
    assert mask(text, names) == "<PERSON> and <PERSON>, Adam, <PERSON>, <PERSON>'s, al, (<PERSON>)"
    assert mask("a.b (c)", ["a.b", "(c)"]) == "<PERSON> <PERSON>"
    assert mask("I am person", ["Person"]) == "I am <PERSON>"


def test_a_record_is_masked_in_all_its_texts_and_nothing_else() -> None:
    record = {"messages": [{"role": "user", "content": "a@b.org"}], "liked": True, "tags": ["user", 3], "level": "user"}
    assert mask_record(record, ["user"]) == {
        "messages": [{"role": "user", "content": "<EMAIL_ADDRESS>"}],
        "liked": True,
        "tags": ["<PERSON>", 3],
        "level": "user",
    }
