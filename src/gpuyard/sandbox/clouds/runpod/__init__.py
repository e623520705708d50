"""RunPod in the sandbox: its API, and what its machines are."""
