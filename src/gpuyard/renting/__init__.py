"""From offers to machines and back to nothing: renting, waiting, looking, ending, and what it costs."""
