"""What the fronts call: one function a verb, with dataclasses in and out."""
