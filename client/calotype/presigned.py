"""Keeps presigned links out of logs: httpx2 logs every URL, and their query is a credential."""

import httpx2


class PresignedUrl(httpx2.URL):
    """A URL that is sent complete and printed without its query."""

    def __str__(self) -> str:
        return str(self.copy_with(query=None)) if self.query else super().__str__()


def hide_query(request: httpx2.Request) -> None:
    """A request hook for `httpx2.Client`, which also calls it for redirects."""
    request.url = PresignedUrl(request.url)


async def hide_query_async(request: httpx2.Request) -> None:
    """The request hook for `httpx2.AsyncClient`."""
    hide_query(request)
