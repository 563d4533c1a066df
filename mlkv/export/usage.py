"""What the model card of each kind of export says about loading it. `{name}` is the directory or the repository."""

from __future__ import annotations

TRANSFORMERS = """\
The directory carries the decoder's code, so mlkv need not be installed:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=40, do_sample=False)[0]))
```

transformers 5.17 or later; from 5.23 on its static cache too has memory for owners alone.
lm-eval: `lm_eval --model hf --model_args pretrained={name},trust_remote_code=True --tasks …`
"""

NATIVE = """\
It is a model of transformers itself, and needs no other code:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```

vLLM (`vllm serve {name}`), SGLang and other engines that know its `model_type` serve it as it is.
"""

VLLM = """\
The directory is a model and a plugin for vLLM (0.32 was tried). Install the plugin where vLLM is, then serve:

```
pip install --no-deps {name}/
vllm serve {name}
```

`from vllm import LLM; LLM("{name}")` works too. One plugin serves every export of this kind. Readers have no blocks in
the cache.
transformers opens the directory as well, with `trust_remote_code=True`.
"""

GGUF = """\
`model.gguf` is for llama.cpp and what is built on it:

```
llama-cli -m {name}/model.gguf -p "Once upon a time"
```

Its cache holds float16 numbers by default; `--cache-type-k f32 --cache-type-v f32 -fa off` gives the tokens of
transformers in float32. OpenVINO GenAI reads the file too if its weights are float16 and it is a Llama, Qwen2 or Qwen3.
"""
