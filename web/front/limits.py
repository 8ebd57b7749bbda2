"""Every bound of the HTTP front: how long a client may take, and how much may be held for it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Deadlines, counts and sizes of one process; `web.serve` fills in what the settings decide."""

    header_seconds: float = 10
    """To the end of a header, from the start of the connection or the first byte of a later request."""
    body_seconds: float = 30
    """For a whole body; an upload gets what it takes at `upload_bytes_per_second` on top."""
    answer_seconds: float = 30
    """For each piece of an answer to leave this process."""
    idle_seconds: float = 150
    """Between two requests of a connection; longer than proxies keep theirs (nginx 60 s, Caddy 120 s)."""
    linger_seconds: float = 5
    """The longest silence while the rest of a body that nobody reads is thrown away. In all it may take as
    long as an upload of as many bytes: `body_seconds`, and what `upload_bytes_per_second` comes to."""
    drain_seconds: float = 10
    """What requests in progress get once the process is told to stop."""
    stuck_seconds: float = 60
    """No thread has begun or ended anything for so long while all are taken: the process is not alive."""

    num_threads: int = 32
    num_readiness_threads: int = 4
    """Besides, for `/readyz` alone."""
    max_queued: int = 128
    """Requests that wait for a thread; beyond them the answer is 503, unless the queue is quick."""
    quick_seconds: float = 1
    """A queue is quick while the first request in it has waited less."""
    max_quick_queued: int = 1024
    """Requests in a quick queue; beyond them the answer is 503."""
    max_queue_seconds: float = 3
    """A request that has waited longer is answered 503 when its turn comes."""
    max_connections: int = 4096
    """From four fifths of them on, who has kept us waiting longest is cut for the next (`Connections`)."""

    max_header_bytes: int = 32_768
    max_headers: int = 100
    max_body_bytes: int = 65_536
    """What anybody may send, with or without a key."""
    upload_bytes_per_second: int = 65_536
    max_drained_bytes: int = 16_777_216
    """The most that is left of an unread body for its connection to go on; with more, or with an unknown
    number of bytes, the answer says `Connection: close`."""
    max_dropped_bytes: int = 1_073_741_824
    """The most bytes of an unread body that are dropped; a client that sends more is cut."""
    max_held_body_bytes: int = 33_554_432
    """Of all small bodies that are being read; beyond it the oldest of them is cut."""
    max_held_upload_bytes: int = 67_108_864
    """Likewise of uploads, whose senders have shown a key."""
    max_held_answer_bytes: int = 33_554_432
    """Likewise of answers that their readers have not taken yet."""
    max_whole_answer_bytes: int = 262_144
    """An answer up to this size is taken off its thread whole, a larger one in pieces."""
    piece_bytes: int = 65_536
