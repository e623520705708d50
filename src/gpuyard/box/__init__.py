"""What travels to a box, and nothing else; it supports Python 3.10 and, but for S3, needs the standard library only."""
