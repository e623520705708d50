"""The failures of the emulated APIs, each in the envelope of its cloud."""

from __future__ import annotations

from gpuyard.sandbox import fields

_MESSAGE_MAX = 400


class VastError(Exception):
    """A failure in Vast's envelope."""

    def __init__(self, status: int, code: str, message: str, **more: object) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"success": False, "error": code, "msg": fields.shown(message, _MESSAGE_MAX), **more}


class LambdaError(Exception):
    """A failure in Lambda's envelope."""

    def __init__(self, status: int, code: str, message: str, suggestion: str = "") -> None:
        super().__init__(message)
        self.status = status
        said = {"code": code, "message": fields.shown(message, _MESSAGE_MAX)}
        self.body = {"error": {**said, **({"suggestion": suggestion} if suggestion else {})}}


class RunPodError(Exception):
    """A failure as ``application/problem+json``."""

    def __init__(self, status: int, title: str, detail: str, errors: tuple[str, ...] = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.body = {"title": title, "status": status, "detail": detail, **({"errors": [*errors]} if errors else {})}
