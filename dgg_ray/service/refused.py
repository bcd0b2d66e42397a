"""The error of a request that the service does not fulfil."""

from dgg_ray.core.errors import DggError


class RefusedError(DggError):
    """The service does not do what was asked for. status: of HTTP."""

    def __init__(self, text: str, status: int = 409) -> None:
        super().__init__(text)
        self.status = status
