"""Addresses of the web: what is sent, what a key says, and which hosts are private."""

import pickle

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vec_pipeline.downloads.addresses import key_of, to_send
from vec_pipeline.downloads.network import is_private
from vec_pipeline.downloads.web import web_record
from vec_pipeline.record import SourceOptions
from vec_pipeline.sources import open_source
from vec_pipeline.sources.url import Url

TEXTS = st.text() | st.text("ht:/?#@%&=;[]\\ aü\n\x00sig.").map("http://".__add__)


@pytest.mark.parametrize(
    ("url", "key"),
    [
        (" http://host/a.jpg\r\n", "http://host/a.jpg"),
        ("HTTP://Host/A%2fb%7Ec.jpg?x=%2B+&y#part", "HTTP://Host/A%2fb%7Ec.jpg?x=%2B+&y#part"),
        ("http://bücher.example/größe 1.jpg", "http://bücher.example/größe 1.jpg"),
        ("http://user:password@host:81/a@b.jpg", "http://host:81/a@b.jpg"),
        ("http://user@x:password@host/a.jpg", "http://host/a.jpg"),
        ("http://h/a?X-Amz-Signature=1f&w=2&x-amz-expires=60", "http://h/a?X-Amz-Signature=&w=2&x-amz-expires="),
        ("http://h/a?X-Goog-Credential=me%40x&w=2", "http://h/a?X-Goog-Credential=&w=2"),
        ("http://h/a?AWSAccessKeyId=AK&Signature=ab%3D&Expires=17", "http://h/a?AWSAccessKeyId=&Signature=&Expires="),
        ("http://h/a?sv=2020&sig=abc%3D", "http://h/a?sv=2020&sig="),
        ("http://h/a?access_token=t&api%5Fkey=k#x", "http://h/a?access_token=~8efd86fb&api%5Fkey=~13fbd79c#x"),
        ("http://h/a?alt=media&token=t;password=p", "http://h/a?alt=media&token=~8efd86fb;password=~516b9783"),
        ("http://h/a?Expires=never&signal=1&mysig=2", "http://h/a?Expires=never&signal=1&mysig=2"),
        ("http://h/sig=1/a.jpg", "http://h/sig=1/a.jpg"),
        ("http://h/a#access_token=t", "http://h/a#access_token=~8efd86fb"),
    ],
)
def test_a_key_has_no_credentials_and_is_otherwise_unchanged(url: str, key: str) -> None:
    assert key_of(url) == key


@given(TEXTS)
def test_the_key_of_a_key_is_the_same_key(url: str) -> None:
    assert key_of(key_of(url)) == key_of(url)


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("http://host", "http://host"),
        (" HTTP://host/a.jpg#part ", "http://host/a.jpg"),
        ("http://host/a%2fb%7E%zz+c.jpg?x=%2B+&y=a%20b", "http://host/a%2fb%7E%zz+c.jpg?x=%2B+&y=a%20b"),
        ("http://host/größe 1.jpg?q=ü", "http://host/gr%C3%B6%C3%9Fe%201.jpg?q=%C3%BC"),
        ("http://host/a%20b c.jpg", "http://host/a%20b%20c.jpg"),
        ('http://host/"<\\>.jpg', "http://host/%22%3C%5C%3E.jpg"),
        ("http://host/a\nb", "http://host/a%0Ab"),
        ("http://host/\udcff", "http://host/%FF"),
        ("http://bücher.example:8080/a", "http://xn--bcher-kva.example:8080/a"),
        ("https://bücher.example:443?a", "https://xn--bcher-kva.example/?a"),
        ("http://[::1]:80/a", "http://[::1]/a"),
        ("http://üser:p%40ss@host/a", "http://%C3%BCser:p%40ss@host/a"),
    ],
)
def test_what_is_sent_is_escaped_once(url: str, sent: str) -> None:
    assert str(to_send(url)).rstrip("/") == sent.rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        *("", "a.jpg", "ftp://host/a", "file:///etc/passwd", "http:/host", "http://", "http:///a", "http://user@/a"),
        *("http://h:99999/", "http://h:x/", "http://[::1/a", "http://a b/", "http://good.example\\@bad.example/"),
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        to_send(url)


@given(TEXTS)
@example("http://[")
@example("http://\u0130/")
@example("http://h/\udc80")
def test_any_text_is_sent_in_ascii_or_refused(url: str) -> None:
    try:
        sent = str(to_send(url))
    except ValueError:
        return
    assert sent.isascii() and " " not in sent and "\n" not in sent


@pytest.mark.parametrize(
    "address",
    [
        *(
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "127.0.0.1",
            "127.8.8.8",
            "0.0.0.0",
            "100.64.0.1",
            "100.100.100.200",
        ),
        *("169.254.169.254", "168.63.129.16", "192.0.0.192", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1"),
        *("::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"),
    ],
)
def test_private_addresses(address: str) -> None:
    assert is_private(address)


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::"]
)
def test_public_addresses(address: str) -> None:
    assert not is_private(address)


def test_a_record_of_an_address_shows_no_password() -> None:
    record = web_record("https://user:hidden@host/a.jpg?token=hidden", SourceOptions())
    assert (
        record.key
        == record.values["source_url"]
        == record.values["content"].link
        == "https://host/a.jpg?token=~99d72c7f"
    )
    assert "hidden" not in repr(record)
    assert pickle.loads(pickle.dumps(record)).values["content"].url.startswith("https://user:hidden@host")


def test_an_address_is_a_source_of_one_record() -> None:
    source = open_source(["HTTPS://host/a.jpg"])
    assert isinstance(source, Url)
    assert [record.key for record in source] == [record.key for record in source] == ["HTTPS://host/a.jpg"]
    assert not Url.accepts("photos/https:/a.jpg") and not Url.accepts("s3://b/a.jpg")
