"""A module that can't be imported."""

raise ValueError("not today")
