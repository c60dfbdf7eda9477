"""The base of the records that an architecture consists of, and the levels that they speak of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nas.errors import nearest

__all__ = ["LEVELS", "STRIDES", "Depth", "Level", "Record", "Size", "Width", "map_size"]

Level = Literal["P3", "P4", "P5"]
LEVELS: tuple[Level, ...] = ("P3", "P4", "P5")
STRIDES: dict[str, int] = {"P1": 2, "P2": 4, "P3": 8, "P4": 16, "P5": 32}

Size = tuple[int, int]
"""Height and width."""

Width = Annotated[int, Field(ge=1, le=8192)]
Depth = Annotated[int, Field(ge=1, le=64)]


class Record(BaseModel):
    """A frozen record that refuses unknown keys and says which key was meant."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _know_every_key(cls, data: object) -> object:
        if isinstance(data, Mapping):
            for key in data:
                if key not in cls.model_fields:
                    hint = nearest(str(key), cls.model_fields)
                    known = ", ".join(cls.model_fields)
                    raise ValueError(
                        f"unknown key {key!r}."
                        + (f" Did you mean {hint!r}?" if hint else "")
                        + f" Known keys: {known}"
                    )
        return data


def map_size(image: Size, level: str) -> Size:
    """Height and width of the feature map of a level `P1`..`P5`, for an input of so many pixels."""
    stride = STRIDES[level]
    return -(-image[0] // stride), -(-image[1] // stride)
