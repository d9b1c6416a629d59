"""Input of every kind that others write, valid and altered and raw: refused in words, soon, and without leaving its folder."""
