"""How the golden bytes are written down."""

from betterproto2 import Message


def raw(*parts: bytes) -> bytes:
    """Join the fields of a message, one argument each, so that they can be told apart."""
    return b"".join(parts)


def kinds(message: Message) -> set[type[Message]]:
    """Tell which kinds of message a message is made of, its own included."""
    found = {type(message)}
    for value in vars(message).values():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Message):
                found |= kinds(item)
    return found
