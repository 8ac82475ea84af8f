"""Addresses behind which replicas come and go."""

import pytest

from penstock.addresses import DnsName, KubernetesService, base_url, is_discovered, parse, why_not


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("dns://vllm:8000", DnsName("vllm", 8000)),
        ("dns://_x.vllm.serving.svc.cluster.local.:80/", DnsName("_x.vllm.serving.svc.cluster.local.", 80)),
        ("kubernetes://serving/vllm:8000", KubernetesService("serving", "vllm", 8000)),
        ("kubernetes://serving/vllm:http-api", KubernetesService("serving", "vllm", "http-api")),
    ],
)
def test_an_address_is_parsed_and_written_again(url: str, place: DnsName | KubernetesService) -> None:
    assert is_discovered(url)
    assert why_not(url) is None
    assert parse(url) == place
    assert str(place) == url.rstrip("/")


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("dns://vllm", "write dns://HOST:PORT"),
        ("dns:vllm:8000", "write dns://HOST:PORT"),
        ("dns://vllm:http", "write dns://HOST:PORT"),
        ("dns://user@vllm:80", "write dns://HOST:PORT"),
        ("dns://" + "a" * 64 + ":80", "write dns://HOST:PORT"),
        ("dns://" + "a" * 60_000, "write dns://HOST:PORT"),
        ("dns://vllm:0", "from 1 to 65535"),
        ("dns://vllm:65536", "from 1 to 65535"),
        ("dns://vllm:" + "9" * 5000, "from 1 to 65535"),
        ("kubernetes://vllm:8000", "write kubernetes://NAMESPACE/SERVICE:PORT"),
        ("kubernetes://serving/vllm", "write kubernetes://NAMESPACE/SERVICE:PORT"),
        ("kubernetes://Serving/vllm:8000", "write kubernetes://NAMESPACE/SERVICE:PORT"),
        ("kubernetes://serving/vllm:70000", "from 1 to 65535"),
    ],
)
def test_what_cannot_be_is_refused_with_the_shape_to_write(url: str, remedy: str) -> None:
    assert is_discovered(url)
    reason = why_not(url)
    assert reason
    assert remedy in reason
    with pytest.raises(ValueError, match=remedy):
        parse(url)


@pytest.mark.parametrize("url", ["http://dns:8000", "unix:/run/dns.sock", "https://kubernetes:443"])
def test_fixed_addresses_are_none_of_these(url: str) -> None:
    assert not is_discovered(url)


def test_an_ipv6_address_gets_its_brackets() -> None:
    assert base_url("10.0.0.7", 8000) == "http://10.0.0.7:8000"
    assert base_url("fd00::7", 443, "https") == "https://[fd00::7]:443"
