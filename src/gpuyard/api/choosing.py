"""Which run a command about one run means."""

from __future__ import annotations

from gpuyard.api.site import SURVEY_S, Site
from gpuyard.box.checkpoints import Store
from gpuyard.errors import CheckpointError
from gpuyard.providers.base import Progress
from gpuyard.renting import access, runs, survey, watch
from gpuyard.renting.runs import Run


def choose_run(site: Site, name: str | None, progress: Progress) -> tuple[Run, Store | None]:
    """Return the run that is meant, and the bucket. Clouds and bucket are needed only as far as they may hold it."""
    clouds = site.clouds()
    store = site.store()
    seen = survey.take(clouds, within_s=SURVEY_S)
    instances = seen.answered()
    if name not in [instance.ref.run for instance in survey.owned(instances) if instance.ref]:
        # It may be at the cloud that does not answer.
        seen.complete()
    try:
        runs.check_answers(store)
        stored = runs.stored(store)
    except CheckpointError as error:
        # A machine can be asked all the same.
        stored = runs.Stored()
        if not any(run.machine and name in (None, run.name) for run in runs.join(instances, stored)):
            raise
        progress(f"The bucket cannot be read, so runs without a machine are missing: {error}")
    run = watch.choose(runs.join(instances, stored), name)
    if run.machine:
        access.let_in(clouds, [one for one in run.instances if one.alive], site.key(), progress=progress)
    return run, store
