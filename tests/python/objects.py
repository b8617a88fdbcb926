"""Single objects: put, read, described, replaced, removed."""

import base64
import datetime
import hashlib
import re

import kit
import raw

SIZES = [0, 1, 15, 16, 17, 4095, 4096, 4097, 65535, 65536, 65537, 131072, 1 << 20, (1 << 20) + 1, (5 << 20) + 3]


class Objects(kit.Case):
    def test_every_size_comes_back(self):
        for size in SIZES:
            with self.subTest(size=size):
                body = kit.data(size)
                answer = self.put(f"size-{size}", body)
                self.assertEqual(answer["ETag"], f'"{kit.md5(body)}"')
                self.assertEqual(answer["ServerSideEncryption"], "AES256")
                got = self.get(f"size-{size}")
                self.assertTrue(got["Body"] == body)
                self.assertEqual(got["ContentLength"], size)
                self.assertEqual(got["ETag"], answer["ETag"])
                self.assertEqual(got["ServerSideEncryption"], "AES256")
                head = self.head(f"size-{size}")
                self.assertEqual(head["ContentLength"], size)
                self.assertEqual(head["ServerSideEncryption"], "AES256")
        listed = self.s3.list_objects_v2(Bucket=self.bucket)["Contents"]
        self.assertEqual(sorted(o["Size"] for o in listed), SIZES)

    def test_headers_and_metadata(self):
        # boto3 refuses names in upper case only on the way back: the wire has lower case.
        sent = {
            "ContentType": "text/x-strong; charset=utf-8",
            "CacheControl": "max-age=17, private",
            "ContentDisposition": 'attachment; filename="a b.txt"',
            "ContentEncoding": "gzip",
            "ContentLanguage": "de, en",
            "Metadata": {"plain": "value", "with-dash": "spaces  inside", "empty": "", "punct": '"\\,;=%'},
        }
        expires = datetime.datetime(2031, 5, 6, 7, 8, 9, tzinfo=datetime.timezone.utc)
        self.put("described", b"x", Expires=expires, **sent)
        for verb in (self.get, self.head):
            answer = verb("described")
            for name, value in sent.items():
                self.assertEqual(answer[name], value, name)
            self.assertEqual(answer["ExpiresString"], "Tue, 06 May 2031 07:08:09 GMT")
        self.put("described", b"y")
        answer = self.head("described")
        self.assertEqual(answer["Metadata"], {})
        self.assertEqual(answer["ContentType"], "binary/octet-stream")
        self.assertNotIn("CacheControl", answer)

    def test_metadata_beyond_the_limit(self):
        self.put("fits", Metadata={"m": "x" * 2047})
        self.assertEqual(len(self.head("fits")["Metadata"]["m"]), 2047)
        with self.refused(400, "MetadataTooLarge"):
            self.put("fits", Metadata={"m": "x" * 2048})

    def test_response_overrides(self):
        self.put("key", ContentType="text/plain")
        answer = self.get(
            "key",
            ResponseContentType="application/x-other",
            ResponseContentDisposition="attachment",
            ResponseCacheControl="no-store",
            ResponseContentLanguage="fr",
            ResponseContentEncoding="identity",
            ResponseExpires=datetime.datetime(2030, 1, 1, tzinfo=datetime.timezone.utc),
        )
        self.assertEqual(answer["ContentType"], "application/x-other")
        self.assertEqual(answer["ContentDisposition"], "attachment")
        self.assertEqual(answer["CacheControl"], "no-store")
        self.assertEqual(answer["ContentLanguage"], "fr")
        self.assertEqual(answer["ContentEncoding"], "identity")
        self.assertEqual(self.head("key")["ContentType"], "text/plain")

    def test_replaced(self):
        for size in (10, 300_000, 0, 70_000, 10):
            self.put("key", kit.data(size), Metadata={"size": str(size)})
            self.assertBody("key", kit.data(size))
            self.assertEqual(self.head("key")["Metadata"], {"size": str(size)})
        self.assertEqual(self.keys(), ["key"])

    def test_absent(self):
        with self.refused(404, "NoSuchKey") as error:
            self.get("missing")
        self.assertEqual(error["Error"]["Key"], "missing")
        with self.refused(404):
            self.head("missing")
        answer = self.delete("missing")
        self.assertEqual(answer["ResponseMetadata"]["HTTPStatusCode"], 204)

    def test_removed(self):
        self.put("key")
        self.put("key2")
        self.delete("key")
        self.assertAbsent("key")
        self.assertBody("key2", b"content")

    def test_removed_by_the_list(self):
        names = [f"k{n}" for n in range(20)] + ["odd & <key>", "sp ace", "ü/ö"]
        kit.in_parallel(self.put, names)
        self.put("kept")
        entries = [{"Key": n} for n in names + ["never-there"]]
        answer = self.s3.delete_objects(Bucket=self.bucket, Delete={"Objects": entries})
        self.assertEqual({d["Key"] for d in answer["Deleted"]}, set(names) | {"never-there"})
        self.assertNotIn("Errors", answer)
        self.assertEqual(self.keys(), ["kept"])
        quiet = {"Objects": [{"Key": "kept"}], "Quiet": True}
        answer = self.s3.delete_objects(Bucket=self.bucket, Delete=quiet)
        self.assertNotIn("Deleted", answer)
        self.assertEqual(self.keys(), [])

    def test_encoded_words_that_are_none(self):
        for value in ("=?=", "=?= =?=", "=?UTF-8?B?YQ==?= =?="):
            with self.subTest(value), self.refused(400, "InvalidArgument"):
                self.put("key", Metadata={"k": value})
        self.assertEqual(self.keys(), [])
        self.put("key", Metadata={"k": "a =?= b", "l": "?="})
        self.assertEqual(self.head("key")["Metadata"], {"k": "a =?= b", "l": "?="})

    def test_keys_too_long_among_many(self):
        self.put("key")
        long = ["k" * n for n in (1025, 65_525, 65_536, 500_000)]
        answer = self.s3.delete_objects(Bucket=self.bucket, Delete={"Objects": [{"Key": k} for k in long + ["key"]]})
        self.assertEqual([(e["Key"], e["Code"]) for e in answer["Errors"]], [(k, "KeyTooLongError") for k in long])
        self.assertEqual([d["Key"] for d in answer["Deleted"]], ["key"])

    def test_removal_list_beyond_the_limit(self):
        self.put("k0")
        entries = [{"Key": f"k{n}"} for n in range(1001)]
        with self.refused(400, "MalformedXML"):
            self.s3.delete_objects(Bucket=self.bucket, Delete={"Objects": entries})
        self.assertBody("k0", b"content")
        self.s3.delete_objects(Bucket=self.bucket, Delete={"Objects": entries[:1000]})
        self.assertAbsent("k0")

    def test_removal_list_needs_integrity(self):
        self.put("key")
        body = b"<Delete><Object><Key>key</Key></Object></Delete>"
        answer = raw.request("POST", f"/{self.bucket}", ["delete"], body=body)
        self.assertEqual(answer.status, 400, answer)
        wrong = {"content-md5": raw.b64(hashlib.md5(b"other").digest())}
        answer = raw.request("POST", f"/{self.bucket}", ["delete"], headers=wrong, body=body)
        self.assertEqual((answer.status, answer.code), (400, "BadDigest"), answer)
        self.assertBody("key", b"content")
        right = {"content-md5": raw.b64(hashlib.md5(body).digest())}
        answer = raw.request("POST", f"/{self.bucket}", ["delete"], headers=right, body=body)
        self.assertEqual(answer.status, 200, answer)
        self.assertAbsent("key")

    def test_content_md5(self):
        body = kit.data(100_000)
        right = base64.b64encode(hashlib.md5(body).digest()).decode()
        wrong = base64.b64encode(hashlib.md5(b"other").digest()).decode()
        self.put("key", body, ContentMD5=right)
        with self.refused(400, "BadDigest"):
            self.put("key", body + b"!", ContentMD5=right)
        with self.refused(400, "BadDigest"):
            self.put("new", body, ContentMD5=wrong)
        for malformed in ("AAAA", "not base64", wrong[:-4]):
            with self.subTest(malformed), self.refused(400, "InvalidDigest"):
                self.put("new", body, ContentMD5=malformed)
        self.assertBody("key", body)
        self.assertAbsent("new")

    def test_zero_bytes(self):
        self.put("empty", b"", Metadata={"a": "b"})
        answer = self.get("empty")
        self.assertEqual((answer["Body"], answer["ContentLength"]), (b"", 0))
        self.assertEqual(answer["Metadata"], {"a": "b"})
        self.assertEqual(answer["ETag"], f'"{kit.md5(b"")}"')
        with self.refused(416, "InvalidRange"):
            self.get("empty", Range="bytes=0-0")
        self.s3.copy_object(Bucket=self.bucket, Key="copy", CopySource=f"{self.bucket}/empty")
        self.assertBody("copy", b"")
        self.put("folder/", b"")
        self.assertEqual(self.keys(), ["copy", "empty", "folder/"])
        self.delete("empty")
        self.assertAbsent("empty")

    def test_zero_bytes_one_after_the_other_on_a_connection(self):
        one = kit.client(max_pool_connections=1, read_timeout=10)
        for number, body in enumerate((b"", b"abc", b"", b"", b"x" * 100_000)):
            one.put_object(Bucket=self.bucket, Key=f"{number}", Body=body)
            self.assertBody(f"{number}", body)

    def test_times(self):
        before = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=2)
        self.put("key")
        modified = self.head("key")["LastModified"]
        self.assertLess(before, modified)
        self.assertLess(modified, before + datetime.timedelta(seconds=60))
        answer = raw.request("GET", f"/{self.bucket}", [("list-type", "2")])
        self.assertRegex(answer.element("LastModified"), r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        answer = raw.request("GET", f"/{self.bucket}/key")
        pattern = r"^(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT$"
        self.assertRegex(answer.headers["last-modified"], pattern)
        listed = self.s3.list_objects_v2(Bucket=self.bucket)["Contents"][0]["LastModified"]
        self.assertEqual(listed.replace(microsecond=0), modified)

    def test_what_every_response_carries(self):
        self.put("key")
        for method, path, status in [
            ("GET", f"/{self.bucket}/key", 200),
            ("HEAD", f"/{self.bucket}/key", 200),
            ("GET", f"/{self.bucket}/missing", 404),
            ("HEAD", f"/{self.bucket}/missing", 404),
            ("DELETE", f"/{self.bucket}/missing", 204),
            ("GET", f"/{self.bucket}", 200),
            ("GET", "/", 200),
        ]:
            with self.subTest(f"{method} {path}"):
                answer = raw.request(method, path)
                self.assertEqual(answer.status, status, answer)
                self.assertTrue(answer.headers.get("x-amz-request-id"))
                self.assertTrue(answer.headers.get("x-amz-id-2"))
                if method == "HEAD":
                    self.assertEqual(answer.body, b"")
                elif status == 404:
                    self.assertIn("xml", answer.headers["content-type"])
                    self.assertEqual(answer.element("RequestId"), answer.headers["x-amz-request-id"])
                    self.assertTrue(re.match(r"<\?xml", answer.text))
        answer = raw.request("GET", f"/{self.bucket}/key")
        self.assertEqual(answer.headers["accept-ranges"], "bytes")
        self.assertEqual(answer.headers["etag"], f'"{kit.md5(b"content")}"')
        ids = {raw.request("GET", "/").headers["x-amz-request-id"] for _ in range(5)}
        self.assertEqual(len(ids), 5)

    def test_key_beyond_the_limit(self):
        with self.refused(400, "KeyTooLongError"):
            self.put("x" * 1025)
        with self.refused(400, "KeyTooLongError"):
            self.put("ü" * 512 + "x")
        self.assertEqual(self.keys(), [])

    def test_many_at_once(self):
        names = [f"n{n:03}" for n in range(200)]
        kit.in_parallel(lambda n: self.put(n, kit.data(3000, n)), names, threads=32)
        bodies = kit.in_parallel(self.body, names, threads=32)
        self.assertTrue(all(b == kit.data(3000, n) for n, b in zip(names, bodies)))
        self.assertEqual(self.keys(), names)


kit.main()
