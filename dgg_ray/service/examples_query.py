"""The query of a page of examples, as an address has it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, field_validator

PER_PAGE, MAX_PER_PAGE = 20, 200
Filter = Literal["forgotten", "wrong", "all"]
FILTERS: tuple[Filter, ...] = get_args(Filter)
Text = Annotated[str, Field(max_length=400)]


class ExamplesQuery(BaseModel):
    """The examples that are wanted; `views.answers.examples` says what the parameters mean."""

    task: Text = ""
    setting: Text = ""
    other_setting: Text = ""
    split: Literal["", "train", "validation", "test"] = ""
    stage: Annotated[int | None, Field(ge=0, le=1000)] = None
    filter: Filter = "forgotten"
    page: Annotated[int, Field(ge=1, le=1_000_000)] = 1

    @field_validator("stage", mode="before")
    @classmethod
    def _chosen(cls, value: Any) -> Any:
        return None if value == "" else value  # a form sends a field that was left open as ""


class PagedExamplesQuery(ExamplesQuery):
    """The same, in pages of another size."""

    per_page: Annotated[int, Field(ge=1, le=MAX_PER_PAGE)] = PER_PAGE
