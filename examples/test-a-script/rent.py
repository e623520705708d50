"""Rent the cheapest machine with enough GPU memory, wait until it runs, and give it back: ``rent.py GIGABYTES``."""

import json
import subprocess
import sys
import time

PATIENCE_S = 120


def vastai(*words):
    """Run the client and return its answer."""
    done = subprocess.run(["vastai", *words, "--raw"], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"vastai {words[0]} {words[1]}: {(done.stdout + done.stderr).strip()}")
    return json.loads(done.stdout)


def main(gigabytes):
    """Rent, wait, give back."""
    offers = vastai("search", "offers", f"gpu_ram>={gigabytes} num_gpus=1 rentable=true", "-o", "dph")
    if not offers:
        sys.exit(f"No machine has a GPU with {gigabytes} GB.")
    # The first one may be gone by now.
    created = next(filter(None, (rent(offer["id"]) for offer in offers[:3])), None)
    if created is None:
        sys.exit("Everybody else was faster.")
    try:
        until = time.monotonic() + PATIENCE_S
        while vastai("show", "instance", str(created))["actual_status"] != "running":
            if time.monotonic() > until:
                sys.exit(f"Instance {created} did not start in time.")
            time.sleep(2)
        print(f"Instance {created} runs.")
    finally:
        subprocess.run(["vastai", "destroy", "instance", str(created), "--yes"], check=True, stdout=subprocess.DEVNULL)


def rent(offer):
    """Return the number of the new instance, or None when the offer is gone."""
    words = (
        "create",
        "instance",
        str(offer),
        "--image",
        "vastai/pytorch",
        "--disk",
        "20",
        "--ssh",
        "--direct",
        "--raw",
    )
    done = subprocess.run(["vastai", *words], capture_output=True, text=True, check=False)
    try:
        return json.loads(done.stdout)["new_contract"]
    except (ValueError, KeyError):
        return None


if __name__ == "__main__":
    main(int(sys.argv[1]))
