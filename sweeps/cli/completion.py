"""Shell completion of overrides: groups, their options, config keys (`register-python-argcomplete mlkv`)."""

from __future__ import annotations

import argparse
from typing import Any


def enable(parser: argparse.ArgumentParser) -> None:
    """Answer the shell's question and exit."""
    import argcomplete

    for action in _actions(parser):
        if action.dest == "overrides":
            action.completer = complete_override  # type: ignore[attr-defined]
        elif action.dest in ("name", "others"):
            action.completer = complete_sweep  # type: ignore[attr-defined]
        elif action.dest == "words":
            action.completer = complete_word  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser)


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """A parser's arguments and those of its subcommands."""
    actions = []
    for action in parser._actions:
        actions.append(action)
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                actions.extend(_actions(inner))
    return actions


def complete_override(prefix: str, **_: Any) -> list[str]:
    """`lay` → `layout=`, `layout.`; `layout=m` → `layout=mha`, …; `uptrain.l` → `uptrain.lr=`, ….

    A choice of several is completed at its last: `layout=mha,g` → `layout=mha,gqa`."""
    from sweeps.planning.compose import Composer

    composer = Composer()
    key, equals, value = prefix.partition("=")
    if equals:
        chosen, comma, _last = value.rpartition(",")
        return [f"{key}={chosen}{comma}{option}" for option in composer.options(key)]
    group, dot, _rest = key.partition(".")
    if dot and group in composer.groups:
        return [f"{group}.{key}=" for key in composer([]).get(group) or {}]
    return [f"{name}{mark}" for name in composer.groups for mark in "=."] + ["name="]


def complete_sweep(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    from sweeps.store.store import Store

    return Store(parsed_args.store).sweep_names()


def complete_word(prefix: str, *, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Of arguments that name a sweep and then a variant: what the next one may be."""
    from sweeps.store.store import Store

    store, before = Store(parsed_args.store), list(parsed_args.words or [])
    if not before:
        return store.sweep_names()
    if len(before) == 1 and before[0] in store.sweep_names():
        return [row.variant for row in store.sweep(before[0]).variants]
    return []
