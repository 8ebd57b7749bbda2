"""The limits of the HTTP front: times, counts and sizes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The limits of one process; `web.serve` fills in those that settings decide."""

    header_seconds: float = 10
    """The time to receive a header, from the start of the connection or the first byte of a later request."""
    body_seconds: float = 30
    """The time to receive a body; an upload also has the time for its bytes at `upload_bytes_per_second`."""
    answer_seconds: float = 30
    """The time in which each piece of an answer must leave this process."""
    idle_seconds: float = 150
    """The time between two requests of a connection; longer than the proxies' (nginx 60 s, Caddy 120 s)."""
    linger_seconds: float = 5
    """The longest silence while the rest of an unread body is discarded. In total it may take as long as an
    upload of that size: `body_seconds` plus the time at `upload_bytes_per_second`."""
    drain_seconds: float = 10
    """The time that requests in progress get to finish once the process must stop."""
    stuck_seconds: float = 60
    """If all threads are busy and none starts or finishes work for this time, the process counts as hung."""

    num_threads: int = 32
    num_readiness_threads: int = 4
    """Additional threads, for `/readyz` alone."""
    max_queued: int = 128
    """The requests that may wait for a thread; beyond them the answer is 503, unless the queue is quick."""
    quick_seconds: float = 1
    """A queue is quick while its first request has waited less than this."""
    max_quick_queued: int = 1024
    """The number of requests in a quick queue; beyond it the answer is 503."""
    max_queue_seconds: float = 3
    """A request that has waited longer than this is answered with 503."""
    max_connections: int = 4096
    """Above four fifths of this number, a new connection closes the longest silent one (`Connections`)."""

    max_header_bytes: int = 32_768
    max_headers: int = 100
    max_body_bytes: int = 65_536
    """The largest body that any client may send, with or without a key."""
    upload_bytes_per_second: int = 65_536
    max_drained_bytes: int = 16_777_216
    """If more bytes than this, or an unknown number, are left of an unread body, the answer says
    `Connection: close`."""
    max_dropped_bytes: int = 1_073_741_824
    """The most bytes of an unread body that are discarded; a client that sends more is disconnected."""
    max_held_body_bytes: int = 33_554_432
    """The sum of all small bodies that are being read; above it the oldest is dropped with its connection."""
    max_held_upload_bytes: int = 67_108_864
    """The same for uploads, whose senders have presented a key; they are in files. Those that a view uses
    count too, but are not dropped: an upload that finds no room beside them is answered with 503."""
    max_held_answer_bytes: int = 33_554_432
    """The same for answers that clients have not read yet."""
    max_whole_answer_bytes: int = 262_144
    """An answer up to this size is taken from its thread as a whole, a larger one in pieces."""
    piece_bytes: int = 65_536
