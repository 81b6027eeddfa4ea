"""transformers' modules compute the same over slots as they do one prompt at a time."""

from copy import deepcopy

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, PretrainedConfig

from tests.workers.conftest import greedy, run
from workers.engine.cache import KVCache
from workers.engine.loop import LocalEngine
from workers.engine.model import TransformersModel
from workers.protocols import GenerateRequest, Sampling

TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "head_dim": 8,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "query_pre_attn_scalar": 8,
    "initializer_range": 0.5,  # wide enough for logits that differ
}
CONFIGS = {
    "gemma 3, one kv head": Gemma3TextConfig(**TINY, num_key_value_heads=1),
    "gemma 3, two kv heads": Gemma3TextConfig(**TINY, num_key_value_heads=2),
    "gemma 2, softcapped": Gemma2Config(**TINY, num_key_value_heads=2, attn_logit_softcapping=5.0),
}


def build(config: PretrainedConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(deepcopy(config), attn_implementation="eager").eval()


def engine_over(module: torch.nn.Module) -> LocalEngine:
    return LocalEngine(TransformersModel(module, kv_cache_mb=8), lambda token: b"%d " % token, frozenset(), 1024, 4)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_greedy_answers_equal_generate(config: PretrainedConfig) -> None:
    """Prompts shorter and longer than the sliding window, and longer than a block of the cache, joined at any step."""
    reference, engine = build(config), engine_over(build(config))
    handles = []
    for number, length in enumerate([1, 15, 16, 17, 40, 250, 3]):
        prompt = torch.randint(96, (length,), generator=torch.Generator().manual_seed(number)).tolist()
        sampling = Sampling(max_tokens=20 + number, temperature=0)
        handles.append(engine.submit(GenerateRequest(str(number), tuple(prompt), sampling), lambda _: None))
        engine.step()
        engine.step()
    run(engine)
    for handle in handles:
        sampling = handle.request.sampling
        expected = greedy(reference, list(handle.request.prompt), sampling.max_tokens)
        assert handle.wait(0).text == "".join(f"{token} " for token in expected)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_logits_equal_those_of_the_whole_text_at_once(config: PretrainedConfig) -> None:
    """Row 0 is read as one prompt, row 1 as a prompt and then token by token; the window is crossed in both ways."""
    texts = torch.randint(96, (2, 50), generator=torch.Generator().manual_seed(0)).tolist()
    model = TransformersModel(build(config), kv_cache_mb=8)
    with torch.inference_mode():
        expected = build(config)(torch.tensor(texts)).logits
        model.reserve(2, 50)
        whole = model.logits(model.forward(0, texts[:1], [range(50)])[0])
        parts = [model.forward(1, [texts[1][:9]], [range(9)])]
        parts += [model.forward(1, [[token]], [[at]]) for at, token in enumerate(texts[1]) if at >= 9]
        stepwise = model.logits(torch.cat(parts, 1)[0])
    torch.testing.assert_close(torch.stack([whole, stepwise]), expected, rtol=1e-4, atol=1e-4)


def test_sampled_answers_do_not_depend_on_the_batch() -> None:
    config = CONFIGS["gemma 3, one kv head"]
    requests = [
        GenerateRequest(str(seed), tuple(range(1, 2 + 3 * seed)), Sampling(30, seed=seed, top_p=0.9 + seed % 2 / 10))
        for seed in range(6)
    ]
    engine = engine_over(build(config))
    together = [engine.submit(request, lambda _: None) for request in requests]
    run(engine)
    for request, handle in zip(requests, together, strict=True):
        alone = engine.submit(request, lambda _: None)
        run(engine)
        assert alone.wait(0).text == handle.wait(0).text


def test_the_cache_keeps_its_rows_when_it_grows_and_stays_within_its_capacity() -> None:
    cache = KVCache({0: (2, 4)}, torch.float32, torch.device("cpu"), capacity=4 * 256)
    cache.reserve(2, 10)
    positions = torch.arange(10).expand(2, -1)
    keys = torch.randn(2, 2, 10, 4)
    cache.begin(0, positions, 10)
    cache.update(keys, -keys, 0)
    cache.reserve(2, 300)
    assert (cache.slots, cache.length) == (2, 512)
    cache.begin(0, positions[:, 9:], 10)
    kept_keys, kept_values = cache.update(keys[:, :, 9:], -keys[:, :, 9:], 0)
    assert torch.equal(kept_keys, keys)
    assert torch.equal(kept_values, -keys)
    cache.reserve(1, 900)
    assert (cache.slots, cache.length) == (1, 1024)
