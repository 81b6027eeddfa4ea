"""The real Gemma 3 270M in float32: the engine says what transformers says, and a continuation what an answer says."""

import pytest

from tests.workers.conftest import greedy, run
from workers.engine.loop import LocalEngine
from workers.models.load import LoadedModel
from workers.models.template import render
from workers.protocols import Delta, GenerateRequest, Sampling

PROMPTS = [
    "Why is the sky blue?",
    "Explain the water cycle to a child. " * 90,  # longer than the sliding window of 512
    "Write a haiku about rivers, then explain it line by line.",
    "請介紹一下台灣的河流",
    "def fibonacci(n):",
]


def prompt_of(gemma: LoadedModel, content: str) -> tuple[int, ...]:
    return tuple(render(gemma.tokenizer, [{"role": "user", "content": content}]))


def test_greedy_answers_equal_generate(gemma: LoadedModel, gemma_engine: LocalEngine) -> None:
    handles, deltas = [], []
    for number, content in enumerate(PROMPTS):
        sampling = Sampling(max_tokens=16 + 2 * number, temperature=0)
        deltas.append([])
        request = GenerateRequest(content[:20], prompt_of(gemma, content), sampling)
        handles.append(gemma_engine.submit(request, deltas[-1].append))
        gemma_engine.step()
        gemma_engine.step()
    run(gemma_engine)
    assert len(handles[1].request.prompt) > 512
    for handle, pieces in zip(handles, deltas, strict=True):
        prompt, limit = list(handle.request.prompt), handle.request.sampling.max_tokens
        expected = greedy(gemma.model, prompt, limit, sorted(gemma.stop_ids))
        assert [token for delta in pieces for token in delta.token_ids] == [
            token for token in expected if token not in gemma.stop_ids
        ]


@pytest.mark.parametrize("temperature", [0, 0.9])
def test_a_continuation_equals_the_undisturbed_answer(
    gemma: LoadedModel, gemma_engine: LocalEngine, temperature: float
) -> None:
    sampling = Sampling(max_tokens=24, temperature=temperature, top_p=0.95, seed=11, logprobs=2)
    prompts = [prompt_of(gemma, content) for content in PROMPTS[:2]]
    deltas: list[list[Delta]] = [[], []]
    whole = [
        gemma_engine.submit(GenerateRequest("whole", prompt, sampling), received.append)
        for prompt, received in zip(prompts, deltas, strict=True)
    ]
    run(gemma_engine)
    for prompt, received, handle in zip(prompts, deltas, whole, strict=True):
        seen = received[: len(received) // 2]
        delivered = tuple(token for delta in seen for token in delta.token_ids)
        rest: list[Delta] = []
        resumed = gemma_engine.submit(GenerateRequest("rest", prompt, sampling, delivered=delivered), rest.append)
        run(gemma_engine)
        expected, outcome = handle.wait(0), resumed.wait(0)
        assert outcome.text == expected.text
        assert "".join(delta.text for delta in [*seen, *rest]) == expected.text
        assert [logprob.id for logprob in outcome.logprobs] == [logprob.id for logprob in expected.logprobs]
        assert [logprob.logprob for logprob in outcome.logprobs] == pytest.approx(
            [logprob.logprob for logprob in expected.logprobs], abs=1e-3
        )
