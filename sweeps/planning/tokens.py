"""Which tokenizer cuts a corpus.

A pretrained base knows the tokens of one tokenizer. Another is compared with it by the ids that it gives to text, and
not by its name: copies have many names, and files of one name differ.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlkv.context import StepFailed
from mlkv.recipes import CorpusRecipe
from sweeps.planning import hub
from sweeps.planning.config import Config, ModelConfig
from sweeps.store.errors import UserError

if TYPE_CHECKING:
    from sweeps.planning.resolve import Resolver

_COMPLETE = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
"""Files that make a tokenizer."""
_DECIDING = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


class Tokens:
    """Decides what `corpus.tokenizer` is where it is unset, and checks it; each pair of tokenizers is compared once."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._differences: dict[tuple[CorpusRecipe, ModelConfig], str | None] = {}

    def settled(self, config: Config) -> Config:
        """The configuration with `corpus.tokenizer` set: to `model` where pretrained weights are converted, else to
        `train`. Raises UserError where such weights would be trained on, or scored in, tokens that they do not know."""
        converts = config.model.pretrained and config.convert.start == "convert"
        recipe = replace(config.corpus, tokenizer=config.corpus.tokenizer or ("model" if converts else "train"))
        if converts and recipe.tokenizer != "model":
            self._check(recipe, config.model)
        return replace(config, corpus=recipe)

    def _check(self, recipe: CorpusRecipe, model: ModelConfig) -> None:
        pair = recipe, model
        if pair not in self._differences:
            self._differences[pair] = self._difference(recipe, model)
        if why := self._differences[pair]:
            given = f" ({recipe.tokenizer_from})" if recipe.tokenizer == "published" else ""
            raise UserError(
                f"corpus.tokenizer = {recipe.tokenizer}{given}: not the tokenizer of model {model.name} "
                f"({model.path or model.hub}), which its weights need: {why}; leave corpus.tokenizer unset"
            )

    def _difference(self, recipe: CorpusRecipe, config: ModelConfig) -> str | None:
        """Why the corpus's tokenizer is not the model's; None where it is, or where it is a published one and the model
        has none to compare it with."""
        model, published = self._resolver.model(config), None
        assert model.source, "a pretrained model is somewhere"
        if recipe.tokenizer == "published":
            pin, where = self._resolver.tokenizer(recipe)
            if pin == model.pins["model"] or not may_have_tokenizer(model.source):
                return None
            published = hub.tokenizer_files(where)
        elif not may_have_tokenizer(model.source):
            return "that has none"
        own = hub.tokenizer_files(model.source)
        try:
            return _other_tokens(own, recipe, published)
        except (StepFailed, ValueError) as error:
            raise UserError(f"corpus.{error}") from None


def may_have_tokenizer(source: dict[str, str]) -> bool:
    """Whether a model's directory has one; what the hub has is seen when it is fetched."""
    if "path" not in source:
        return True
    return any(all((Path(source["path"]) / name).is_file() for name in files) for files in _COMPLETE)


def _other_tokens(base: Path, recipe: CorpusRecipe, published: Path | None) -> str | None:
    """How the tokenizer in `published`, or one made of the corpus's text, differs from that in `base`; None if it does
    not.

    Raises StepFailed for a tokenizer that cannot be loaded.
    """
    if published and _same_files(base, published):
        return None
    from mlkv.corpus.documents import documents
    from mlkv.corpus.step import train_tokenizer
    from mlkv.corpus.tokenizer import Encoder, difference, load

    own = Encoder(load(base))
    if published:
        other = Encoder(load(published))
    elif recipe.source == "hf" or own.vocab_size > recipe.vocab_size:
        return f"a tokenizer made of the text, with corpus.vocab_size = {recipe.vocab_size}, has tokens of its own"
    else:
        other = Encoder(train_tokenizer(recipe, documents(recipe)))
    text = difference(own, other)
    return None if text is None else f"{text[:40]!r} gets other ids"


def _same_files(one: Path, other: Path) -> bool:
    """Whether one is a copy of the other, which takes no loading to see."""
    contents = [tuple(_content(folder / name) for name in _DECIDING) for folder in (one, other)]
    return contents[0] == contents[1] and contents[0][0] is not None


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
