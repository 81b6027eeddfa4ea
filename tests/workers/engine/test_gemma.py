"""The real Gemma 3 270M in float32: the engine says what transformers says one at a time, whatever runs beside."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tests.workers.conftest import MODELS_DIR, greedy, run
from workers.engine.loop import LocalEngine
from workers.engine.lora import adapter_digest
from workers.models.load import load
from workers.models.template import render
from workers.models.tokenizer import Tokenizer
from workers.protocols import Delta, GenerateRequest, Sampling, ScoreRequest

TEXT = (
    "the sum of two even numbers is even because each of them can be halved without a rest so water boils when its "
    "vapour presses as hard as the air above it a loop repeats its body while the condition holds a plan for a week "
    "of study leaves one day free light bends where glass begins and a function that calls itself needs an end"
)
LENGTHS = (1, 2, 15, 16, 17, 33, 64, 127, 255, 256, 257, 300, 511, 512, 513, 900)
NEW_TOKENS = 6


class Reference(NamedTuple):
    """The model with two adapters by PEFT; `names` are those of the engine, None for the base."""

    model: PeftModel
    names: tuple[str | None, ...]
    folder: Path
    tokenizer: Tokenizer

    def use(self, name: str | None) -> None:
        if name is None:
            self.model.base_model.disable_adapter_layers()
        else:
            self.model.base_model.enable_adapter_layers()
            self.model.set_adapter(name.split("@")[0])


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Adapters with large random weights, so that each says something of its own."""
    torch.manual_seed(7)
    loaded = load("gemma-3-270m", MODELS_DIR, device="cpu", dtype="float32")
    folder, names = tmp_path_factory.mktemp("adapters"), []
    model = None
    for name, rank in (("maths", 16), ("science", 4)):
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
        if model is None:
            model = get_peft_model(loaded.model, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
        for key, weight in model.named_parameters():
            if f"lora_B.{name}" in key:
                torch.nn.init.normal_(weight, std=0.02)
        model.save_pretrained(folder / "new", selected_adapters=[name])
        digest = adapter_digest(folder / "new" / name)
        (folder / "new" / name).rename(folder / digest)
        names.append(f"{name}@{digest}")
    return Reference(model.eval(), (None, *names), folder, loaded.tokenizer)


@pytest.fixture(scope="module")
def engine(reference: Reference) -> Iterator[LocalEngine]:
    """Its cache holds some four thousand tokens, so that rows are evicted all the time."""
    loaded = load("gemma-3-270m", MODELS_DIR, device="cpu", dtype="float32")
    engine = LocalEngine.over(
        loaded, kv_cache_mb=160, context_tokens=1024, batch_limit=8, adapters_folder=reference.folder
    )
    yield engine
    engine.close()


def prompts(tokenizer: Tokenizer, count: int) -> list[list[int]]:
    """Of all lengths; every other begins as a recent one that has the same adapter."""
    chance, words, made = random.Random(3), TEXT.split(), []
    for number in range(count):
        length = LENGTHS[number % len(LENGTHS)]
        text = " ".join(chance.choice(words) for _ in range(length + 8))
        tokens = [tokenizer.bos, *tokenizer.encode(text)][:length]
        if number % 2 and number > 2:
            beginning = chance.choice(made[number % 3 :: 3][-3:])[: length - 1]
            tokens[: len(beginning)] = beginning
        made.append(tokens)
    return made


def test_varied_prompts_get_transformers_tokens(reference: Reference, engine: LocalEngine, nightly: bool) -> None:
    count = 64 if nightly else 32
    chance, tickets = random.Random(5), []
    sampling = Sampling(NEW_TOKENS, temperature=0)
    for number, prompt in enumerate(prompts(reference.tokenizer, count)):
        adapter = reference.names[number % 3]
        tickets.append(engine.submit(GenerateRequest(str(number), tuple(prompt), sampling, adapter=adapter), ignore))
        if number % 8 == 0:  # cancelled beside the others
            beside = GenerateRequest("beside", tuple(prompt[:200]), Sampling(50, temperature=0), adapter=adapter)
            cancelled = engine.submit(beside, ignore)
        for _ in range(chance.randrange(3)):
            engine.step()
        if number % 8 == 4:
            cancelled.cancel()
    run(engine)
    stats = engine.stats()
    assert stats.cached_tokens > 16 * count
    assert stats.kv_retained_tokens > 0.5 * stats.kv_capacity_tokens  # so rows were evicted: they do not all fit

    for number, ticket in enumerate(tickets):
        reference.use(ticket.adapter)
        expected = greedy(reference.model, list(ticket.request.prompt), NEW_TOKENS, sorted(engine._stop_ids))
        assert ticket.answer == [token for token in expected if token not in engine._stop_ids], number
    own = {ticket.adapter: ticket.answer for ticket in tickets[6:9]}
    assert len(set(map(tuple, own.values()))) == 3  # the adapters do say something of their own


def test_what_one_adapter_has_computed_is_not_anothers(reference: Reference, engine: LocalEngine) -> None:
    prompt = prompts(reference.tokenizer, 3)[-1][:1] + reference.tokenizer.encode(TEXT)[7:50]
    other_name = f"another-name@{(reference.names[1] or '').rpartition('@')[2]}"
    for adapter, cached in ((None, 0), (reference.names[1], 0), (reference.names[2], 0), (other_name, len(prompt) - 1)):
        asked = GenerateRequest("r", tuple(prompt), Sampling(NEW_TOKENS, temperature=0), adapter=adapter)
        ticket = engine.submit(asked, ignore)
        run(engine)
        assert ticket.wait(0).cached_tokens == cached
        reference.use(reference.names[1] if adapter == other_name else adapter)
        expected = greedy(reference.model, prompt, NEW_TOKENS, sorted(engine._stop_ids))
        assert ticket.answer == [token for token in expected if token not in engine._stop_ids]


def test_logprobs_of_a_mixed_batch_are_pefts_alone(reference: Reference, engine: LocalEngine) -> None:
    """Within 2e-3 in float32; the adapters' own effect is over a hundred times that."""
    text = [reference.tokenizer.bos, *reference.tokenizer.encode(TEXT)]
    prefix, rest = text[:30], text[30:]
    tickets = [
        engine.score(ScoreRequest("s", tuple(prefix), (tuple(rest), tuple(rest[5:])), adapter=adapter))
        for adapter in reference.names
    ]
    run(engine)
    scores = []
    for ticket in tickets:
        reference.use(ticket.adapter)
        for continuation, logprobs in zip((rest, rest[5:]), ticket.wait(0).logprobs, strict=True):
            with torch.inference_mode():
                logits = reference.model(torch.tensor([prefix + continuation])).logits[0, len(prefix) - 1 : -1]
            expected = logits.log_softmax(-1).gather(1, torch.tensor(continuation)[:, None])[:, 0]
            scores.append(expected)
            assert torch.tensor(logprobs) == pytest.approx(expected, abs=2e-3)
    assert (scores[0] - scores[2]).abs().max() > 0.2
    assert (scores[2] - scores[4]).abs().max() > 0.2


@pytest.mark.parametrize("temperature", [0, 0.9])
def test_a_continuation_equals_the_undisturbed_answer(
    reference: Reference, engine: LocalEngine, temperature: float
) -> None:
    sampling = Sampling(max_tokens=24, temperature=temperature, top_p=0.95, seed=11, logprobs=2)
    contents = ("Why is the sky blue?", "Explain the water cycle to a child. " * 90)
    asked = [tuple(render(reference.tokenizer, [{"role": "user", "content": content}])) for content in contents]
    deltas: list[list[Delta]] = [[], []]
    whole = [
        engine.submit(GenerateRequest("whole", prompt, sampling), received.append)
        for prompt, received in zip(asked, deltas, strict=True)
    ]
    run(engine)
    for prompt, received, handle in zip(asked, deltas, whole, strict=True):
        seen = received[: len(received) // 2]
        delivered = tuple(token for delta in seen for token in delta.token_ids)
        rest: list[Delta] = []
        resumed = engine.submit(GenerateRequest("rest", prompt, sampling, delivered=delivered), rest.append)
        run(engine)
        expected, outcome = handle.wait(0), resumed.wait(0)
        assert outcome.text == expected.text
        assert "".join(delta.text for delta in [*seen, *rest]) == expected.text
        assert [token.logprob for delta in [*seen, *rest] for token in delta.logprobs] == pytest.approx(
            [token.logprob for delta in received for token in delta.logprobs], abs=1e-3
        )


def test_the_same_request_gives_the_same_sample_whatever_is_beside_it(
    reference: Reference, engine: LocalEngine
) -> None:
    prompt = tuple(render(reference.tokenizer, [{"role": "user", "content": "Tell me of the sea."}]))
    request = GenerateRequest("r", prompt, Sampling(16, temperature=1, top_p=0.9, seed=3))
    alone = engine.submit(request, ignore)
    run(engine)
    others = [
        engine.submit(
            GenerateRequest("o", (*prompt[:9], 500 + n), Sampling(12, seed=n), adapter=reference.names[n % 3]), ignore
        )
        for n in range(5)
    ]
    engine.step()
    beside = engine.submit(request, ignore)
    run(engine)
    assert beside.wait(0).text == alone.wait(0).text
    assert len({other.wait(0).text for other in others}) == 5


def test_json_follows_its_schema_to_the_end(reference: Reference, engine: LocalEngine) -> None:
    prompt = tuple(render(reference.tokenizer, [{"role": "user", "content": "Describe a cat as JSON."}]))
    legs = {"type": "integer", "minimum": 4, "maximum": 4}
    schema = json.dumps(
        {"type": "object", "properties": {"legs": legs}, "required": ["legs"], "additionalProperties": False}
    )
    ticket = engine.submit(GenerateRequest("j", prompt, Sampling(40, temperature=0, json_schema=schema)), ignore)
    capped = engine.submit(GenerateRequest("c", prompt, Sampling(2, temperature=0, json_schema=schema)), ignore)
    run(engine)
    assert (ticket.wait(0).text, ticket.wait(0).finish_reason) == ('{"legs":4}', "stop")
    assert capped.wait(0).finish_reason == "length"


def ignore(delta: Delta) -> None:
    pass
