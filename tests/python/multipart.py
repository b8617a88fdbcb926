"""Uploads in parts: begun, filled in any order, finished once, or given up."""

import kit
import raw

MIN = kit.PART_MIN


class Complete(kit.Case):
    def test_in_order(self):
        bodies = [kit.data(MIN, 1), kit.data(MIN + 7, 2), kit.data(3, 3)]
        result = self.multipart("key", bodies, ContentType="text/x-m", Metadata={"k": "v"})
        self.assertEqual(result["ETag"], f'"{kit.etag_of_parts(bodies)}"')
        self.assertIn("key", result["Location"])
        self.assertEqual(result["ServerSideEncryption"], "AES256")
        answer = self.get("key")
        self.assertTrue(answer["Body"] == b"".join(bodies))
        self.assertEqual((answer["ContentType"], answer["Metadata"]), ("text/x-m", {"k": "v"}))
        self.assertEqual(answer["ETag"], result["ETag"])
        self.assertEqual(self.head("key")["ContentLength"], sum(map(len, bodies)))

    def test_out_of_order_and_at_once(self):
        numbers = [10_000, 3, 500, 4, 77]
        bodies = {n: kit.data(MIN + n, n) for n in numbers}
        upload = self.start("key")
        parts = kit.in_parallel(lambda n: self.part("key", upload, n, bodies[n]), numbers)
        parts.sort(key=lambda p: p["PartNumber"])
        self.complete("key", upload, parts)
        self.assertBody("key", b"".join(bodies[n] for n in sorted(numbers)))

    def test_one_small_part(self):
        for size in (0, 1, 65_537):
            body = kit.data(size)
            result = self.multipart("key", [body])
            self.assertEqual(result["ETag"], f'"{kit.etag_of_parts([body])}"')
            self.assertBody("key", body)

    def test_a_part_again(self):
        upload = self.start("key")
        old = self.part("key", upload, 1, kit.data(MIN, "old"))
        last = self.part("key", upload, 2, kit.data(10, "last"))
        new = self.part("key", upload, 1, kit.data(MIN + 100, "new"))
        with self.refused(400, "InvalidPart"):
            self.complete("key", upload, [old, last])
        self.complete("key", upload, [new, last])
        self.assertBody("key", kit.data(MIN + 100, "new") + kit.data(10, "last"))

    def test_parts_left_out(self):
        upload = self.start("key")
        parts = [self.part("key", upload, n, kit.data(MIN, n)) for n in (1, 2, 3)]
        self.complete("key", upload, [parts[0], parts[2]])
        self.assertBody("key", kit.data(MIN, 1) + kit.data(MIN, 3))

    def test_replaces_an_object(self):
        self.put("key", b"old")
        upload = self.start("key")
        part = self.part("key", upload, 1, b"new")
        self.assertBody("key", b"old")
        self.complete("key", upload, [part])
        self.assertBody("key", b"new")
        self.assertEqual(self.keys(), ["key"])

    def test_said_twice(self):
        upload = self.start("key")
        parts = [self.part("key", upload, 1, kit.data(MIN)), self.part("key", upload, 2, b"end")]
        first = self.complete("key", upload, parts)
        again = self.complete("key", upload, parts)
        self.assertEqual(first["ETag"], again["ETag"])
        self.assertBody("key", kit.data(MIN) + b"end")

    def test_two_uploads_of_one_key(self):
        first, second = self.start("key"), self.start("key")
        self.assertNotEqual(first, second)
        one = self.part("key", first, 1, b"first")
        two = self.part("key", second, 1, b"second")
        self.complete("key", second, [two])
        self.assertBody("key", b"second")
        self.complete("key", first, [one])
        self.assertBody("key", b"first")


class Refused(kit.Case):
    def test_too_small(self):
        upload = self.start("key")
        parts = [self.part("key", upload, 1, kit.data(MIN - 1)), self.part("key", upload, 2, b"end")]
        with self.refused(400, "EntityTooSmall") as error:
            self.complete("key", upload, parts)
        self.assertEqual(error["Error"].get("PartNumber"), "1")
        self.assertAbsent("key")
        parts[0] = self.part("key", upload, 1, kit.data(MIN))
        self.complete("key", upload, parts)
        self.assertBody("key", kit.data(MIN) + b"end")

    def test_wrong_parts(self):
        upload = self.start("key")
        parts = [self.part("key", upload, n, kit.data(MIN, n)) for n in (1, 2)]
        wrong = dict(parts[0], ETag=parts[1]["ETag"])
        with self.refused(400, "InvalidPart"):
            self.complete("key", upload, [wrong, parts[1]])
        with self.refused(400, "InvalidPart"):
            self.complete("key", upload, parts + [dict(parts[1], PartNumber=3)])
        with self.refused(400, "InvalidPartOrder"):
            self.complete("key", upload, parts[::-1])
        with self.refused(400, "InvalidPartOrder"):
            self.complete("key", upload, [parts[0], parts[0]])
        self.assertAbsent("key")
        self.complete("key", upload, parts)

    def test_numbers_out_of_range(self):
        upload = self.start("key")
        for number in (0, 10_001, -1):
            with self.subTest(number), self.refused(400, "InvalidArgument"):
                self.part("key", upload, number, b"x")

    def test_bodies_that_say_nothing(self):
        upload = self.start("key")
        query = [("uploadId", upload)]
        path = f"/{self.bucket}/key"
        for body, codes in (
            (b"", ("MalformedXML", "InvalidRequest")),
            (b"not xml", ("MalformedXML",)),
            (b"<CompleteMultipartUpload></CompleteMultipartUpload>", ("MalformedXML", "InvalidRequest")),
        ):
            with self.subTest(body):
                answer = raw.request("POST", path, query, body=body, payload="hash")
                self.assertEqual(answer.status, 400, answer)
                self.assertIn(answer.code, codes)
        self.assertAbsent("key")

    def test_wrong_size(self):
        upload = self.start("key")
        part = self.part("key", upload, 1, b"12345")
        with self.refused(400):
            self.complete("key", upload, [part], MpuObjectSize=6)
        self.complete("key", upload, [part], MpuObjectSize=5)

    def test_unknown_uploads(self):
        upload = self.start("key")
        part = self.part("key", upload, 1, b"x")
        for name in ("nonsense", "A" * 64, upload[:-1], upload + "0"):
            with self.subTest(name):
                with self.refused(404, "NoSuchUpload"):
                    self.part("key", name, 1, b"x")
                with self.refused(404, "NoSuchUpload"):
                    self.complete("key", name, [part])
                with self.refused(404, "NoSuchUpload"):
                    self.s3.list_parts(Bucket=self.bucket, Key="key", UploadId=name)
                with self.refused(404, "NoSuchUpload"):
                    self.s3.abort_multipart_upload(Bucket=self.bucket, Key="key", UploadId=name)
        with self.refused(404, "NoSuchUpload"):
            self.complete("other key", upload, [part])
        self.complete("key", upload, [part])

    def test_wrong_digest(self):
        upload = self.start("key")
        with self.refused(400, "BadDigest"):
            self.part("key", upload, 1, b"x", ContentMD5="1B2M2Y8AsgTpgAmY7PhCfg==")
        listed = self.s3.list_parts(Bucket=self.bucket, Key="key", UploadId=upload)
        self.assertNotIn("Parts", listed)


class Abort(kit.Case):
    def test_gone(self):
        upload = self.start("key")
        part = self.part("key", upload, 1, kit.data(MIN))
        self.s3.abort_multipart_upload(Bucket=self.bucket, Key="key", UploadId=upload)
        self.assertAbsent("key")
        with self.refused(404, "NoSuchUpload"):
            self.part("key", upload, 2, b"x")
        with self.refused(404, "NoSuchUpload"):
            self.complete("key", upload, [part])
        self.assertNotIn("Uploads", self.s3.list_multipart_uploads(Bucket=self.bucket))

    def test_leaves_the_object(self):
        self.put("key", b"old")
        upload = self.start("key")
        self.part("key", upload, 1, b"new")
        self.s3.abort_multipart_upload(Bucket=self.bucket, Key="key", UploadId=upload)
        self.assertBody("key", b"old")


class Lists(kit.Case):
    def test_parts_in_pages(self):
        upload = self.start("key")
        numbers = [1, 2, 5, 9, 10, 400, 10_000]
        for n in numbers:
            self.part("key", upload, n, kit.data(n, n))
        pages = self.s3.get_paginator("list_parts").paginate(
            Bucket=self.bucket, Key="key", UploadId=upload, PaginationConfig={"PageSize": 3}
        )
        found, sizes = [], []
        for page in pages:
            sizes.append(len(page["Parts"]))
            found += page["Parts"]
        self.assertEqual(sizes, [3, 3, 1])
        self.assertEqual([p["PartNumber"] for p in found], numbers)
        self.assertEqual([p["Size"] for p in found], numbers)
        self.assertEqual([p["ETag"] for p in found], [f'"{kit.md5(kit.data(n, n))}"' for n in numbers])

    def test_parts_show_the_last_upload(self):
        upload = self.start("key")
        self.part("key", upload, 1, b"old and longer")
        self.part("key", upload, 1, b"new")
        parts = self.s3.list_parts(Bucket=self.bucket, Key="key", UploadId=upload)["Parts"]
        self.assertEqual([p["Size"] for p in parts], [3])

    def test_uploads_in_pages(self):
        keys = ["a", "a", "b/1", "b/2", "b/2", "b/2", "c"]
        begun = {(k, self.start(k)) for k in keys}
        self.assertNotIn("Contents", self.s3.list_objects_v2(Bucket=self.bucket))
        for size in (1, 2, 3, 100):
            pages = self.s3.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.bucket, PaginationConfig={"PageSize": size}
            )
            found = [(u["Key"], u["UploadId"]) for p in pages for u in p.get("Uploads", [])]
            self.assertEqual([k for k, _ in found], keys, size)
            self.assertEqual(set(found), begun, size)

    def test_uploads_under_a_prefix(self):
        for key in ("a", "b/1", "b/2", "c/d/e"):
            self.start(key)
        page = self.s3.list_multipart_uploads(Bucket=self.bucket, Prefix="b/")
        self.assertEqual([u["Key"] for u in page["Uploads"]], ["b/1", "b/2"])
        page = self.s3.list_multipart_uploads(Bucket=self.bucket, Delimiter="/")
        self.assertEqual([u["Key"] for u in page["Uploads"]], ["a"])
        self.assertEqual([p["Prefix"] for p in page["CommonPrefixes"]], ["b/", "c/"])


kit.main()
