"""Run by the Python of an environment that has vLLM: `vllm_run.py MODEL PROMPTS NEW_TOKENS`, token ids as JSON.

Prints the greedy tokens after each prompt, and the bytes that the cache has for each token.
"""

from __future__ import annotations

import json
import os
import sys

os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0", HF_HUB_OFFLINE="1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

from vllm import LLM, SamplingParams


def main(model: str, prompts: list[list[int]], new_tokens: int) -> None:
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
    found = {"tokens": [list(answer.outputs[0].token_ids) for answer in answers]}
    if gpus == 1:
        runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
        # All layers' tensors are views of few allocations.
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in runner.kv_caches}
        tokens = runner.kv_cache_config.num_blocks * llm.llm_engine.vllm_config.cache_config.block_size
        found["bytes_per_token"] = sum(storages.values()) / tokens
    print("RESULT", json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]))
