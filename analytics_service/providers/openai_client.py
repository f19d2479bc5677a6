"""The client of OpenAI's SDK, whichever of its APIs is called."""

from __future__ import annotations

import openai

from analytics_service.providers import sdk
from analytics_service.providers.faults import Endpoint


def client_of(endpoint: Endpoint, base_url: str | None) -> openai.AsyncOpenAI:
    """Builds a client, which takes some 20 ms; it connects with the first call.

    Args:
        endpoint: Who is called, with the key.
        base_url: Where it is; None: OpenAI itself.
    """
    key = endpoint.key or sdk.NO_KEY
    # What the environment says of OpenAI is for OpenAI and nobody else.
    foreign = base_url is not None
    client = openai.AsyncOpenAI(
        api_key=key,
        base_url=base_url,
        max_retries=0,  # an attempt that is not on record may be billed unseen
        default_headers=sdk.own_headers(key, "OPENAI_CUSTOM_HEADERS", openai.Omit())
        if foreign
        else None,
    )
    if foreign:
        client.organization = client.project = None
    return client
