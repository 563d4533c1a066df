"""Log-likelihoods of continuations, with every token that texts have in common read once.

The continuations of a context start from its keys and values, and contexts that begin alike (worked examples, a
passage) from those of their beginning. Logits are computed at the continuations' tokens alone.

Legend: `B` texts of a pass, `R` continuations of them, `T` tokens, `N` tokens of all continuations of a pass, `D`
width, `V` vocabulary.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from ..context import StepFailed
from .batch_size import BatchSize

Answer = tuple[float, bool]
"""Log-likelihood of a continuation, and whether greedy decoding gives it."""
Pair = tuple[list[int], list[int]]
"""The tokens of a context and of its continuation."""

WORTH = {"cpu": 2**8, "cuda": 2**13}
"""Tokens that a beginning has to save in all: a pass of its own costs as much as reading about so many."""
LOGITS_AT_ONCE = {"cpu": 2**22, "cuda": 2**27}
"""Numbers in the logits that are in memory at a time, unless a single token has more."""


class Continuation(NamedTuple):
    request: int
    tokens: list[int]


@dataclass(frozen=True)
class Text:
    """What one row of a pass reads: a context that several continuations share; or a context and its one continuation,
    without its last token, which nothing follows."""

    tokens: list[int]
    continuations: list[Continuation]

    @property
    def shared(self) -> bool:
        return len(self.continuations) > 1

    @property
    def beginning(self) -> int:
        """Tokens at whose places no logits are needed."""
        return len(self.tokens) - (1 if self.shared else len(self.continuations[0].tokens))


@dataclass
class Likelihoods:
    """longest: tokens that the model reads at most; a longer text loses its beginning. report: is called with how many
    requests a pass answered."""

    model: Any
    batch_size: BatchSize
    longest: int
    report: Callable[[int], None]

    @torch.inference_mode()
    def of(self, pairs: Sequence[Pair]) -> list[Answer]:
        """The answers, in the order of the requests. Raises StepFailed for a continuation that is too long."""
        answers: dict[int, Answer] = {}
        for beginning, texts in families(self._texts(pairs), WORTH[self._device.type]):
            start = self._read(beginning)
            for found in self._answer(texts, start, len(beginning)):
                answers |= found
                self.report(len(found))
        return [answers[i] for i in range(len(pairs))]

    @property
    def _device(self) -> torch.device:
        return self.batch_size.device

    def _texts(self, pairs: Sequence[Pair]) -> list[Text]:
        """A context is shared where it fits with each of its continuations, and is as long as these: else more tokens
        would be read than its repetition costs."""
        members: dict[tuple[int, ...], list[Continuation]] = defaultdict(list)
        for i, (context, continuation) in enumerate(pairs):
            if len(continuation) > self.longest:
                raise StepFailed(
                    f"a continuation has {len(continuation)} tokens: the model reads {self.longest} at most"
                )
            members[tuple(context)].append(Continuation(i, continuation))
        texts = []
        for tokens, group in members.items():
            context = list(tokens)
            most = max(len(each.tokens) for each in group)
            fits = most <= len(context) <= self.longest - most
            rows = self.batch_size.at(len(context) + most) if fits else 1
            for first in range(0, len(group), rows):
                part = group[first : first + rows]
                whole = context if len(part) > 1 else [*context, *part[0].tokens[:-1]]
                texts.append(Text(whole[-self.longest :], part))
        return texts

    def _answer(self, texts: list[Text], start: DynamicCache | None, skipped: int) -> Iterator[dict[int, Answer]]:
        """Longest first, so that memory runs out at once if it does. Texts that are continued have equal lengths in a
        pass; others are padded behind their ends, where no token that counts attends to."""
        todo, done = sorted(texts, key=lambda text: (not text.shared, -len(text.tokens), text.tokens)), 0
        while done < len(todo):
            length = len(todo[done].tokens) + max(len(each.tokens) for each in todo[done].continuations)
            rows = self.batch_size.at(length)
            taken = _take(todo[done : done + rows], rows)
            answer = self._answer_shared if taken[0].shared else self._answer_whole
            found = self.batch_size.attempt(length, partial(answer, taken, start, skipped))
            if found is not None:
                done += len(taken)
                yield found

    def _answer_whole(self, texts: list[Text], start: DynamicCache | None, skipped: int) -> dict[int, Answer]:
        rows = [torch.tensor(text.tokens[skipped:], device=self._device) for text in texts]
        cache = None if start is None else _repeated(start, len(texts))
        hidden_BTD = self.model.model(pad_sequence(rows, batch_first=True), cache=cache)
        scored = [
            hidden_TD[text.beginning - skipped : len(text.tokens) - skipped]
            for text, hidden_TD in zip(texts, hidden_BTD, strict=True)
        ]
        return self._score(torch.cat(scored), [text.continuations[0] for text in texts])

    def _answer_shared(self, texts: list[Text], start: DynamicCache | None, skipped: int) -> dict[int, Answer]:
        continuations = [each for text in texts for each in text.continuations]
        counts_B = torch.tensor([len(text.continuations) for text in texts], device=self._device)
        rows_R = torch.arange(len(texts), device=self._device).repeat_interleave(counts_B)
        targets = [torch.tensor(each.tokens, device=self._device) for each in continuations]
        cache = DynamicCache(config=self.model.config) if start is None else _repeated(start, len(texts))
        read_BT = torch.tensor([text.tokens[skipped:] for text in texts], device=self._device)
        hidden_RTD = self.model.model(read_BT, cache=cache)[rows_R, -1:]
        if max(map(len, targets)) > 1:
            cache.batch_select_indices(rows_R)
            rest_RTD = self.model.model(pad_sequence(targets, batch_first=True)[:, :-1], cache=cache)
            hidden_RTD = torch.cat([hidden_RTD, rest_RTD], 1)
        scored = [hidden_TD[: len(tokens)] for hidden_TD, tokens in zip(hidden_RTD, targets, strict=True)]
        return self._score(torch.cat(scored), continuations)

    def _read(self, beginning: list[int]) -> DynamicCache | None:
        """The keys and values of what texts begin with; None where they have nothing in common."""
        if not beginning:
            return None
        cache = DynamicCache(config=self.model.config)
        self.model.model(torch.tensor([beginning], device=self._device), cache=cache)
        return cache

    def _score(self, hidden_ND: Tensor, continuations: Sequence[Continuation]) -> dict[int, Answer]:
        """hidden_ND: what comes before each token of the continuations, one after another."""
        targets_N = torch.tensor([token for each in continuations for token in each.tokens], device=self._device)
        log_p, greedy = [], []
        part = max(1, LOGITS_AT_ONCE[self._device.type] // self.model.shape.vocab_size)
        for hidden, targets in zip(hidden_ND.split(part), targets_N.split(part), strict=True):
            # In float32 whatever the model computes in.
            log_p_NV = functional.log_softmax(self.model.model.logits(hidden), -1, dtype=torch.float32)
            log_p.append(log_p_NV.gather(-1, targets[:, None])[:, 0])
            greedy.append(log_p_NV.argmax(-1) == targets)
        lengths = [len(each.tokens) for each in continuations]
        each_log_p, each_greedy = (torch.cat(parts).cpu().split(lengths) for parts in (log_p, greedy))
        return {
            each.request: (float(log_p_T.sum()), bool(greedy_T.all()))
            for each, log_p_T, greedy_T in zip(continuations, each_log_p, each_greedy, strict=True)
        }


def families(texts: Sequence[Text], worth: int) -> list[tuple[list[int], list[Text]]]:
    """Texts that begin alike, with the tokens that they begin with; the last family has those that do not.

    What a family has in common is at least half of each of its texts, and spares it the reading of `worth` tokens.
    """
    found: list[tuple[list[int], list[Text]]] = []
    others: list[Text] = []
    beginning: list[int] = []
    family: list[Text] = []
    longest = 0

    def close() -> None:
        if len(beginning) * (len(family) - 1) >= worth:
            found.append((beginning, family))
        else:
            others.extend(family)

    for text in sorted(texts, key=lambda text: text.tokens):
        common = _common(beginning, text.tokens[: text.beginning])
        if family and 2 * common >= max(longest, len(text.tokens)):
            family.append(text)
            beginning, longest = beginning[:common], max(longest, len(text.tokens))
        else:
            close()
            beginning, family, longest = text.tokens[: text.beginning], [text], len(text.tokens)
    close()
    return [*found, ([], others)] if others else found


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _take(texts: Sequence[Text], rows: int) -> list[Text]:
    """The first of them, whose continuations are about so many rows."""
    taken: list[Text] = []
    for text in texts:
        other = taken and (text.shared != taken[0].shared or (text.shared and len(text.tokens) != len(taken[0].tokens)))
        if other or sum(len(each.continuations) for each in taken) >= rows:
            break
        taken.append(text)
    return taken


def _repeated(start: DynamicCache, rows: int) -> DynamicCache:
    cache = copy.deepcopy(start)
    cache.batch_repeat_interleave(rows)
    return cache
