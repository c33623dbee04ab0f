"""etcd's messages as classes, built at import from the shipped descriptor (etcd.binpb).

No generated code: that would tie us to protobuf's version; a descriptor loads in every protobuf
from 4.21 on. The descriptor pool is private, so another library that registers etcd's own
`rpc.proto` in the default pool cannot collide with us. Types for mypy are in messages.pyi.
"""

from importlib.resources import files

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

_DESCRIPTOR = files(__package__).joinpath("etcd.binpb").read_bytes()
_POOL = descriptor_pool.DescriptorPool()


def _message_classes() -> dict[str, type[Message]]:
    classes = {}
    for file in descriptor_pb2.FileDescriptorSet.FromString(_DESCRIPTOR).file:
        _POOL.AddSerializedFile(file.SerializeToString())
        for message in file.message_type:
            descriptor = _POOL.FindMessageTypeByName(f"{file.package}.{message.name}")
            classes[message.name] = _message_class(descriptor)
    return classes


def _message_class(descriptor):
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(descriptor)
    # protobuf 4.21 (Debian 12) has only the older name.
    return message_factory.MessageFactory(_POOL).GetPrototype(descriptor)


globals().update(_message_classes())

__all__ = ["Message"]
