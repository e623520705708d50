"""What is written by one version and read by another, on another machine, years later. It travels to boxes, too."""
