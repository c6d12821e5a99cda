"""What the server answers in place of a reply: a status and OpenAI's error object."""

from typing import Any


class ApiError(Exception):
    """A request that is refused; `code` is a short name for programs, `param` the field."""

    def __init__(
        self,
        message: str,
        code: str = "invalid_value",
        status: int = 400,
        *,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    def as_object(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        }


def too_busy(waiting: int) -> ApiError:
    """The answer where the queue is full; clients try again by themselves after a 503."""
    message = f"{waiting} requests are waiting already; try again in a moment"
    return ApiError(message, "server_busy", 503)
