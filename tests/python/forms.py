"""POST form uploads, by the policies that boto3 signs, with forms as browsers and curl send them."""

import base64
import hashlib
import json
import os
import subprocess
import tempfile

import kit
import raw

KEY = os.urandom(32)
CUSTOMER = {
    "x-amz-server-side-encryption-customer-algorithm": "AES256",
    "x-amz-server-side-encryption-customer-key": base64.b64encode(KEY).decode(),
    "x-amz-server-side-encryption-customer-key-md5": base64.b64encode(hashlib.md5(KEY).digest()).decode(),
}


def encode(fields, body, after=(), filename="some file.txt", boundary="----form boundary 7"):
    out = b""
    part = lambda name, value: (
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
    )
    for name, value in fields.items():
        out += part(name, value)
    if body is not None:
        out += f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n'.encode()
        out += b"Content-Type: text/plain\r\n\r\n" + body + b"\r\n"
    for name, value in after:
        out += part(name, value)
    return f'multipart/form-data; boundary="{boundary}"', out + f"--{boundary}--\r\n".encode()


class Forms(kit.Case):
    @classmethod
    def setUpClass(cls):
        cls.s3 = kit.client(signature_version="s3v4")

    def policy(self, key="key", fields=None, conditions=None, expires=600):
        fields = dict(fields or {})
        conditions = list(conditions or []) + [{n: v} for n, v in fields.items()]
        made = self.s3.generate_presigned_post(
            self.bucket, key, Fields=fields, Conditions=conditions, ExpiresIn=expires
        )
        return made["fields"]

    def post(self, fields, body=b"content", headers=None, **more):
        kind, wire = encode(fields, body, **more)
        headers = {"content-type": kind, **(headers or {})}
        return raw.request("POST", f"/{self.bucket}", headers=headers, body=wire, sign=False)

    def assertPosted(self, answer, status=204):
        self.assertEqual(answer.status, status, answer)

    def assertFailed(self, answer, status, code):
        self.assertEqual((answer.status, answer.code), (status, code), answer)
        self.assertAbsent("key")

    def test_files_of_all_sizes(self):
        for size in (0, 1, 1000, 70_000, 300_000, 5 * kit.MIB):
            body = kit.data(size)
            answer = self.post(self.policy(), body)
            self.assertPosted(answer)
            self.assertEqual(answer.headers["ETag"].strip('"'), kit.md5(body))
            self.assertEqual(answer.headers["x-amz-server-side-encryption"], "AES256")
            self.assertBody("key", body)

    def test_files_that_look_like_forms(self):
        body = b"\r\n------form boundary\r\n\r\n--" * 20_000
        self.assertPosted(self.post(self.policy(), body))
        self.assertBody("key", body)

    def test_fields(self):
        given = {"Content-Type": "a/b", "x-amz-meta-one": "1", "Cache-Control": "no-store", "acl": "private"}
        self.assertPosted(self.post(self.policy(fields=given)))
        head = self.head("key")
        self.assertEqual((head["ContentType"], head["CacheControl"], head["Metadata"]), ("a/b", "no-store", {"one": "1"}))

    def test_filename(self):
        self.assertPosted(self.post(self.policy(key="user/${filename}"), filename="C:\\dir\\a b.txt"))
        self.assertBody("user/a b.txt", b"content")

    def test_answers(self):
        for status in (200, 201, 204):
            answer = self.post(self.policy(fields={"success_action_status": str(status)}))
            self.assertPosted(answer, status)
            if status == 201:
                self.assertEqual(answer.element("Key"), "key")
                self.assertEqual(answer.element("Bucket"), self.bucket)
                self.assertTrue(answer.element("Location").endswith(f"/{self.bucket}/key"))
        to = {"success_action_redirect": "https://example.com/done?x=1"}
        answer = self.post(self.policy(fields=to))
        self.assertPosted(answer, 303)
        self.assertTrue(answer.headers["Location"].startswith(f"https://example.com/done?x=1&bucket={self.bucket}&key=key&etag=%22"))

    def test_policies(self):
        wrong = {**self.policy(), "x-amz-signature": "0" * 64}
        self.assertFailed(self.post(wrong), 403, "SignatureDoesNotMatch")
        stranger = self.policy()
        stranger["x-amz-credential"] = "stranger" + stranger["x-amz-credential"]
        self.assertFailed(self.post(stranger), 403, "InvalidAccessKeyId")
        self.assertFailed(self.post({"key": "key"}), 403, "AccessDenied")
        self.assertFailed(self.post(self.policy(expires=-10)), 403, "AccessDenied")
        self.assertFailed(self.post({**self.policy(key="other"), "key": "key"}), 403, "AccessDenied")
        self.assertFailed(self.post({**self.policy(), "x-amz-meta-more": "x"}), 403, "AccessDenied")
        self.assertFailed(self.post({**self.policy(), "x-amz-server-side-encryption": "AES256"}), 403, "AccessDenied")
        changed = self.policy()
        document = json.loads(base64.b64decode(changed["policy"]))
        document["conditions"].append(["starts-with", "$x-amz-meta-more", ""])
        changed["policy"] = base64.b64encode(json.dumps(document).encode()).decode()
        self.assertFailed(self.post(changed), 403, "SignatureDoesNotMatch")
        without = self.policy()
        del without["key"]
        self.assertFailed(self.post(without), 403, "AccessDenied")
        elsewhere = self.new_bucket()
        kind, wire = encode(self.policy(), b"content")
        answer = raw.request("POST", f"/{elsewhere}", headers={"content-type": kind}, body=wire, sign=False)
        self.assertEqual((answer.status, answer.code), (403, "AccessDenied"), answer)

    def test_lengths(self):
        for size, code in ((0, "EntityTooSmall"), (1, None), (400_000, None), (400_001, "EntityTooLarge")):
            fields = self.policy(conditions=[["content-length-range", 1, 400_000]])
            answer = self.post(fields, kit.data(size))
            if code:
                self.assertFailed(answer, 400, code)
            else:
                self.assertPosted(answer)
                self.assertBody("key", kit.data(size))
                self.delete("key")

    def test_bodies_that_are_no_forms(self):
        kind, wire = encode(self.policy(), b"content")
        for body in (b"", b"nonsense", wire[:50], wire.replace(b'name="file"', b'name="elif"')):
            answer = raw.request("POST", f"/{self.bucket}", headers={"content-type": kind}, body=body, sign=False)
            self.assertFailed(answer, 400, "MalformedPOSTRequest")
        answer = raw.request("POST", f"/{self.bucket}", headers={"content-type": "multipart/form-data"}, body=wire, sign=False)
        self.assertFailed(answer, 400, "MalformedPOSTRequest")
        big = {**self.policy(), "x-ignore-me": "x" * 70_000}
        self.assertFailed(self.post(big), 400, "MaxPostPreDataLengthExceeded")

    def test_fields_after_the_file(self):
        """They are ignored, however long the file is; there may be only so much of them."""
        more = [("submit", "Upload"), ("key", "elsewhere"), ("x-amz-meta-more", "x")]
        for size in (7, 300_000, kit.MIB, 8 * kit.MIB - 20, 20 * kit.MIB):
            body = kit.data(size)
            answer = self.post(self.policy(), body, after=more)
            self.assertPosted(answer)
            self.assertEqual(answer.headers["ETag"].strip('"'), kit.md5(body))
            self.assertBody("key", body)
            self.assertEqual(self.head("key")["Metadata"], {})
            part = self.s3.get_object(Bucket=self.bucket, Key="key", Range=f"bytes={size // 2}-")["Body"].read()
            self.assertEqual(part, body[size // 2 :])
            self.delete("key")
        self.assertAbsent("elsewhere")
        size = kit.MIB
        exact = self.policy(conditions=[["content-length-range", size, size]])
        self.assertPosted(self.post(exact, kit.data(size), after=more))
        self.assertBody("key", kit.data(size))
        self.delete("key")
        self.assertFailed(self.post(exact, kit.data(size - 10), after=more), 400, "EntityTooSmall")
        self.assertFailed(self.post(exact, kit.data(size + 1), after=more), 400, "EntityTooLarge")
        much = [("x-ignore-me", "x" * 70_000)]
        self.assertFailed(self.post(self.policy(), kit.data(size), after=much), 400, "MalformedPOSTRequest")

    def test_kms(self):
        encryption = {
            "x-amz-server-side-encryption": "aws:kms",
            "x-amz-server-side-encryption-aws-kms-key-id": "first",
            "x-amz-server-side-encryption-context": base64.b64encode(b'{"a":"b"}').decode(),
        }
        answer = self.post(self.policy(fields=encryption), kit.data(300_000))
        self.assertPosted(answer)
        self.assertEqual(answer.headers["x-amz-server-side-encryption-aws-kms-key-id"], "first")
        self.assertEqual(self.head("key")["SSEKMSKeyId"], "first")
        self.assertBody("key", kit.data(300_000))

    def test_customer_keys(self):
        answer = self.post(self.policy(fields=CUSTOMER), kit.data(300_000))
        self.assertPosted(answer)
        self.assertNotIn(CUSTOMER["x-amz-server-side-encryption-customer-key"], str(answer.headers))
        self.assertBody("key", kit.data(300_000), SSECustomerAlgorithm="AES256", SSECustomerKey=KEY)
        with self.refused(400):
            self.get("key")
        mixed = {**CUSTOMER, "x-amz-server-side-encryption": "AES256"}
        self.delete("key")
        self.assertFailed(self.post(self.policy(fields=mixed)), 400, "InvalidArgument")

    def test_curl(self):
        with tempfile.NamedTemporaryFile(suffix=".bin") as file:
            file.write(kit.data(1_000_000))
            file.flush()
            command = ["curl", "--silent", "--show-error", "--max-time", "120", "--output", "-", "--write-out", "%{http_code}"]
            command += ["--cacert", kit.CA_BUNDLE] if kit.TLS else []
            for name, value in self.policy(key="from/${filename}").items():
                command += ["--form-string", f"{name}={value}"]
            command += ["--form", f"file=@{file.name}", f"{kit.ENDPOINT}/{self.bucket}"]
            done = subprocess.run(command, capture_output=True, timeout=180)
            self.assertEqual((done.returncode, done.stdout), (0, b"204"), done.stderr)
            self.assertBody(f"from/{os.path.basename(file.name)}", kit.data(1_000_000))


kit.main()
