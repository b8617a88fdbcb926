"""Every way a body can be signed, and that a body whose signature, length or checksum is wrong is not stored."""

import hashlib
import http.client
import socket
import zlib

import kit
import raw

CHUNK = 64 * kit.KIB


def crc32(body):
    return raw.b64(zlib.crc32(body).to_bytes(4, "big"))


class Payloads(kit.Case):
    def setUp(self):
        super().setUp()
        self.path = f"/{self.bucket}/key"

    def send(self, mode, body, size=CHUNK, headers=None, tamper=None, trailers=(), decoded=None, final=True, path=None, query=()):
        """An aws-chunked PUT."""
        signed = mode != raw.UNSIGNED_TRAILER
        with_trailer = mode != raw.SIGNED_CHUNKS
        headers = dict(headers or {})
        headers.setdefault("content-encoding", "aws-chunked")
        headers["x-amz-decoded-content-length"] = str(len(body) if decoded is None else decoded)
        if with_trailer:
            headers["x-amz-trailer"] = ",".join(n for n, _ in trailers)

        def encode(signer):
            return raw.chunked(
                raw.split(body, size),
                signer if signed else None,
                trailers,
                sign_trailer=signed and with_trailer,
                tamper=tamper,
                final=final,
            )

        return raw.request("PUT", path or self.path, query, headers, payload=mode, encode_body=encode)

    def sound(self, mode, body, **more):
        if mode != raw.SIGNED_CHUNKS:
            more.setdefault("trailers", [("x-amz-checksum-crc32", crc32(body))])
        return self.send(mode, body, **more)

    def assertStored(self, answer, body):
        self.assertEqual(answer.status, 200, answer)
        self.assertBody("key", body)
        self.delete("key")

    def assertRefused(self, answer, status, *codes):
        self.assertEqual(answer.status, status, answer)
        if codes:
            self.assertIn(answer.code, codes, answer)
        self.assertAbsent("key")

    MODES = (raw.SIGNED_CHUNKS, raw.SIGNED_CHUNKS_TRAILER, raw.UNSIGNED_TRAILER)

    def test_plain_bodies(self):
        for size in (0, 5, 100_000):
            body = kit.data(size)
            for payload in (raw.UNSIGNED, "hash"):
                with self.subTest(payload, size=size):
                    self.assertStored(raw.request("PUT", self.path, body=body, payload=payload), body)

    def test_chunked_bodies(self):
        for mode in self.MODES:
            for size in (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 77):
                with self.subTest(mode, size=size):
                    body = kit.data(size)
                    self.assertStored(self.sound(mode, body), body)

    def test_chunk_sizes(self):
        body = kit.data(1 << 20)
        for mode in self.MODES:
            for size in (8192, 8193, 100_001, 1 << 20):
                with self.subTest(mode, size=size):
                    self.assertStored(self.sound(mode, body, size=size), body)

    def test_parts(self):
        for mode in self.MODES:
            with self.subTest(mode):
                upload = self.start("key")
                query = [("partNumber", "1"), ("uploadId", upload)]
                answer = self.sound(mode, kit.data(100_000), query=query)
                self.assertEqual(answer.status, 200, answer)
                self.complete("key", upload, [{"PartNumber": 1, "ETag": answer.headers["etag"]}])
                self.assertBody("key", kit.data(100_000))
                self.delete("key")

    def test_wrong_hash_of_the_body(self):
        wrong = hashlib.sha256(b"other").hexdigest()
        for size in (5, 300_000):
            answer = raw.request("PUT", self.path, body=kit.data(size), payload=wrong)
            self.assertRefused(answer, 400, "XAmzContentSHA256Mismatch")

    def test_tampered_chunks(self):
        body = kit.data(4 * CHUNK)
        flip = {"0": "1"}
        for mode in self.MODES[:2]:
            for victim in (1, 2, 4, 0):
                with self.subTest(mode, chunk=victim):

                    def tamper(number, signature):
                        if number != victim:
                            return signature
                        return flip.get(signature[0], "0") + signature[1:]

                    self.assertRefused(self.sound(mode, body, tamper=tamper), 403, "SignatureDoesNotMatch")

    def test_changed_data_under_good_signatures(self):
        body = kit.data(3 * CHUNK)
        headers = {"content-encoding": "aws-chunked", "x-amz-decoded-content-length": str(len(body))}
        for place in (0, CHUNK, 3 * CHUNK - 1):
            with self.subTest(place=place):

                def encode(signer):
                    wire = bytearray(raw.chunked(raw.split(body, CHUNK), signer))
                    at = wire.find(body[place : place + 16]) if place + 16 <= len(body) else wire.find(body[-16:]) + 15
                    wire[at] ^= 1
                    return bytes(wire)

                answer = raw.request("PUT", self.path, headers=headers, payload=raw.SIGNED_CHUNKS, encode_body=encode)
                self.assertRefused(answer, 403, "SignatureDoesNotMatch")

    def test_tampered_trailer(self):
        body = kit.data(CHUNK)
        spoil = lambda number, signature: "0" * 64 if number is None else signature
        answer = self.sound(raw.SIGNED_CHUNKS_TRAILER, body, tamper=spoil)
        self.assertRefused(answer, 403, "SignatureDoesNotMatch")
        for mode in self.MODES[1:]:
            with self.subTest(mode):
                answer = self.send(mode, body, trailers=[("x-amz-checksum-crc32", crc32(b"other"))])
                self.assertRefused(answer, 400, "BadDigest")

    def test_trailer_checksum_is_kept(self):
        body = kit.data(CHUNK + 5)
        for mode in self.MODES[1:]:
            self.assertEqual(self.sound(mode, body).status, 200)
            self.assertEqual(self.head("key", ChecksumMode="ENABLED")["ChecksumCRC32"], crc32(body))

    def test_trailer_missing_or_unannounced(self):
        body = kit.data(100)
        announce = {"x-amz-trailer": "x-amz-checksum-crc32"}
        headers = dict(announce, **{"content-encoding": "aws-chunked", "x-amz-decoded-content-length": "100"})
        encode = lambda signer: raw.chunked([body])
        answer = raw.request("PUT", self.path, headers=headers, payload=raw.UNSIGNED_TRAILER, encode_body=encode)
        self.assertRefused(answer, 400)
        encode = lambda signer: raw.chunked([body], trailers=[("x-amz-checksum-sha1", raw.b64(hashlib.sha1(body).digest()))])
        answer = raw.request("PUT", self.path, headers=headers, payload=raw.UNSIGNED_TRAILER, encode_body=encode)
        self.assertRefused(answer, 400)

    def test_cut_short(self):
        """A body that ends before its last chunk, though every chunk in it is sound."""
        for mode in self.MODES:
            with self.subTest(mode):
                self.assertRefused(self.sound(mode, kit.data(2 * CHUNK), final=False), 400)

    def test_decoded_length_that_is_not(self):
        body = kit.data(CHUNK)
        for mode in self.MODES:
            for decoded in (0, CHUNK - 1, CHUNK + 1):
                with self.subTest(mode, decoded=decoded):
                    self.assertRefused(self.sound(mode, body, decoded=decoded), 400)

    def test_small_chunks_inside(self):
        for mode in self.MODES[:2]:
            with self.subTest(mode):
                self.assertRefused(self.sound(mode, kit.data(20_000), size=4096), 400, "InvalidChunkSizeError")

    def test_framing_that_is_none(self):
        headers = {"content-encoding": "aws-chunked", "x-amz-decoded-content-length": "5"}
        for wire in (b"hello", b"zz\r\nhello\r\n0\r\n\r\n", b"5hello\r\n0\r\n\r\n", b"5\r\nhelloXX0\r\n\r\n", b"ffffffffffffffffff\r\n", b"5" * 9000):
            with self.subTest(wire[:30]):
                encode = lambda signer: wire
                answer = raw.request("PUT", self.path, headers=headers, payload=raw.UNSIGNED_TRAILER, encode_body=encode)
                self.assertRefused(answer, 400)

    def test_framing_is_not_metadata(self):
        body = kit.data(100)
        for sent, kept in (("aws-chunked", None), ("gzip,aws-chunked", "gzip"), ("aws-chunked, gzip", "gzip"), ("gzip", "gzip")):
            with self.subTest(sent):
                answer = self.sound(raw.UNSIGNED_TRAILER, body, headers={"content-encoding": sent})
                self.assertEqual(answer.status, 200, answer)
                self.assertEqual(self.head("key").get("ContentEncoding"), kept)
                self.assertBody("key", body)

    def test_multi_region_signatures(self):
        for payload in ("STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD", "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD-TRAILER"):
            with self.subTest(payload):
                headers = {"x-amz-decoded-content-length": "5", "content-encoding": "aws-chunked"}
                answer = raw.request("PUT", self.path, headers=headers, body=b"hello", payload=payload)
                self.assertRefused(answer, 501)

    def test_transfer_encoding_chunked(self):
        """What boto3 sends over TLS: HTTP chunks around aws-chunks, no Content-Length."""
        body = kit.data(3 * CHUNK + 1)
        headers = {"content-encoding": "aws-chunked", "x-amz-decoded-content-length": str(len(body))}
        headers.update({"x-amz-trailer": "x-amz-checksum-crc32", "transfer-encoding": "chunked"})
        inner = raw.chunked(raw.split(body, CHUNK), trailers=[("x-amz-checksum-crc32", crc32(body))])
        wire = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in raw.split(inner, 7001)) + b"0\r\n\r\n"
        connection = raw.connect()
        signer = raw.Signer()
        headers.update({"host": f"{connection.host}:{connection.port}", "x-amz-date": signer.stamp})
        headers["x-amz-content-sha256"] = raw.UNSIGNED_TRAILER
        headers["authorization"] = signer.authorization("PUT", self.path, [], headers, raw.UNSIGNED_TRAILER)
        connection.request("PUT", self.path, body=wire, headers=headers)
        answer = connection.getresponse()
        self.assertEqual(answer.status, 200, answer.read())
        self.assertBody("key", body)

    def test_no_length(self):
        connection = raw.connect()
        signer = raw.Signer()
        headers = {"host": f"{connection.host}:{connection.port}", "x-amz-date": signer.stamp}
        headers["x-amz-content-sha256"] = raw.UNSIGNED
        headers["authorization"] = signer.authorization("PUT", self.path, [], headers, raw.UNSIGNED)
        connection.request("PUT", self.path, body=iter([b"hello"]), headers=headers, encode_chunked=True)
        answer = connection.getresponse()
        self.assertEqual(answer.status, 411, answer.read())
        self.assertAbsent("key")


class Expectations(kit.Case):
    """`Expect: 100-continue`: the verdict comes before the body is asked for, and the connection lives on."""

    def begin(self, connection, path, secret=kit.SECRET_KEY, length=100):
        signer = raw.Signer(secret=secret)
        headers = {"host": f"{connection.host}:{connection.port}", "x-amz-date": signer.stamp}
        headers["x-amz-content-sha256"] = raw.UNSIGNED
        headers["authorization"] = signer.authorization("PUT", path, [], headers, raw.UNSIGNED)
        connection.putrequest("PUT", path, skip_host=True, skip_accept_encoding=True)
        for name, value in {**headers, "expect": "100-continue", "content-length": length}.items():
            connection.putheader(name, str(value))
        connection.endheaders()

    def first_line(self, connection):
        line = b""
        while not line.endswith(b"\r\n"):
            line += connection.sock.recv(1)
        return line.decode().strip()

    def test_asked_for(self):
        connection = raw.connect()
        self.begin(connection, f"/{self.bucket}/key")
        self.assertIn(" 100 ", self.first_line(connection) + " ")
        self.assertEqual(connection.sock.recv(2), b"\r\n")
        connection.send(b"x" * 100)
        self.assertEqual(connection.getresponse().status, 200)
        self.assertBody("key", b"x" * 100)

    def test_refused_before_the_body(self):
        for path, secret, status in (
            (f"/{self.bucket}/key", "wrong", 403),
            (f"/{self.bucket}-missing/key", kit.SECRET_KEY, 404),
        ):
            with self.subTest(path=path, status=status):
                connection = raw.connect()
                self.begin(connection, path, secret)
                self.assertTrue(self.first_line(connection).startswith(f"HTTP/1.1 {status}"))
                connection.close()

    def test_early_answer_reaches_a_client_that_sends_on(self):
        """Refused while megabytes are still coming: the status arrives, not a reset."""
        body = kit.data(3 * kit.MIB)
        for _ in range(5):
            connection = raw.connect()
            answer = raw.request("PUT", f"/{self.bucket}/key", body=body, signer=raw.Signer(secret="wrong"), connection=connection)
            self.assertEqual((answer.status, answer.code), (403, "SignatureDoesNotMatch"))
            connection.close()


class Connections(kit.Case):
    def test_many_requests_on_one(self):
        connection = raw.connect()
        path = f"/{self.bucket}/key"
        for n in range(50):
            body = kit.data(n * 1000)
            self.assertEqual(raw.request("PUT", path, body=body, connection=connection).status, 200)
            self.assertTrue(raw.request("GET", path, connection=connection).body == body)
            self.assertEqual(raw.request("GET", path + "-missing", connection=connection).status, 404)

    def test_a_body_that_stops(self):
        connection = raw.connect()
        signer = raw.Signer()
        headers = {"host": f"{connection.host}:{connection.port}", "x-amz-date": signer.stamp}
        headers["x-amz-content-sha256"] = raw.UNSIGNED
        path = f"/{self.bucket}/key"
        headers["authorization"] = signer.authorization("PUT", path, [], headers, raw.UNSIGNED)
        headers["content-length"] = "1000"
        connection.request("PUT", path, body=b"x" * 999, headers=headers)
        connection.sock.shutdown(socket.SHUT_WR)
        try:
            self.assertNotEqual(connection.getresponse().status, 200)
        except (http.client.HTTPException, OSError):
            pass  # closed without a word, which is an answer too
        connection.close()
        self.assertAbsent("key")


kit.main()
