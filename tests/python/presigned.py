"""Presigned URLs, used by curl as a browser or a script would, and requests that curl signs by itself."""

import datetime
import hashlib
import re
import subprocess
import tempfile
import urllib.parse

import kit
import raw


def curl(url, *args, stdin=None):
    """Status and body."""
    command = ["curl", "--silent", "--show-error", "--path-as-is", "--globoff", "--max-time", "120", "--output", "-"]
    command += ["--write-out", "\n%{http_code}"] + (["--cacert", kit.CA_BUNDLE] if kit.TLS else [])
    done = subprocess.run([*command, *args, url], input=stdin, capture_output=True, timeout=180)
    if done.returncode:
        raise AssertionError(f"curl: {done.returncode} {done.stderr.decode()}")
    body, _, status = done.stdout.rpartition(b"\n")
    return int(status), body


def code(body):
    found = re.search(b"<Code>(.*?)</Code>", body)
    return found and found.group(1).decode()


class Base(kit.Case):
    @classmethod
    def setUpClass(cls):
        # Left to itself boto3 presigns by Signature Version 2 where the endpoint is not one of AWS.
        cls.s3 = kit.client(signature_version="s3v4")

    def url(self, call, key="key", expires=600, **more):
        params = {"Bucket": self.bucket, "Key": key, **more}
        return self.s3.generate_presigned_url(call, Params=params, ExpiresIn=expires)

    def upload(self, url, body, *headers):
        with tempfile.NamedTemporaryFile() as file:
            file.write(body)
            file.flush()
            extra = [word for h in headers for word in ("--header", h)]
            return curl(url, "--upload-file", file.name, *extra)


class OldPresigned(Base):
    """What boto3 and the AWS CLI make by themselves for endpoints that are not AWS's."""

    @classmethod
    def setUpClass(cls):
        cls.s3 = kit.client()

    def test_life(self):
        for key in ("key", "a b/ü+%&?.txt"):
            with self.subTest(key=key):
                body = kit.data(100_000)
                self.assertIn("Signature=", self.url("put_object", key=key))
                self.assertEqual(self.upload(self.url("put_object", key=key), body), (200, b""))
                asked = self.url("get_object", key=key, ResponseContentType="text/x-asked")
                self.assertTrue(curl(asked)[1] == body)
                self.assertIn(b"text/x-asked", curl(asked, "--head")[1] + curl(asked, "--include")[1])
                self.assertEqual(curl(self.url("delete_object", key=key), "--request", "DELETE"), (204, b""))

    def test_refused(self):
        self.upload(self.url("put_object"), b"abc")
        good = self.url("get_object")
        self.assertEqual(curl(good), (200, b"abc"))
        for url, expected in (
            (self.url("get_object", expires=-5), "AccessDenied"),
            (good.replace("/key?", "/other?"), "SignatureDoesNotMatch"),
            (good + "&encryption", "NotImplemented"),
            (good + "&x-id=GetObject", "InvalidRequest"),
        ):
            with self.subTest(url=url):
                self.assertEqual(code(curl(url)[1]), expected)


class Presigned(Base):
    def test_life(self):
        for size in (0, 10, 20 * kit.MIB + 5):
            with self.subTest(size=size):
                body = kit.data(size)
                self.assertEqual(self.upload(self.url("put_object"), body), (200, b""))
                status, got = curl(self.url("get_object"))
                self.assertEqual(status, 200)
                self.assertTrue(got == body)
                self.assertEqual(curl(self.url("head_object"), "--head")[0], 200)
                self.assertEqual(curl(self.url("delete_object"), "--request", "DELETE"), (204, b""))
                self.assertEqual(curl(self.url("get_object"))[0], 404)

    def test_odd_keys(self):
        for key in ("a//b", "sp ace+%20", "../x", "ü/😀", "new\nline", "?acl", "#f"):
            with self.subTest(key):
                self.assertEqual(self.upload(self.url("put_object", key), b"odd")[0], 200)
                self.assertEqual(curl(self.url("get_object", key)), (200, b"odd"))
                self.assertBody(key, b"odd")

    def test_ranges_and_overrides(self):
        self.put("key", kit.data(100_000))
        status, body = curl(self.url("get_object"), "--range", "65530-65545")
        self.assertEqual((status, body), (206, kit.data(100_000)[65530:65546]))
        url = self.url("get_object", ResponseContentType="text/x-y", ResponseContentDisposition="attachment; filename=f")
        status, body = curl(url, "--head", "--request", "GET")
        self.assertIn(b"content-type: text/x-y", body.lower())
        self.assertIn(b"content-disposition: attachment; filename=f", body.lower())

    def test_lists(self):
        self.put("key")
        url = self.s3.generate_presigned_url("list_objects_v2", Params={"Bucket": self.bucket}, ExpiresIn=60)
        status, body = curl(url)
        self.assertEqual(status, 200)
        self.assertIn(b"<Key>key</Key>", body)

    def test_signed_headers(self):
        url = self.url("put_object", ContentType="text/x-signed", Metadata={"m": "v"})
        self.assertEqual(self.upload(url, b"x", "content-type: text/x-signed", "x-amz-meta-m: v")[0], 200)
        head = self.head("key")
        self.assertEqual((head["ContentType"], head["Metadata"]), ("text/x-signed", {"m": "v"}))
        for headers in (["content-type: text/other", "x-amz-meta-m: v"], ["content-type: text/x-signed"]):
            status, body = self.upload(url, b"y", *headers)
            self.assertEqual(status, 403, body)
        self.assertBody("key", b"x")

    def test_in_parts(self):
        upload = self.start("key")
        bodies = [kit.data(kit.PART_MIN, 1), kit.data(9, 2)]
        parts = []
        for number, body in enumerate(bodies, 1):
            url = self.url("upload_part", UploadId=upload, PartNumber=number)
            self.assertEqual(self.upload(url, body)[0], 200)
            parts.append({"PartNumber": number, "ETag": f'"{kit.md5(body)}"'})
        self.complete("key", upload, parts)
        self.assertBody("key", b"".join(bodies))


class Refused(Base):
    def assertForbidden(self, answer, *codes):
        self.assertEqual(answer[0], 403, answer)
        self.assertIn(code(answer[1]), codes)

    def test_without_a_signature(self):
        self.put("key")
        bare = self.url("get_object").split("?")[0]
        self.assertForbidden(curl(bare), "AccessDenied")
        self.assertForbidden(self.upload(bare, b"x"), "AccessDenied")
        self.assertForbidden(curl(bare, "--request", "DELETE"), "AccessDenied")
        self.assertForbidden(curl(bare.rsplit("/", 1)[0]), "AccessDenied")
        self.assertForbidden(curl(kit.ENDPOINT + "/"), "AccessDenied")
        self.assertBody("key", b"content")

    def test_changed(self):
        self.put("key")
        self.put("other")
        url = self.url("get_object")
        wrong = "SignatureDoesNotMatch"
        self.assertForbidden(curl(url.replace("/key?", "/other?")), wrong)
        self.assertForbidden(curl(url + "&response-content-type=text/html"), wrong)
        self.assertForbidden(curl(re.sub("X-Amz-Expires=600", "X-Amz-Expires=6000", url)), wrong)
        self.assertForbidden(curl(url[:-1] + ("0" if url[-1] != "0" else "1")), wrong)
        self.assertForbidden(curl(url, "--request", "DELETE"), wrong)
        self.assertForbidden(self.upload(url, b"x"), wrong)
        self.assertBody("key", b"content")

    def presign(self, method="GET", key="key", age=0, **changes):
        """A URL signed by hand, so that each field can be what no SDK would write. None leaves a field out."""
        now = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=age)
        signer = raw.Signer(now=now)
        host = urllib.parse.urlsplit(kit.ENDPOINT).netloc
        fields = {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": f"{kit.ACCESS_KEY}/{signer.scope}",
            "X-Amz-Date": signer.stamp,
            "X-Amz-Expires": "600",
            "X-Amz-SignedHeaders": "host",
        }
        fields.update({"X-Amz-" + n: v for n, v in changes.items()})
        query = [(n, v) for n, v in fields.items() if v is not None]
        path = f"/{self.bucket}/{key}"
        signer.authorization(method, path, query, {"host": host}, raw.UNSIGNED)
        return f"{kit.ENDPOINT}{path}?{raw.query_string(query)}&X-Amz-Signature={signer.previous}"

    def test_expired(self):
        self.put("key")
        self.assertEqual(curl(self.presign())[0], 200)
        self.assertEqual(curl(self.presign(age=590))[0], 200)
        status, body = curl(self.presign(age=610))
        self.assertForbidden((status, body), "AccessDenied")
        self.assertIn(b"expired", body)
        self.assertEqual(curl(self.presign(age=86_400, Expires="604800"))[0], 200)

    def test_malformed(self):
        self.put("key")
        for changes in (
            {"Expires": "-1"},
            {"Expires": "soon"},
            {"Expires": "604801"},
            {"Expires": None},
            {"Date": None},
            {"Date": "yesterday"},
            {"Credential": "nobody"},
            {"Credential": None},
            {"SignedHeaders": None},
            {"Algorithm": "AWS4-HMAC-MD5"},
        ):
            with self.subTest(**changes):
                status, body = curl(self.presign(**changes))
                self.assertIn((status, code(body)), [(400, "AuthorizationQueryParametersError"), (403, "AccessDenied")])


class CurlSigns(kit.Case):
    """`curl --aws-sigv4`, as scripts use it."""

    def curl(self, path, *args):
        url = f"{kit.ENDPOINT}/{self.bucket}{path}"
        login = ["--aws-sigv4", f"aws:amz:{kit.REGION}:s3", "--user", f"{kit.ACCESS_KEY}:{kit.SECRET_KEY}"]
        return curl(url, *login, *args)

    def test_life(self):
        body = kit.data(300_000)
        digest = "x-amz-content-sha256: " + hashlib.sha256(body).hexdigest()
        with tempfile.NamedTemporaryFile() as file:
            file.write(body)
            file.flush()
            put = self.curl("/key", "--header", digest, "--upload-file", file.name)
        self.assertEqual(put, (200, b""))
        empty = "x-amz-content-sha256: " + raw.EMPTY_SHA256
        status, got = self.curl("/key", "--header", empty)
        self.assertEqual(status, 200)
        self.assertTrue(got == body)
        self.assertEqual(self.curl("/key", "--header", empty, "--request", "DELETE")[0], 204)


kit.main()
