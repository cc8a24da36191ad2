"""From JSON of a server to what the caller gets: typed events, and what they add up to."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from functools import lru_cache
from io import StringIO
from itertools import groupby, takewhile
from typing import Any, Generic, Literal, TypeAlias, TypeVar, cast

from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import from_json

from ._errors import ProtocolError, error_from_json
from ._json import parse_json
from ._models import (
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
    RunEvent,
    RunStatus,
    UnknownEvent,
    UpdatesEvent,
    ValuesEvent,
    message_from,
    messages_event,
    piece_of_text,
    piece_of_text_in,
)
from ._shapes import as_list, as_object
from ._sse import ServerSentEvent

T = TypeVar("T")
Kind: TypeAlias = Literal["chunk", "partial", "complete", "metadata"]

INTERRUPT = "__interrupt__"
MAX_RAW_SHOWN = 200


def values_adapter(values_type: type[T]) -> TypeAdapter[T]:
    """What validates values of this type.

    Raises:
        TypeError: if pydantic has no schema for it.
    """
    try:
        return _cached_adapter(cast("Hashable", values_type))
    except (PydanticUserError, NameError, TypeError, AttributeError) as exc:
        raise TypeError(
            f"values_type: expected a pydantic model, dataclass or TypedDict, "
            f"got {values_type!r}: {exc}"
        ) from exc


@lru_cache(maxsize=128)
def _cached_adapter(values_type: Hashable) -> TypeAdapter[Any]:
    adapter = TypeAdapter(cast("type[Any]", values_type))
    if not adapter.pydantic_complete:
        adapter.rebuild(raise_errors=True)
    return adapter


def take_interrupts(data: Any) -> tuple[Any, tuple[Interrupt, ...]]:
    """State without its `__interrupt__`, and the interrupts that stood in it."""
    state = as_object(data)
    if state is None or INTERRUPT not in state:
        return data, ()
    rest = {name: value for name, value in state.items() if name != INTERRUPT}
    return rest, interrupts_in(state[INTERRUPT])


def interrupts_in(found: object) -> tuple[Interrupt, ...]:
    """Interrupts from what stands under `__interrupt__`; a bare value becomes one without id."""
    items = as_list(found)
    if items is None:
        by_task = as_object(found)
        lists = None if by_task is None else [as_list(part) for part in by_task.values()]
        if lists is not None and None not in lists:
            items = [item for part in lists for item in part or ()]
        else:
            items = [] if found is None else [found]
    return tuple(map(_interrupt, items))


def _interrupt(item: object) -> Interrupt:
    try:
        return Interrupt.model_validate(item)
    except ValidationError:
        return Interrupt(value=item)


def merged_interrupts(*found: Iterable[Interrupt]) -> list[Interrupt]:
    """Each once, by id, in order: some servers tell parallel ones one event at a time."""
    known: dict[str, Interrupt] = {}
    for interrupts in found:
        _add_interrupts(known, interrupts)
    return list(known.values())


def _add_interrupts(known: dict[str, Interrupt], more: Iterable[Interrupt]) -> None:
    for interrupt in more:
        key = interrupt.id if interrupt.id is not None else repr(interrupt.value)
        known.setdefault(key, interrupt)


class EventReader(Generic[T]):
    """Server-sent events to `RunEvent`s. It remembers the last root values and the last chunk."""

    def __init__(self, values_type: type[T] | None) -> None:
        self._adapter = None if values_type is None else values_adapter(values_type)
        self._last_values: Any = None
        self._last_piece: dict[str, Any] | None = None

    def read(self, sse: ServerSentEvent) -> RunEvent[T]:
        """The event in a block.

        Raises:
            ProtocolError: if its name is of the protocol and its data is not.
        """
        name = sse.event
        namespace: tuple[str, ...] = ()
        if name != "messages" and "|" in name:
            name, *inner = name.split("|")
            namespace = () if inner == [""] else tuple(inner)
        try:
            if name != "messages":
                return self._read_other(sse, name, namespace)
            try:
                data = from_json(sse.data)
            except ValueError:
                data = _json(sse)
            last = self._last_piece
            if last is not None:
                # Nearly always it only adds to the text, and that it is like the last piece tells
                # all of it. In methods of its own, this would take an event a twentieth longer.
                try:
                    piece, metadata = data
                    last["content"] = text = piece["content"]
                    if (
                        piece == last
                        and isinstance(text, str)
                        and isinstance(metadata, dict)
                        and "content" not in metadata
                    ):
                        return messages_event(
                            sse.event, data, "chunk", sse.own_id, namespace, piece, text
                        )
                except (LookupError, TypeError, ValueError):
                    self._last_piece = None
            piece = piece_of_text_in(data)
            self._last_piece = None if piece is None else piece.copy()
            event = messages_event(sse.event, data, "chunk", sse.own_id, namespace, piece)
            return _checked(event) if piece is None else event
        except ValidationError as exc:
            raise _unusable(sse, first_problem(exc)) from exc

    def _read_other(
        self, sse: ServerSentEvent, name: str, namespace: tuple[str, ...]
    ) -> RunEvent[T]:
        if name == "values":
            return self._values(sse, namespace)
        read = _READERS.get(name) or _READERS_OF_WHOLE_RUN.get(sse.event, _unknown)
        return read(sse, namespace)

    def _values(self, sse: ServerSentEvent, namespace: tuple[str, ...]) -> ValuesEvent[T]:
        if self._adapter is None or namespace:
            data: Any = _object(sse)
            _, interrupts = take_interrupts(data)
            return ValuesEvent(sse.event, data, sse.own_id, namespace, interrupts)
        state, interrupts = take_interrupts(_json(sse))
        if state or not interrupts:
            with suppress(*([ValidationError] if interrupts else [])):
                # A run that asks need not have got as far as the values asked for.
                self._last_values = self._adapter.validate_python(state)
        return ValuesEvent(sse.event, self._last_values, sse.own_id, namespace, interrupts)


def _metadata(sse: ServerSentEvent, namespace: tuple[str, ...]) -> MetadataEvent:
    return MetadataEvent(sse.event, _object(sse), sse.own_id, namespace)


def _updates(sse: ServerSentEvent, namespace: tuple[str, ...]) -> UpdatesEvent:
    data = _json(sse)
    _, interrupts = take_interrupts(data)
    return UpdatesEvent(sse.event, data, sse.own_id, namespace, interrupts)


def _custom(sse: ServerSentEvent, namespace: tuple[str, ...]) -> CustomEvent:
    return CustomEvent(sse.event, _json(sse), sse.own_id, namespace)


def _partial(sse: ServerSentEvent, namespace: tuple[str, ...]) -> MessagesEvent:
    return _checked(messages_event(sse.event, _json(sse), "partial", sse.own_id, namespace))


def _complete(sse: ServerSentEvent, namespace: tuple[str, ...]) -> MessagesEvent:
    return _checked(messages_event(sse.event, _json(sse), "complete", sse.own_id, namespace))


def _about_messages(sse: ServerSentEvent, namespace: tuple[str, ...]) -> MessagesEvent:
    return messages_event(sse.event, _object(sse), "metadata", sse.own_id, namespace)


def _checked(event: MessagesEvent) -> MessagesEvent:
    _ = event.messages
    return event


def _error(sse: ServerSentEvent, namespace: tuple[str, ...]) -> ErrorEvent:
    data = _json_or_text(sse)
    error = error_from_json(data) or ErrorResponse(message=sse.text or None)
    return ErrorEvent(sse.event, data, error, sse.own_id, namespace)


def _end(sse: ServerSentEvent, namespace: tuple[str, ...]) -> EndEvent:
    data = _json_or_text(sse) if sse.data else None
    return EndEvent(sse.event, data, sse.own_id, namespace)


def _unknown(sse: ServerSentEvent, namespace: tuple[str, ...]) -> UnknownEvent:
    return UnknownEvent(sse.event, _json_or_text(sse), sse.own_id, namespace)


_READERS: dict[str, Callable[[ServerSentEvent, tuple[str, ...]], RunEvent[Any]]] = {
    "metadata": _metadata,
    "updates": _updates,
    "messages/partial": _partial,
    "messages/complete": _complete,
    "messages/metadata": _about_messages,
    "custom": _custom,
}
# With a namespace these tell of a part of the run, which goes on.
_READERS_OF_WHOLE_RUN: dict[str, Callable[[ServerSentEvent, tuple[str, ...]], RunEvent[Any]]] = {
    "error": _error,
    "end": _end,
}


def _json(sse: ServerSentEvent) -> Any:
    try:
        return parse_json(sse.data)
    except ValueError as exc:
        return _json_of_text(sse, exc)


def _json_of_text(sse: ServerSentEvent, exc: ValueError) -> Any:
    # The standard decodes a stream with replacement, so bytes that are no UTF-8 are still JSON.
    try:
        return parse_json(sse.text.encode())
    except ValueError:
        raise _unusable(sse, str(exc)) from exc


def _json_or_text(sse: ServerSentEvent) -> Any:
    try:
        return _json(sse)
    except ProtocolError:
        return sse.text


def _object(sse: ServerSentEvent) -> dict[str, Any]:
    data = _json(sse)
    found = as_object(data)
    if found is None:
        raise _unusable(sse, f"expected an object, got {type(data).__name__}")
    return found


def _unusable(sse: ServerSentEvent, problem: str) -> ProtocolError:
    return ProtocolError(
        f"event {sse.event!r} has data that does not fit: {problem}; data: {shown(sse.data)}",
        raw=sse.data,
    )


def shown(raw: bytes) -> str:
    """The beginning of some bytes as text, for a message."""
    text = raw[: MAX_RAW_SHOWN * 4].decode("utf-8", "replace")
    return repr(text) if len(text) <= MAX_RAW_SHOWN else f"{text[:MAX_RAW_SHOWN]!r}..."


def first_problem(exc: ValidationError) -> str:
    """The first problem that pydantic found, with its path and without the input."""
    problem = exc.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(map(str, problem["loc"]))
    return f"{where}: {problem['msg']}" if where else problem["msg"]


def messages_in(values: object) -> list[Message]:
    """The conversation in a state, where its `messages` parse as such, else nothing."""
    items = as_list((as_object(values) or {}).get("messages"))
    try:
        return [Message.model_validate(item) for item in items or ()]
    except ValidationError:
        return []


class Transcript(Generic[T]):
    """What the events of a run add up to: those of one reader, each of them, in order."""

    def __init__(self) -> None:
        self.has_values = False
        self.shows_state = False
        self.values: T | None = None
        self._interrupts: dict[str, Interrupt] = {}
        self.status: RunStatus | str | None = None
        self._messages: dict[str | None, _Growing | Message] = {}
        # That which the last chunk was appended to, if another such adds nothing but its text.
        self._growing: _Growing | None = None

    @property
    def interrupts(self) -> list[Interrupt]:
        """What the run asks, each once."""
        return list(self._interrupts.values())

    def ask(self, interrupts: Iterable[Interrupt]) -> None:
        """Take in what the run asks."""
        _add_interrupts(self._interrupts, interrupts)

    def settle(self, status: RunStatus | str | None, interrupts: Iterable[Interrupt]) -> None:
        """Take in how the run ended, whatever its events told of that."""
        self.status = status
        self._interrupts.clear()
        self.ask(interrupts)

    def add(self, event: RunEvent[T]) -> str:
        """Take an event in; returns the text that it adds to what the assistant said."""
        text: str | None = getattr(event, "_added", None)
        growing = self._growing
        if text is not None and growing is not None:
            growing.text.write(text)
            return text if growing.is_said else ""
        piece = piece_of_text(event)
        if piece is not None:
            known = self._messages.get(piece.get("id"))
            if isinstance(known, _Growing):
                said = known.append_piece(piece)
                self._growing = known if known.last is not None else None
                return said
        if isinstance(event, MessagesEvent):
            self._growing = None
            return "".join([self._said(message, event.kind) for message in event.messages])
        match event:
            case ValuesEvent(namespace=()):
                self.shows_state = True
                self._add_values(event)
            case ValuesEvent() | UpdatesEvent():
                self.shows_state = self.shows_state or not event.namespace
                self.ask(event.interrupts)
            case ErrorEvent():
                self.status = RunStatus.ERROR
            case EndEvent(status=status) if status is not None:
                self.status = status
                self.ask(_interrupts_of_end(event.data))
            case _:
                pass
        return ""

    def lose_place(self) -> None:
        """Take in a next event though some before it was not: as one that is like no other."""
        self._growing = None

    def _add_values(self, event: ValuesEvent[T]) -> None:
        self.ask(event.interrupts)
        data, _ = take_interrupts(event.data)
        if data is not None and (data or not event.interrupts):
            self.values = data
            self.has_values = True

    def _said(self, message: Message, kind: Kind) -> str:
        before = self._messages.get(message.id)
        # A server asked for both forms sends every token twice, under the same id.
        if before is not None and isinstance(before, _Growing) is not (kind == "chunk"):
            return ""
        if isinstance(before, _Growing):
            before.append(message)
        else:
            self._messages[message.id] = _Growing(message) if kind == "chunk" else message
        if message.role != "assistant":
            return ""
        if isinstance(before, Message):
            return _beyond(before.text, message.text)
        return message.text

    @property
    def messages(self) -> list[Message]:
        """The messages streamed, each as far as it came, else those in the last values."""
        streamed = self._messages.values()
        whole = [m.message() if isinstance(m, _Growing) else m for m in streamed]
        return whole or messages_in(self.values)


def _interrupts_of_end(data: Any) -> tuple[Interrupt, ...]:
    told = as_object(data) or {}
    found = told.get(INTERRUPT, told.get("interrupts"))
    return () if found is None else interrupts_in(found)


def _is_said_once(value: Any) -> bool:
    """Whether a second one that is equal adds nothing; 1, 1.0 and true are equal, lists add up."""
    inner = as_object(value)
    if inner is not None:
        return all(item is None or isinstance(item, str) for item in inner.values())
    return not value or isinstance(value, str)


class _Growing:
    """A message that comes in pieces; its text is written once, however many pieces it has.

    Attributes:
        text: what was written so far.
        last: the last piece, where another such adds nothing but its text.
        is_said: whether that piece is of the assistant.
    """

    def __init__(self, first: Message) -> None:
        self.text = StringIO()
        self.last: dict[str, Any] | None = None
        self.is_said = False
        self._first = first
        self._blocks: list[MessageTextBlock | MessageAnyBlock] = []
        self._extra: dict[str, Any] = {}
        self.append(first)

    def append(self, chunk: Message) -> None:
        self.last = None
        if isinstance(chunk.content, list):
            self._blocks.extend(chunk.content)
        elif self._blocks and chunk.content:
            self._blocks.append(MessageTextBlock(text=chunk.content))
        else:
            self.text.write(chunk.content)
        for name, value in (chunk.model_extra or {}).items():
            self._append_extra(name, value)

    def append_piece(self, piece: dict[str, Any]) -> str:
        """Append a piece of text as it was sent; returns the text if the assistant says it."""
        text: str = piece["content"]
        last = self.last
        if last is not None:
            last["content"] = text
        if piece == last:
            # Of one of several messages that grow at a time: it differs by its text alone.
            self.text.write(text)
        else:
            message = message_from(piece)
            self.append(message)
            self.is_said = message.role == "assistant"
            if not self._blocks and all(map(_is_said_once, piece.values())):
                self.last = piece.copy()
        return text if self.is_said else ""

    def _append_extra(self, name: str, value: Any) -> None:
        before, more = as_list(self._extra.get(name)), as_list(value)
        if before is not None and more is not None:
            self._extra[name] = [*before, *more]
        else:
            self._extra[name] = value or self._extra.get(name, value)

    def message(self) -> Message:
        text = self.text.getvalue()
        content: Any = text
        if self._blocks:
            lead = [MessageTextBlock(text=text)] if text else []
            content = _with_text_joined([*lead, *self._blocks])
        return Message.model_construct(**{**dict(self._first), **self._extra, "content": content})


def _with_text_joined(
    blocks: list[MessageTextBlock | MessageAnyBlock],
) -> list[MessageTextBlock | MessageAnyBlock]:
    joined: list[MessageTextBlock | MessageAnyBlock] = []
    for is_text, group in groupby(blocks, lambda block: isinstance(block, MessageTextBlock)):
        if is_text:
            texts = cast("list[MessageTextBlock]", list(group))
            whole = "".join(block.text for block in texts)
            joined.append(texts[0].model_copy(update={"text": whole}))
        else:
            joined.extend(group)
    return joined


def _beyond(before: str, now: str) -> str:
    if now.startswith(before):
        return now[len(before) :]
    same = takewhile(lambda pair: pair[0] == pair[1], zip(before, now, strict=False))
    return now[sum(1 for _ in same) :]
