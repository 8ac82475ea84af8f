"""Everything that can go wrong, as one tree. Each class knows its HTTP status, OpenAI `type` and `code`.

PenstockError                     500 server_error
  StartError                      never sent: the command ends with the message
    ConfigError
    NoMemory
  BadRequest                      400 invalid_request_error
    ContextLengthExceeded             context_length_exceeded
    BudgetSpent                       budget_spent
    ContentFiltered                   content_filter
    BodyTooLarge                  413 body_too_large
    BodyTooSlow                   408 body_too_slow
    KeyReused                     422 idempotency_key_reused
  InvalidKey                      401 invalid_api_key
  Forbidden                       403 forbidden
  NotFound                        404 not_found
    UnknownUrl                        unknown_url
    ModelNotFound                     model_not_found
  MethodNotAllowed                405 method_not_allowed
  Conflict                        409 conflict
  RateLimited                     429 rate_limit_exceeded
    OverBudget                        insufficient_quota
  GuardFailed                     503 guard_failed
  StateUnavailable                503 state_unavailable
  Overloaded                      503 overloaded
  EngineError                     502 engine_error
    EngineRefused                 502 engine_error
    EngineUnavailable             503 engine_unavailable
    EngineTimeout                 504 engine_timeout
    StreamInterrupted             502 stream_interrupted
"""

from typing import ClassVar


class PenstockError(Exception):
    """`message` is for the caller: what is wrong and what to do. `param` names the field at fault, if one is."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = "internal_error"
    event_number: int | None = None
    """Which event of its stream will tell it, on a route that numbers them."""

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class StartError(PenstockError):
    """The process cannot start, or cannot go on."""

    code = "start_failed"


class ConfigError(StartError):
    """The configuration cannot be used."""

    code = "invalid_configuration"


class NoMemory(StartError):
    """An engine found too little memory, which others may give back."""


class BadRequest(PenstockError):
    status = 400
    type = "invalid_request_error"
    code: ClassVar[str | None] = None


class ContextLengthExceeded(BadRequest):
    code = "context_length_exceeded"


class BudgetSpent(BadRequest):
    """All tokens that a composed model may use for one answer are used."""

    code = "budget_spent"


class ContentFiltered(BadRequest):
    """A guard does not let the request through. The message names the guard and what it has found, never the text."""

    code = "content_filter"


class BodyTooLarge(BadRequest):
    status = 413
    code = "body_too_large"


class BodyTooSlow(BadRequest):
    status = 408
    code = "body_too_slow"


class KeyReused(BadRequest):
    """The same Idempotency-Key with another request."""

    status = 422
    code = "idempotency_key_reused"


class InvalidKey(PenstockError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class Forbidden(PenstockError):
    status = 403
    type = "invalid_request_error"
    code = "forbidden"


class NotFound(PenstockError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class UnknownUrl(NotFound):
    code = "unknown_url"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(PenstockError):
    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class Conflict(PenstockError):
    """What is asked for is there already."""

    status = 409
    type = "invalid_request_error"
    code = "conflict"


class RateLimited(PenstockError):
    status = 429
    type = "rate_limit_error"
    code: ClassVar[str | None] = "rate_limit_exceeded"


class OverBudget(RateLimited):
    """The tokens of this day or month are used up."""

    code = "insufficient_quota"


class Overloaded(PenstockError):
    """More is asked of a served model than it may take: nobody's fault, and over in a while."""

    status = 503
    code = "overloaded"


class GuardFailed(PenstockError):
    """A guard could not look, and what it has not looked at does not pass."""

    status = 503
    code = "guard_failed"


class StateUnavailable(PenstockError):
    """The database does not answer."""

    status = 503
    code = "state_unavailable"


class EngineError(PenstockError):
    """The engine failed; the request may have been fine."""

    status = 502
    code = "engine_error"


class EngineRefused(EngineError):
    """The engine takes no such key, Penstock's own: its 401 or 403."""


class EngineUnavailable(EngineError):
    """No replica can take the request now."""

    status = 503
    code = "engine_unavailable"


class EngineTimeout(EngineError):
    status = 504
    code = "engine_timeout"


class StreamInterrupted(EngineError):
    """The engine's stream ended before the answer did."""

    code = "stream_interrupted"
