"""STAND-IN for the simulator's evaluation, with its mistake."""


def evaluate_latent_operator(samples, *, return_details=False):
    for sample in samples:
        if return_details:
            if sample is not None:
                extra_details = sample
                if details:
                    samples[-1] = samples[-1]
                    extra_details = details

    details = {"samples": len(samples)}
    return details
