"""The catalogue: projects, classes, wafers and what was done with them, in the database."""
