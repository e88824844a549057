"""The shapes that travel between floors: frozen, no behaviour that needs a floor above."""
