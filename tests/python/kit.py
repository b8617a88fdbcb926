"""What every script shares: clients of the server under test, a bucket for each test, and expectations.

The server is named by the environment that the Rust harness sets. Scripts are ordinary unittest files and can be
run by hand, one test at a time: `python multipart.py -v -k order`.
"""

import hashlib
import itertools
import os
import random
import unittest
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

ENDPOINT = os.environ["STRONGROOM_TEST_ENDPOINT"]
TLS = ENDPOINT.startswith("https:")
LONG = bool(os.environ.get("STRONGROOM_TEST_LONG"))
REGION = os.environ.get("AWS_DEFAULT_REGION", "us-east-1")
ACCESS_KEY = os.environ["AWS_ACCESS_KEY_ID"]
SECRET_KEY = os.environ["AWS_SECRET_ACCESS_KEY"]
CA_BUNDLE = os.environ.get("AWS_CA_BUNDLE")

KIB = 1 << 10
MIB = 1 << 20
PACKAGE = 64 * KIB
PART_MIN = 5 * MIB


def client(**options):
    """A client that asks once: a retry would hide what a test is about."""
    settings = {
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "s3": {"addressing_style": "path"},
        "read_timeout": 90,
        "max_pool_connections": 40,
    }
    settings.update(options)
    return boto3.client("s3", endpoint_url=ENDPOINT, config=Config(**settings))


def data(size, seed=0):
    """Incompressible bytes, the same for the same seed."""
    return random.Random(f"{seed}/{size}").randbytes(size)


def md5(content):
    return hashlib.md5(content).hexdigest()


def etag_of_parts(parts):
    """The ETag of a multipart object with these contents."""
    digests = b"".join(hashlib.md5(p).digest() for p in parts)
    return f"{hashlib.md5(digests).hexdigest()}-{len(parts)}"


def in_parallel(function, items, threads=16):
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))


class Case(unittest.TestCase):
    """A test with a client and an empty bucket."""

    maxDiff = 2000
    longMessage = True
    numbers = itertools.count(1)
    tag = f"{os.getpid():x}-{random.SystemRandom().randrange(1 << 24):x}"

    @classmethod
    def setUpClass(cls):
        cls.s3 = client()

    def setUp(self):
        self.bucket = self.new_bucket()

    def new_bucket(self):
        name = f"b{next(Case.numbers)}-{Case.tag}"
        self.s3.create_bucket(Bucket=name)
        return name

    def put(self, key, body=b"content", **more):
        return self.s3.put_object(Bucket=self.bucket, Key=key, Body=body, **more)

    def get(self, key, **more):
        """The response with its body read."""
        response = self.s3.get_object(Bucket=self.bucket, Key=key, **more)
        response["Body"] = response["Body"].read()
        return response

    def body(self, key, **more):
        return self.get(key, **more)["Body"]

    def head(self, key, **more):
        return self.s3.head_object(Bucket=self.bucket, Key=key, **more)

    def delete(self, key, **more):
        return self.s3.delete_object(Bucket=self.bucket, Key=key, **more)

    def keys(self, **more):
        """All keys by ListObjectsV2, page after page."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, **more)
        return [o["Key"] for page in pages for o in page.get("Contents", [])]

    def assertAbsent(self, key):
        with self.refused(404, "NoSuchKey"):
            self.get(key)
        self.assertNotIn(key, self.keys())

    def assertBody(self, key, expected, **more):
        """Bodies are compared without printing them."""
        body = self.body(key, **more)
        if body != expected:
            at = next((i for i, (a, b) in enumerate(zip(body, expected)) if a != b), None)
            self.fail(f"{key!r}: {len(body)} bytes, not the {len(expected)} expected; first difference at {at}")

    @contextmanager
    def refused(self, status, *codes):
        """Expects an error with this status (or one of a tuple) and one of these codes; yields it for a closer look."""
        statuses = status if isinstance(status, tuple) else (status,)
        caught = {}
        try:
            yield caught
        except ClientError as error:
            caught.update(error.response)
        else:
            self.fail(f"succeeded instead of {status} {codes}")
        got = caught["ResponseMetadata"]["HTTPStatusCode"]
        code = caught["Error"]["Code"]
        self.assertIn(got, statuses, caught["Error"])
        if codes:
            self.assertIn(code, codes, caught["Error"])

    # Multipart, in the few words most tests need.

    def start(self, key, **more):
        response = self.s3.create_multipart_upload(Bucket=self.bucket, Key=key, **more)
        return response["UploadId"]

    def part(self, key, upload, number, body, **more):
        response = self.s3.upload_part(
            Bucket=self.bucket, Key=key, UploadId=upload, PartNumber=number, Body=body, **more
        )
        return {"PartNumber": number, "ETag": response["ETag"]}

    def complete(self, key, upload, parts, **more):
        return self.s3.complete_multipart_upload(
            Bucket=self.bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}, **more
        )

    def multipart(self, key, bodies, **more):
        """Uploads `bodies` as parts 1, 2, ... and completes."""
        upload = self.start(key, **more)
        parts = [self.part(key, upload, n, body) for n, body in enumerate(bodies, 1)]
        return self.complete(key, upload, parts)


def main():
    unittest.main(verbosity=2)
