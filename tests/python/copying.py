"""Copies: of whole objects and of ranges into parts."""

import kit
import raw

P = kit.PACKAGE


class Copies(kit.Case):
    def copy(self, source, target, bucket=None, **more):
        source = {"Bucket": self.bucket, "Key": source} if isinstance(source, str) else source
        return self.s3.copy_object(Bucket=bucket or self.bucket, Key=target, CopySource=source, **more)

    def test_within_and_across_buckets(self):
        other = self.new_bucket()
        for size in (0, 100, P + 1, 3 * kit.MIB):
            with self.subTest(size=size):
                body = kit.data(size)
                etag = self.put("source", body, ContentType="text/x-a", Metadata={"k": "v"})["ETag"]
                result = self.copy("source", "copy")["CopyObjectResult"]
                self.assertEqual(result["ETag"], etag)
                self.assertTrue(result["LastModified"])
                self.copy("source", "copy", other)
                self.delete("source")
                self.assertBody("copy", body)
                got = self.s3.get_object(Bucket=other, Key="copy")
                self.assertTrue(got["Body"].read() == body)
                self.assertEqual((got["ContentType"], got["Metadata"]), ("text/x-a", {"k": "v"}))
                self.assertEqual(got["ServerSideEncryption"], "AES256")

    def test_copies_stand_alone(self):
        first, second = kit.data(200_000, 1), kit.data(200_000, 2)
        self.put("source", first)
        self.copy("source", "copy")
        self.put("source", second)
        self.assertBody("copy", first)
        self.delete("copy")
        self.assertBody("source", second)

    def test_metadata_directive(self):
        self.put("source", ContentType="text/x-a", CacheControl="no-store", Metadata={"k": "v"})
        self.copy("source", "kept", MetadataDirective="COPY", Metadata={"ignored": "yes"})
        kept = self.head("kept")
        self.assertEqual((kept["ContentType"], kept["CacheControl"], kept["Metadata"]), ("text/x-a", "no-store", {"k": "v"}))
        self.copy("source", "new", MetadataDirective="REPLACE", ContentType="text/x-b", Metadata={"n": "w"})
        new = self.head("new")
        self.assertEqual((new["ContentType"], new["Metadata"]), ("text/x-b", {"n": "w"}))
        self.assertNotIn("CacheControl", new)

    def test_onto_itself(self):
        body = kit.data(100_000)
        self.put("key", body, Metadata={"k": "v"})
        with self.refused(400, "InvalidRequest"):
            self.copy("key", "key")
        self.copy("key", "key", MetadataDirective="REPLACE", Metadata={"mtime": "17"})
        self.assertBody("key", body)
        self.assertEqual(self.head("key")["Metadata"], {"mtime": "17"})
        self.copy("key", "key", ServerSideEncryption="AES256")
        self.assertBody("key", body)

    def test_of_an_object_in_parts(self):
        bodies = [kit.data(kit.PART_MIN, 1), kit.data(P + 9, 2)]
        self.multipart("parts", bodies)
        self.copy("parts", "copy")
        whole = b"".join(bodies)
        self.assertBody("copy", whole)
        self.assertBody("copy", whole[kit.PART_MIN - 5 : kit.PART_MIN + 5], Range=f"bytes={kit.PART_MIN - 5}-{kit.PART_MIN + 4}")
        self.assertEqual(self.head("copy")["ContentLength"], len(whole))

    def test_ways_to_name_the_source(self):
        self.put("dir/a b+ü", b"odd")
        for source in (
            f"{self.bucket}/dir/a%20b%2B%C3%BC",
            f"/{self.bucket}/dir/a%20b%2B%C3%BC",
            f"{self.bucket}%2Fdir%2Fa%20b%2B%C3%BC",
        ):
            with self.subTest(source):
                # Written by hand: boto3 has its own way to encode a source.
                answer = raw.request("PUT", f"/{self.bucket}/copy", headers={"x-amz-copy-source": source})
                self.assertEqual(answer.status, 200, answer)
                self.assertBody("copy", b"odd")
                self.delete("copy")

    def test_missing_source(self):
        with self.refused(404, "NoSuchKey"):
            self.copy("missing", "copy")
        with self.refused(404, "NoSuchBucket"):
            self.copy({"Bucket": f"{self.bucket}-missing", "Key": "k"}, "copy")
        self.assertEqual(self.keys(), [])


class Parts(kit.Case):
    def part_copy(self, upload, number, source="source", **more):
        response = self.s3.upload_part_copy(
            Bucket=self.bucket,
            Key="target",
            UploadId=upload,
            PartNumber=number,
            CopySource={"Bucket": self.bucket, "Key": source},
            **more,
        )
        return {"PartNumber": number, "ETag": response["CopyPartResult"]["ETag"]}

    def test_ranges_across_borders(self):
        source = kit.data(kit.PART_MIN * 2 + P)
        half = kit.PART_MIN + P // 2
        self.put("source", source)
        upload = self.start("target")
        parts = [
            self.part_copy(upload, 1, CopySourceRange=f"bytes=0-{half - 1}"),
            self.part(key="target", upload=upload, number=2, body=source[: kit.PART_MIN]),
            self.part_copy(upload, 3, CopySourceRange=f"bytes={half}-{len(source) - 1}"),
        ]
        self.assertEqual(parts[0]["ETag"], f'"{kit.md5(source[:half])}"')
        result = self.complete("target", upload, parts)
        expected = [source[:half], source[: kit.PART_MIN], source[half:]]
        self.assertEqual(result["ETag"], f'"{kit.etag_of_parts(expected)}"')
        self.assertBody("target", b"".join(expected))

    def test_from_an_object_in_parts(self):
        bodies = [kit.data(kit.PART_MIN, 1), kit.data(kit.PART_MIN, 2)]
        self.multipart("source", bodies)
        whole = b"".join(bodies)
        upload = self.start("target")
        first, last = kit.PART_MIN - 10_000, kit.PART_MIN + 99_999
        parts = [self.part_copy(upload, 1), self.part_copy(upload, 2, CopySourceRange=f"bytes={first}-{last}")]
        self.complete("target", upload, parts)
        self.assertBody("target", whole + whole[first : last + 1])

    def test_ranges_that_are_wrong(self):
        self.put("source", kit.data(1000))
        upload = self.start("target")
        for text in ("0-2", "bytes=0", "bytes=hello-world", "bytes=0-bar", "bytes=hello-", "bytes=0-2,3-5", "bytes=-5", "bytes=5-"):
            with self.subTest(text), self.refused(400, "InvalidArgument"):
                self.part_copy(upload, 1, CopySourceRange=text)
        for text in ("bytes=0-1000", "bytes=1000-1001", "bytes=5000-6000"):
            with self.subTest(text), self.refused((400, 416), "InvalidRange"):
                self.part_copy(upload, 1, CopySourceRange=text)
        listed = self.s3.list_parts(Bucket=self.bucket, Key="target", UploadId=upload)
        self.assertNotIn("Parts", listed)

    def test_missing(self):
        upload = self.start("target")
        with self.refused(404, "NoSuchKey"):
            self.part_copy(upload, 1)
        self.put("source")
        with self.refused(404, "NoSuchUpload"):
            self.part_copy("no-such-upload", 1)


kit.main()
