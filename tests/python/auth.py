"""Who may ask: root with the right signature, and nobody else."""

import datetime

import kit
import raw

MINUTE = datetime.timedelta(minutes=1)


class Auth(kit.Case):
    def setUp(self):
        super().setUp()
        self.path = f"/{self.bucket}/key"
        self.put("key")

    def assertRefused(self, answer, status, code):
        self.assertEqual((answer.status, answer.code), (status, code), answer)
        self.assertNotIn(kit.SECRET_KEY, answer.text)

    def each_verb(self, status, code, **how):
        """A refusal must be one for reading, writing and deleting alike."""
        for method in ("GET", "PUT", "DELETE"):
            with self.subTest(method):
                signer = how.get("signer", raw.Signer)()
                answer = raw.request(method, self.path, signer=signer, sign=how.get("sign", True), body=b"new" if method == "PUT" else b"")
                self.assertRefused(answer, status, code)
        self.assertBody("key", b"content")

    def test_wrong_secret(self):
        self.each_verb(403, "SignatureDoesNotMatch", signer=lambda: raw.Signer(secret="wrong"))

    def test_unknown_access_key(self):
        self.each_verb(403, "InvalidAccessKeyId", signer=lambda: raw.Signer(access="nobody"))

    def test_anonymous(self):
        self.each_verb(403, "AccessDenied", sign=False)
        answer = raw.request("GET", "/", sign=False)
        self.assertRefused(answer, 403, "AccessDenied")

    def test_clock(self):
        now = datetime.datetime.now(datetime.timezone.utc)
        for skew in (14, -14):
            answer = raw.request("GET", self.path, signer=raw.Signer(now=now + skew * MINUTE))
            self.assertEqual(answer.status, 200, answer)
        for skew in (16, -16, 60 * 24 * 400):
            with self.subTest(skew=skew):
                answer = raw.request("GET", self.path, signer=raw.Signer(now=now + skew * MINUTE))
                self.assertRefused(answer, 403, "RequestTimeTooSkewed")

    def test_wrong_region(self):
        answer = raw.request("GET", self.path, signer=raw.Signer(region="eu-north-7"))
        self.assertRefused(answer, 400, "AuthorizationHeaderMalformed")
        self.assertEqual(answer.element("Region"), kit.REGION)

    def signed(self, method="GET", path=None, extra=None):
        connection = raw.connect()
        signer = raw.Signer()
        headers = {
            "host": f"{connection.host}:{connection.port}",
            "x-amz-date": signer.stamp,
            "x-amz-content-sha256": raw.UNSIGNED,
            **(extra or {}),
        }
        headers["authorization"] = signer.authorization(method, self.path, [], headers, raw.UNSIGNED)
        return connection, headers

    def ask(self, connection, method, path, headers):
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return raw.Answer(response.status, response.headers, response.read())

    def test_signature_of_another_request(self):
        self.put("other")
        for method, path in (("GET", f"/{self.bucket}/other"), ("DELETE", self.path), ("GET", self.path + "?acl")):
            with self.subTest(f"{method} {path}"):
                connection, headers = self.signed()
                self.assertRefused(self.ask(connection, method, path, headers), 403, "SignatureDoesNotMatch")
        self.assertBody("key", b"content")

    def test_headers_left_unsigned(self):
        """An `x-amz-` header outside the signature could have been added on the way."""
        connection, headers = self.signed()
        headers["x-amz-server-side-encryption-customer-algorithm"] = "AES256"
        answer = self.ask(connection, "GET", self.path, headers)
        self.assertIn(answer.status, (400, 403), answer)

    def test_malformed(self):
        for text in ("", "Basic cm9vdDpyb290", "AWS4-HMAC-SHA256", "AWS4-HMAC-SHA256 Credential=x", "AWS4-HMAC-SHA256 " + "x" * 5000):
            with self.subTest(text[:40]):
                connection, headers = self.signed()
                headers["authorization"] = text
                answer = self.ask(connection, "GET", self.path, headers)
                self.assertIn(answer.status, (400, 403), answer)
                self.assertTrue(answer.code)

    def test_no_moment(self):
        connection, headers = self.signed()
        del headers["x-amz-date"]
        answer = self.ask(connection, "GET", self.path, headers)
        self.assertIn(answer.status, (400, 403), answer)

    def test_expected_owner(self):
        """Nobody's bucket is taken for someone else's."""
        with self.refused((400, 403, 501)):
            self.get("key", ExpectedBucketOwner="111122223333")


kit.main()
