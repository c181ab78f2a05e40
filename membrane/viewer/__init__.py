"""Pictures to look at: curves, sheets, and the page of a prediction."""
