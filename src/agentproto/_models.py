"""What is asked of a server, and what it answers: requests, resources and events.

Requests (`RunCreate`, `RunUpdate` and their parts) refuse fields they do not know, so that a
misspelt one is found before anything is sent. Resources keep fields and enum values they do not
know, so that a newer server loses nothing. All of them are frozen.
"""

# Annotations are no text here: pydantic evaluates it, 2 ms of each import.
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from types import NoneType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Generic,
    Literal,
    Protocol,
    TypeAlias,
    TypedDict,
    TypeVar,
    cast,
)
from uuid import UUID

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    field_validator,
    model_validator,
)

from ._shapes import as_list, as_object

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


def _id_as_text(value: object) -> object:
    return str(value) if isinstance(value, UUID) else value


_Id: TypeAlias = Annotated[StrictStr, BeforeValidator(_id_as_text)]


class WireModel(BaseModel):
    """Base of every model here: on the wire it is the fields that were set, and only those.

    A field set to None counts as not set, except where the schema has null as a value.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, defer_build=True)

    null_is_a_value: ClassVar[frozenset[str]] = frozenset()

    def fields_to_send(self) -> dict[str, Any]:
        """The fields that were set, by name, with their values as they are."""
        known = type(self).model_fields
        return {
            name: value
            for name in self.model_fields_set
            if (value := getattr(self, name)) is not None
            or name in self.null_is_a_value
            or name not in known
        }


class _Request(WireModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


class _Resource(WireModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(extra="allow")


class MessageTextBlock(_Resource):
    """A block of text in the content of a message."""

    type: Literal["text"] = "text"
    text: StrictStr
    metadata: dict[str, Any] | None = None

    def fields_to_send(self) -> dict[str, Any]:
        return {"type": self.type, **super().fields_to_send()}


class MessageAnyBlock(_Resource):
    """A block of any other type in the content of a message; its fields are kept as they are."""

    type: StrictStr
    metadata: dict[str, Any] | None = None


_ROLES = {
    "ai": "assistant",
    "AIMessageChunk": "assistant",
    "human": "user",
    "HumanMessageChunk": "user",
    "SystemMessageChunk": "system",
    "ToolMessageChunk": "tool",
}


class Message(_Resource):
    """A message of a conversation.

    `role` falls back to the field `type` that LangChain servers send: `ai` is `assistant` and
    `human` is `user`. Fields that the schema does not have are kept as attributes.

    Spec: schema Message
    """

    role: StrictStr
    content: StrictStr | list[MessageTextBlock | MessageAnyBlock]
    id: StrictStr | None = None
    metadata: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _role_from_type(cls, value: Any) -> Any:
        found = as_object(value)
        if found is None or found.get("role") is not None or "type" not in found:
            return value
        kind = found["type"]
        return {**found, "role": _ROLES.get(kind, kind) if isinstance(kind, str) else kind}

    @field_validator("content", mode="before")
    @classmethod
    def _no_content_is_empty(cls, value: Any) -> Any:
        if value is None:
            return ""
        blocks = as_list(value)
        if blocks is None:
            return value
        return [{"type": "text", "text": b} if isinstance(b, str) else b for b in blocks]

    @property
    def text(self) -> str:
        """The text of the message: its content, or that of its text blocks, joined."""
        if isinstance(self.content, str):
            return self.content
        return "".join(b.text for b in self.content if isinstance(b, MessageTextBlock))


def message_from(item: Any) -> Message:
    """A message as a server sends it.

    Raises:
        ValidationError: for what is none.
    """
    piece = piece_of_text_in((item, {}))
    return Message.model_validate(item) if piece is None else _message_of_text(piece)


_ID_TYPES = frozenset({str, NoneType})


def role_in(item: dict[str, Any]) -> Any:
    """The role that a message as sent gives, under either name."""
    role = item.get("role")
    if role is None:
        kind = item.get("type")
        return _ROLES.get(kind, kind) if isinstance(kind, str) else kind
    return role


def _message_of_text(item: dict[str, Any]) -> Message:
    # What pydantic makes of it, in less than half the time.
    extra = item.copy()
    extra.pop("role", None)
    fields: dict[str, Any] = {
        "role": role_in(item),
        "content": extra.pop("content"),
        "id": extra.pop("id", None),
        "metadata": None,
    }
    fields_set = set(item)
    fields_set.add("role")
    message = Message.__new__(Message)
    _set(message, "__dict__", fields)
    _set(message, "__pydantic_fields_set__", fields_set)
    _set(message, "__pydantic_extra__", extra)
    _set(message, "__pydantic_private__", None)
    return message


_set = object.__setattr__


class RunConfig(_Request):
    """Configuration for the agent.

    Spec: schema RunCreate, field config
    """

    tags: list[StrictStr] | None = None
    recursion_limit: StrictInt | None = None
    configurable: dict[str, Any] | None = None


class RunCreate(_Request):
    """Payload for creating a run. Only the fields that were set are sent.

    Spec: schema RunCreate
    """

    null_is_a_value: ClassVar[frozenset[str]] = frozenset({"input"})

    thread_id: _Id | None = None
    agent_id: _Id | None = None
    input: Any = None
    messages: list[Message] | None = None
    metadata: dict[str, Any] | None = None
    config: RunConfig | None = None
    webhook: Annotated[StrictStr, Field(min_length=1, max_length=65536)] | None = None
    stream_mode: StrictStr | list[StrictStr] | None = None
    on_completion: Literal["delete", "keep"] | None = None
    on_disconnect: Literal["cancel", "continue"] | None = None
    if_not_exists: Literal["create", "reject"] | None = None


class Send(_Request):
    """A packet for one node of the graph.

    Spec: schema Send
    """

    node: StrictStr
    input: dict[str, Any]


class Command(_Request):
    """What an interrupted run goes on with.

    `resume` answers the interrupt: a value, or a mapping from interrupt ids to values where
    several are pending. `resume=None` given on purpose is sent as null. `update` changes the
    state, `goto` names the node or nodes to go to next.

    Spec: schema RunUpdate, field command
    """

    null_is_a_value: ClassVar[frozenset[str]] = frozenset({"update", "resume"})

    update: dict[str, Any] | list[Any] | None = None
    resume: Any = None
    goto: StrictStr | list[StrictStr] | Send | list[Send] | None = None


class RunUpdate(_Request):
    """Payload for updating (resuming) a run.

    Spec: schema RunUpdate
    """

    command: Command | None = None


class RunSearchRequest(_Request):
    """Payload for listing runs. Only the fields that were set are sent.

    Spec: schema RunSearchRequest
    """

    metadata: dict[str, Any] | None = None
    status: StrictStr | None = None
    thread_id: _Id | None = None
    agent_id: _Id | None = None
    limit: Annotated[StrictInt, Field(ge=1, le=1000)] | None = None
    offset: Annotated[StrictInt, Field(ge=0)] | None = None


class RunSearchFields(TypedDict, total=False):
    """The fields of `RunSearchRequest` as keywords."""

    metadata: Mapping[str, Any] | None
    status: str | None
    thread_id: str | UUID | None
    agent_id: str | UUID | None
    limit: int | None
    offset: int | None


class RunCreateFields(TypedDict, total=False):
    """The fields of `RunCreate` as keywords."""

    thread_id: str | UUID | None
    agent_id: str | UUID | None
    input: Any
    messages: Sequence[Message | Mapping[str, Any]] | None
    metadata: Mapping[str, Any] | None
    config: RunConfig | Mapping[str, Any] | None
    webhook: str | None
    stream_mode: str | Sequence[str] | None
    on_completion: Literal["delete", "keep"] | None
    on_disconnect: Literal["cancel", "continue"] | None
    if_not_exists: Literal["create", "reject"] | None


class RunUpdateFields(TypedDict, total=False):
    """The fields of `RunUpdate` as keywords."""

    command: Command | Mapping[str, Any] | None


class RunStatus(StrEnum):
    """Where a run stands. Servers may send others, which arrive as plain `str`.

    Spec: schema RunStatus
    """

    PENDING = "pending"
    ERROR = "error"
    SUCCESS = "success"
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"


_Status: TypeAlias = Annotated[RunStatus | StrictStr, Field(union_mode="left_to_right")]
FAILED = frozenset({"error", "timeout"})


class Run(_Resource):
    """A run as the server describes it. What the server left out is None.

    Spec: schema Run
    """

    run_id: _Id | None = None
    thread_id: _Id | None = None
    agent_id: _Id | None = None
    status: _Status | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    input: Any = None
    messages: list[Message] | None = None
    metadata: dict[str, Any] | None = None
    config: dict[str, Any] | None = None
    webhook: str | None = None
    stream_mode: str | list[str] | None = None
    on_completion: str | None = None
    on_disconnect: str | None = None
    if_not_exists: str | None = None


class Interrupt(_Resource):
    """A question that a run asks a person before it goes on.

    Answer it with `command=Command(resume=answer)`, or, where several are pending, with
    `command=Command(resume={interrupt.id: answer})`.
    """

    id: str | None = None
    value: Any = None


class ErrorResponse(_Resource):
    """What the server says went wrong, from whichever fields it used.

    Spec: schema ErrorResponse
    """

    code: str | None = None
    message: str | None = None
    metadata: dict[str, Any] | None = None

    def __str__(self) -> str:
        return ": ".join(part for part in (self.code, self.message) if part)


class RunWaitResponse(_Resource, Generic[T]):
    """The final output of a run.

    `run` is never None: what the server left out is None inside it. `values` is the state of the
    run, typed by `values_type` where that was given and without `__interrupt__`; None where the
    server sent none. `interrupts` is what the run asks a person.

    Spec: schema RunWaitResponse
    """

    run: Run = Field(default_factory=Run)
    values: T | None = None
    messages: list[Message] = []
    interrupts: list[Interrupt] = []


@dataclass(frozen=True, slots=True)
class RunRef:
    """Which run: its id and, where known, the id of its thread."""

    run_id: str
    thread_id: str | None = None


class KnowsRun(Protocol):
    """What knows its run once it has begun, such as a stream."""

    @property
    def run(self) -> RunRef | None: ...
    @property
    def interrupts(self) -> list[Interrupt]: ...


if TYPE_CHECKING:
    RunLike: TypeAlias = str | UUID | RunRef | Run | RunWaitResponse[Any] | KnowsRun
else:  # pydantic would make a class of the subscript, and take its time
    RunLike = str | UUID | RunRef | Run | RunWaitResponse | KnowsRun


@dataclass(frozen=True, slots=True)
class _Event:
    """The fields that most events have, generated once: import takes a third of a ms for each."""

    event: str
    data: Any
    id: str | None = None
    namespace: tuple[str, ...] = ()


class MetadataEvent(_Event):
    """First event of a stream: which run this is. `data` is the JSON as sent."""

    __slots__ = ()
    data: dict[str, Any]

    @property
    def run_id(self) -> str | None:
        """Id of the run, None where the server did not tell."""
        run_id = self.data.get("run_id")
        return run_id if isinstance(run_id, str) else None


@dataclass(frozen=True, slots=True)
class ValuesEvent(Generic[T_co]):
    """The whole state after a step.

    `data` is the JSON as sent. With `values_type` it is that type, validated after
    `__interrupt__` was taken off; an event that holds nothing else repeats the values before it
    (None where there were none).
    """

    event: str
    data: T_co
    id: str | None = None
    namespace: tuple[str, ...] = ()
    interrupts: tuple[Interrupt, ...] = ()


@dataclass(frozen=True, slots=True)
class UpdatesEvent:
    """What a step changed, by the name of the node. `data` is the JSON as sent."""

    event: str
    data: Any
    id: str | None = None
    namespace: tuple[str, ...] = ()
    interrupts: tuple[Interrupt, ...] = ()


class _Made:
    """A place for what was made of an event, which is no field of it."""

    __slots__ = ("_added", "_made")
    _added: str | None
    _made: tuple[Message, ...] | dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class MessagesEvent(_Made):
    """Messages, or pieces of them. `data` is the JSON as sent.

    `kind` says what `messages` holds: `chunk` pieces to append to the message of the same id,
    `partial` and `complete` the message so far and as a whole, `metadata` none.
    """

    event: str
    data: Any
    kind: Literal["chunk", "partial", "complete", "metadata"]
    id: str | None = None
    namespace: tuple[str, ...] = ()

    @property
    def messages(self) -> tuple[Message, ...]:
        """What is in `data`, made when it is asked for: whoever only wants the text never does."""
        made: Any = getattr(self, "_made", None)
        if type(made) is tuple:
            return cast("tuple[Message, ...]", made)
        messages = (
            tuple(map(message_from, self._parts()[0]))
            if made is None
            else (_message_of_text(made),)
        )
        _set(self, "_made", messages)
        return messages

    @property
    def metadata(self) -> dict[str, Any]:
        """What the server says about the messages, such as the node they come from."""
        return self._parts()[1]

    def _parts(self) -> tuple[list[Any], dict[str, Any]]:
        if self.kind == "metadata":
            return [], as_object(self.data) or {}
        items = as_list(self.data)
        if items is None:
            return [self.data], {}
        metadata = as_object(items[1]) if self.kind == "chunk" and len(items) == 2 else None
        if metadata is None or _looks_like_message(metadata):
            return items, {}
        return items[:1], metadata


def piece_of_text_in(data: Any) -> dict[str, Any] | None:
    """The message in the data of a chunk where it is one of plain text, as nearly always."""
    # Asked of every token: what has another form fails.
    try:
        piece, metadata = data
        is_chunk = (
            type(metadata) is _OBJECT
            and "content" not in metadata
            and type(piece["content"]) is str
            and type(piece.get("id")) in _ID_TYPES
            and type(piece["type"] if piece.get("role") is None else piece["role"]) is str
            and "metadata" not in piece
        )
    except (LookupError, TypeError, ValueError):
        return None
    return piece if is_chunk else None


_OBJECT: Any = dict  # told so that a type checker does not ask of what


def piece_of_text(event: object) -> dict[str, Any] | None:
    """The message of an event where it is such a piece, and nobody asked for it yet."""
    made: Any = getattr(event, "_made", None)
    piece: dict[str, Any] | None = made if type(made) is _OBJECT else None
    return piece


def _looks_like_message(data: dict[str, Any]) -> bool:
    return "content" in data and ("role" in data or "type" in data)


class _Open(_Made):
    """A `MessagesEvent` that is being filled: a frozen one takes four times as long."""

    __slots__ = ("data", "event", "id", "kind", "namespace")


def messages_event(
    event: str,
    data: Any,
    kind: Literal["chunk", "partial", "complete", "metadata"],
    event_id: str | None,
    namespace: tuple[str, ...],
    piece: dict[str, Any] | None = None,
    added: str | None = None,
) -> MessagesEvent:
    """The same as `MessagesEvent(...)`.

    `piece` is what `piece_of_text_in` found in its data. `added` is the text, where the event
    differs from the chunk before it by that alone.
    """
    made: Any = _Open()
    made.event = event
    made.data = data
    made.kind = kind
    made.id = event_id
    made.namespace = namespace
    made._made = piece
    made._added = added
    made.__class__ = MessagesEvent
    whole: MessagesEvent = made
    return whole


class CustomEvent(_Event):
    """Whatever the agent itself sent. `data` is the JSON as sent."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class ErrorEvent:
    """The run failed. `data` is the JSON as sent, `error` what could be read from it."""

    event: str
    data: Any
    error: ErrorResponse
    id: str | None = None
    namespace: tuple[str, ...] = ()


class EndEvent(_Event):
    """Last event of a stream. `data` is the JSON as sent, None where there was none."""

    __slots__ = ()

    @property
    def status(self) -> RunStatus | str | None:
        """Status of the run at its end, None where the server did not tell."""
        status = (as_object(self.data) or {}).get("status")
        return known_status(status) if isinstance(status, str) else None


class UnknownEvent(_Event):
    """An event whose name is not of the protocol. `data` is its JSON, else its text."""

    __slots__ = ()


RunEvent: TypeAlias = (
    MetadataEvent
    | ValuesEvent[T]
    | UpdatesEvent
    | MessagesEvent
    | CustomEvent
    | ErrorEvent
    | EndEvent
    | UnknownEvent
)


def known_status(status: str) -> RunStatus | str:
    """The member of `RunStatus` for a status that the protocol knows, else the text itself."""
    try:
        return RunStatus(status)
    except ValueError:
        return status


def run_ref(run: RunLike) -> RunRef:
    """Which run is meant, by its id or by something that knows it.

    Raises:
        TypeError: for something else, None among it.
        ValueError: for an id that is not one path segment, or for what names no run.
    """
    given = cast("object", run)
    match given:
        case RunRef():
            ref = given
        case str() | UUID():
            ref = RunRef(str(given))
        case Run(run_id=str(run_id), thread_id=thread_id):
            ref = RunRef(run_id, thread_id)
        case RunWaitResponse(run=Run(run_id=str(run_id), thread_id=thread_id)):
            ref = RunRef(run_id, thread_id)
        case Run() | RunWaitResponse():
            raise ValueError("run: the server did not say which run this is; give the run's id")
        case object(run=RunRef() as known):
            ref = known
        case None | object(run=None):
            raise TypeError(
                "run: expected a run id or a RunRef, got None; "
                "stream.run is None until the stream has started"
            )
        case _:
            raise TypeError(
                "run: expected a run id, RunRef, Run or RunWaitResponse, "
                f"got {type(given).__name__}"
            )
    check_id("run_id", ref.run_id)
    return ref


def check_id(name: str, value: str) -> None:
    """Refuse what could not be exactly one segment of a path.

    Raises:
        ValueError: for "", ".", "..", control characters, lone surrogates, and more than 512
            characters.
    """
    if not is_one_segment(value):
        shown = value if len(value) <= 60 else f"{value[:60]}... ({len(value)} characters)"
        raise ValueError(f"{name}: expected an id such as a UUID, got {shown!r}")


def ids_answered(resume: object) -> frozenset[str]:
    """The ids of the interrupts that a resume answers one by one; none where it is one value."""
    answers = as_object(resume) or {}
    is_by_id = all(re.fullmatch(r"[0-9a-f]{32}", str(name)) for name in answers)
    return frozenset(answers) if is_by_id else frozenset()


def check_answers(answered: frozenset[str], pending: Sequence[Interrupt]) -> None:
    """Refuse answers to what is not asked: a server would take them for nothing, and ask again.

    Raises:
        ValueError: for an id that is not pending.
    """
    asked = [interrupt.id for interrupt in pending]
    unknown = sorted(answered.difference(asked))
    if unknown:
        told = f"it asks {', '.join(map(str, asked))}" if asked else "it asks nothing"
        raise ValueError(f"command.resume: the run does not ask {unknown[0]!r}; {told}")


def event_id_bytes(event_id: str) -> bytes:
    """An event id as the value of the header Last-Event-ID, in UTF-8.

    Raises:
        TypeError: for anything but text.
        ValueError: for what no header can hold as it is.
    """
    if not isinstance(cast("object", event_id), str):
        raise TypeError(f"last_event_id: expected str or None, got {type(event_id).__name__}")
    if not event_id:
        raise ValueError("last_event_id: expected the id of an event, or None, got ''")
    if (
        event_id != event_id.strip(" \t")
        or re.search("[\x00-\x08\x0a-\x1f\x7f]", event_id)
        or not _is_utf8(event_id)
    ):
        raise ValueError(f"last_event_id: no header can hold {event_id[:60]!r}")
    return event_id.encode()


def _is_utf8(value: str) -> bool:
    # Not compiled at import: `re` takes 0.2 ms for so large a set.
    return value.isascii() or re.search("[\ud800-\udfff]", value) is None


def told_ref(run_id: str | None, thread_id: str | None) -> RunRef | None:
    """Which run a server says it is. An id that could leave its place in a URL is not taken up."""
    if run_id is None or not is_one_segment(run_id):
        return None
    is_fine = thread_id is not None and is_one_segment(thread_id)
    return RunRef(run_id, thread_id if is_fine else None)


def is_one_segment(value: str) -> bool:
    """Whether an id, percent-encoded, is one segment of a path and stays one."""
    return (
        0 < len(value) <= 512
        and value not in {".", ".."}
        and _NOT_IN_SEGMENT.search(value) is None
        and _is_utf8(value)
    )


_NOT_IN_SEGMENT = re.compile("[\x00-\x1f\x7f]")
