"""ETags on a server started with `--etag opaque`: no MD5, and nothing that a client takes for one."""

import io
import re

import kit

SHAPE = re.compile(r'^"[0-9a-f]{32}-1"$')


class Opaque(kit.Case):
    def test_put(self):
        body = kit.data(100_000)
        etags = {self.put("key", body)["ETag"] for _ in range(3)}
        self.assertEqual(len(etags), 3, "the same bytes get a new ETag each time")
        for etag in etags:
            self.assertRegex(etag, SHAPE)
            self.assertNotIn(kit.md5(body), etag)
        self.assertIn(self.head("key")["ETag"], etags)
        self.assertEqual(self.s3.list_objects_v2(Bucket=self.bucket)["Contents"][0]["ETag"], self.head("key")["ETag"])

    def test_conditions_go_by_it(self):
        etag = self.put("key")["ETag"]
        self.assertEqual(self.get("key", IfMatch=etag)["Body"], b"content")
        new = self.put("key", b"new", IfMatch=etag)["ETag"]
        with self.refused(412):
            self.put("key", b"newer", IfMatch=etag)
        self.assertEqual(self.head("key")["ETag"], new)

    def test_parts(self):
        bodies = [kit.data(kit.PART_MIN, 1), kit.data(9, 2)]
        result = self.multipart("key", bodies)
        self.assertRegex(result["ETag"], r'^"[0-9a-f]{32}-\d+"$')
        self.assertNotEqual(result["ETag"], f'"{kit.etag_of_parts(bodies)}"')
        self.assertBody("key", b"".join(bodies))

    def test_content_md5_still_counts(self):
        with self.refused(400, "BadDigest"):
            self.put("key", b"x", ContentMD5="1B2M2Y8AsgTpgAmY7PhCfg==")

    def test_transfer_manager(self):
        body = kit.data(20 * kit.MIB)
        self.s3.upload_fileobj(io.BytesIO(body), self.bucket, "key")
        back = io.BytesIO()
        self.s3.download_fileobj(self.bucket, "key", back)
        self.assertTrue(back.getvalue() == body)


kit.main()
