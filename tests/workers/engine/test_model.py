"""Tiny models of several families: the forward pass over flat tokens computes what transformers' modules compute."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, Gemma4TextConfig, PretrainedConfig

from tests.workers.conftest import greedy, needs_kernels, run
from workers.engine.attention import Read
from workers.engine.cache import Place
from workers.engine.gemma import Gemma, implements
from workers.engine.loop import LocalEngine
from workers.engine.lora import Adapters, adapter_digest
from workers.engine.modules import Modules
from workers.engine.request import Generation
from workers.protocols import GenerateRequest, Refused, Sampling

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
SHARING = {
    **TINY,
    "num_hidden_layers": 5,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    "num_key_value_heads": 2,
    "num_kv_shared_layers": 2,
    "global_head_dim": 16,
    "vocab_size_per_layer_input": 96,
    "hidden_size_per_layer_input": 8,
}
SHARING.pop("query_pre_attn_scalar")
CONFIGS = {
    "gemma 3, one kv head": Gemma3TextConfig(**TINY, num_key_value_heads=1),
    "gemma 3, two kv heads": Gemma3TextConfig(**TINY, num_key_value_heads=2),
    "gemma 3, long context": Gemma3TextConfig(
        **TINY,
        num_key_value_heads=2,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "gemma 3, biased": Gemma3TextConfig(**TINY, num_key_value_heads=1, attention_bias=True),
    "gemma 2, another activation": Gemma2Config(**TINY, num_key_value_heads=2, hidden_activation="silu"),
    "gemma 2, softcapped": Gemma2Config(
        **TINY, num_key_value_heads=2, attn_logit_softcapping=5.0, final_logit_softcapping=9.0
    ),
    "gemma 4, shared caches": Gemma4TextConfig(**SHARING),
}
every_family = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def build(config: PretrainedConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(deepcopy(config), attn_implementation="eager").eval()


def slot_model(module: Any, dtype: torch.dtype | None = None) -> Gemma | Modules:
    return Gemma(module, 1024, dtype) if implements(module.config) else Modules(module, dtype)


def engine_over(config: PretrainedConfig) -> LocalEngine:
    return engine_of(slot_model(build(config)))


def engine_of(model: Gemma | Modules) -> LocalEngine:
    return LocalEngine(
        model,
        token_bytes=lambda token: b"%d " % token,
        stop_ids=frozenset(),
        capacity=8 * 1024,
        context_tokens=1024,
        batch_limit=4,
    )


@every_family
def test_weights_of_16_bits_are_computed_with_in_32(config: PretrainedConfig) -> None:
    reference, prompt = build(config).bfloat16().float(), list(range(1, 41))
    engine = engine_of(slot_model(build(config).bfloat16(), torch.float32))
    handle = engine.submit(GenerateRequest("a", tuple(prompt), Sampling(20, temperature=0)), lambda _: None)
    run(engine)
    assert list(handle.answer) == greedy(reference, prompt, 20)


def test_rotary_frequencies_stay_as_exact_as_they_were_loaded(tmp_path: Path) -> None:
    build(CONFIGS["gemma 3, biased"]).bfloat16().save_pretrained(tmp_path)
    module = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    Modules(module, torch.bfloat16)
    frequencies = [buffer.dtype for name, buffer in module.named_buffers() if "inv_freq" in name]
    assert set(frequencies) == {torch.float32}


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_of_every_precision_may_be_rounded_to_8_bits(dtype: torch.dtype) -> None:
    module = build(CONFIGS["gemma 3, one kv head"]).to(dtype)
    assert Gemma(module, 64, torch.float32, int8_output=True).numerics == "int8"


@every_family
def test_greedy_answers_equal_generate(config: PretrainedConfig) -> None:
    """Prompts shorter and longer than the sliding window, and longer than a slot, joined at any step."""
    reference, engine = build(config), engine_over(config)
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


@every_family
def test_logits_equal_those_of_the_whole_text_at_once(config: PretrainedConfig) -> None:
    """Read in one piece, in two, token by token, and as branches; the window is crossed in every way."""
    texts = torch.randint(96, (4, 50), generator=torch.Generator().manual_seed(0)).tolist()
    model, every = slot_model(build(config)), range(50)
    places = [Place(256, 0), Place(256, 1), Place(512, 0), Place(512, 1)]
    with torch.inference_mode():
        expected = build(config)(torch.tensor(texts)).logits
        model.storage.resize(256, 2)
        model.storage.resize(512, 2)
        first = [
            Read(places[0], 0, texts[0], every),
            Read(places[1], 0, texts[1][:30], range(30)),
            Read(places[2], 0, texts[2][:9], range(9)),
            Read(places[3], 0, texts[3][:40], range(40)),
        ]
        got = list(model.logits(model.forward(first)).split([50, 30, 9, 40]))
        for at in range(9, 50):
            step = [Read(places[2], at, texts[2][at : at + 1], (0,))]
            if at == 20:
                step.append(Read(places[1], 30, texts[1][30:], range(20)))
            logits = model.logits(model.forward(step))
            got[2] = torch.cat([got[2], logits[:1]])
            got[1] = torch.cat([got[1], logits[1:]])
        branches = texts[3][40:] + [5] * 7 + texts[3][40:45]
        logits = model.logits(model.forward([Read(places[3], 40, branches, range(22), (10, 7, 5))]))
        got[3] = torch.cat([got[3], logits[:10]])
    torch.testing.assert_close(torch.stack(got), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits[17:], expected[3, 40:45], rtol=1e-4, atol=1e-4)


def test_sampled_answers_do_not_depend_on_the_batch() -> None:
    config = CONFIGS["gemma 3, one kv head"]
    requests = [
        GenerateRequest(str(seed), tuple(range(1, 2 + 3 * seed)), Sampling(30, seed=seed, top_p=0.9 + seed % 2 / 10))
        for seed in range(6)
    ]
    engine = engine_over(config)
    together = [engine.submit(request, lambda _: None) for request in requests]
    run(engine)
    for request, handle in zip(requests, together, strict=True):
        alone = engine.submit(request, lambda _: None)
        run(engine)
        assert alone.wait(0).text == handle.wait(0).text


def test_an_adapter_that_overflows_fails_its_own_request_and_leaves_nothing_in_its_slot(tmp_path: Path) -> None:
    config = CONFIGS["gemma 3, one kv head"]
    broken = get_peft_model(build(config), LoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj"]))
    for name, weight in broken.named_parameters():
        if "lora_" in name:
            torch.nn.init.constant_(weight, 1e30)
    broken.save_pretrained(tmp_path / "new")
    digest = adapter_digest(tmp_path / "new")
    (tmp_path / "new").rename(tmp_path / digest)

    engine = engine_over(config)
    engine._adapters = engine._model.adapters = Adapters(
        engine._model.sites,
        torch.float32,
        torch.device("cpu"),
        folder=tmp_path,
        model_digest="",
        max_count=1,
        max_mb=1,
        max_rank=8,
    )

    def ask(prompt: Sequence[int], adapter: str | None = None) -> Generation:
        sampling = Sampling(12, temperature=0)
        return engine.submit(GenerateRequest(str(prompt), tuple(prompt), sampling, adapter=adapter), lambda _: None)

    prompts = [range(1, 30), range(2, 9)]  # of unequal length: the longer one's positions are the other's masked ones
    before = [ask(prompt) for prompt in prompts]
    run(engine)
    expected = [handle.wait(0).text for handle in before]
    engine._cache.clear()
    beside = [ask(range(40, 90), f"broken@{digest}"), ask(range(50, 90), f"broken@{digest}"), ask(prompts[0])]
    run(engine)
    for handle in beside[:2]:
        with pytest.raises(Refused, match=f"numbers that are not finite with adapter broken@{digest}"):
            handle.wait(0)
    after = [ask(prompt) for prompt in prompts]
    run(engine)
    assert [handle.wait(0).text for handle in after] == expected
    assert beside[2].wait(0).text == expected[0]
    assert engine.stats().crashes == 0
