"""Presigned links in logs: httpx2 logs each address at INFO, and the query of such a link is a credential."""

import httpx2


class PresignedUrl(httpx2.URL):
    """An address that is sent whole and written without its query."""

    def __str__(self) -> str:
        return str(self.copy_with(query=None)) if self.query else super().__str__()


def hide_query(request: httpx2.Request) -> None:
    """A request hook of `httpx2.Client`, called for every redirect too."""
    request.url = PresignedUrl(request.url)


async def hide_query_async(request: httpx2.Request) -> None:
    """The same for `httpx2.AsyncClient`."""
    hide_query(request)
