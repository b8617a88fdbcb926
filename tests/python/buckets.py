"""Buckets: made, found, listed, removed."""

import kit
import raw


class Buckets(kit.Case):
    def test_life(self):
        self.s3.head_bucket(Bucket=self.bucket)
        self.assertIn(self.bucket, [b["Name"] for b in self.s3.list_buckets()["Buckets"]])
        self.s3.delete_bucket(Bucket=self.bucket)
        with self.refused(404):
            self.s3.head_bucket(Bucket=self.bucket)
        self.assertNotIn(self.bucket, [b["Name"] for b in self.s3.list_buckets()["Buckets"]])
        with self.refused(404, "NoSuchBucket"):
            self.s3.delete_bucket(Bucket=self.bucket)

    def test_region(self):
        location = self.s3.get_bucket_location(Bucket=self.bucket)
        self.assertIsNone(location["LocationConstraint"])
        headers = self.s3.head_bucket(Bucket=self.bucket)["ResponseMetadata"]["HTTPHeaders"]
        self.assertEqual(headers["x-amz-bucket-region"], kit.REGION)

    def test_created_again_by_its_owner(self):
        self.put("kept", b"content")
        self.s3.create_bucket(Bucket=self.bucket)
        self.assertBody("kept", b"content")

    def test_region_named_in_the_body(self):
        with self.refused(400, "InvalidLocationConstraint"):
            raised = {"LocationConstraint": "us-east-1"}
            self.s3.create_bucket(Bucket=f"{self.bucket}-r", CreateBucketConfiguration=raised)

    def test_names(self):
        for name in ("ab", "Upper", "under_score", "a..b", "192.168.0.1", "-start", "end-", "x" * 64):
            with self.subTest(name):
                answer = raw.request("PUT", f"/{name}")
                self.assertEqual((answer.status, answer.code), (400, "InvalidBucketName"), answer)
        for name in ("a-1", "with.dots.inside", "9" * 63):
            with self.subTest(name):
                self.s3.create_bucket(Bucket=name)
                self.s3.delete_bucket(Bucket=name)

    def test_not_removed_while_it_holds_something(self):
        self.put("key")
        with self.refused(409, "BucketNotEmpty"):
            self.s3.delete_bucket(Bucket=self.bucket)
        self.assertBody("key", b"content")
        self.delete("key")
        self.s3.delete_bucket(Bucket=self.bucket)

    def test_made_again_it_is_empty(self):
        self.put("key")
        self.delete("key")
        self.s3.delete_bucket(Bucket=self.bucket)
        self.s3.create_bucket(Bucket=self.bucket)
        self.assertEqual(self.keys(), [])

    def test_everything_in_a_missing_bucket(self):
        missing = f"{self.bucket}-missing"
        calls = {
            "put_object": {"Key": "k", "Body": b"x"},
            "get_object": {"Key": "k"},
            "list_objects": {},
            "list_objects_v2": {},
            "create_multipart_upload": {"Key": "k"},
            "list_multipart_uploads": {},
            "get_bucket_location": {},
            "delete_object": {"Key": "k"},
            "get_bucket_encryption": {},
        }
        for call, arguments in calls.items():
            with self.subTest(call), self.refused(404, "NoSuchBucket"):
                getattr(self.s3, call)(Bucket=missing, **arguments)
        with self.refused(404):
            self.s3.head_object(Bucket=missing, Key="k")
        with self.refused(404, "NoSuchBucket"):
            self.s3.copy_object(Bucket=missing, Key="k", CopySource=f"{self.bucket}/x")

    def test_waiters(self):
        self.s3.get_waiter("bucket_exists").wait(Bucket=self.bucket)
        self.put("key")
        self.s3.get_waiter("object_exists").wait(Bucket=self.bucket, Key="key")
        self.delete("key")
        self.s3.get_waiter("object_not_exists").wait(Bucket=self.bucket, Key="key")
        self.s3.delete_bucket(Bucket=self.bucket)
        self.s3.get_waiter("bucket_not_exists").wait(Bucket=self.bucket)

    def test_listed_in_pages(self):
        names = sorted([self.bucket] + [self.new_bucket() for _ in range(4)])
        pages = self.s3.get_paginator("list_buckets").paginate(
            Prefix="b", PaginationConfig={"PageSize": 2}
        )
        pages = [[b["Name"] for b in page["Buckets"]] for page in pages]
        self.assertLessEqual(max(map(len, pages)), 2)
        found = [name for page in pages for name in page]
        self.assertEqual(found, sorted(found))
        self.assertEqual(len(found), len(set(found)))
        self.assertLessEqual(set(names), set(found))
        found = self.s3.list_buckets(Prefix=names[0])["Buckets"]
        self.assertEqual([b["Name"] for b in found], [n for n in names if n.startswith(names[0])])


kit.main()
