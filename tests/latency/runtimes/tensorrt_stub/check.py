"""Asks the real bindings whether uses of their interface are right. Runs in a process of its own.

Reads a JSON list of uses from standard input and writes a JSON list of problems. A use has `name`
(such as `IBuilderConfig.set_flag`), `kind` (get, set, call, override), and for calls `positional`
(how many, without self), `keywords`, and for overrides `parameters`.

Signatures come from the first lines of the docstrings, which pybind11 writes.
"""

from __future__ import annotations

import functools
import json
import re
import sys

import tensorrt_bindings as trt

_SIGNATURE = re.compile(r"^(?:\d+\. )?\w+\((.*)\)(?: -> .*)?$")


def signatures(function):
    """Of each overload, its parameters and how many of them are required."""
    found = []
    for line in (function.__doc__ or "").splitlines():
        match = _SIGNATURE.match(line.strip())
        if match and not match[1].startswith("*"):
            parts = [part for part in split(match[1]) if part]
            names = [re.split("[:=]", part)[0].strip() for part in parts]
            found.append((names, sum(" = " not in part for part in parts)))
    return found


def split(text):
    """Split at the commas that are in no bracket."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{<") - (character in ")]}>")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def fits(signature, positional, keywords):
    names, required = signature
    given = names[:positional] + keywords
    return (
        positional <= len(names)
        and set(keywords) <= set(names[positional:])
        and set(names[:required]) <= set(given)
    )


def problem(use):
    """What is wrong with a use; empty if nothing."""
    try:
        target = functools.reduce(getattr, use["name"].split("."), trt)
    except AttributeError:
        return "does not exist"
    return _CHECKS[use["kind"]](target, use)


def _get(target, use):
    method = callable(target) and not isinstance(target, type)
    return "is a method, and is not called" if method else ""


def _set(target, use):
    return "" if isinstance(target, property) and target.fset else "cannot be set"


def _override(target, use):
    known = [names for names, _ in signatures(target)]
    return "" if ["self", *use["parameters"]] in known else f"takes {known}"


def _call(target, use):
    if not callable(target):
        return "cannot be called"
    known = signatures(target.__init__ if isinstance(target, type) else target)
    # Of a class or through an object, the first parameter is given by the language.
    count = use["positional"] + (isinstance(target, type) or use["through_object"])
    return "" if any(fits(one, count, use["keywords"]) for one in known) else f"takes {known}"


_CHECKS = {"get": _get, "set": _set, "override": _override, "call": _call}


if __name__ == "__main__":
    uses = json.load(sys.stdin)
    found = [f"{use['kind']} {use['name']}: {text}" for use in uses if (text := problem(use))]
    json.dump(found, sys.stdout)
