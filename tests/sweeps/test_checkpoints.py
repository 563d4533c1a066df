"""A checkpoint is loaded as transformers loads it, or refused when it is planned, in one line that names the file.

Rule: what a plan accepts, the base step loads; what the base step refuses for other reasons than its numbers, the plan
refuses.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mlkv.context import StepFailed
from mlkv.families.load import check_checkpoint, import_pretrained, load_pretrained
from mlkv.hf import load_checked
from sweeps.planning.config import ModelConfig
from sweeps.planning.resolve import Resolver
from sweeps.store.errors import UserError
from sweeps.store.store import Store
from tests.support.bases import GQA, write_base, write_config
from tests.support.tiny import context

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 5000\n"
IDS = torch.arange(12).reshape(2, 6)
WEIGHTS = "model.safetensors"
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("bases") / "base", config=GQA | {"num_hidden_layers": 2})


@pytest.fixture
def base(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "base")


def plan(folder: Path) -> None:
    """What a plan reads of a base."""
    resolver, config = Resolver(Store(folder.parent / "store")), ModelConfig("base", path=str(folder))
    assert resolver.model(config).pins
    resolver.check_base(config)
    assert resolver.model(config).vocabulary


def state(change: Callable[[dict[str, Any]], object]) -> Change:
    """A change of the weights."""

    def changed(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        change(weights)
        save_file(weights, folder / WEIGHTS)

    return changed


def written(name: str, content: str | bytes) -> Change:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def cut(name: str, keep: Callable[[int], int]) -> Change:
    return lambda folder: written(name, (folder / name).read_bytes()[: keep((folder / name).stat().st_size)])(folder)


def sharded(folder: Path, kind: str = "safetensors") -> Path:
    """As files of two parts with an index."""
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(weights)
    stem = "model" if kind == "safetensors" else "pytorch_model"
    parts = {f"{stem}-{i + 1}-of-2.{kind}": names[i::2] for i in range(2)}
    for file, own in parts.items():
        part = {name: weights[name] for name in own}
        save_file(part, folder / file) if kind == "safetensors" else torch.save(part, folder / file)
    index: dict[str, Any] = {"metadata": {}}
    index |= {"weight_map": {name: file for file, own in parts.items() for name in own}}
    (folder / f"{stem}.{kind}.index.json").write_text(json.dumps(index))
    return folder


def pickled(folder: Path, **options: Any) -> Path:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin", **options)
    (folder / WEIGHTS).unlink()
    return folder


def without(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def renamed(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / WEIGHTS).rename(folder / name)


def moved_end(folder: Path) -> str:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"][0]["id"] = content["model"]["vocab"]["<|endoftext|>"] = 999
    return json.dumps(content)


def linked_to_nothing(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(folder / "gone")


DAMAGED: dict[str, tuple[Change, str]] = {
    "a pointer for weights": (written(WEIGHTS, POINTER), "model.safetensors is a git-lfs pointer .*: run `git lfs"),
    "a pointer for a shard": (
        lambda f: written("model-2-of-2.safetensors", POINTER)(sharded(f)), "model-2-of-2.safetensors is a git-lfs"
    ),
    "a pointer for a config": (written("config.json", POINTER), "config.json is a git-lfs pointer"),
    "a pointer for a tokenizer": (written("tokenizer.json", POINTER), "tokenizer.json is a git-lfs pointer"),
    "a missing shard": (
        lambda f: without("model-1-of-2.safetensors")(sharded(f)),
        "model-1-of-2.safetensors is missing, and model.safetensors.index.json lists it",
    ),
    "a torn index": (
        lambda f: cut("model.safetensors.index.json", lambda n: n // 2)(sharded(f)), "index.json cannot be read"
    ),
    "an index without files": (
        lambda f: written("model.safetensors.index.json", "{}")(sharded(f)), "index.json has no weight_map"
    ),
    "an index that leaves its directory": (
        lambda f: written("model.safetensors.index.json", '{"weight_map": {"a": "../b.safetensors"}}')(sharded(f)),
        r"index.json lists \.\./b.safetensors: must be a file in its directory",
    ),
    "truncated weights": (cut(WEIGHTS, lambda n: n - 5), r"model.safetensors is not a whole .* file \(.* bytes; "),
    "weights of no byte": (cut(WEIGHTS, lambda n: 0), r"model.safetensors is not a whole safetensors file \(0 bytes; "),
    "torn header": (cut(WEIGHTS, lambda n: 99), "model.safetensors is not a whole safetensors file"),
    "truncated .bin": (
        lambda f: cut("pytorch_model.bin", lambda n: n - 99)(pickled(f)), "pytorch_model.bin is not a whole file"
    ),
    "a .bin of other things": (
        lambda f: torch.save({"model": {}, "step": 3}, pickled(f) / "pytorch_model.bin"), "something else than named"
    ),
    "no weights": (without(WEIGHTS), "has no weights: needs model.safetensors or pytorch_model.bin"),
    "a variant alone": (lambda f: renamed(f, "model.fp16.safetensors"), "has no weights: .*; it has model.fp16.safet"),
    "a subfolder": (lambda f: renamed(f, "weights/model.safetensors"), "has no weights: .*; they are in weights/"),
    "a link to nothing": (
        linked_to_nothing, "model.safetensors links to .*gone, which is missing"
    ),
    "no tensor": (state(lambda w: w.clear()), "missing weight: embed_tokens.weight"),
    "a missing tensor": (
        state(lambda w: w.pop("model.layers.1.mlp.up_proj.weight")), "missing weight: layers.1.mlp.up_proj.weight"
    ),
    "an unexpected tensor": (
        state(lambda w: w.update({f"score{i}.weight": torch.ones(2) for i in range(9)})),
        "unknown weights: score0.weight, .* and 4 others",
    ),
    "another shape": (
        state(lambda w: w.update({"model.norm.weight": torch.ones(7)})), r"norm.weight has shape \[7\], the config says"
    ),
    "another config": (lambda f: write_config(f, num_key_value_heads=2), r"has shape \[16, 32\], the config says \[8,"),
    "no head": (state(lambda w: w.pop("lm_head.weight")), "missing weight: head.weight .tie_word_embeddings = false"),
    "a head unlike its embedding": (lambda f: write_config(f, tie_word_embeddings=True), "output head that differs"),
    "a dtype": (
        state(lambda w: w.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)})), "is int8: quantised weights"
    ),
    "8-bit floats": (
        state(lambda w: w.update({n: t.to(torch.float8_e4m3fn) for n, t in w.items()})), "is float8_e4m3fn: quantised"
    ),
    "quantised": (
        lambda f: write_config(f, quantization_config={"quant_method": "gptq", "bits": 4}), "quantization_config = gptq"
    ),
    "an adapter": (written("adapter_config.json", "{}"), "has an adapter"),
    "a torn tokenizer": (cut("tokenizer.json", lambda n: n // 2), "tokenizer.json cannot be read"),
    "a torn tokenizer's settings": (written("tokenizer_config.json", '{"eos'), "tokenizer_config.json cannot be read"),
    "a torn generation config": (written("generation_config.json", '{"eos'), "generation_config.json cannot be read"),
    "a config with a byte order mark": (
        lambda f: written("config.json", b"\xef\xbb\xbf" + (f / "config.json").read_bytes())(f), "a byte order mark"
    ),
    "a torn config": (cut("config.json", lambda n: n // 2), "config.json cannot be read: not JSON"),
    "a config of bytes": (written("config.json", b"\xff\xfe{}"), "config.json begins with a byte order mark"),
    "a config that is no object": (written("config.json", "[1]"), "config.json is not JSON object: it holds a list"),
    "a deep config": (written("config.json", "[" * 100_000), "config.json cannot be read: not JSON"),
    "an end that has no embedding": (
        lambda f: written("tokenizer.json", moved_end(f))(f),
        "its tokenizer ends a document with id 999, and the model takes ids below 320",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGED.values(), ids=list(DAMAGED))
def test_what_cannot_be_loaded_is_refused_by_the_plan(base: Path, damage: Change, message: str) -> None:
    damage(base)
    with pytest.raises(UserError, match=message) as caught:
        plan(base)
    assert str(caught.value).startswith((f"model.path = {base}: ", f"model {base}: "))
    assert "\n" not in str(caught.value)
    if "tokenizer" not in message:
        with pytest.raises(StepFailed) as failed:
            import_pretrained(base, base.parent, context(base.parent))
        assert "\n" not in str(failed.value)


def tied(folder: Path) -> Path:
    write_config(folder, tie_word_embeddings=True)
    return folder


def head_for_embedding(weights: dict[str, Any]) -> None:
    """As safetensors keeps one of two names of a tensor."""
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")


def linked_elsewhere(folder: Path) -> None:
    """As the hub's cache has them."""
    (folder / WEIGHTS).rename(folder / "blob")
    (folder / WEIGHTS).symlink_to(folder / "blob")


LOADED: dict[str, Change] = {
    "one file": lambda f: f,
    "shards": sharded,
    "a .bin": pickled,
    "an older .bin": lambda f: pickled(f, _use_new_zipfile_serialization=False),
    "shards of .bin": lambda f: sharded(f, "bin"),
    "half precision": state(lambda w: w.update({name: weight.half() for name, weight in w.items()})),
    "two dtypes": state(lambda w: w.update({"model.norm.weight": w["model.norm.weight"].double()})),
    "an embedding for a tied head": lambda f: state(lambda w: w.pop("lm_head.weight"))(tied(f)),
    "a head for a tied embedding": lambda f: state(head_for_embedding)(tied(f)),
    "both of a tied pair": lambda f: state(
        lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()})
    )(tied(f)),
    "both forms, of which the .bin is stale": written("pytorch_model.bin", "stale"),
    "a variant beside it": written("model.fp16.safetensors", "stale"),
    "a stale index beside it": written("model.safetensors.index.json", '{"weight_map": {"a": "gone.safetensors"}}'),
    "a linked file": linked_elsewhere,
    "rotary tables beside the weights": state(
        lambda w: w.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)})
    ),
}


@pytest.mark.parametrize("change", LOADED.values(), ids=list(LOADED))
@torch.no_grad()
def test_what_transformers_loads_is_loaded_the_same(base: Path, change: Change) -> None:
    change(base)
    plan(base)
    theirs = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    torch.testing.assert_close(load_pretrained(base).eval()(IDS).logits, theirs(IDS).logits, atol=1e-5, rtol=1e-5)


def test_one_of_our_checkpoints_is_checked_by_its_headers_too(base: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    import_pretrained(base, own, context(tmp_path))
    plan(own)
    assert load_checked(own)
    state(lambda w: w.pop("model.blocks.1.attention.k.weight"))(own)
    with pytest.raises(ValueError, match=r"missing weight: blocks\.1\.attention\.k\.weight"):
        check_checkpoint(own)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_source_layers": 3}, "kv_source_layers = 3: must be a list of integers"),
        ({"kv_source_layers": [0, "a"]}, "kv_source_layers = .*: must be a list of integers"),
        ({"kv_source_layers": [0]}, "kv_source_layers has 1 entries: the decoder has 2 layers"),
        ({"kv_source_layers": [0, 5]}, r"kv_source_layers\[1\] = 5: a layer reads itself"),
        ({"kv_heads": None}, "kv_heads = None: must be a list of integers"),
        ({"keys": ["x"]}, "keys = .*: must be rotated or unrotated"),
        ({"layers": "2"}, "layers = 2: must be a valid integer"),
        ({"norm": 1}, "norm = 1: must be 'layernorm', 'rmsnorm' or 'rmsnorm_offset'"),
    ],
)
def test_a_damaged_config_of_ours_is_refused_by_the_plan(
    base: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    import_pretrained(base, own := tmp_path / "own", context(tmp_path))
    write_config(own, **changes)
    with pytest.raises(UserError, match=message) as caught:
        plan(own)
    assert "\n" not in str(caught.value)
