"""Where a bucket is, by its address and by variables; the one table says both."""

from __future__ import annotations

import pytest

from gpuyard.errors import UsageError
from gpuyard.formats.location import KINDS, Location, connection_string

EMULATED = "http://127.0.0.1:10000/devstoreaccount1"


@pytest.mark.parametrize(
    ("place", "variables"),
    [
        (
            Location("s3", "b", "p/q", "https://e", "eu"),
            {"AWS_ENDPOINT_URL_S3": "https://e", "AWS_DEFAULT_REGION": "eu"},
        ),
        (Location("gs", "b"), {}),
        (Location("gs", "b", "p", "http://h:1"), {"STORAGE_EMULATOR_HOST": "http://h:1"}),
        (
            Location("az", "c", "p", "https://mine.blob.core.windows.net"),
            {
                "AZURE_STORAGE_ACCOUNT": "mine",
                "AZURE_STORAGE_SERVICE_ENDPOINT": "https://mine.blob.core.windows.net",
            },
        ),
        (
            Location("az", "c", "", EMULATED),
            {"AZURE_STORAGE_ACCOUNT": "devstoreaccount1", "AZURE_STORAGE_SERVICE_ENDPOINT": EMULATED},
        ),
    ],
)
def test_a_place_is_told_by_variables_and_found_by_them_again(place: Location, variables: dict[str, str]) -> None:
    told = place.variables()
    bucket = f"{place.name}/{place.prefix}".rstrip("/")
    assert told == {"CLOUD_PROVIDER": place.kind.provider if place.kind else "", "CLOUD_BUCKET": bucket} | variables
    assert Location.from_environment(told) == place
    assert Location.parse(place.url).completed(told) == place
    below = place.below("run/files")
    assert Location.from_environment(below.variables()) == below and below.url == f"{place.url}/run/files"


@pytest.mark.parametrize(
    ("env", "endpoint", "account"),
    [
        ({"AZURE_STORAGE_ACCOUNT": "mine"}, "https://mine.blob.core.windows.net", "mine"),
        (
            {"AZURE_STORAGE_CONNECTION_STRING": "AccountName=mine;AccountKey=a==;EndpointSuffix=core.chinacloudapi.cn"},
            "https://mine.blob.core.chinacloudapi.cn",
            "mine",
        ),
        ({"AZURE_STORAGE_CONNECTION_STRING": f"BlobEndpoint={EMULATED}/;"}, EMULATED, "devstoreaccount1"),
        ({}, "", ""),
    ],
)
def test_the_account_at_azure(env: dict[str, str], endpoint: str, account: str) -> None:
    place = Location.parse("az://c").completed(env)
    assert (place.endpoint, place.account) == (endpoint, account)
    named = Location.parse("az://c", endpoint="https://other.blob.core.windows.net").completed(env)
    assert named.account == "other", "what is named comes before the environment"


def test_every_kind_is_refused_in_the_same_words() -> None:
    for kind in KINDS:
        assert Location.of_provider(kind.provider.upper(), "b/p") == Location(kind.scheme, "b", "p")
        with pytest.raises(UsageError, match=f"{kind.provider} needs a bucket: set CLOUD_BUCKET"):
            Location.of_provider(kind.provider, "")
        with pytest.raises(UsageError, match="the prefix has no"):
            Location.parse(f"{kind.scheme}://b/../x")
    assert not Location.parse("file:///folder").by_network and not Location().by_network


def test_a_connection_string_keeps_what_has_a_value() -> None:
    assert connection_string("AccountKey=a==;;SharedAccessSignature=sv=1&sig=x%3D;Empty=") == {
        "AccountKey": "a==",
        "SharedAccessSignature": "sv=1&sig=x%3D",
    }
