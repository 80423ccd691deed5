"""Results for people: tables, files, charts, and how they changed over time. Everything is derived from the rows."""
