"""Figures and pages that need nothing else: an SVG writer and the style sheets of its classes."""

from __future__ import annotations

from importlib import resources


def figure_style() -> str:
    """The style sheet of figures: colours for light and for dark, by CSS class."""
    return _read("figures.css")


def page_style() -> str:
    """The style sheet of a page with figures in it."""
    return _read("figures.css") + _read("page.css")


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
