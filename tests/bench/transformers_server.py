"""transformers in bfloat16, in one of the ways in which it serves or scores. See `peers.process`.

A line is what one call of `answer` is given, as a JSON list; so is what it returns.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer
from transformers.utils.logging import disable_progress_bar

from tests.bench.peers import Ask, wait_until


def main() -> None:
    way, folder, threads, at_once = sys.argv[1:]
    torch.set_num_threads(int(threads))
    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).requires_grad_(False)
    # A kindness: `generate` slices the last state out of the prompt's, and torch then copies the output matrix, once
    # for each row, to multiply what is not contiguous with it (1.5 s and 335 MB a row with Gemma 3 270M).
    model.get_output_embeddings().register_forward_pre_hook(lambda _, states: (states[0].contiguous(),))
    answer = WAYS[way](model, int(at_once)).answer
    for line in sys.stdin:
        print(json.dumps(answer(*json.loads(line))), flush=True)
    os._exit(0)  # the thread of `Continuous` would go on


class Static:
    """`generate`: so many requests at once, the next when the last of them has its answer."""

    def __init__(self, model: PreTrainedModel, at_once: int) -> None:
        self.model = model
        self.at_once = at_once
        model.generation_config.eos_token_id = None

    def answer(self, asks: Sequence[Any]) -> list[list[float]]:
        started = time.perf_counter()
        times: list[list[float]] = []
        for first in range(0, len(asks), self.at_once):
            batch = [Ask(*ask) for ask in asks[first : first + self.at_once]]
            wait_until(started + batch[-1].at)
            prompts = torch.tensor([ask.prompt for ask in batch])
            stamps = Stamps(started)
            self.model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=batch[0].max_tokens,
                do_sample=False,
                streamer=stamps,
            )
            times += [stamps.times[1:]] * len(batch)
        return times


class Stamps(BaseStreamer):
    """Notes when `generate` has the prompt, and then the next token of every row."""

    def __init__(self, started: float) -> None:
        self.started = started
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter() - self.started)

    def end(self) -> None:
        pass


class Continuous:
    """Continuous batching with paged attention: what `generate_batch` runs, kept running."""

    def __init__(self, model: PreTrainedModel, at_once: int) -> None:
        self.manager = model.init_continuous_batching(
            GenerationConfig(do_sample=False, eos_token_id=-1),
            # Of itself it takes, and fills, 60% of the memory.
            ContinuousBatchingConfig(num_blocks=4 * at_once, max_batch_tokens=2048, max_requests_per_batch=at_once),
        )
        self.manager.start()

    def answer(self, asks: Sequence[Any]) -> list[list[float]]:
        started = time.perf_counter()
        ids = []
        for ask in (Ask(*ask) for ask in asks):
            wait_until(started + ask.at)
            ids.append(self.manager.add_request(ask.prompt, None, ask.max_tokens, record_timestamps=True))
        times: dict[str, list[float]] = {}
        while len(times) < len(asks):
            result = self.manager.get_result()
            if result is None or result.error:
                raise RuntimeError(f"generate_batch failed: {result and result.error}")
            times[result.request_id] = [stamp - started for stamp in result.timestamps]
        return [times[request_id] for request_id in ids]


class Score:
    """The log-probability of each continuation, the prefix computed for each, so many continuations at once."""

    def __init__(self, model: PreTrainedModel, at_once: int) -> None:
        self.model = model
        self.at_once = at_once

    @torch.inference_mode()
    def answer(self, prefix: list[int], continuations: list[list[int]]) -> list[float]:
        scores = []
        for first in range(0, len(continuations), self.at_once):
            batch = continuations[first : first + self.at_once]
            longest = max(map(len, batch))
            padded = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens in batch])  # nothing sees that
            ids = torch.cat([torch.tensor(prefix).expand(len(batch), -1), padded], 1)
            kept = torch.arange(len(prefix) - 1, ids.shape[1] - 1)
            logprobs = self.model(ids, logits_to_keep=kept).logits.float().log_softmax(-1)
            chosen = logprobs.gather(2, padded[:, :, None])[:, :, 0]
            scores += [float(row[: len(tokens)].sum()) for row, tokens in zip(chosen, batch, strict=True)]
        return scores


WAYS: dict[str, Any] = {"static": Static, "continuous": Continuous, "score": Score}

if __name__ == "__main__":
    main()
