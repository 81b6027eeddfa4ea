"""What the numerics that are served cost: the likelihood of right answers, scored and as answers are decoded."""

from statistics import mean

import pytest
import torch

from tests.bench.engine import decoded_nll
from tests.helpers import resident_mb
from tests.workers.conftest import MODELS_DIR, needs_kernels, run
from workers.engine.attention import Read
from workers.engine.cache import Place
from workers.engine.gemma import Gemma
from workers.engine.loop import LocalEngine
from workers.models.load import load
from workers.models.template import render
from workers.protocols import ScoreRequest

LESSONS = {
    "Ana has 3 boxes of 12 pencils and gives 7 pencils away. How many has she left?": (
        "Three boxes of 12 pencils are 3 * 12 = 36 pencils. She gives 7 away, so 36 - 7 = 29 are left. "
        "The answer is 29."
    ),
    "A train goes 180 kilometres in 3 hours. How far does it go in 5 hours at the same speed?": (
        "In one hour it goes 180 / 3 = 60 kilometres. In five hours it goes 5 * 60 = 300 kilometres. The answer is 300."
    ),
    "Why does ice float on water?": (
        "When water freezes, its molecules form an open lattice, which takes more room than the liquid did. The same "
        "mass in a larger volume is less dense, and what is less dense than a liquid floats on it."
    ),
    "What does a for loop over range(3) do in Python?": (
        "It runs its body three times. The variable takes the values 0, 1 and 2 in turn, because range begins at zero "
        "and stops before its argument."
    ),
    "A shirt costs 40 euros and is sold at 15 percent off. What does a buyer pay?": (
        "15 percent of 40 is 0.15 * 40 = 6 euros. The buyer pays 40 - 6 = 34 euros. The answer is 34."
    ),
    "Where does a plant get most of its mass from?": (
        "From the carbon dioxide of the air. In photosynthesis its leaves use sunlight to join carbon dioxide and "
        "water into sugar, and the plant builds cellulose from that sugar."
    ),
    "Make a plan for learning fractions in one week.": (
        "On Monday, draw halves and quarters. On Tuesday, find equal fractions. On Wednesday, add fractions of the "
        "same denominator. On Thursday, add others. On Friday, multiply. At the weekend, solve ten mixed tasks."
    ),
    "Tom reads 14 pages a day. How many days does a book of 196 pages take him?": (
        "He needs 196 / 14 days. Because 14 * 10 = 140 and 14 * 4 = 56, that is 10 + 4 = 14 days. The answer is 14."
    ),
}


def nlls(dtype: str) -> tuple[float, float]:
    """The mean negative log-likelihood of an answer's token: scored, and decoded in a batch."""
    loaded = load("gemma-3-270m", MODELS_DIR, device="cpu", dtype=dtype)
    pairs = [
        (render(loaded.tokenizer, [{"role": "user", "content": question}]), loaded.tokenizer.encode(answer))
        for question, answer in LESSONS.items()
    ]
    decoded = decoded_nll(Gemma(loaded.model, 1024, loaded.dtype, int8_output=loaded.int8), pairs)
    loaded = load("gemma-3-270m", MODELS_DIR, device="cpu", dtype=dtype)
    engine = LocalEngine.over(loaded, kv_cache_mb=256, context_tokens=1024, batch_limit=8)
    handles = [
        engine.score(ScoreRequest(str(number), tuple(prompt), (tuple(answer),)))
        for number, (prompt, answer) in enumerate(pairs)
    ]
    run(engine)
    return -mean(value for handle in handles for value in handle.wait().logprobs[0]), decoded


@needs_kernels
def test_8_bits_cost_less_than_a_hundredth_of_the_likelihood() -> None:
    scored, decoded = nlls("bfloat16")
    scored_int8, decoded_int8 = nlls("int8")
    assert (scored_int8, decoded_int8) != (scored, decoded)
    assert scored_int8 < 1.01 * scored
    assert decoded_int8 < 1.01 * decoded
    assert decoded == pytest.approx(scored, rel=0.01)


@needs_kernels
@pytest.mark.parametrize(
    ("abilities", "numerics"),
    [
        ({"avx512_bf16", "avx512_vnni"}, "int8"),
        ({"avx512_bf16"}, "bfloat16"),
        ({"avx512_vnni"}, "int8"),
        (set(), "float32"),
    ],
)
def test_auto_is_the_fastest_that_the_processor_has(
    monkeypatch: pytest.MonkeyPatch, abilities: set[str], numerics: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(abilities, True))
    loaded = load("gemma-3-270m", MODELS_DIR, device="cpu")
    assert LocalEngine.over(loaded, kv_cache_mb=64, context_tokens=256, batch_limit=2).numerics == numerics


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("int8", [False, True])
def test_of_weights_in_a_file_their_copies_alone_stay_in_memory(int8: bool, dtype: torch.dtype) -> None:
    loaded = load("gemma-3-270m", MODELS_DIR, device="cpu", dtype="bfloat16")
    before = resident_mb().of_files
    model = Gemma(loaded.model, 2048, dtype, int8_output=int8)
    model.storage.resize(2048, 1)
    tokens = range(0, 260_000, 200)
    with torch.inference_mode():
        model.logits(model.forward([Read(Place(2048, 0), 0, tokens, (len(tokens) - 1,))]))
    assert resident_mb().of_files - before < 64  # of 536
