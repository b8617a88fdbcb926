"""Bucket encryption and the headers of SSE-S3, on a server that seals by default and on one that does not.

`STRONGROOM_TEST_DEFAULT=none` says that the server runs with `--default-encryption none`.
"""

import hashlib
import os

import kit
import raw

SEALS = os.environ.get("STRONGROOM_TEST_DEFAULT") != "none"
AES256 = {"Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]}
XMLNS = "http://s3.amazonaws.com/doc/2006-03-01/"


class Encryption(kit.Case):
    def mode(self, key):
        head, got = self.head(key), self.get(key)
        self.assertEqual(head.get("ServerSideEncryption"), got.get("ServerSideEncryption"))
        return head.get("ServerSideEncryption")

    def configure(self, configuration=None):
        self.s3.put_bucket_encryption(
            Bucket=self.bucket, ServerSideEncryptionConfiguration=configuration or AES256
        )

    def assertUnset(self):
        if SEALS:
            self.assertSet()
            return
        with self.refused(404, "ServerSideEncryptionConfigurationNotFoundError"):
            self.s3.get_bucket_encryption(Bucket=self.bucket)

    def assertSet(self):
        answer = self.s3.get_bucket_encryption(Bucket=self.bucket)
        rules = answer["ServerSideEncryptionConfiguration"]["Rules"]
        self.assertEqual(len(rules), 1)
        self.assertEqual(rules[0]["ApplyServerSideEncryptionByDefault"], {"SSEAlgorithm": "AES256"})
        self.assertEqual(rules[0]["BucketKeyEnabled"], False)

    def test_default(self):
        self.assertUnset()
        answer = self.put("key", kit.data(100_000))
        self.assertEqual(answer.get("ServerSideEncryption"), "AES256" if SEALS else None)
        self.assertEqual(self.mode("key"), "AES256" if SEALS else None)
        self.assertBody("key", kit.data(100_000))

    def test_asked_for_by_header(self):
        for size in (5, 100_000):
            answer = self.put("key", kit.data(size), ServerSideEncryption="AES256")
            self.assertEqual(answer["ServerSideEncryption"], "AES256")
            self.assertEqual(self.mode("key"), "AES256")
            self.assertBody("key", kit.data(size))

    def test_set_and_unset(self):
        self.put("before")
        self.configure()
        self.assertSet()
        self.put("during")
        self.assertEqual(self.mode("during"), "AES256")
        for _ in range(2):
            answer = self.s3.delete_bucket_encryption(Bucket=self.bucket)
            self.assertEqual(answer["ResponseMetadata"]["HTTPStatusCode"], 204)
        self.assertUnset()
        self.put("after")
        self.assertEqual(self.mode("during"), "AES256")
        for key in ("before", "after"):
            self.assertEqual(self.mode(key), "AES256" if SEALS else None)
            self.assertBody(key, b"content")

    def test_every_way_to_write(self):
        """Copies and multipart objects take the mode of their target, whatever the source was."""
        self.put("plain", kit.data(70_000))
        self.configure()
        source = {"Bucket": self.bucket, "Key": "plain"}
        self.s3.copy_object(Bucket=self.bucket, Key="copy", CopySource=source)
        upload = self.s3.create_multipart_upload(Bucket=self.bucket, Key="parts")
        self.assertEqual(upload["ServerSideEncryption"], "AES256")
        part = self.s3.upload_part(
            Bucket=self.bucket, Key="parts", UploadId=upload["UploadId"], PartNumber=1, Body=kit.data(70_000)
        )
        self.assertEqual(part["ServerSideEncryption"], "AES256")
        self.complete("parts", upload["UploadId"], [{"PartNumber": 1, "ETag": part["ETag"]}])
        for key in ("copy", "parts"):
            self.assertEqual(self.mode(key), "AES256")
            self.assertBody(key, kit.data(70_000))

    def test_frozen_when_an_upload_begins(self):
        upload = self.start("key", ServerSideEncryption="AES256")
        self.s3.delete_bucket_encryption(Bucket=self.bucket)
        self.complete("key", upload, [self.part("key", upload, 1, b"content")])
        self.assertEqual(self.mode("key"), "AES256")

    def test_configurations_that_are_wrong(self):
        rule = AES256["Rules"][0]
        with self.refused(400, "MalformedXML"):
            self.configure({"Rules": [rule, rule]})
        for body in (b"", b"<nonsense/>", f'<ServerSideEncryptionConfiguration xmlns="{XMLNS}"/>'.encode()):
            with self.subTest(body):
                digest = {"content-md5": raw.b64(hashlib.md5(body).digest())}
                answer = raw.request("PUT", f"/{self.bucket}", ["encryption"], headers=digest, body=body)
                self.assertEqual(answer.status, 400, answer)
                self.assertIn(answer.code, ("MalformedXML", "MissingRequestBodyError"))
        named = {"SSEAlgorithm": "AES256", "KMSMasterKeyID": "some-key"}
        with self.refused(400, "InvalidArgument"):
            self.configure({"Rules": [{"ApplyServerSideEncryptionByDefault": named}]})
        unknown = {"SSEAlgorithm": "ROT13"}
        with self.refused(400, "MalformedXML", "InvalidArgument"):
            self.configure({"Rules": [{"ApplyServerSideEncryptionByDefault": unknown}]})
        self.assertUnset()

    def test_headers_that_are_wrong(self):
        for value in ("AES192", "aes256", "ROT13", "none"):
            with self.subTest(value):
                headers = {"x-amz-server-side-encryption": value}
                answer = raw.request("PUT", f"/{self.bucket}/key", headers=headers, body=b"x")
                self.assertEqual((answer.status, answer.code), (400, "InvalidArgument"), answer)
        headers = {"x-amz-server-side-encryption": "AES256", "x-amz-server-side-encryption-aws-kms-key-id": "k"}
        answer = raw.request("PUT", f"/{self.bucket}/key", headers=headers, body=b"x")
        self.assertEqual((answer.status, answer.code), (400, "InvalidArgument"), answer)
        self.assertAbsent("key")
        self.put("key", ServerSideEncryption="AES256")
        headers = {"x-amz-server-side-encryption": "AES256"}
        for method in ("GET", "HEAD"):
            self.assertEqual(raw.request(method, f"/{self.bucket}/key", headers=headers).status, 400)

    def test_modes_are_refused_or_obeyed(self):
        """Whatever protection a client asks for, it gets that one or an error, never another in silence."""
        key = os.urandom(32)
        customer = "x-amz-server-side-encryption-customer"
        for headers in (
            {"x-amz-server-side-encryption": "aws:kms"},
            {"x-amz-server-side-encryption": "aws:kms:dsse"},
            {
                f"{customer}-algorithm": "AES256",
                f"{customer}-key": raw.b64(key),
                f"{customer}-key-md5": raw.b64(hashlib.md5(key).digest()),
            },
        ):
            with self.subTest(headers=list(headers.items())[0]):
                for method, query in (("PUT", []), ("POST", ["uploads"])):
                    answer = raw.request(method, f"/{self.bucket}/key", query, headers=headers, body=b"")
                    if answer.status == 200:
                        name, value = list(headers.items())[0]
                        self.assertEqual(answer.headers.get(name), value, answer)
                    else:
                        self.assertIn(answer.status, (400, 501), answer)


kit.main()
