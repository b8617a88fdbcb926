"""What is not implemented answers 501 and changes nothing; what nobody has set reads as S3 reads it."""

import kit
import raw

# Calls that exist on S3 and are not made here. One that is taken for a PUT of the object would replace it with a piece of XML.
OBJECT = ("acl", "tagging", "retention", "legal-hold", "torrent", "annotation", "restore", "renameObject", "select")
BUCKET = (
    "accelerate", "acl", "analytics", "cors", "intelligent-tiering", "inventory", "lifecycle", "logging", "metadataConfiguration",
    "metadataTable", "metrics", "notification", "object-lock", "ownershipControls", "policy", "policyStatus",
    "publicAccessBlock", "replication", "requestPayment", "tagging", "versioning", "website", "abac",
)
UNKNOWN = ("nobody-knows-this", "Encryption", "aCl", "versions-of-the-future")


class Writes(kit.Case):
    def setUp(self):
        super().setUp()
        self.etag = self.put("key", b"content", Metadata={"k": "v"})["ETag"]

    def assertUntouched(self):
        answer = self.get("key")
        self.assertEqual((answer["Body"], answer["Metadata"], answer["ETag"]), (b"content", {"k": "v"}, self.etag))
        self.assertEqual(self.keys(), ["key"])

    def check(self, method, path, query):
        answer = raw.request(method, path, query, body=b"" if method == "DELETE" else b"<Some><Xml/></Some>")
        self.assertEqual((answer.status, answer.code), (501, "NotImplemented"), (query, answer))

    def test_on_an_object(self):
        for name in OBJECT + UNKNOWN:
            for method in ("PUT", "POST", "DELETE"):
                with self.subTest(f"{method} ?{name}"):
                    self.check(method, f"/{self.bucket}/key", [name])
                    self.check(method, f"/{self.bucket}/key", [(name, "")])
        self.assertUntouched()

    def test_on_a_bucket(self):
        for name in BUCKET + UNKNOWN:
            for method in ("PUT", "POST", "DELETE"):
                with self.subTest(f"{method} ?{name}"):
                    self.check(method, f"/{self.bucket}", [name])
                    self.check(method, f"/{self.bucket}/", [name])
        self.assertUntouched()
        self.delete("key")
        for name in ("policy", "cors", "tagging") + UNKNOWN:  # an empty bucket, which a DELETE could take
            self.check("DELETE", f"/{self.bucket}", [name])
        self.s3.head_bucket(Bucket=self.bucket)

    def test_hidden_among_parameters(self):
        path = f"/{self.bucket}/key"
        self.check("PUT", path, [("x-id", "PutObject"), "acl"])
        self.check("PUT", path, ["website", ("versionId", "null")])
        self.check("DELETE", path, [("x-id", "DeleteObject"), "tagging"])
        self.assertUntouched()

    def test_an_encryption_that_is_none(self):
        """The one write beside an object that there is; of XML that means nothing it makes nothing."""
        for query in (["encryption"], [("encryption", "")], ["encryption", ("versionId", "null")], ["encryption", "x-id"]):
            answer = raw.request("PUT", f"/{self.bucket}/key", query, body=b"<Some><Xml/></Some>", payload="hash")
            self.assertEqual((answer.status, answer.code), (400, "MalformedXML"), (query, answer))
        for method in ("POST", "DELETE"):
            self.check(method, f"/{self.bucket}/key", ["encryption"])
        self.assertUntouched()

    def test_parameters_are_none(self):
        for query in ([("x-id", "PutObject")], [("x-anything", "")], ["x-flag"]):
            answer = raw.request("PUT", f"/{self.bucket}/other", query, body=b"x")
            self.assertEqual(answer.status, 200, (query, answer))
        self.assertBody("other", b"x")

    def test_protection_asked_for_by_header(self):
        """A header that asks for something to be kept safe is obeyed or refused, never passed over."""
        for headers in (
            {"x-amz-object-lock-mode": "GOVERNANCE", "x-amz-object-lock-retain-until-date": "2031-01-01T00:00:00Z"},
            {"x-amz-object-lock-legal-hold": "ON"},
            {"x-amz-object-lock-event-hold": "ON"},
            {"x-amz-tagging": "a=b"},
        ):
            with self.subTest(headers=headers):
                answer = raw.request("PUT", f"/{self.bucket}/held", headers=headers, body=b"x")
                self.assertIn(answer.status, (400, 501), answer)
        self.assertUntouched()


class Reads(kit.Case):
    def test_never_set(self):
        for call, code in (
            ("get_bucket_policy", "NoSuchBucketPolicy"),
            ("get_bucket_tagging", "NoSuchTagSet"),
            ("get_bucket_cors", "NoSuchCORSConfiguration"),
            ("get_bucket_lifecycle_configuration", "NoSuchLifecycleConfiguration"),
            ("get_object_lock_configuration", "ObjectLockConfigurationNotFoundError"),
        ):
            with self.subTest(call), self.refused(404, code):
                getattr(self.s3, call)(Bucket=self.bucket)

    def test_versioning(self):
        answer = self.s3.get_bucket_versioning(Bucket=self.bucket)
        self.assertEqual(answer["ResponseMetadata"]["HTTPStatusCode"], 200)
        self.assertNotIn("Status", answer)

    def test_not_implemented(self):
        for name in ("analytics", "inventory", "metrics", "intelligent-tiering", "metadataTable", "abac"):
            with self.subTest(name):
                answer = raw.request("GET", f"/{self.bucket}", [name])
                self.assertIn(answer.status, (404, 501), answer)
        self.put("key")
        for name in ("torrent", "retention", "legal-hold", "annotation"):
            with self.subTest(name):
                answer = raw.request("GET", f"/{self.bucket}/key", [name])
                self.assertIn(answer.status, (400, 404, 501), answer)  # 400: the bucket has no object lock
                self.assertNotIn(b"content", answer.body)

    def test_cors_preflight(self):
        headers = {"origin": "https://example.org", "access-control-request-method": "GET"}
        answer = raw.request("OPTIONS", f"/{self.bucket}/key", headers=headers, sign=False)
        self.assertEqual(answer.status, 403, answer)


kit.main()
