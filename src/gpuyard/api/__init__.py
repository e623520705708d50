"""What gpuyard can do, one function a verb: dataclasses in, dataclasses out, progress as a callback.

A front (the Ansible modules, the command line, a program of your own) gives a :class:`gpuyard.api.site.Site` and a
request, and words what comes back. Everything raises only the errors of :mod:`gpuyard.errors`, whose text is one
sentence for a person.
"""
