"""What an ablation study trains: a baseline, and copies of it that each differ in something named.

One-at-a-time changes take every other option of a choice of the space, or a value of a field of the
training recipe, and leave all else as in the baseline. Beside them stand named changes of several
choices at once, for controls such as random tokens, or dense attention at equal latency.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from nas.accuracy.recipe import Recipe
from nas.accuracy.recipe_fields import Value, field_value, parse_field, read_recipe, with_fields
from nas.errors import InputError, SpaceError, UnknownNameError
from nas.searcher.switches import find_switch
from nas.space.architecture import Candidate, Precision, digest_of
from nas.space.space import Point, SearchSpace, load_space
from nas.space.space_file import Label
from nas.space.subject import find_anchor, is_file, read_architecture

__all__ = [
    "BASELINE",
    "Changes",
    "Kind",
    "Plan",
    "Variant",
    "changed_recipe",
    "find_subject",
    "parted_recipe",
    "plan",
]

BASELINE = "baseline"

Kind = Literal["baseline", "choice", "recipe", "switch", "several"]
"""Nothing is changed, a choice of the space, a field of the recipe, or several at once: of the
recipe, under the name of a switch, or of the space."""

_OF_SUPERNETS = (
    *("rule", "largest_only", "fair", "strata", "apart"),
    *("in_place", "in_place_from", "shared_assignment"),
)
_NOT_VARIED = {
    "seed": "every variant is trained with every seed",
    "checkpoint_every": "it does not change the weights",
    **dict.fromkeys(_OF_SUPERNETS, "it concerns supernets only"),
}


@dataclass(frozen=True)
class Changes:
    """What is changed, as a user says it.

    Attributes:
        choices: choice of the space -> labels to try; an empty sequence means all of them.
        recipe: field of `Recipe` (`peak_lr`, `loss.box`) -> values to try.
        extra: name -> labels of the choices that it changes, all at once.
        switches: names that `nas.searcher.switches` knows.
    """

    choices: Mapping[str, Sequence[Label]] = field(default_factory=dict)
    recipe: Mapping[str, Sequence[Label]] = field(default_factory=dict)
    extra: Mapping[str, Point] = field(default_factory=dict)
    switches: Sequence[str] = ()

    @classmethod
    def parse(
        cls,
        vary: Sequence[str] = (),
        recipe: Sequence[str] = (),
        extra: Mapping[str, Point] | None = None,
        switches: Sequence[str] = (),
    ) -> Changes:
        """Read `CHOICE` or `CHOICE=A,B` of the space, and `FIELD=A,B` of the recipe.

        Raises:
            InputError: a name comes twice, or a field of the recipe has no values.
        """
        fields = _named_values(recipe)
        for name, values in fields.items():
            if not values:
                raise InputError(
                    f"A field of the recipe needs values, got {name!r} alone.",
                    f"Write {name}=A,B.",
                )
        return cls(_named_values(vary), fields, extra or {}, tuple(switches))

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "choices": {name: list(labels) for name, labels in self.choices.items()},
            "recipe": {name: list(values) for name, values in self.recipe.items()},
            "extra": {name: dict(edits) for name, edits in self.extra.items()},
            "switches": list(self.switches),
        }


@dataclass(frozen=True)
class Variant:
    """One network with one recipe, and how it differs from the baseline.

    Attributes:
        name: unique in its plan.
        kind: what it changes.
        changed: the choice or the field; empty for the baseline.
        before: what the baseline has there.
        after: what the variant has there.
        candidate: what is trained, measured and scored.
        recipe: how, apart from the seed.
    """

    name: str
    kind: Kind
    changed: str
    before: str
    after: str
    candidate: Candidate
    recipe: Recipe

    @property
    def digest(self) -> str:
        """Shared by variants that are one network, precision and recipe: they are trained once."""
        return digest_of([self.candidate.digest, self.seeded(0).digest])

    def seeded(self, seed: int) -> Recipe:
        """Return the recipe with a seed, which decides weights, data order and augmentation."""
        return dataclasses.replace(self.recipe, seed=seed)


@dataclass(frozen=True)
class Plan:
    """What an ablation study trains.

    Attributes:
        space: digest of the search space.
        variants: the baseline first; names are unique, digests need not be.
        seeds: each variant is trained with each.
    """

    space: str
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]

    @property
    def baseline(self) -> Variant:
        """What all others are compared with."""
        return self.variants[0]

    @property
    def distinct(self) -> tuple[Variant, ...]:
        """The first variant of each digest."""
        found: dict[str, Variant] = {}
        for one in self.variants:
            found.setdefault(one.digest, one)
        return tuple(found.values())

    def trainings(self) -> Iterator[tuple[Variant, int]]:
        """Yield what is to be trained, all variants with one seed before the next seed.

        So a study that is stopped early has about as many trainings of each variant.
        """
        for seed in self.seeds:
            for variant in self.distinct:
                yield variant, seed

    def same_as(self, variant: Variant) -> tuple[Variant, ...]:
        """Return all variants that share the training of one, itself among them."""
        return tuple(one for one in self.variants if one.digest == variant.digest)


def plan(
    space: SearchSpace,
    point: Point,
    changes: Changes,
    *,
    classes: int,
    recipe: Recipe,
    seeds: Sequence[int],
    precision: str | None = None,
) -> Plan:
    """List the variants of a baseline.

    Args:
        space: whose choices are changed.
        point: the baseline.
        changes: what to change.
        classes: of the data set.
        recipe: of the baseline; its seed does not matter.
        seeds: each variant is trained with each.
        precision: of all engines, in place of the space's.

    Raises:
        InputError: nothing is changed, a name is unknown, a value cannot be, or options do not go
            together; the message names the variant.
    """
    if not (changes.choices or changes.recipe or changes.extra or changes.switches):
        raise InputError(
            "An ablation study needs something to change.",
            f"Vary one of the choices {', '.join(space.choices)}, a field of the recipe, or a "
            "switch.",
        )
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise InputError(f"An ablation study needs distinct seeds of at least 0, got {seeds}.")
    maker = _Maker(space, point, classes, dataclasses.replace(recipe, seed=0))
    variants = [
        Variant(BASELINE, "baseline", "", "", "", maker.candidate(BASELINE, {}), maker.recipe),
        *maker.of_choices(changes.choices),
        *maker.of_recipe(changes.recipe),
        *maker.of_switches(changes.switches),
        *maker.of_extra(changes.extra),
    ]
    _refuse_equal_names(variants)
    if precision is not None:
        variants = _at_precision(variants, precision)
    return Plan(space.digest, tuple(variants), tuple(seeds))


def find_subject(subject: str, space: str | None = None) -> tuple[SearchSpace, Point]:
    """Find the space and the point that a user calls the baseline.

    Args:
        subject: `space:anchor`, the name of an anchor of `space`, or the file of a network.
        space: name or path of the space; needed unless the subject names it.

    Raises:
        SpaceError: the file's network lies outside the space, or no space is named.
        UnknownNameError: no such space or anchor.
        ArchitectureError: the file describes no architecture.
    """
    if is_file(subject):
        return _subject_of_file(subject, space)
    return find_anchor(subject, space)


def parted_recipe(texts: Sequence[str]) -> tuple[list[str], dict[str, Value]]:
    """Part what a user says of the recipe: fields to vary, and the file of the baseline's values.

    Raises:
        InputError: two files, or a file that cannot be; see `nas.accuracy.recipe_fields`.
    """
    files = [text for text in texts if is_file(text) and "=" not in text]
    if len(files) > 1:
        raise InputError(f"The baseline has one recipe file, got {', '.join(files)}.")
    fields = [text for text in texts if text not in files]
    return fields, read_recipe(Path(files[0])) if files else {}


def changed_recipe(recipe: Recipe, name: str, value: Label) -> tuple[Recipe, Label]:
    """Set one field of a recipe.

    Args:
        recipe: what to start from; it stays as it is.
        name: a field, such as `peak_lr` or `loss.box`.
        value: the value, or its text.

    Returns:
        The new recipe, and the value in the type of the field.

    Raises:
        InputError: no such field, or it cannot have that value.
    """
    if name in _NOT_VARIED:
        raise InputError(f"The recipe's {name!r} is not varied: {_NOT_VARIED[name]}.")
    parsed = parse_field(name, str(value))
    return _changed(recipe, {name: parsed}, f"{name}={value}"), parsed


def _changed(recipe: Recipe, values: Mapping[str, Label], what: str) -> Recipe:
    try:
        return with_fields(recipe, values)
    except InputError as error:
        rule = error.message.partition(", got ")[0].rstrip(".")
        raise InputError(f"A recipe cannot have {what}. {rule}.", error.remedy) from error


@dataclass(frozen=True)
class _Maker:
    """Makes the variants of one baseline."""

    space: SearchSpace
    point: Point
    classes: int
    recipe: Recipe

    def candidate(self, name: str, edits: Point) -> Candidate:
        try:
            return self.space.candidate({**self.point, **edits}, self.classes)
        except InputError as error:
            raise InputError(
                f"The variant {name!r} cannot be built: {error.message}", error.remedy
            ) from error

    def of_choices(self, wanted: Mapping[str, Sequence[Label]]) -> Iterator[Variant]:
        for choice, texts in wanted.items():
            before = self.point[self._known(choice)]
            for after in self._labels(choice, texts):
                if after != before:
                    name = f"{choice}={after}"
                    candidate = self.candidate(name, {choice: after})
                    yield Variant(
                        name, "choice", choice, str(before), str(after), candidate, self.recipe
                    )

    def of_recipe(self, wanted: Mapping[str, Sequence[Label]]) -> Iterator[Variant]:
        for name, values in wanted.items():
            for value in values:
                recipe, after = changed_recipe(self.recipe, name, value)
                yield Variant(
                    f"{name}={after}",
                    "recipe",
                    name,
                    str(field_value(self.recipe, name)),
                    str(after),
                    self.candidate(BASELINE, {}),
                    recipe,
                )

    def of_switches(self, wanted: Sequence[str]) -> Iterator[Variant]:
        for name in wanted:
            values = find_switch(name).values
            recipe = _changed(self.recipe, values, name)
            yield Variant(
                name,
                "switch",
                ", ".join(values),
                ", ".join(str(field_value(self.recipe, one)) for one in values),
                ", ".join(str(value) for value in values.values()),
                self.candidate(BASELINE, {}),
                recipe,
            )

    def of_extra(self, wanted: Mapping[str, Point]) -> Iterator[Variant]:
        for name, edits in wanted.items():
            labels = {
                choice: self._labels(self._known(choice), [label])[0]
                for choice, label in edits.items()
            }
            yield Variant(
                name,
                "several",
                ", ".join(labels),
                ", ".join(str(self.point[choice]) for choice in labels),
                ", ".join(str(label) for label in labels.values()),
                self.candidate(name, labels),
                self.recipe,
            )

    def _known(self, choice: str) -> str:
        if choice not in self.space.choices:
            kind = f"choice of the space {self.space.name!r}"
            raise UnknownNameError.of(kind, choice, self.space.choices)
        return choice

    def _labels(self, choice: str, texts: Sequence[Label]) -> list[Label]:
        """Find labels by their text, as a command line gives them; all of them if none is given."""
        known = {str(label): label for label in self.space.choices[choice]}
        for text in texts:
            if str(text) not in known:
                raise UnknownNameError.of(f"option of {choice!r}", str(text), known)
        return [known[str(text)] for text in texts] or list(known.values())


def _subject_of_file(subject: str, space: str | None) -> tuple[SearchSpace, Point]:
    architecture = read_architecture(subject, 1)  # a point says nothing of classes
    if space is None:
        raise SpaceError(f"Which space {subject} lies in must be known.", "Give the space.")
    found = load_space(space)
    for precision in found.precisions:
        candidate = Candidate.model_validate({"architecture": architecture, "precision": precision})
        point = found.point_of(candidate)
        if point is not None:
            return found, point
    raise SpaceError(
        f"The architecture {architecture.digest} of {subject} lies outside the space "
        f"{found.name!r}.",
        "Name the space that it was found in, or one of its anchors: "
        + ", ".join(f"{found.name}:{anchor}" for anchor in found.anchors)
        + ".",
    )


def _at_precision(variants: Sequence[Variant], precision: str) -> list[Variant]:
    if precision not in get_args(Precision):
        raise UnknownNameError.of("precision", precision, get_args(Precision))
    if len({one.candidate.precision for one in variants}) > 1:
        raise InputError(
            f"The precision cannot be {precision} for all variants where it is varied.",
            "Leave one of the two out.",
        )
    return [
        dataclasses.replace(
            one,
            candidate=Candidate.model_validate(
                {"architecture": one.candidate.architecture, "precision": precision}
            ),
        )
        for one in variants
    ]


def _refuse_equal_names(variants: Sequence[Variant]) -> None:
    names = [one.name for one in variants]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"Two variants are called {name!r}.", "Remove or rename one.")


def _named_values(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Read `NAME` and `NAME=A,B`."""
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        name = name.strip()
        if name in found:
            raise InputError(f"{name!r} is varied twice.", f"Write {name}=A,B once.")
        found[name] = tuple(part.strip() for part in values.split(",") if part.strip())
    return found
