"""A cloud that there is not, added as CONTRIBUTING says: a client, its emulation, and a row for each."""
