"""Conditional requests: what holds is done, what does not leaves everything as it was."""

import datetime
import threading

import kit

HOUR = datetime.timedelta(hours=1)
ABSENT_ETAG = '"00000000000000000000000000000000"'


class Reads(kit.Case):
    def setUp(self):
        super().setUp()
        self.etag = self.put("key")["ETag"]
        self.modified = self.head("key")["LastModified"]

    def outcome(self, **conditions):
        """The status of GET; HEAD must agree with it."""
        statuses = []
        for verb in (self.get, self.head):
            try:
                answer = verb("key", **conditions)
            except self.s3.exceptions.ClientError as error:
                answer = error.response
            statuses.append(answer["ResponseMetadata"]["HTTPStatusCode"])
        self.assertEqual(statuses[0], statuses[1], conditions)
        return statuses[0]

    def test_etags(self):
        bare = self.etag.strip('"')
        for etag in (self.etag, bare, "*", f'{ABSENT_ETAG}, {self.etag}'):
            self.assertEqual(self.outcome(IfMatch=etag), 200, etag)
            self.assertEqual(self.outcome(IfNoneMatch=etag), 304, etag)
        self.assertEqual(self.outcome(IfMatch=ABSENT_ETAG), 412)
        self.assertEqual(self.outcome(IfNoneMatch=ABSENT_ETAG), 200)

    def test_times(self):
        self.assertEqual(self.outcome(IfModifiedSince=self.modified - HOUR), 200)
        self.assertEqual(self.outcome(IfModifiedSince=self.modified), 304)
        self.assertEqual(self.outcome(IfUnmodifiedSince=self.modified - HOUR), 412)
        self.assertEqual(self.outcome(IfUnmodifiedSince=self.modified), 200)

    def test_etags_beat_times(self):
        past = self.modified - HOUR
        self.assertEqual(self.outcome(IfMatch=self.etag, IfUnmodifiedSince=past), 200)
        self.assertEqual(self.outcome(IfNoneMatch=self.etag, IfModifiedSince=past), 304)
        self.assertEqual(self.outcome(IfNoneMatch=ABSENT_ETAG, IfModifiedSince=self.modified), 200)

    def test_with_a_range(self):
        answer = self.get("key", IfMatch=self.etag, Range="bytes=0-1")
        self.assertEqual(answer["Body"], b"co")
        with self.refused(412, "PreconditionFailed"):
            self.get("key", IfMatch=ABSENT_ETAG, Range="bytes=0-1")

    def test_what_a_304_says(self):
        with self.refused(304) as error:
            self.get("key", IfNoneMatch=self.etag)
        self.assertEqual(error["ResponseMetadata"]["HTTPHeaders"]["etag"], self.etag)

    def test_missing_key(self):
        with self.refused(404, "NoSuchKey"):
            self.get("missing", IfMatch="*")
        with self.refused(404, "NoSuchKey"):
            self.get("missing", IfNoneMatch="*")


def each_write(test):
    """Runs a test for put, complete and copy, each with a bucket of its own."""

    def run(self):
        for write in (self.by_put, self.by_complete, self.by_copy):
            with self.subTest(write=write.__name__):
                self.bucket = self.new_bucket()
                test(self, write)

    return run


class Writes(kit.Case):
    """Put, complete and copy obey the same rules: `write(key, **conditions)` is one of them."""

    def by_put(self, key, **conditions):
        return self.put(key, b"new", **conditions)

    def by_complete(self, key, **conditions):
        upload = self.start(key)
        part = self.part(key, upload, 1, b"new")
        return self.complete(key, upload, [part], **conditions)

    def by_copy(self, key, **conditions):
        if "the source" not in self.keys():
            self.put("the source", b"new")
        source = {"Bucket": self.bucket, "Key": "the source"}
        return self.s3.copy_object(Bucket=self.bucket, Key=key, CopySource=source, **conditions)

    @each_write
    def test_only_if_absent(self, write):
        write("key", IfNoneMatch="*")
        self.assertBody("key", b"new")
        self.put("key", b"old")
        with self.refused(412, "PreconditionFailed") as error:
            write("key", IfNoneMatch="*")
        self.assertEqual(error["Error"].get("Condition"), "If-None-Match")
        self.assertBody("key", b"old")
        self.delete("key")
        write("key", IfNoneMatch="*")
        self.assertBody("key", b"new")

    @each_write
    def test_only_this_version(self, write):
        etag = self.put("key", b"old")["ETag"]
        with self.refused(412, "PreconditionFailed") as error:
            write("key", IfMatch=ABSENT_ETAG)
        self.assertEqual(error["Error"].get("Condition"), "If-Match")
        self.assertBody("key", b"old")
        write("key", IfMatch=etag)
        self.assertBody("key", b"new")
        with self.refused(412, "PreconditionFailed"):
            write("key", IfMatch=etag)

    @each_write
    def test_this_version_of_nothing(self, write):
        with self.refused(404, "NoSuchKey"):
            write("missing", IfMatch=ABSENT_ETAG)
        self.assertNotIn("missing", self.keys())

    @each_write
    def test_forms_beyond_s3(self, write):
        """S3 answers 501; the meaning these have in HTTP is fine too. Ignoring them is not."""
        etag = self.put("key", b"old")["ETag"]
        with self.refused((412, 501)):
            write("key", IfNoneMatch=etag)
        with self.refused((404, 412, 501)):
            write("missing", IfMatch="*")
        with self.refused((412, 501)):
            write("key", IfMatch=ABSENT_ETAG, IfNoneMatch="*")
        self.assertBody("key", b"old")

    def test_refused_with_a_big_body(self):
        """The client learns why, although it is still sending."""
        body = kit.data(6 * kit.MIB)
        etag = self.put("key", b"old")["ETag"]
        for _ in range(3):
            with self.refused(412, "PreconditionFailed"):
                self.put("key", body, IfNoneMatch="*")
            with self.refused(412, "PreconditionFailed"):
                self.put("key", body, IfMatch=ABSENT_ETAG)
        self.assertEqual(self.head("key")["ETag"], etag)

    def test_complete_after_the_key_changed(self):
        etag = self.put("key", b"old")["ETag"]
        upload = self.start("key")
        part = self.part("key", upload, 1, b"new")
        self.put("key", b"changed")
        with self.refused((409, 412), "ConditionalRequestConflict", "PreconditionFailed"):
            self.complete("key", upload, [part], IfMatch=etag)
        self.assertBody("key", b"changed")

    def test_copy_source(self):
        etag = self.put("source", b"new")["ETag"]
        modified = self.head("source")["LastModified"]
        source = {"Bucket": self.bucket, "Key": "source"}

        def copy(**conditions):
            return self.s3.copy_object(Bucket=self.bucket, Key="key", CopySource=source, **conditions)

        for held in (
            {"CopySourceIfMatch": etag},
            {"CopySourceIfNoneMatch": ABSENT_ETAG},
            {"CopySourceIfModifiedSince": modified - HOUR},
            {"CopySourceIfUnmodifiedSince": modified},
            {"CopySourceIfMatch": etag, "CopySourceIfUnmodifiedSince": modified - HOUR},
        ):
            with self.subTest(held=held):
                copy(**held)
        self.put("key", b"old")
        for name, value in (
            ("CopySourceIfMatch", ABSENT_ETAG),
            ("CopySourceIfNoneMatch", etag),
            ("CopySourceIfModifiedSince", modified + HOUR * 0),
            ("CopySourceIfUnmodifiedSince", modified - HOUR),
        ):
            with self.subTest(name), self.refused(412, "PreconditionFailed"):
                copy(**{name: value})
            upload = self.start("part")
            with self.subTest(f"part, {name}"), self.refused(412, "PreconditionFailed"):
                self.s3.upload_part_copy(
                    Bucket=self.bucket, Key="part", UploadId=upload, PartNumber=1, CopySource=source, **{name: value}
                )
        self.assertBody("key", b"old")


class Removals(kit.Case):
    def test_delete(self):
        etag = self.put("key")["ETag"]
        with self.refused(412, "PreconditionFailed"):
            self.delete("key", IfMatch=ABSENT_ETAG)
        self.assertBody("key", b"content")
        self.delete("key", IfMatch=etag)
        self.assertAbsent("key")
        self.put("key")
        self.delete("key", IfMatch="*")
        self.assertAbsent("key")

    def test_delete_by_list(self):
        etags = {k: self.put(k, k.encode())["ETag"] for k in ("a", "b")}
        objects = [{"Key": "a", "ETag": etags["a"]}, {"Key": "b", "ETag": ABSENT_ETAG}]
        answer = self.s3.delete_objects(Bucket=self.bucket, Delete={"Objects": objects})
        self.assertEqual([d["Key"] for d in answer["Deleted"]], ["a"])
        self.assertEqual([(e["Key"], e["Code"]) for e in answer["Errors"]], [("b", "PreconditionFailed")])
        self.assertEqual(self.keys(), ["b"])

    def test_conditions_of_other_bucket_kinds(self):
        self.put("key")
        now = datetime.datetime.now(datetime.timezone.utc)
        for conditions in ({"IfMatchSize": 3}, {"IfMatchLastModifiedTime": now - HOUR}):
            with self.subTest(conditions), self.refused(501, "NotImplemented"):
                self.delete("key", **conditions)
        self.assertBody("key", b"content")


class Races(kit.Case):
    def test_one_creates(self):
        for round_ in range(5):
            key = f"key{round_}"
            gate = threading.Barrier(16)

            def create(n):
                gate.wait()
                try:
                    self.put(key, f"writer {n}".encode(), IfNoneMatch="*")
                except self.s3.exceptions.ClientError as error:
                    self.assertIn(error.response["Error"]["Code"], ("PreconditionFailed", "ConditionalRequestConflict"))
                    return None
                return n

            winners = [n for n in kit.in_parallel(create, range(16)) if n is not None]
            self.assertEqual(len(winners), 1)
            self.assertBody(key, f"writer {winners[0]}".encode())

    def test_no_update_is_lost(self):
        """A counter that eight writers raise by compare and swap."""
        self.put("counter", b"0")
        each = 10

        def add(_):
            done = 0
            while done < each:
                now = self.get("counter")
                try:
                    self.put("counter", str(int(now["Body"]) + 1).encode(), IfMatch=now["ETag"])
                    done += 1
                except self.s3.exceptions.ClientError as error:
                    self.assertIn(error.response["Error"]["Code"], ("PreconditionFailed", "ConditionalRequestConflict"))

        kit.in_parallel(add, range(8))
        self.assertBody("counter", str(8 * each).encode())


kit.main()
