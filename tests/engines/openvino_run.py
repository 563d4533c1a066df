"""Run by a Python that has OpenVINO GenAI: `openvino_run.py PROMPTS NEW_TOKENS MODEL…`, token ids as JSON.

Prints for each GGUF file the greedy tokens after each prompt.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import openvino
import openvino_genai

FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "ATTENTION_BACKEND": "SDPA"}


def answer(model: str, prompts: list[list[int]], new_tokens: int) -> dict[str, object]:
    pipeline = openvino_genai.LLMPipeline(model, "CPU", **FLOAT32)
    chosen = openvino_genai.GenerationConfig()
    chosen.max_new_tokens, chosen.do_sample, chosen.ignore_eos = new_tokens, False, True
    found = []
    for prompt in prompts:
        ids = np.array([prompt])
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        found.append(list(pipeline.generate(inputs, chosen).tokens[0]))
    return {"tokens": found}


def main(prompts: list[list[int]], new_tokens: int, models: list[str]) -> None:
    for model in models:
        try:
            reply = answer(model, prompts, new_tokens)
        except Exception as error:  # the others are to be tried
            reply = {"error": str(error)}
        print("RESULT", json.dumps(reply), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
