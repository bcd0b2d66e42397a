"""Figures of the report, a module each: `draw(results) -> (Figure, the numbers in it) | None`.

`draw` returns None where the study has no data for the figure. The first line of the module's docstring is
the caption. The constant READING says how to read the figure.
"""
