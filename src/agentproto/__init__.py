"""Client for the Runs API of the Agent Protocol: start an agent run, await it or stream it.

    async with AsyncRunsClient("http://localhost:8000") as client:
        result = await client.create_and_wait_run(agent_id="echo", input={"text": "hi"})

        async with client.create_and_stream_run(agent_id="trip", input={"to": "Oslo"}) as stream:
            async for event in stream:
                print(event)

`RunsClient` is the same without `await`.
"""

from ._blocking import BlockingRunStream, RunsClient
from ._client import (
    AsyncRunsClient,
    CallOptions,
    CreateArguments,
    CreateStreamArguments,
    JoinOptions,
    RequestOptions,
    RunOptions,
    RunStream,
    SearchArguments,
    StreamOptions,
    UpdateArguments,
    UpdateStreamArguments,
)
from ._errors import (
    AgentProtoError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    NotFoundError,
    PermissionDeniedError,
    ProtocolError,
    RateLimitError,
    RequestTimeoutError,
    RunFailedError,
    ServerError,
    StatusError,
    StreamInterruptedError,
    TooLargeError,
    TransportError,
    UnprocessableRequestError,
)
from ._models import (
    Command,
    CustomEvent,
    EndEvent,
    ErrorEvent,
    ErrorResponse,
    Interrupt,
    Message,
    MessageAnyBlock,
    MessagesEvent,
    MessageTextBlock,
    MetadataEvent,
    Run,
    RunConfig,
    RunCreate,
    RunCreateFields,
    RunEvent,
    RunLike,
    RunRef,
    RunSearchFields,
    RunSearchRequest,
    RunStatus,
    RunUpdate,
    RunUpdateFields,
    RunWaitResponse,
    Send,
    UnknownEvent,
    UpdatesEvent,
    ValuesEvent,
)
from ._retry import RetryPolicy
from ._settings import Timeout
from ._version import __version__

__all__ = [
    "AgentProtoError",
    "AsyncRunsClient",
    "AuthenticationError",
    "BadRequestError",
    "BlockingRunStream",
    "CallOptions",
    "Command",
    "ConflictError",
    "CreateArguments",
    "CreateStreamArguments",
    "CustomEvent",
    "EndEvent",
    "ErrorEvent",
    "ErrorResponse",
    "Interrupt",
    "JoinOptions",
    "Message",
    "MessageAnyBlock",
    "MessageTextBlock",
    "MessagesEvent",
    "MetadataEvent",
    "NotFoundError",
    "PermissionDeniedError",
    "ProtocolError",
    "RateLimitError",
    "RequestOptions",
    "RequestTimeoutError",
    "RetryPolicy",
    "Run",
    "RunConfig",
    "RunCreate",
    "RunCreateFields",
    "RunEvent",
    "RunFailedError",
    "RunLike",
    "RunOptions",
    "RunRef",
    "RunSearchFields",
    "RunSearchRequest",
    "RunStatus",
    "RunStream",
    "RunUpdate",
    "RunUpdateFields",
    "RunWaitResponse",
    "RunsClient",
    "SearchArguments",
    "Send",
    "ServerError",
    "StatusError",
    "StreamInterruptedError",
    "StreamOptions",
    "Timeout",
    "TooLargeError",
    "TransportError",
    "UnknownEvent",
    "UnprocessableRequestError",
    "UpdateArguments",
    "UpdateStreamArguments",
    "UpdatesEvent",
    "ValuesEvent",
    "__version__",
]


def _rehome(names: dict[str, object]) -> None:
    for name in __all__:
        if getattr(names[name], "__module__", "").startswith(f"{__name__}."):
            names[name].__module__ = __name__


_rehome(globals())
