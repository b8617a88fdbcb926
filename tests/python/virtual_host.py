"""Buckets in the host name, on a server started with `--domain s3.strongroom.test`; path style goes on beside it."""

import kit
import raw

DOMAIN = "s3.strongroom.test"


class VirtualHost(kit.Case):
    def ask(self, method, path, bucket=None, **more):
        return raw.request(method, path, host=f"{bucket or self.bucket}.{DOMAIN}", **more)

    def test_objects(self):
        for key in ("key", "a//b", "dir/ü x", "../up"):
            with self.subTest(key):
                answer = self.ask("PUT", f"/{key}", body=b"by host")
                self.assertEqual(answer.status, 200, answer)
                self.assertBody(key, b"by host")
                self.assertEqual(self.ask("GET", f"/{key}").body, b"by host")
                self.assertEqual(self.ask("DELETE", f"/{key}").status, 204)
                self.assertAbsent(key)

    def test_buckets(self):
        name = f"v-{self.bucket}"
        self.assertEqual(self.ask("PUT", "/", bucket=name).status, 200)
        self.s3.head_bucket(Bucket=name)
        self.assertEqual(self.ask("HEAD", "/", bucket=name).status, 200)
        self.assertEqual(self.ask("DELETE", "/", bucket=name).status, 204)
        answer = self.ask("GET", "/", bucket=name, query=[("list-type", "2")])
        self.assertEqual((answer.status, answer.code), (404, "NoSuchBucket"))

    def test_lists(self):
        self.put("a/1")
        answer = self.ask("GET", "/", query=[("list-type", "2"), ("prefix", "a/")])
        self.assertIn("<Key>a/1</Key>", answer.text)

    def test_with_a_port(self):
        self.put("key")
        answer = raw.request("GET", "/key", host=f"{self.bucket}.{DOMAIN}:9000")
        self.assertEqual(answer.body, b"content")

    def test_the_domain_itself_is_path_style(self):
        self.put("key")
        answer = raw.request("GET", f"/{self.bucket}/key", host=DOMAIN)
        self.assertEqual(answer.body, b"content")

    def test_a_bucket_of_the_same_name_in_the_path(self):
        """The path belongs to the key when the host names the bucket."""
        answer = self.ask("PUT", f"/{self.bucket}/key", body=b"nested")
        self.assertEqual(answer.status, 200, answer)
        self.assertEqual(self.keys(), [f"{self.bucket}/key"])


kit.main()
