"""Requests written by hand: SigV4 in every payload mode, and the liberty to get any byte of it wrong."""

import base64
import datetime
import hashlib
import hmac
import http.client
import re
import ssl
import urllib.parse

import kit

UNSIGNED = "UNSIGNED-PAYLOAD"
SIGNED_CHUNKS = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
SIGNED_CHUNKS_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def text(self):
        return self.body.decode("utf-8", "replace")

    @property
    def code(self):
        return self.element("Code")

    def element(self, name):
        found = re.search(f"<{name}>(.*?)</{name}>", self.text, re.S)
        return found.group(1) if found else None

    def __repr__(self):
        return f"{self.status} {dict(self.headers)} {self.text[:500]}"


class Signer:
    """Signs one request; afterwards it is the start of the chain that signs the chunks of its body."""

    def __init__(self, access=kit.ACCESS_KEY, secret=kit.SECRET_KEY, region=kit.REGION, now=None):
        now = now or datetime.datetime.now(datetime.timezone.utc)
        self.access = access
        self.stamp = now.strftime("%Y%m%dT%H%M%SZ")
        self.scope = f"{self.stamp[:8]}/{region}/s3/aws4_request"
        key = f"AWS4{secret}".encode()
        for step in self.scope.split("/"):
            key = hmac.digest(key, step.encode(), "sha256")
        self.key = key
        self.previous = None

    def sign(self, *lines):
        text = "\n".join(lines)
        self.previous = hmac.new(self.key, text.encode(), "sha256").hexdigest()
        return self.previous

    def authorization(self, method, path, query, headers, payload_hash):
        """`path` is encoded, `query` a list of (name, value or None), `headers` has lower-case names."""
        names = ";".join(sorted(headers))
        canonical = "\n".join(
            [method, path, canonical_query(query)]
            + [f"{n}:{' '.join(str(headers[n]).split())}" for n in sorted(headers)]
            + ["", names, payload_hash]
        )
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        signature = self.sign("AWS4-HMAC-SHA256", self.stamp, self.scope, digest)
        return f"AWS4-HMAC-SHA256 Credential={self.access}/{self.scope}, SignedHeaders={names}, Signature={signature}"

    def chunk(self, piece):
        digest = hashlib.sha256(piece).hexdigest()
        return self.sign("AWS4-HMAC-SHA256-PAYLOAD", self.stamp, self.scope, self.previous, EMPTY_SHA256, digest)

    def trailer(self, text):
        digest = hashlib.sha256(text).hexdigest()
        return self.sign("AWS4-HMAC-SHA256-TRAILER", self.stamp, self.scope, self.previous, digest)


def quote(text, safe="-._~"):
    return urllib.parse.quote(text, safe=safe)


def canonical_query(query):
    return "&".join(sorted(f"{quote(n)}={quote(v or '')}" for n, v in query))


def query_string(query):
    return "&".join(quote(n) if v is None else f"{quote(n)}={quote(v)}" for n, v in query)


def connect():
    url = urllib.parse.urlsplit(kit.ENDPOINT)
    if url.scheme == "https":
        context = ssl.create_default_context(cafile=kit.CA_BUNDLE)
        return http.client.HTTPSConnection(url.hostname, url.port, timeout=90, context=context)
    return http.client.HTTPConnection(url.hostname, url.port, timeout=90)


def request(
    method,
    path,
    query=(),
    headers=None,
    body=b"",
    payload=UNSIGNED,
    host=None,
    signer=None,
    sign=True,
    connection=None,
    encode_body=None,
    path_encoded=False,
):
    """One request; `query` may hold names without a value as (name, None).

    `encode_body(signer)` makes the bytes on the wire once the seed signature is known; without it they are `body`.
    """
    own = connection is None
    connection = connection or connect()
    query = [(q, None) if isinstance(q, str) else q for q in query]
    encoded = path if path_encoded else quote(path, safe="-._~/")
    all_headers = {n.lower(): v for n, v in (headers or {}).items()}
    all_headers["host"] = host or f"{connection.host}:{connection.port}"
    signer = signer or Signer()
    if sign:
        if payload == "hash":
            payload = hashlib.sha256(body).hexdigest()
        all_headers["x-amz-date"] = signer.stamp
        all_headers["x-amz-content-sha256"] = payload
        all_headers["authorization"] = signer.authorization(method, encoded, query, all_headers, payload)
    wire = encode_body(signer) if encode_body else body
    if wire or method in ("PUT", "POST"):
        all_headers.setdefault("content-length", len(wire))
    target = encoded + ("?" + query_string(query) if query else "")
    connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
    for name, value in all_headers.items():
        connection.putheader(name, str(value))
    try:
        connection.endheaders()
        if wire:
            connection.send(wire)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the server has answered already
    response = connection.getresponse()
    answer = Answer(response.status, response.headers, response.read())
    if own:
        connection.close()
    return answer


def chunked(pieces, signer=None, trailers=(), sign_trailer=False, tamper=None, final=True):
    """An aws-chunked body. `tamper(number, signature)` may change the signature of a chunk (the last is number 0)
    or of the trailer (number None)."""
    tamper = tamper or (lambda number, signature: signature)
    out = []
    numbered = [(n, p) for n, p in enumerate(pieces, 1) if p] + ([(0, b"")] if final else [])
    for number, piece in numbered:
        extension = f";chunk-signature={tamper(number, signer.chunk(piece))}" if signer else ""
        out.append(f"{len(piece):x}{extension}\r\n".encode())
        out.append(piece + b"\r\n" if piece else b"")
    if final:
        lines = b"".join(f"{n}:{v}\n".encode() for n, v in trailers)
        out += [line + b"\r\n" for line in lines.splitlines()]
        if sign_trailer:
            out.append(f"x-amz-trailer-signature:{tamper(None, signer.trailer(lines))}\r\n".encode())
        out.append(b"\r\n")
    return b"".join(out)


def split(body, size):
    return [body[i : i + size] for i in range(0, len(body), size)]


def b64(value):
    return base64.b64encode(value).decode()
