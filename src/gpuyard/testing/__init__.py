"""For the tests of other projects: the sandbox as fixtures for pytest, and as a driver for molecule."""
