"""Protobuf messages read and changed without their schema."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claimscope.cel.wire import Message, WireError


def test_a_message_is_read_changed_and_written() -> None:
    inner = Message().add(1, "a").add(2, 300)
    message = Message.decode(Message().add(4, inner).add(2, 7).encode())
    opened = message.message(4)
    assert opened is not None
    assert (opened.text(1), opened.integer(2), message.integer(2), message.text(9)) == ("a", 300, 7, None)
    opened.replace_text(1, "longer")
    assert message.encode() == Message().add(4, Message().add(1, "longer").add(2, 300)).add(2, 7).encode()


def test_fields_of_fixed_width_are_carried_along() -> None:
    data = bytes([1 << 3 | 1, *range(8), 2 << 3 | 5, *range(4), 3 << 3 | 0, 0x80, 0x01])
    assert Message.decode(data).encode() == data


@pytest.mark.parametrize("data", [b"\x0a\x05ab", b"\x0a", b"\x80", b"\x09ab", b"\x0f", b"\xff" * 12])
def test_what_is_cut_off_or_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        Message.decode(data)


@given(st.binary(max_size=64))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    try:
        message = Message.decode(data)
    except WireError:
        return
    assert Message.decode(message.encode()) == message
