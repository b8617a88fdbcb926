"""Metrics, read by the parser that Prometheus's own client has, against what was asked of the server meanwhile."""

import ssl
import urllib.error
import urllib.request

import kit
from prometheus_client.parser import text_string_to_metric_families

TOKEN = "a-token-for-the-tests"


def fetch(**headers):
    request = urllib.request.Request(kit.ENDPOINT + "/metrics", headers=headers)
    trust = ssl.create_default_context(cafile=kit.CA_BUNDLE) if kit.TLS else None
    return urllib.request.urlopen(request, timeout=30, context=trust)


def scrape():
    """Samples by name and labels; a family or a sample that comes twice is an error."""
    answer = fetch()
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4"), answer.headers
    samples, families = {}, set()
    for family in text_string_to_metric_families(answer.read().decode()):
        assert family.name not in families, family.name
        assert family.documentation and family.type in ("counter", "gauge", "histogram"), family
        families.add(family.name)
        for sample in family.samples:
            name = (sample.name, *sorted(sample.labels.items()))
            assert name not in samples, name
            samples[name] = sample.value
    return samples


def value(samples, name, **labels):
    return samples.get((name, *sorted(labels.items())), 0)


class Metrics(kit.Case):
    def grown(self, before, name, **labels):
        return value(scrape(), name, **labels) - value(before, name, **labels)

    def test_requests_bytes_and_time(self):
        body = kit.data(300_000)
        before = scrape()
        for n in range(5):
            self.put(f"key {n}", body)
            self.get(f"key {n}")
        self.head("key 0")
        with self.refused(404):
            self.get("absent")
        after = scrape()

        def grown(name, **labels):
            return value(after, name, **labels) - value(before, name, **labels)

        requests = "strongroom_requests_total"
        self.assertEqual(grown(requests, verb="PUT", code="200"), 5)
        self.assertEqual(grown(requests, verb="HEAD", code="200"), 1)
        self.assertEqual(grown(requests, verb="GET", code="404"), 1)
        # The first scrape is counted once it has answered.
        self.assertEqual(grown(requests, verb="GET", code="200"), 6)
        self.assertGreater(grown("strongroom_received_bytes_total"), 1_500_000)
        self.assertLess(grown("strongroom_received_bytes_total"), 1_600_000)
        self.assertGreater(grown("strongroom_sent_bytes_total"), 1_500_000)
        self.assertLess(grown("strongroom_sent_bytes_total"), 1_600_000)
        self.assertGreaterEqual(value(after, "strongroom_open_connections"), 1)

        seconds = "strongroom_request_duration_seconds"
        self.assertEqual(grown(f"{seconds}_count", verb="PUT"), 5)
        self.assertGreater(grown(f"{seconds}_sum", verb="PUT"), 0)
        buckets = [
            (float(dict(labels)["le"]), n)
            for (name, *labels), n in after.items()
            if name == f"{seconds}_bucket" and dict(labels)["verb"] == "PUT"
        ]
        buckets.sort()
        counts = [n for _, n in buckets]
        self.assertEqual(counts, sorted(counts), "classes are cumulative")
        self.assertEqual(buckets[-1][0], float("inf"))
        self.assertEqual(buckets[-1][1], value(after, f"{seconds}_count", verb="PUT"))

    def test_what_the_store_holds(self):
        before = scrape()
        self.put("large", kit.data(3_000_000))
        self.put("small", b"x" * 1000)
        upload = self.s3.create_multipart_upload(Bucket=self.bucket, Key="upload")
        after = scrape()
        self.assertEqual(value(after, "strongroom_objects") - value(before, "strongroom_objects"), 2)
        self.assertEqual(
            value(after, "strongroom_object_bytes") - value(before, "strongroom_object_bytes"), 3_001_000
        )
        self.assertEqual(value(after, "strongroom_uploads") - value(before, "strongroom_uploads"), 1)
        self.assertGreaterEqual(value(after, "strongroom_buckets"), 1)
        live = dict(name="strongroom_space_bytes", kind="live")
        self.assertGreater(value(after, **live) - value(before, **live), 3_000_000)
        for kind in ("index", "free", "reserve"):
            self.assertGreater(value(after, "strongroom_space_bytes", kind=kind), 0, kind)
        self.assertGreaterEqual(value(after, "strongroom_keys", state="enabled"), 1)
        self.assertEqual(value(after, "strongroom_keystore_sealed"), 0)
        info = [dict(labels) for (name, *labels) in after if name == "strongroom_info"]
        self.assertEqual([sorted(labels) for labels in info], [["cipher", "md5", "version"]])
        self.assertEqual(value(after, "strongroom_scrub_rotten_total"), 0)
        self.assertIn("strongroom_kms_calls_total", {name for name, *_ in after})
        self.s3.abort_multipart_upload(Bucket=self.bucket, Key="upload", UploadId=upload["UploadId"])

    def test_a_hot_object_comes_from_memory(self):
        body = kit.data(5_000_000)
        self.put("hot", body)
        self.assertBody("hot", body)
        before = scrape()
        for _ in range(3):
            self.assertBody("hot", body)
        self.assertEqual(self.grown(before, "strongroom_disk_operations_total", kind="read"), 0)
        self.assertEqual(self.grown(before, "strongroom_cache_misses_total"), 0)
        self.assertEqual(self.grown(before, "strongroom_cache_hits_total"), 3 * 10)
        self.assertGreater(self.grown(before, "strongroom_cache_hit_bytes_total"), 15_000_000)
        after = scrape()
        self.assertGreater(value(after, "strongroom_cache_bytes"), 5_000_000)
        self.assertLessEqual(
            value(after, "strongroom_cache_bytes"), value(after, "strongroom_cache_capacity_bytes")
        )

    def test_others_need_the_token(self):
        passed_on = {"X-Forwarded-For": "192.0.2.1"}
        for headers in (passed_on, {"Authorization": "Bearer " + TOKEN[1:]}):
            with self.assertRaises(urllib.error.HTTPError) as refused:
                fetch(**headers)
            self.assertEqual(refused.exception.code, 403)
            self.assertNotIn(b"strongroom_", refused.exception.read())
        shown = {"Authorization": "Bearer " + TOKEN}
        self.assertEqual(fetch(**passed_on, **shown).status, 200)

    def test_a_bucket_of_that_name(self):
        self.s3.create_bucket(Bucket="metrics")
        self.s3.put_object(Bucket="metrics", Key="key", Body=b"x")
        listed = self.s3.list_objects_v2(Bucket="metrics")["Contents"]
        self.assertEqual([entry["Key"] for entry in listed], ["key"])
        scrape()
        self.s3.delete_object(Bucket="metrics", Key="key")
        self.s3.delete_bucket(Bucket="metrics")


if __name__ == "__main__":
    kit.main()
