"""A flat pass is transformers' own of each example; a new adapter changes nothing; what is trained, and what is not."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedModel

from tests.workers.training.conftest import recipe, task
from workers.models.load import LoadedModel
from workers.protocols import Refused
from workers.training.data import Example
from workers.training.loss import nll
from workers.training.model import Learner
from workers.training.run import seeded

EXAMPLES = [example for (example,) in task(count=5).items]
CPU = torch.device("cpu")
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def transformers_nll(model: PreTrainedModel, example: Example) -> Tensor:
    logits = model(torch.tensor([example.tokens])).logits[0]
    places = torch.tensor(example.learnt)
    return cross_entropy(logits[places - 1], torch.tensor(example.tokens)[places], reduction="none")


@pytest.fixture
def gemma_2(tiny: Callable[[], LoadedModel]) -> LoadedModel:
    """A family that bounds its logits, in attention and at its end."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=2000,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=6,
        attn_logit_softcapping=0.5,
        final_logit_softcapping=0.3,
        initializer_range=0.5,
    )
    model = Gemma2ForCausalLM(config).eval().requires_grad_(False)
    return replace(tiny(), model=model)


@pytest.mark.parametrize("family", ["gemma 3", "gemma 2"])
def test_a_flat_pass_is_transformers_own_of_each_example(
    family: str, tiny: Callable[[], LoadedModel], gemma_2: LoadedModel
) -> None:
    """Most examples are longer than the sliding window."""
    loaded = tiny() if family == "gemma 3" else gemma_2
    loaded.model.set_attn_implementation("eager")
    expected = torch.cat([transformers_nll(loaded.model, example) for example in EXAMPLES])
    learner = Learner(loaded, recipe())
    learner.train(False)
    assert torch.allclose(nll(learner, EXAMPLES), expected, rtol=0, atol=1e-4)


def test_a_new_adapter_is_the_base_to_the_bit(tiny: Callable[[], LoadedModel]) -> None:
    learner = Learner(tiny(), recipe())
    learner.train(False)
    with learner.as_it_began():
        base = nll(learner, EXAMPLES)
    assert torch.equal(nll(learner, EXAMPLES), base)
    for name, weight in learner.trained.items():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    assert not torch.allclose(nll(learner, EXAMPLES), base)
    with learner.as_it_began():
        assert torch.equal(nll(learner, EXAMPLES), base)


@pytest.mark.parametrize("method", ["sft", "full"])
def test_gradient_checkpointing_changes_no_gradient(method: str, tiny: Callable[[], LoadedModel]) -> None:
    gradients = []
    for checkpointing in (False, True):
        learner = Learner(tiny(), recipe(method=method, dropout=0.5, gradient_checkpointing=checkpointing))
        learner.train(True)
        with seeded("1", CPU):
            nll(learner, EXAMPLES).sum().backward()
        gradients.append({name: weight.grad for name, weight in learner.trained.items()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_bfloat16_is_of_products_only(tiny: Callable[[], LoadedModel]) -> None:
    """Within 1% of float32, and what is trained stays float32."""
    for method in ("sft", "full"):
        losses = []
        for dtype in ("float32", "bf16"):
            learner = Learner(tiny(), recipe(method=method, dtype=dtype))
            learner.train(False)
            loss = nll(learner, EXAMPLES).mean()
            loss.backward()
            losses.append(loss.item())
            assert {(w.dtype, w.grad.dtype) for w in learner.trained.values() if w.grad is not None} == {
                (torch.float32, torch.float32)
            }
        assert losses[0] != losses[1]
        assert losses[1] == pytest.approx(losses[0], rel=0.01)


@pytest.mark.parametrize(
    ("targets", "modules"),
    [
        (ATTENTION, ATTENTION),
        (["mlp.down_proj", "q_proj"], ["q_proj", "down_proj"]),
        ("all-linear", [*ATTENTION, "gate_proj", "up_proj", "down_proj"]),
    ],
)
def test_targets_are_modules_of_the_decoder(
    targets: list[str], modules: list[str], tiny: Callable[[], LoadedModel]
) -> None:
    trained = Learner(tiny(), recipe(targets=targets)).trained
    places = [(layer, name) for layer in range(2) for name in modules]
    assert len(trained) == 2 * len(places)
    for layer, name in places:
        assert len([key for key in trained if f"layers.{layer}." in key and f"{name}.lora_" in key]) == 2


def test_a_target_that_matches_nothing_is_refused(tiny: Callable[[], LoadedModel]) -> None:
    with pytest.raises(Refused, match="target 'query' matches no module; the model has down_proj, gate_proj, k_proj"):
        Learner(tiny(), recipe(targets=["q_proj", "query"]))
