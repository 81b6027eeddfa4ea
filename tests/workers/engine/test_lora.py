"""Adapters made by PEFT for a tiny random Gemma 3: what they add to its maps, what is refused, what stays in memory."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from shutil import copytree
from threading import Barrier
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from workers.engine.lora import Adapters, Part, Site, adapter_digest
from workers.protocols import Refused

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = "all-linear"
BASE_DIGEST = "b" * 64
Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base() -> Gemma3ForCausalLM:
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    return Gemma3ForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def sites(base: Gemma3ForCausalLM) -> dict[str, Site]:
    joined = {
        "qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        "o": ["self_attn.o_proj"],
        "gate_up": ["mlp.gate_proj", "mlp.up_proj"],
        "down": ["mlp.down_proj"],
    }
    made = {}
    for layer in range(2):
        for site, names in joined.items():
            modules = {f"model.layers.{layer}.{name}": linear(base, f"model.layers.{layer}.{name}") for name in names}
            parts = tuple(Part(name, module.out_features) for name, module in modules.items())
            made[f"{layer}.{site}"] = Site(next(iter(modules.values())).in_features, parts)
    return made


class Maker:
    """Makes adapters with PEFT, in folders by digest, and keeps PEFT's own models of them."""

    def __init__(self, base: Gemma3ForCausalLM, folder: Path) -> None:
        self.base, self.folder = base, folder
        self.models: dict[str, PeftModel] = {}

    def __call__(self, name: str, **settings: Any) -> str:
        settings = {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION} | settings
        torch.manual_seed(len(self.models) + 1)
        model = get_peft_model(deepcopy(self.base), LoraConfig(**settings)).eval()
        for key, weight in model.named_parameters():
            if "lora_B" in key:
                nn.init.normal_(weight, std=0.3)
        model.save_pretrained(self.folder / "new")
        name = self.publish(name, self.folder / "new")
        self.models[name] = model
        return name

    def publish(self, name: str, folder: Path) -> str:
        digest = adapter_digest(folder)
        folder.rename(self.folder / digest)
        return f"{name}@{digest}"

    def path(self, name: str) -> Path:
        return self.folder / name.partition("@")[2]


@pytest.fixture
def make(base: Gemma3ForCausalLM, tmp_path: Path) -> Maker:
    return Maker(base, tmp_path)


@pytest.fixture
def adapters(make: Maker, sites: dict[str, Site]) -> Adapters:
    return over(make, sites)


def over(make: Maker, sites: dict[str, Site], dtype: torch.dtype = torch.float32, **limits: int) -> Adapters:
    limits = {"max_count": 8, "max_mb": 8, "max_rank": 256} | limits
    return Adapters(sites, dtype, torch.device("cpu"), folder=make.folder, model_digest=BASE_DIGEST, **limits)


def linear(model: nn.Module, name: str) -> nn.Linear:
    module = model.get_submodule(name)
    assert isinstance(module, nn.Linear)
    return module


def through(
    adapters: Adapters, sites: dict[str, Site], segments: list[tuple[str | None, int]], dtype: torch.dtype
) -> Iterator[tuple[Site, Tensor, Tensor, Tensor]]:
    """One forward pass of random inputs: each site with its input, and its output before and after."""
    for name, _ in segments:
        if name:
            adapters.acquire(name)
    rows = adapters.rows([name for name, _ in segments], [count for _, count in segments])
    assert rows is not None
    torch.manual_seed(9)
    for name, site in sites.items():
        x = torch.randn(sum(count for _, count in segments), site.d_in).to(dtype)
        before = torch.randn(len(x), sum(part.d_out for part in site.parts)).to(dtype)
        after = before.clone()
        rows.add_(name, x, after)
        yield site, x, before, after


def pefts(model: PeftModel, site: Site, x: Tensor) -> Tensor:
    """What PEFT adds to a site's output."""
    added = []
    for part in site.parts:
        module = model.base_model.model.get_submodule(part.module)
        added.append(module(x) - module.base_layer(x) if hasattr(module, "base_layer") else x.new_zeros(1, part.d_out))
    return torch.cat([value.expand(len(x), -1) for value in added], 1)


MIXED = {
    "maths": {},
    "only o": {"r": 2, "target_modules": ["o_proj"]},
    "all": {"r": 16, "lora_alpha": 4, "target_modules": ALL},
    "stabilised": {"r": 9, "use_rslora": True, "target_modules": ["v_proj", "down_proj"]},
    "patterns": {
        "target_modules": ALL,
        "rank_pattern": {"q_proj": 7, r"layers\.1\.mlp\..*": 1},
        "alpha_pattern": {"0.self_attn.q_proj": 3, "^model.layers.1.self_attn.v_proj": 40},
    },
}


def test_a_mixed_batch_adds_what_pefts_modules_add(make: Maker, adapters: Adapters, sites: dict[str, Site]) -> None:
    """Within 1e-5 in float32 of values near 1; and tokens of the base stay as they are, bit for bit."""
    names = [make(name, **settings) for name, settings in MIXED.items()]
    segments = [(None, 2), (names[0], 3), (names[1], 1), (names[2], 4), (None, 1), (names[3], 2), (names[4], 5)]
    segments.append((names[0], 1))
    changed: dict[str, set[Site]] = {name: set() for name in names}
    for site, x, before, after in through(adapters, sites, segments, torch.float32):
        start = 0
        for name, count in segments:
            here = slice(start, start := start + count)
            if name is None:
                assert torch.equal(after[here], before[here])
                continue
            expected = pefts(make.models[name], site, x[here])
            assert torch.allclose(after[here] - before[here], expected, rtol=0, atol=1e-5)
            if expected.abs().max() > 0.1:
                changed[name].add(site)
    assert [len(changed[name]) for name in names] == [4, 2, 8, 4, 8]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_site_that_no_adapter_touches_and_tokens_of_the_base_stay_bit_identical(
    make: Maker, sites: dict[str, Site], dtype: torch.dtype
) -> None:
    adapters = over(make, sites, dtype)
    name = make("only o", target_modules=["o_proj"])
    segments: list[tuple[str | None, int]] = [(None, 5), (name, 1), (None, 40)]
    changed = []
    for site, _, before, after in through(adapters, sites, segments, dtype):
        changed.append([row for row in range(46) if not torch.equal(before[row], after[row])])
        assert torch.equal(after.isnan(), before.isnan()), site
    assert changed == [[], [5], [], []] * 2


@torch.inference_mode()
def test_in_bfloat16_it_is_within_its_rounding_of_peft_in_float32(make: Maker, sites: dict[str, Site]) -> None:
    """2% of a site's largest value, where bfloat16 rounds each of x, A, B, xA and y by up to 0.4%."""
    adapters = over(make, sites, torch.bfloat16)
    names = [make("a", target_modules=ALL), make("b", r=3, target_modules=ALL)]
    for site, x, before, after in through(adapters, sites, [(names[0], 3), (names[1], 20)], torch.bfloat16):
        for name, here in ((names[0], slice(3)), (names[1], slice(3, 23))):
            expected = pefts(make.models[name], site, x[here].float())
            error = after[here].float() - before[here].float() - expected
            assert error.abs().max() < 0.02 * (expected.abs() + before[here].abs()).max()


def test_an_adapter_that_overflows_hurts_its_own_rows_only(
    make: Maker, adapters: Adapters, sites: dict[str, Site]
) -> None:
    good, bad = make("good"), make("bad")
    edited = rewrite(make, bad, weights=lambda w: w | {key: torch.full_like(w[key], 3e38) for key in w if "_A" in key})
    for site, x, before, after in through(adapters, sites, [(None, 2), (edited, 1), (good, 2)], torch.float32):
        assert torch.equal(after[:2], before[:2])
        assert torch.allclose(after[3:] - before[3:], pefts(make.models[good], site, x[3:]), rtol=0, atol=1e-5)


def test_rows_of_the_base_alone_cost_nothing(adapters: Adapters) -> None:
    assert adapters.rows([None, None], [1, 7]) is None


def test_the_stack_keeps_what_may_soon_be_needed_again_and_not_more(make: Maker, adapters: Adapters) -> None:
    names = [make(str(number)) for number in range(6)]
    for name in names:
        adapters.acquire(name)

    def stack(*wanted: int) -> tuple[object, int]:
        adapters.rows([names[number] for number in wanted], [1] * len(wanted))
        return adapters._stack, len(adapters._stack.places)

    first, size = stack(0, 1, 2)
    assert size == 3
    assert stack(1) == (first, 3)
    assert stack(3)[1] == 4  # beside the first three
    assert stack(0, 1, 2, 3, 4, 5)[1] == 6
    assert stack(0, 2, 5)[1] == 6
    shrunk, size = stack(0)
    assert (shrunk is first, size) == (False, 4)
    for name in names:
        adapters.release(name)
        adapters.unload(name)
    adapters.rows([None], [1])
    assert len(adapters._stack.places) == 0  # what is unloaded takes no memory


# --- the digest ---


def test_the_digest_names_what_decides_the_answers_and_nothing_else(make: Maker) -> None:
    name = make("a")
    folder, digest = make.path(name), name.partition("@")[2]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert len(digest) == 16
    changes: list[tuple[dict[str, Any], bool]] = [
        ({"lora_dropout": 0.1, "base_model_name_or_path": "elsewhere", "peft_version": "0"}, True),
        ({"target_modules": sorted(config["target_modules"], reverse=True)}, True),
        ({"r": 5}, False),
        ({"lora_alpha": 9}, False),
        ({"use_rslora": True}, False),
        ({"alpha_pattern": {"q_proj": 2}}, False),
        ({"rank_pattern": {"q_proj": 2}}, False),
    ]
    for change, same in changes:
        (folder / "adapter_config.json").write_text(json.dumps(config | change))
        assert (adapter_digest(folder) == digest) is same, change
    (folder / "adapter_config.json").write_text(json.dumps(config))
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert adapter_digest(folder) != digest


# --- what is refused ---


def rewrite(
    make: Maker,
    name: str,
    *,
    config: dict[str, Any] | None = None,
    weights: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
    meta: dict[str, Any] | None = None,
) -> str:
    """Publish a changed copy of an adapter under its own digest."""
    folder = copytree(make.path(name), make.folder / "changed")
    settings = json.loads((folder / "adapter_config.json").read_text()) | (config or {})
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(weights(load_file(folder / "adapter_model.safetensors")), folder / "adapter_model.safetensors")
    if meta is not None:
        (folder / "meta.json").write_text(json.dumps(meta))
    return make.publish("changed", folder)


def refusal(adapters: Adapters, name: str) -> tuple[str, str]:
    with pytest.raises(Refused) as raised:
        adapters.load(name)
    assert adapters.stats(Counter()) == ()
    return raised.value.code, str(raised.value)


@pytest.mark.parametrize(
    "setting",
    [
        {"peft_type": "IA3"},
        {"use_dora": True},
        {"bias": "lora_only"},
        {"lora_bias": True},
        {"fan_in_fan_out": True},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [5]},
        {"layer_replication": [[0, 2], [1, 2]]},
        {"target_parameters": ["experts.gate_up_proj"]},
        {"init_lora_weights": "pissa_niter_4"},
        {"alora_invocation_tokens": [7]},
        {"of_a_later_peft": {"scale": 2}},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_what_peft_can_do_and_the_engine_does_not_is_refused_by_name(
    make: Maker, adapters: Adapters, setting: dict[str, Any]
) -> None:
    ((key, value),) = setting.items()
    code, message = refusal(adapters, rewrite(make, make("a"), config=setting))
    assert code == "adapter_refused"
    assert f"adapter_config.json has {key} = {json.dumps(value)}, which is not served" in message


@pytest.mark.parametrize("begin", [False, "gaussian", "orthogonal"])
def test_ways_to_begin_that_leave_the_base_alone_are_served(make: Maker, adapters: Adapters, begin: bool | str) -> None:
    adapters.load(make("a", init_lora_weights=begin))


KEY = f"base_model.model.{Q}.lora_"


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        (lambda w: {}, f"matches no module of this model, such as {Q}"),
        (lambda w: {k.replace("layers", "blocks"): v for k, v in w.items()}, "matches no module of this model"),
        (
            lambda w: {**w, **{k.replace("layers.1", "layers.7"): v.clone() for k, v in w.items() if "layers.1" in k}},
            "has weights for model.layers.7.self_attn.k_proj, model.layers.7.self_attn.o_proj, "
            "model.layers.7.self_attn.q_proj and 1 more",
        ),
        (
            lambda w: w | {"base_model.model.lm_head.weight": torch.ones(64, 32)},
            "has weights for base_model.model.lm_head.weight",
        ),
        (lambda w: w | {f"{KEY}B.bias": torch.ones(32)}, f"has weights for {KEY}B.bias"),
        (lambda w: {k: v for k, v in w.items() if k != f"{KEY}B.weight"}, f"has no {KEY}B.weight"),
        (
            lambda w: w | {f"{KEY}A.weight": torch.ones(4, 31)},
            f"has [4, 31] as the shape of {KEY}A.weight, this model and adapter_config.json want [4, 32]",
        ),
        (lambda w: w | {f"{KEY}A.weight": torch.ones(3, 32), f"{KEY}B.weight": torch.ones(32, 3)}, "has [3, 32]"),
        (
            lambda w: w | {f"{KEY}A.weight": torch.full((4, 32), torch.nan)},
            "has values for model.layers.0.self_attn.q_proj that are not finite in torch.float32",
        ),
        (
            lambda w: w | {f"{KEY}B.weight": torch.full((32, 4), 3e38)},
            "has values for model.layers.0.self_attn.q_proj that are not",
        ),
        (
            lambda w: {k: torch.zeros_like(v) if "lora_B" in k else v for k, v in w.items()},
            "changes nothing, as every product of lora_B and lora_A is zero",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_file_and_module(
    make: Maker, adapters: Adapters, weights: Callable[[dict[str, Tensor]], dict[str, Tensor]], problem: str
) -> None:
    name = rewrite(make, make("a"), weights=weights)
    code, message = refusal(adapters, name)
    assert code == "adapter_refused"
    assert f"{make.path(name) / 'adapter_model.safetensors'} {problem}" in message


@pytest.mark.parametrize(
    "setting",
    [
        {"r": None},
        {"r": 0},
        {"lora_alpha": "much"},
        {"rank_pattern": {"(": 1}},
        {"rank_pattern": {"(?=q)q_proj": 1}},
        {"alpha_pattern": [1]},
        {"use_rslora": 1, "r": -4},
    ],
    ids=str,
)
def test_a_malformed_rank_or_alpha_is_refused(make: Maker, adapters: Adapters, setting: dict[str, Any]) -> None:
    code, message = refusal(adapters, rewrite(make, make("a"), config=setting))
    assert code == "adapter_refused"
    assert "adapter_config.json gives model.layers.0.self_attn.k_proj no valid r and lora_alpha" in message


def test_a_rank_or_a_size_over_the_limits_is_refused(make: Maker, sites: dict[str, Site]) -> None:
    name = make("wide", r=8, rank_pattern={"1.self_attn.v_proj": 32})
    problem = refusal(over(make, sites, max_rank=16), name)[1]
    assert "has rank 32 for model.layers.1.self_attn.v_proj, at most 16 is served" in problem
    over(make, sites, max_rank=32).load(name)
    large = make("large", r=256, target_modules=ALL)  # 464 values per rank and layer: 0.9 MiB
    over(make, sites, max_mb=1).load(large)
    assert "takes 0.9 MiB, adapters may take 0.0 MiB" in refusal(over(make, sites, max_mb=0), large)[1]


def test_an_adapter_of_another_base_model_is_refused(make: Maker, adapters: Adapters) -> None:
    other = rewrite(make, make("a"), meta={"base_digest": "c" * 64})
    code, message = refusal(adapters, other)
    assert (code, f"meta.json has the base_digest {'c' * 64}, this is {BASE_DIGEST}" in message) == (
        "adapter_refused",
        True,
    )
    adapters.load(rewrite(make, make("b"), meta={"base_digest": BASE_DIGEST}))
    adapters.load(rewrite(make, make("c"), meta={"recipe": "one without a base"}))


@pytest.mark.parametrize(
    "name",
    ["plain", "a@", "@0123456789abcdef", "a@0123456789ABCDEF", "a@../../etc/passwd00", "a@0123456789abcdef\n", "a@b@c"],
)
def test_a_name_that_is_no_digest_leads_nowhere(adapters: Adapters, name: str) -> None:
    assert refusal(adapters, name) == (
        "adapter_not_found",
        f"adapter {name!r} is not of the form name@digest, with 16 hex digits",
    )


def test_an_unknown_digest_is_not_found(make: Maker, adapters: Adapters) -> None:
    folder = make.folder / "0123456789abcdef"
    expected = ("adapter_not_found", f"{folder} does not exist: put the adapter's PEFT folder there")
    assert refusal(adapters, "a@0123456789abcdef") == expected


def test_only_safetensors_are_opened(make: Maker, adapters: Adapters) -> None:
    name = make("a")
    weights = make.path(name) / "adapter_model.safetensors"
    torch.save(load_file(weights), weights.with_name("adapter_model.bin"))
    weights.unlink()
    problem = "does not exist (there is adapter_model.bin, which is not opened): save the adapter with PEFT's"
    assert problem in refusal(adapters, name)[1]
    weights.with_name("adapter_model.bin").rename(weights)
    name = make.publish("pickled", make.path(name))
    assert "adapter_model.safetensors is not a safetensors file" in refusal(adapters, name)[1]


def test_a_link_out_of_the_folder_is_refused(make: Maker, adapters: Adapters, tmp_path: Path) -> None:
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        name = make("a")
        path = make.path(name) / file
        path.rename(tmp_path / file)
        path.symlink_to(tmp_path / file)
        assert refusal(adapters, name)[1] == f"{path} is a symbolic link: put the file itself there"
    name = make("b")
    make.path(name).rename(tmp_path / "elsewhere")
    make.path(name).symlink_to(tmp_path / "elsewhere")
    assert refusal(adapters, name)[1] == f"{make.path(name)} is a symbolic link: put the file itself there"


def test_a_folder_that_was_changed_or_is_broken_is_refused(make: Maker, adapters: Adapters) -> None:
    name = make("a")
    config = make.path(name) / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 99}))
    assert f"has the digest {adapter_digest(make.path(name))}: it was changed" in refusal(adapters, name)[1]
    for text, problem in (("{", "cannot be read"), ("[]", "is not a JSON object")):
        config.write_text(text)
        assert f"{config} {problem}" in refusal(adapters, name)[1]
    config.unlink()
    assert f"{config} cannot be read" in refusal(adapters, name)[1]


# --- what stays in memory ---


def held(adapters: Adapters) -> list[str]:
    return sorted(stats.name.partition("@")[0] for stats in adapters.stats(Counter()))


def test_what_was_used_longest_ago_goes_unless_it_is_held_or_pinned(make: Maker, sites: dict[str, Site]) -> None:
    adapters = over(make, sites, max_count=3)
    a, b, c, d, e, f = (make(name) for name in "abcdef")
    for name in (a, b, c, a, d):
        adapters.load(name)
    assert held(adapters) == ["a", "c", "d"]
    adapters.acquire(c)
    adapters.load(e)
    assert held(adapters) == ["c", "d", "e"]
    adapters.pin(d)
    adapters.load(f)
    assert held(adapters) == ["c", "d", "f"]
    adapters.acquire(f)
    with pytest.raises(Refused) as raised:
        adapters.acquire(a)
    assert raised.value.code == "adapters_full"
    assert "3 of at most 3 are in use or pinned" in str(raised.value)
    assert held(adapters) == ["c", "d", "f"]
    adapters.release(c)
    adapters.release(f)
    adapters.unpin(d)
    for name in (a, b):
        adapters.load(name)
    assert held(adapters) == ["a", "b", "f"]  # a release is a use too


def test_a_request_waits_for_room_until_its_deadline(make: Maker, sites: dict[str, Site]) -> None:
    first, second = make("first"), make("second")
    adapters = over(make, sites, max_count=1)
    adapters.acquire(first)
    with pytest.raises(Refused, match="no room for adapter"):
        adapters.acquire(second, until=time.time() - 1)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(adapters.acquire, second, until=time.time() + 60)
        while waiting.running() and not adapters._released._waiters:
            time.sleep(0.001)
        adapters.release(first)
        waiting.result(timeout=0.9)  # told of the release, not found at the next look
    assert [stats.name for stats in adapters.stats(Counter())] == [second]


def test_memory_is_bounded(make: Maker, sites: dict[str, Site]) -> None:
    adapters = over(make, sites, max_mb=1)
    a, b, c = (make(name, r=rank, target_modules=ALL) for name, rank in (("a", 100), ("b", 100), ("c", 200)))
    for name in (a, b):
        adapters.load(name)
    assert [stats.megabytes for stats in adapters.stats(Counter())] == [2 * 464 * 100 * 4 / 2**20] * 2
    adapters.acquire(b)
    with pytest.raises(Refused, match=r"no room for adapter c@\w+ of 0.7 MiB: 1 of at most 8 .* with 0.4 MiB of 1.0"):
        adapters.load(c)
    assert held(adapters) == ["a", "b"]
    adapters.release(b)
    adapters.load(c)
    assert held(adapters) == ["c"]


def test_unload_waits_for_nobody_and_takes_nothing_in_use(make: Maker, adapters: Adapters) -> None:
    name = make("a")
    adapters.pin(name)
    adapters.acquire(name)
    adapters.acquire(name)
    for holders in (2, 1):
        with pytest.raises(Refused, match=f"{holders} requests use adapter {name}") as raised:
            adapters.unload(name)
        assert raised.value.code == "adapter_in_use"
        adapters.release(name)
    adapters.unload(name)
    adapters.unload(name)
    adapters.unpin(name)
    assert held(adapters) == []


def test_two_names_of_one_digest_are_one_adapter(make: Maker, adapters: Adapters) -> None:
    first = make("maths", r=3)
    second = first.replace("maths", "algebra")
    adapters.acquire(first)
    adapters.acquire(second)
    (stats,) = adapters.stats(Counter({first: 2, second: 5}))
    assert (stats.name, stats.rank, stats.running, stats.pinned) == (first, 3, 7, False)
    adapters.rows([first, second], [1, 1])
    assert len(adapters._stack.places) == 1


def test_many_threads_hold_and_release(make: Maker, sites: dict[str, Site]) -> None:
    """Two places: one is held throughout, so the other two adapters are refused only while one holds the other."""
    adapters = over(make, sites, max_count=2)
    names = [make(name) for name in "abc"]
    adapters.acquire(names[0])
    barrier = Barrier(6)

    def work(number: int) -> Counter[str]:
        outcomes = Counter[str]()
        barrier.wait()
        for turn in range(12):
            name = names[(number + turn) % 3]
            try:
                adapters.acquire(name)
            except Refused as refused:
                outcomes[refused.code] += 1
            else:
                loaded = {stats.name for stats in adapters.stats(Counter())}
                assert {names[0], name} <= loaded
                assert len(loaded) <= 2
                outcomes[name] += 1
                adapters.release(name)
        return outcomes

    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(work, number) for number in range(6)]
        for _ in range(50):
            assert adapters.rows([names[0]], [1]) is not None
        outcomes = sum((future.result() for future in futures), Counter[str]())
    assert outcomes[names[0]] == 24
    assert outcomes[names[1]] > 0
    assert outcomes[names[2]] > 0
    assert outcomes.total() == 72
    adapters.release(names[0])
    for name in names:
        adapters.unload(name)  # nobody holds anything any more


def test_the_engine_does_not_wait_for_a_load(make: Maker, adapters: Adapters) -> None:
    """The load reads its config from a pipe to which nobody writes yet."""
    ready, slow = make("ready"), make("slow")
    adapters.acquire(ready)
    pipe = make.path(slow) / "adapter_config.json"
    pipe.unlink()
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(adapters.load, slow)
        with pipe.open("w") as writer:  # opens when the load does
            assert adapters.rows([ready], [3]) is not None
            adapters.acquire(ready)
            adapters.release(ready)
            assert held(adapters) == ["ready"]
            assert not load.done()
            writer.write("[]")
        with pytest.raises(Refused, match="is not a JSON object"):
            load.result()
