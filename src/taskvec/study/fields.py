"""What fields of a study file are made of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Strict(BaseModel):
    """A table of the file: fields that are not its own are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def each_once(value: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values, if none stands there twice."""
    if len(set(value)) < len(value):
        raise ValueError("a name stands there twice")
    return value


Names = Annotated[tuple[str, ...], AfterValidator(each_once)]


class GridSpec(Strict):
    """Evenly spaced coefficients; ``[low, high, points]`` for short."""

    low: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    high: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    points: Annotated[int, Field(ge=2, le=1001)] = 21

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, list | tuple) and len(value) == 3:
            return dict(zip(("low", "high", "points"), value, strict=True))
        return value

    @model_validator(mode="after")
    def _rises(self) -> GridSpec:
        if not self.low < self.high:
            raise ValueError("low must be below high")
        return self
