"""The text that calibrates a language model when the user gives none."""

from __future__ import annotations

from importlib.resources import files

NAME = "mpqc's own prose and pydoc_data.topics"


def own_prose() -> str:
    """Returns the text in ``prose/``, written for mpqc: many kinds and some languages.

    Stories, news, reference, letters, law, medicine, mathematics, code. The more kinds of
    text the samples hold, the less it costs that they are not the user's own.
    """
    folder = files(__package__) / "prose"
    inside = sorted(folder.iterdir(), key=lambda one: one.name)
    return "\n".join(one.read_text(encoding="utf-8") for one in inside)


def python_topics() -> str:
    """Returns the English text that ships with Python: its reference by topics."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))
