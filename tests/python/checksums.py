"""Checksums: verified on the way in, kept, and given back; against values made by the AWS runtime and hashlib."""

import hashlib
import struct

from awscrt import checksums as crt

import kit
import raw

COMPUTE = {
    "CRC32": lambda b: struct.pack(">I", crt.crc32(b)),
    "CRC32C": lambda b: struct.pack(">I", crt.crc32c(b)),
    "CRC64NVME": lambda b: struct.pack(">Q", crt.crc64nvme(b)),
    "SHA1": lambda b: hashlib.sha1(b).digest(),
    "SHA256": lambda b: hashlib.sha256(b).digest(),
}
COMPOSITE = ("CRC32", "CRC32C", "SHA1", "SHA256")
FULL_OBJECT = ("CRC32", "CRC32C", "CRC64NVME")


def value(algorithm, body):
    return raw.b64(COMPUTE[algorithm](body))


def composite(algorithm, bodies):
    digests = b"".join(COMPUTE[algorithm](b) for b in bodies)
    return f"{value(algorithm, digests)}-{len(bodies)}"


class Single(kit.Case):
    body_ = kit.data(200_001)

    def test_computed_by_the_client(self):
        for algorithm in COMPUTE:
            with self.subTest(algorithm):
                answer = self.put("key", self.body_, ChecksumAlgorithm=algorithm)
                expected = value(algorithm, self.body_)
                self.assertEqual(answer[f"Checksum{algorithm}"], expected)
                for verb in (self.get, self.head):
                    found = verb("key", ChecksumMode="ENABLED")
                    self.assertEqual(found[f"Checksum{algorithm}"], expected)
                    self.assertEqual(found["ChecksumType"], "FULL_OBJECT")
                self.assertNotIn(f"Checksum{algorithm}", self.head("key"))

    def test_given_as_a_header(self):
        for algorithm in COMPUTE:
            for size in (0, 10, 65_536, 200_001):
                with self.subTest(algorithm, size=size):
                    body = kit.data(size)
                    name = f"Checksum{algorithm}"
                    self.put("key", body, **{name: value(algorithm, body)})
                    self.assertEqual(self.head("key", ChecksumMode="ENABLED")[name], value(algorithm, body))

    def test_wrong(self):
        self.put("key", b"old")
        for algorithm in COMPUTE:
            for size in (10, 200_001):
                with self.subTest(algorithm, size=size):
                    wrong = value(algorithm, b"something else")
                    with self.refused(400, "BadDigest"):
                        self.put("key", kit.data(size), **{f"Checksum{algorithm}": wrong})
                    self.assertBody("key", b"old")

    def test_malformed(self):
        for algorithm in COMPUTE:
            for text in ("not base64!", "AAAA", value(algorithm, b"x")[:-4] + "===="):
                with self.subTest(algorithm, text=text), self.refused(400, "InvalidRequest"):
                    self.put("key", b"x", **{f"Checksum{algorithm}": text})
        self.assertAbsent("key")

    def test_two_of_them(self):
        with self.refused(400, "InvalidRequest"):
            self.put("key", b"x", ChecksumCRC32=value("CRC32", b"x"), ChecksumSHA1=value("SHA1", b"x"))
        self.assertAbsent("key")

    def test_none_given(self):
        answer = raw.request("PUT", f"/{self.bucket}/key", body=self.body_)
        self.assertEqual(answer.status, 200, answer)
        found = self.head("key", ChecksumMode="ENABLED")
        self.assertEqual(found["ChecksumCRC64NVME"], value("CRC64NVME", self.body_))
        self.assertEqual(found["ChecksumType"], "FULL_OBJECT")

    def test_not_with_a_range(self):
        self.put("key", self.body_, ChecksumAlgorithm="CRC32")
        answer = self.get("key", ChecksumMode="ENABLED", Range="bytes=0-9")
        self.assertNotIn("ChecksumCRC32", answer)

    def test_copied(self):
        for algorithm in COMPUTE:
            with self.subTest(algorithm):
                self.put("key", self.body_, ChecksumAlgorithm=algorithm)
                source = {"Bucket": self.bucket, "Key": "key"}
                self.s3.copy_object(Bucket=self.bucket, Key="copy", CopySource=source)
                found = self.head("copy", ChecksumMode="ENABLED")
                self.assertEqual(found[f"Checksum{algorithm}"], value(algorithm, self.body_))
        self.s3.copy_object(Bucket=self.bucket, Key="copy", CopySource=source, ChecksumAlgorithm="CRC32C")
        found = self.head("copy", ChecksumMode="ENABLED")
        self.assertEqual(found["ChecksumCRC32C"], value("CRC32C", self.body_))


class Multipart(kit.Case):
    bodies = [kit.data(kit.PART_MIN, 1), kit.data(65_537, 2)]

    def upload(self, algorithm, kind):
        upload = self.start("key", ChecksumAlgorithm=algorithm, ChecksumType=kind)
        parts = []
        for number, body in enumerate(self.bodies, 1):
            name = f"Checksum{algorithm}"
            part = self.part("key", upload, number, body, ChecksumAlgorithm=algorithm)
            parts.append(dict(part, **{name: value(algorithm, body)}))
        return upload, parts

    def test_composite(self):
        for algorithm in COMPOSITE:
            with self.subTest(algorithm):
                upload, parts = self.upload(algorithm, "COMPOSITE")
                result = self.complete("key", upload, parts)
                expected = composite(algorithm, self.bodies)
                found = self.head("key", ChecksumMode="ENABLED")
                for answer in (result, found):
                    self.assertEqual(answer[f"Checksum{algorithm}"], expected)
                    self.assertEqual(answer["ChecksumType"], "COMPOSITE")

    def test_full_object(self):
        whole = b"".join(self.bodies)
        for algorithm in FULL_OBJECT:
            with self.subTest(algorithm):
                name = f"Checksum{algorithm}"
                upload, parts = self.upload(algorithm, "FULL_OBJECT")
                with self.refused(400, "BadDigest"):
                    self.complete("key", upload, parts, ChecksumType="FULL_OBJECT", **{name: value(algorithm, b"x")})
                given = {name: value(algorithm, whole)}
                result = self.complete("key", upload, parts, ChecksumType="FULL_OBJECT", **given)
                found = self.head("key", ChecksumMode="ENABLED")
                for answer in (result, found):
                    self.assertEqual(answer[name], value(algorithm, whole))
                    self.assertEqual(answer["ChecksumType"], "FULL_OBJECT")

    def test_kinds_that_do_not_exist(self):
        for algorithm, kind in (("SHA1", "FULL_OBJECT"), ("SHA256", "FULL_OBJECT"), ("CRC64NVME", "COMPOSITE")):
            with self.subTest(algorithm), self.refused(400, "InvalidRequest"):
                self.start("key", ChecksumAlgorithm=algorithm, ChecksumType=kind)

    def test_default_kinds(self):
        for algorithm in COMPUTE:
            upload = self.s3.create_multipart_upload(Bucket=self.bucket, Key="key", ChecksumAlgorithm=algorithm)
            expected = "FULL_OBJECT" if algorithm == "CRC64NVME" else "COMPOSITE"
            self.assertEqual(upload["ChecksumType"], expected)
            self.assertEqual(upload["ChecksumAlgorithm"], algorithm)

    def test_wrong_in_a_part(self):
        for algorithm in COMPUTE:
            upload = self.start("key", ChecksumAlgorithm=algorithm)
            with self.subTest(algorithm), self.refused(400, "BadDigest"):
                self.part("key", upload, 1, b"body", **{f"Checksum{algorithm}": value(algorithm, b"other")})

    def test_another_algorithm_in_a_part(self):
        upload = self.start("key", ChecksumAlgorithm="SHA256")
        with self.refused(400, "InvalidRequest"):
            self.part("key", upload, 1, b"body", ChecksumCRC32=value("CRC32", b"body"))

    def test_wrong_at_completion(self):
        upload, parts = self.upload("SHA256", "COMPOSITE")
        wrong = dict(parts[0], ChecksumSHA256=value("SHA256", b"other"))
        with self.refused(400, "InvalidPart"):
            self.complete("key", upload, [wrong, parts[1]])
        self.complete("key", upload, parts)

    def test_computed_where_the_client_sent_none(self):
        upload = self.start("key", ChecksumAlgorithm="SHA256")
        path = f"/{self.bucket}/key"
        query = [("partNumber", "1"), ("uploadId", upload)]
        answer = raw.request("PUT", path, query, body=b"body")
        self.assertEqual(answer.status, 200, answer)
        listed = self.s3.list_parts(Bucket=self.bucket, Key="key", UploadId=upload)
        self.assertEqual(listed["ChecksumAlgorithm"], "SHA256")
        self.assertEqual(listed["Parts"][0]["ChecksumSHA256"], value("SHA256", b"body"))

    def test_none_named(self):
        upload = self.start("key")
        parts = []
        for number, body in enumerate(self.bodies, 1):
            query = [("partNumber", str(number)), ("uploadId", upload)]
            answer = raw.request("PUT", f"/{self.bucket}/key", query, body=body)
            parts.append({"PartNumber": number, "ETag": answer.headers["etag"]})
        self.complete("key", upload, parts)
        found = self.head("key", ChecksumMode="ENABLED")
        self.assertEqual(found["ChecksumCRC64NVME"], value("CRC64NVME", b"".join(self.bodies)))
        self.assertEqual(found["ChecksumType"], "FULL_OBJECT")

    def test_by_part_number(self):
        upload, parts = self.upload("CRC32", "COMPOSITE")
        self.complete("key", upload, parts)
        for number, body in enumerate(self.bodies, 1):
            found = self.head("key", PartNumber=number, ChecksumMode="ENABLED")
            self.assertEqual(found["ChecksumCRC32"], value("CRC32", body))


kit.main()
