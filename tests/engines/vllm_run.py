"""Run by the Python of an environment that has vLLM: `vllm_run.py PROMPTS NEW_TOKENS MODEL…`, token ids as JSON.

Prints for each model the greedy tokens after each prompt, the bytes that the cache has for each token, and the groups
of layers in it.
"""

from __future__ import annotations

import gc
import json
import os
import sys

os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0", HF_HUB_OFFLINE="1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

from vllm import LLM, SamplingParams


def answer(model: str, prompts: list[list[int]], new_tokens: int) -> dict[str, object]:
    gpus = int(os.environ.get("GPUS", "1"))
    llm = LLM(
        model,
        skip_tokenizer_init=True,
        dtype="float32",
        enforce_eager=True,
        max_num_seqs=len(prompts),
        tensor_parallel_size=gpus,
    )
    chosen = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
    answers = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], chosen)
    found: dict[str, object] = {"tokens": [list(each.outputs[0].token_ids) for each in answers]}
    if gpus == 1:
        runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
        # All layers' tensors are views of few allocations. Layers with a window and layers without are groups, which
        # divide the blocks among them: a token has a place in one block of each group.
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in runner.kv_caches}
        block_bytes = sum(storages.values()) / runner.kv_cache_config.num_blocks
        specs = [group.kv_cache_spec for group in runner.kv_cache_config.kv_cache_groups]
        found["bytes_per_token"] = sum(block_bytes / spec.block_size for spec in specs)
        found["groups"] = [type(spec).__name__ for spec in specs]
    return found


def main(prompts: list[list[int]], new_tokens: int, models: list[str]) -> None:
    for model in models:
        try:
            print("RESULT", json.dumps(answer(model, prompts, new_tokens)), flush=True)
        except Exception as error:  # the others are to be tried
            print("RESULT", json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
        gc.collect()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
