"""What the document can say in words only, said to schemathesis in code.

Where the parts of a valid request depend on each other, they are made to agree. What a log refuses because of its
settings, or of what is stored in it, is no finding. An answer that goes on as records come is cut off.
"""

import gzip
import json
import struct
import zlib

import schemathesis
import urllib3.exceptions
from hypothesis import strategies

# How long to read an answer that goes on as records come, in seconds.
FOLLOWED = 1

# A request that agrees with the document may have these answers: all depend on the log.
OF_THE_LOG = {"not_json", "offset_beyond_end", "offset_trimmed", "record_too_large", "unexpected_cursor", "unexpected_offset",
              "unexpected_record"}
# The offset is in the address or in the body: valid ones in both, or in neither, are refused.
OF_CONSUME = {"invalid_request", "offset_missing"}

# What an answer may be. OpenAPI has no parameter for `Accept`.
TYPES = ["application/x-ndjson", "application/json", "text/plain", "application/octet-stream",
         "application/vnd.millstream.frames", "text/event-stream"]

# What a session takes.
SESSIONS = ["application/x-ndjson", "text/plain", "application/vnd.millstream.frames"]

values = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.integers() | strategies.text(),
    lambda inner: strategies.lists(inner) | strategies.dictionaries(strategies.text(), inner), max_leaves=5)
lines = strategies.lists(values.map(lambda value: json.dumps(value).encode() + b"\n"), min_size=1, max_size=5)
frames = strategies.lists(strategies.binary().map(lambda value: struct.pack("<I", len(value)) + value), min_size=1, max_size=5)
schemathesis.openapi.media_type("application/x-ndjson", lines.map(b"".join))
schemathesis.openapi.media_type("application/vnd.millstream.frames", frames.map(b"".join))


def operation(case):
    return case.operation.definition.raw.get("operationId")


@schemathesis.hook
def before_call(context, case, kwargs):
    is_valid = case.meta is not None and case.meta.generation.mode.is_positive
    if operation(case) == "append" and is_valid:
        agree_in_session(case)
        if case.headers is not None:
            agree_in_headers(case, kwargs)
    if operation(case) == "read":
        if is_valid and case.query:
            agree_in_query(case.query)
        bound(case, kwargs)


@schemathesis.hook
def filter_failure(context, failure, case, response):
    try:
        problem = response.json()
        code, detail = problem.get("code"), problem.get("detail", "")
    except (ValueError, AttributeError):
        return True
    known = OF_THE_LOG | (OF_CONSUME if operation(case) == "consume" else set())
    # To JSON Schema, 9007199254740992.0 is an integer, and there is no way to say that it is not one here.
    is_known = code in known or (code == "invalid_request" and "floating point" in detail)
    return not (type(failure).__name__ == "RejectedPositiveData" and is_known)


def agree_in_query(query):
    """One parameter says where to begin; what follows the log is limited in records only; nobody waits for long."""
    for name in [name for name in ("cursor", "since", "offset") if name in query][1:]:
        del query[name]
    if is_true(query.get("follow")):
        query.pop("wait", None)
        query.pop("max_bytes", None)
    if "wait" in query:
        query["wait"] = "50ms"


def agree_in_session(case):
    """A session takes records that follow one another, not compressed, has no condition, and names no epoch. Its producer has
    stored nothing yet, as far as it knows."""
    query, headers = case.query or {}, case.headers or {}
    if not is_true(query.get("session")):
        return
    if case.media_type not in SESSIONS or "Content-Encoding" in headers:
        del query["session"]
        return
    query.pop("expect", None)
    for name in [name for name in headers if name.startswith("Producer-")]:
        del headers[name]


def agree_in_headers(case, kwargs):
    """All three headers of a producer or none; an epoch that a batch may begin; a body that is compressed as it says."""
    headers = case.headers
    if any(name.startswith("Producer-") for name in headers):
        for name, value in {"Producer-Id": "p", "Producer-Epoch": "0", "Producer-Seq": "0"}.items():
            headers.setdefault(name, value)
        headers["Producer-Epoch"] = str(int(headers["Producer-Epoch"]) & 0x7FFFFFFF)
    encoding = headers.get("Content-Encoding")
    if encoding in ENCODE:
        sent = case.as_transport_kwargs()
        body = sent["data"] if "data" in sent else json.dumps(sent.get("json"))
        kwargs["data"] = ENCODE[encoding](body.encode() if isinstance(body, str) else body)


def zstd(body):
    """One frame of one block that is not compressed."""
    assert len(body) < 1 << 17
    return b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", len(body)) + struct.pack("<I", len(body) << 3 | 1)[:3] + body


ENCODE = {"gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress, "zstd": zstd}


def bound(case, kwargs):
    """Asks for a type, each in its turn, and for no more of an endless answer than comes within a moment."""
    accept = TYPES[zlib.crc32(repr(case.query).encode()) % len(TYPES)]
    follows = is_true((case.query or {}).get("follow"))
    if follows and accept == "application/json":
        accept = "application/x-ndjson"  # because a document that follows the log would never end
    case.headers["Accept"] = accept
    if follows or accept == "text/event-stream":
        kwargs["timeout"] = FOLLOWED
        kwargs["hooks"] = {"response": cut}


def cut(response, **_):
    """What has come of an answer by now is the answer."""
    content = b""
    try:
        while chunk := response.raw.read1(65536, decode_content=True):
            content += chunk
    except (urllib3.exceptions.ReadTimeoutError, TimeoutError):
        pass
    response._content, response._content_consumed = content, True
    response.close()


def is_true(value):
    return str(value).lower() == "true"
