"""SSE-KMS and SSE-C as boto3 uses them: every call that knows of them, bucket defaults, and updates of stored objects.

The harness has made the keys `first` and `second`. SSE-C needs TLS, or a server that does without.
"""

import base64
import hashlib
import json
import os

import kit
import raw
from boto3.s3.transfer import TransferConfig

ARN = "arn:aws:kms:us-east-1:000000000000:key/"
FIRST = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "first"}
CUSTOMER = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": os.urandom(32)}
OTHER = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": os.urandom(32)}
SIZES = (0, 5, 100_000)


def key_md5(customer):
    return base64.b64encode(hashlib.md5(customer["SSECustomerKey"]).digest()).decode()


def source_of(customer):
    return {f"CopySource{name}": value for name, value in customer.items()}


def context(pairs):
    return base64.b64encode(json.dumps(pairs).encode()).decode()


class Kms(kit.Case):
    def assertKms(self, answer, key_id="first"):
        self.assertEqual(answer["ServerSideEncryption"], "aws:kms")
        self.assertEqual(answer["SSEKMSKeyId"], key_id)
        self.assertNotIn("SSECustomerAlgorithm", answer)

    def test_put_get_head(self):
        for size in SIZES:
            body = kit.data(size)
            answer = self.put("key", body, **FIRST)
            self.assertKms(answer)
            self.assertKms(self.head("key"))
            got = self.get("key")
            self.assertKms(got)
            self.assertEqual(got["Body"], body)
            etag = answer["ETag"].strip('"')
            self.assertRegex(etag, "^[0-9a-f]{32}$")
            self.assertNotEqual(etag, kit.md5(body))
            self.assertNotEqual(self.put("key", body, **FIRST)["ETag"], answer["ETag"])

    def test_every_way_to_name_a_key(self):
        for name in ("first", "alias/first", "arn:aws:kms:first", ARN + "first"):
            with self.subTest(name):
                answer = self.put("key", ServerSideEncryption="aws:kms", SSEKMSKeyId=name)
                self.assertKms(answer, name)
                self.assertKms(self.head("key"), name)
                self.assertBody("key", b"content")
        answer = self.put("key", ServerSideEncryption="aws:kms")
        self.assertKms(answer, "arn:aws:kms:strongroom-default")
        for name in ("nobody", ARN + "nobody", "arn:aws:s3:::bucket"):
            with self.subTest(name), self.refused(400, "KMS.NotFoundException"):
                self.put("key", ServerSideEncryption="aws:kms", SSEKMSKeyId=name)

    def test_context(self):
        pairs = context({"project": "α", "a": "1"})
        answer = self.put("key", kit.data(100_000), SSEKMSEncryptionContext=pairs, **FIRST)
        shown = json.loads(base64.b64decode(answer["SSEKMSEncryptionContext"]))
        self.assertEqual(shown, {"project": "α", "a": "1"})
        self.assertNotIn("SSEKMSEncryptionContext", self.head("key"))
        self.assertNotIn("SSEKMSEncryptionContext", self.get("key"))
        self.assertBody("key", kit.data(100_000))
        for wrong in ("***", context([1]), context({"a": 1}), context({"a": None})):
            with self.subTest(wrong), self.refused(400, "InvalidArgument"):
                self.put("other", SSEKMSEncryptionContext=wrong, **FIRST)
        with self.refused(400, "InvalidArgument"):
            self.put("other", SSEKMSEncryptionContext=pairs)

    def test_multipart(self):
        parts = [kit.data(kit.PART_MIN), kit.data(70_000)]
        upload = self.s3.create_multipart_upload(
            Bucket=self.bucket, Key="key", BucketKeyEnabled=True, SSEKMSEncryptionContext=context({"a": "b"}), **FIRST
        )
        self.assertKms(upload)
        self.assertTrue(upload["BucketKeyEnabled"])
        listed = []
        for number, body in enumerate(parts, 1):
            answer = self.s3.upload_part(
                Bucket=self.bucket, Key="key", UploadId=upload["UploadId"], PartNumber=number, Body=body
            )
            self.assertKms(answer)
            self.assertNotEqual(answer["ETag"].strip('"'), kit.md5(body))
            listed.append({"PartNumber": number, "ETag": answer["ETag"]})
        done = self.complete("key", upload["UploadId"], listed)
        self.assertKms(done)
        self.assertTrue(done["BucketKeyEnabled"])
        self.assertRegex(done["ETag"], '^"[0-9a-f]{32}-2"$')
        got = self.get("key")
        self.assertEqual(got["Body"], b"".join(parts))
        self.assertTrue(got["BucketKeyEnabled"])
        ranged = self.body("key", Range=f"bytes={kit.PART_MIN - 10}-{kit.PART_MIN + 9}")
        self.assertEqual(ranged, parts[0][-10:] + parts[1][:10])

    def test_copies(self):
        body = kit.data(100_000)
        self.put("source", body, SSEKMSEncryptionContext=context({"a": "b"}), **FIRST)
        source = {"Bucket": self.bucket, "Key": "source"}
        plain = self.s3.copy_object(Bucket=self.bucket, Key="copy", CopySource=source)
        self.assertEqual(plain["ServerSideEncryption"], "AES256")
        self.assertEqual(plain["CopyObjectResult"]["ETag"].strip('"'), kit.md5(body))
        again = self.s3.copy_object(
            Bucket=self.bucket, Key="copy", CopySource=source, ServerSideEncryption="aws:kms", SSEKMSKeyId="second"
        )
        self.assertKms(again, "second")
        self.assertNotIn("SSEKMSEncryptionContext", again)
        self.assertBody("copy", body)
        self.s3.copy_object(
            Bucket=self.bucket, Key="source", CopySource=source, ServerSideEncryption="aws:kms", SSEKMSKeyId="second"
        )
        self.assertKms(self.head("source"), "second")
        self.assertBody("source", body)

    def test_attributes(self):
        self.put("key", b"content", ChecksumAlgorithm="SHA256", **FIRST)
        asked = ["ETag", "Checksum", "ObjectSize"]
        found = self.s3.get_object_attributes(Bucket=self.bucket, Key="key", ObjectAttributes=asked)
        self.assertEqual(found["ObjectSize"], 7)
        self.assertIn("ChecksumSHA256", found["Checksum"])

    def test_what_is_not_done(self):
        with self.refused(501, "NotImplemented") as error:
            self.put("key", ServerSideEncryption="aws:kms:dsse")
        self.assertIn("aws:kms", error["Error"]["Message"])
        with self.refused(400, "InvalidArgument"):
            self.put("key", SSEKMSKeyId="first")
        with self.refused(400, "InvalidArgument"):
            self.put("key", ServerSideEncryption="AES256", SSEKMSKeyId="first")
        self.assertAbsent("key")

    def test_high_level_transfers(self):
        body = kit.data(20 * kit.MIB)
        path = os.path.join(os.environ["STRONGROOM_TEST_SCRATCH"], f"sse-{os.getpid()}")
        config = TransferConfig(multipart_threshold=8 * kit.MIB, multipart_chunksize=8 * kit.MIB)
        try:
            with open(path, "wb") as file:
                file.write(body)
            for extra in (FIRST, CUSTOMER):
                self.s3.upload_file(path, self.bucket, "big", ExtraArgs=extra, Config=config)
                self.s3.download_file(self.bucket, "big", path + ".got", ExtraArgs=extra if extra is CUSTOMER else None, Config=config)
                with open(path + ".got", "rb") as file:
                    self.assertTrue(file.read() == body)
        finally:
            for name in (path, path + ".got"):
                if os.path.exists(name):
                    os.remove(name)


class Customer(kit.Case):
    def test_put_get_head(self):
        for size in SIZES:
            body = kit.data(size)
            answer = self.put("key", body, **CUSTOMER)
            for shown in (answer, self.head("key", **CUSTOMER), self.get("key", **CUSTOMER)):
                self.assertEqual(shown["SSECustomerAlgorithm"], "AES256")
                self.assertEqual(shown["SSECustomerKeyMD5"], key_md5(CUSTOMER))
                self.assertNotIn("ServerSideEncryption", shown)
            self.assertBody("key", body, **CUSTOMER)
            self.assertNotEqual(answer["ETag"].strip('"'), kit.md5(body))
            for call in (self.get, self.head):
                with self.refused(400):
                    call("key")
                with self.refused(403):
                    call("key", **OTHER)
            asked = ["ETag", "ObjectSize"]
            with self.refused(400, "InvalidRequest"):
                self.s3.get_object_attributes(Bucket=self.bucket, Key="key", ObjectAttributes=asked)
            # For this call alone boto3 leaves it to the caller to encode the key.
            encoded = {"SSECustomerKey": raw.b64(CUSTOMER["SSECustomerKey"]), "SSECustomerKeyMD5": key_md5(CUSTOMER)}
            found = self.s3.get_object_attributes(
                Bucket=self.bucket, Key="key", ObjectAttributes=asked, **{**CUSTOMER, **encoded}
            )
            self.assertEqual(found["ObjectSize"], size)
        self.assertEqual(self.keys(), ["key"])
        self.delete("key")
        self.assertEqual(self.keys(), [])

    def test_ranges(self):
        body = kit.data(200_000)
        self.put("key", body, **CUSTOMER)
        for first, last in ((0, 0), (65_535, 65_536), (10, 150_000), (199_999, 199_999)):
            got = self.body("key", Range=f"bytes={first}-{last}", **CUSTOMER)
            self.assertTrue(got == body[first : last + 1], (first, last))

    def test_multipart(self):
        parts = [kit.data(kit.PART_MIN), kit.data(70_000)]
        for algorithm in (None, "CRC32", "SHA256"):
            with self.subTest(algorithm):
                more = {"ChecksumAlgorithm": algorithm} if algorithm else {}
                upload = self.start("key", **CUSTOMER, **more)
                with self.refused(400, "InvalidRequest"):
                    self.part("key", upload, 1, parts[0])
                with self.refused(400, "InvalidRequest"):
                    self.part("key", upload, 1, parts[0], **OTHER)
                listed = []
                for number, body in enumerate(parts, 1):
                    answer = self.s3.upload_part(
                        Bucket=self.bucket, Key="key", UploadId=upload, PartNumber=number, Body=body, **CUSTOMER, **more
                    )
                    self.assertEqual(answer["SSECustomerKeyMD5"], key_md5(CUSTOMER))
                    sums = {n: v for n, v in answer.items() if algorithm and n == f"Checksum{algorithm}"}
                    listed.append({"PartNumber": number, "ETag": answer["ETag"], **sums})
                if algorithm:
                    # A checksum of the whole is made of the parts', and only the key opens them.
                    with self.refused(400, "InvalidRequest"):
                        self.complete("key", upload, listed)
                    self.complete("key", upload, listed, **CUSTOMER)
                    head = self.head("key", ChecksumMode="ENABLED", **CUSTOMER)
                    self.assertIn(f"Checksum{algorithm}", head)
                else:
                    self.complete("key", upload, listed)
                self.assertBody("key", b"".join(parts), **CUSTOMER)

    def test_copies(self):
        body = kit.data(100_000)
        self.put("source", body, **CUSTOMER)
        source = {"Bucket": self.bucket, "Key": "source"}
        copy = lambda key, **more: self.s3.copy_object(Bucket=self.bucket, Key=key, CopySource=source, **more)
        with self.refused(400, "InvalidRequest"):
            copy("copy")
        with self.refused(403, "AccessDenied"):
            copy("copy", **source_of(OTHER))
        plain = copy("copy", **source_of(CUSTOMER))
        self.assertEqual(plain["CopyObjectResult"]["ETag"].strip('"'), kit.md5(body))
        self.assertBody("copy", body)
        copied = copy("copy", **source_of(CUSTOMER), **OTHER)
        self.assertEqual(copied["SSECustomerKeyMD5"], key_md5(OTHER))
        self.assertBody("copy", body, **OTHER)
        upload = self.start("parts", **OTHER)
        part = self.s3.upload_part_copy(
            Bucket=self.bucket, Key="parts", UploadId=upload, PartNumber=1, CopySource=source, **source_of(CUSTOMER), **OTHER
        )
        self.complete("parts", upload, [{"PartNumber": 1, "ETag": part["CopyPartResult"]["ETag"]}])
        self.assertBody("parts", body, **OTHER)

    def test_a_new_key_in_place(self):
        body = kit.data(100_000)
        before = self.put("key", body, Metadata={"a": "b"}, **CUSTOMER)
        source = {"Bucket": self.bucket, "Key": "key"}
        self.s3.copy_object(Bucket=self.bucket, Key="key", CopySource=source, **source_of(CUSTOMER), **OTHER)
        got = self.get("key", **OTHER)
        self.assertEqual((got["Body"], got["Metadata"], got["ETag"]), (body, {"a": "b"}, before["ETag"]))
        with self.refused(403):
            self.get("key", **CUSTOMER)

    def test_wrong_headers(self):
        names = [f"x-amz-server-side-encryption-customer-{n}" for n in ("algorithm", "key", "key-md5")]
        good = dict(zip(names, ("AES256", raw.b64(CUSTOMER["SSECustomerKey"]), key_md5(CUSTOMER))))
        for change, code in (
            ({names[0]: "AES128"}, "InvalidEncryptionAlgorithmError"),
            ({names[0]: None}, "InvalidArgument"),
            ({names[1]: None}, "InvalidArgument"),
            ({names[2]: None}, "InvalidArgument"),
            ({names[1]: raw.b64(b"short")}, "InvalidArgument"),
            ({names[2]: raw.b64(b"x" * 16)}, "InvalidArgument"),
            ({"x-amz-server-side-encryption": "AES256"}, "InvalidArgument"),
            ({"x-amz-server-side-encryption": "aws:kms"}, "InvalidArgument"),
        ):
            with self.subTest(change):
                headers = {n: v for n, v in {**good, **change}.items() if v is not None}
                answer = raw.request("PUT", f"/{self.bucket}/key", headers=headers, body=b"x")
                self.assertEqual((answer.status, answer.code), (400, code), answer)
                self.assertNotIn(good[names[1]], answer.text)
        self.assertAbsent("key")


class Buckets(kit.Case):
    def configure(self, rule):
        self.s3.put_bucket_encryption(Bucket=self.bucket, ServerSideEncryptionConfiguration={"Rules": [rule]})

    def rule(self):
        answer = self.s3.get_bucket_encryption(Bucket=self.bucket)
        [rule] = answer["ServerSideEncryptionConfiguration"]["Rules"]
        return rule

    def kms(self, key=None, **more):
        default = {"SSEAlgorithm": "aws:kms", **({"KMSMasterKeyID": key} if key else {})}
        return {"ApplyServerSideEncryptionByDefault": default, **more}

    def test_a_default_key(self):
        self.configure(self.kms(ARN + "first", BucketKeyEnabled=True))
        rule = self.rule()
        self.assertEqual(rule["ApplyServerSideEncryptionByDefault"]["KMSMasterKeyID"], ARN + "first")
        self.assertTrue(rule["BucketKeyEnabled"])
        self.put("key", kit.data(100_000))
        head = self.head("key")
        self.assertEqual((head["SSEKMSKeyId"], head["BucketKeyEnabled"]), (ARN + "first", True))
        self.assertBody("key", kit.data(100_000))
        # The request comes first, and its key is not the bucket's.
        self.put("aes", ServerSideEncryption="AES256")
        self.assertEqual(self.head("aes")["ServerSideEncryption"], "AES256")
        self.put("named", ServerSideEncryption="aws:kms")
        self.assertEqual(self.head("named")["SSEKMSKeyId"], "arn:aws:kms:strongroom-default")
        self.put("off", BucketKeyEnabled=False)
        self.assertNotIn("BucketKeyEnabled", self.head("off"))
        self.put("customer", **CUSTOMER)
        self.assertNotIn("ServerSideEncryption", self.head("customer", **CUSTOMER))

    def test_a_key_that_is_not_there_fails_at_the_write(self):
        self.configure(self.kms("nobody"))
        with self.refused(400, "KMS.NotFoundException"):
            self.put("key")
        self.configure(self.kms())
        self.put("key")
        self.assertEqual(self.head("key")["ServerSideEncryption"], "aws:kms")

    def test_blocked_types(self):
        blocked = lambda: self.rule()["BlockedEncryptionTypes"]["EncryptionType"]
        self.assertEqual(blocked(), ["NONE"])
        self.put("before", **CUSTOMER)
        self.configure(self.kms("first", BlockedEncryptionTypes={"EncryptionType": ["SSE-C"]}))
        self.assertEqual(blocked(), ["SSE-C"])
        for write in (self.put, self.start):
            with self.refused(403, "AccessDenied"):
                write("key", **CUSTOMER)
        with self.refused(403, "AccessDenied"):
            source = {"Bucket": self.bucket, "Key": "before"}
            self.s3.copy_object(Bucket=self.bucket, Key="key", CopySource=source, **source_of(CUSTOMER), **OTHER)
        self.assertBody("before", b"content", **CUSTOMER)
        self.put("key")
        # What is not said stays as it was.
        self.configure(self.kms("second"))
        self.assertEqual(blocked(), ["SSE-C"])
        self.s3.delete_bucket_encryption(Bucket=self.bucket)
        self.assertEqual(blocked(), ["SSE-C"])
        self.assertEqual(self.rule()["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"], "AES256")
        self.configure({"BlockedEncryptionTypes": {"EncryptionType": ["NONE"]}})
        self.assertEqual(blocked(), ["NONE"])
        self.put("key", **CUSTOMER)


class Update(kit.Case):
    def update(self, key, arn=ARN + "second", **more):
        encryption = {"SSEKMS": {"KMSKeyArn": arn, **more}}
        return self.s3.update_object_encryption(Bucket=self.bucket, Key=key, ObjectEncryption=encryption)

    def test_from_every_mode(self):
        for source in ({}, {"ServerSideEncryption": "AES256"}, FIRST, {**FIRST, "SSEKMSEncryptionContext": context({"a": "b"})}):
            for size in SIZES:
                with self.subTest(source=source, size=size):
                    self.put("key", kit.data(size), Metadata={"a": "b"}, ChecksumAlgorithm="SHA256", **source)
                    before = self.head("key", ChecksumMode="ENABLED")
                    self.update("key", BucketKeyEnabled=True)
                    after = self.head("key", ChecksumMode="ENABLED")
                    for name in ("ETag", "LastModified", "Metadata", "ContentLength", "ChecksumSHA256"):
                        self.assertEqual(before[name], after[name])
                    self.assertEqual((after["SSEKMSKeyId"], after["BucketKeyEnabled"]), (ARN + "second", True))
                    self.assertBody("key", kit.data(size))

    def test_multipart(self):
        parts = [kit.data(kit.PART_MIN), kit.data(9)]
        self.multipart("key", parts)
        etag = self.head("key")["ETag"]
        self.update("key")
        self.assertEqual(self.head("key")["ETag"], etag)
        self.assertBody("key", b"".join(parts))

    def test_what_is_refused(self):
        self.put("customer", **CUSTOMER)
        with self.refused(400, "InvalidRequest"):
            self.update("customer")
        with self.refused(404, "NoSuchKey"):
            self.update("absent")
        self.put("key")
        with self.refused(400, "KMS.NotFoundException"):
            self.update("key", ARN + "nobody")
        body = b"<ObjectEncryption><SSE-KMS><KMSKeyArn>second</KMSKeyArn></SSE-KMS></ObjectEncryption>"
        digest = {"content-md5": raw.b64(hashlib.md5(body).digest())}
        answer = raw.request("PUT", f"/{self.bucket}/key", ["encryption"], headers=digest, body=body)
        self.assertEqual((answer.status, answer.code), (400, "InvalidRequest"), answer)
        answer = raw.request("PUT", f"/{self.bucket}/key", ["encryption"], body=body)
        self.assertEqual((answer.status, answer.code), (400, "InvalidRequest"), answer)
        self.assertBody("key", b"content")


kit.main()
