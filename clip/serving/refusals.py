"""Answers that refuse a request, each with one sentence in JSON."""

from __future__ import annotations

from starlette.responses import JSONResponse

RETRY_SECONDS = 1
"""After which a client that was refused because the server is busy is told to come again."""


class Refusal(Exception):
    """A request that is not answered, and why.

    Args:
        status: of HTTP.
        sentence: what was found, what was expected and what to do; meant for the client.
        parameter: the key of the body that is at fault, if it is one.
        code: by which programs tell this fault from others.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        sentence: str,
        parameter: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.parameter, self.code = status, sentence, parameter, code
        self.headers = headers or {}

    def answer(self, path: str) -> JSONResponse:
        """The answer: in the shape of OpenAI's API where ``path`` is one of its, else ``{"error": sentence}``."""
        error: object = self.sentence
        if path.startswith("/v1/"):
            kind = "invalid_request_error" if self.status < 500 else "server_error"
            error = {"message": self.sentence, "type": kind, "param": self.parameter, "code": self.code}
        return JSONResponse({"error": error}, self.status, self.headers)


def busy(sentence: str) -> Refusal:
    """A refusal for now: the client should come again."""
    return Refusal(503, sentence, code="busy", headers={"Retry-After": str(RETRY_SECONDS)})
