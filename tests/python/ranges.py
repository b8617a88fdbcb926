"""Ranges across the borders that sealing makes, of packages and of parts, against a copy in memory."""

import random

import kit
import raw

P = kit.PACKAGE
SINGLE = 3 * P + 17
PARTS = [kit.PART_MIN + 1, kit.PART_MIN + P, kit.PART_MIN, 70_001]


def borders(starts, size):
    """Offsets at, just before and just after each border."""
    near = {s + d for s in starts for d in (-1, 0, 1)} | {0, 1, size // 2, size - 1}
    return sorted(n for n in near if 0 <= n < size)


class Ranges(kit.Case):
    def check(self, key, content, first, last):
        answer = self.get(key, Range=f"bytes={first}-{last}")
        stop = min(last, len(content) - 1)
        self.assertEqual(answer["ResponseMetadata"]["HTTPStatusCode"], 206)
        self.assertEqual(answer["ContentRange"], f"bytes {first}-{stop}/{len(content)}")
        self.assertEqual(answer["ContentLength"], stop - first + 1)
        self.assertTrue(answer["Body"] == content[first : stop + 1], (first, last))

    def check_all(self, key, content, offsets):
        pairs = [(a, b) for a in offsets for b in offsets if a <= b]
        kit.in_parallel(lambda p: self.check(key, content, *p), pairs, threads=8)

    def multipart_object(self):
        bodies = [kit.data(size, n) for n, size in enumerate(PARTS)]
        self.multipart("parts", bodies)
        return bodies

    def test_package_borders(self):
        content = kit.data(SINGLE)
        self.put("key", content)
        self.check_all("key", content, borders([P, 2 * P, 3 * P], SINGLE))

    def test_whole_packages(self):
        for size in (1, P - 1, P, P + 1, 2 * P):
            content = kit.data(size)
            self.put("key", content)
            self.check_all("key", content, borders([P], size))

    def test_part_borders(self):
        content = b"".join(self.multipart_object())
        starts = [sum(PARTS[:n]) for n in range(1, len(PARTS))]
        self.check_all("parts", content, borders(starts, len(content)))
        inner = starts[1] + P  # packages start anew in each part
        for first in (inner - 1, inner, inner + 1):
            self.check("parts", content, first, first)
            self.check("parts", content, first, first + 3 * P)

    def test_random(self):
        content = b"".join(self.multipart_object())
        chance = random.Random(11)

        def one(_):
            first = chance.randrange(len(content))
            last = first + int(chance.paretovariate(0.3)) % len(content)
            self.check("parts", content, first, last)

        kit.in_parallel(one, range(200), threads=8)

    def test_forms(self):
        content = kit.data(SINGLE)
        self.put("key", content)
        for text, expected in [
            ("bytes=-1", content[-1:]),
            (f"bytes=-{P + 1}", content[-P - 1 :]),
            (f"bytes=-{SINGLE * 2}", content),
            ("bytes=0-", content),
            (f"bytes={2 * P}-", content[2 * P :]),
            (f"bytes={SINGLE - 1}-", content[-1:]),
            (f"bytes=5-{SINGLE * 9}", content[5:]),
        ]:
            with self.subTest(text):
                answer = self.get("key", Range=text)
                self.assertEqual(answer["ResponseMetadata"]["HTTPStatusCode"], 206)
                self.assertTrue(answer["Body"] == expected)

    def test_not_satisfiable(self):
        self.put("key", kit.data(SINGLE))
        for text in (f"bytes={SINGLE}-", f"bytes={SINGLE}-{SINGLE + 5}", "bytes=-0"):
            with self.subTest(text), self.refused(416, "InvalidRange"):
                self.get("key", Range=text)

    def test_ignored(self):
        content = kit.data(SINGLE)
        self.put("key", content)
        for text in ("bytes=0-1,5-9", "bytes=5-1", "lines=0-5", "bytes=a-b", "bytes=", "0-5"):
            with self.subTest(text):
                answer = self.get("key", Range=text)
                self.assertEqual(answer["ResponseMetadata"]["HTTPStatusCode"], 200)
                self.assertTrue(answer["Body"] == content)

    def test_head(self):
        self.put("key", kit.data(SINGLE))
        answer = self.head("key", Range=f"bytes=10-{P + 9}")
        self.assertEqual(answer["ContentLength"], P)
        self.assertEqual(answer["ResponseMetadata"]["HTTPStatusCode"], 206)
        headers = answer["ResponseMetadata"]["HTTPHeaders"]
        self.assertEqual(headers["content-range"], f"bytes 10-{P + 9}/{SINGLE}")

    def test_by_part_number(self):
        bodies = self.multipart_object()
        first = 0
        for number, body in enumerate(bodies, 1):
            for verb in (self.get, self.head):
                answer = verb("parts", PartNumber=number)
                self.assertEqual(answer["ResponseMetadata"]["HTTPStatusCode"], 206)
                self.assertEqual(answer["PartsCount"], len(bodies))
                self.assertEqual(answer["ContentLength"], len(body))
                headers = answer["ResponseMetadata"]["HTTPHeaders"]
                expected = f"bytes {first}-{first + len(body) - 1}/{sum(PARTS)}"
                self.assertEqual(headers["content-range"], expected)
            self.assertTrue(self.body("parts", PartNumber=number) == body)
            first += len(body)
        with self.refused(416, "InvalidPartNumber"):
            self.get("parts", PartNumber=len(bodies) + 1)

    def test_part_number_of_an_object_in_one_piece(self):
        content = kit.data(P + 5)
        self.put("key", content)
        answer = self.get("key", PartNumber=1)
        self.assertTrue(answer["Body"] == content)
        self.assertNotIn("PartsCount", answer)
        with self.refused(416, "InvalidPartNumber"):
            self.get("key", PartNumber=2)

    def test_part_number_with_a_range(self):
        self.put("key", kit.data(100))
        with self.refused(400, "InvalidRequest"):
            self.get("key", PartNumber=1, Range="bytes=0-5")

    def test_part_numbers_in_gaps(self):
        """The parts of a finished object are counted anew, whatever their numbers were at upload."""
        upload = self.start("gaps")
        bodies = {7: kit.data(kit.PART_MIN, 7), 900: kit.data(1000, 900)}
        parts = [self.part("gaps", upload, n, b) for n, b in bodies.items()]
        self.complete("gaps", upload, parts)
        self.assertBody("gaps", b"".join(bodies.values()))
        self.check("gaps", b"".join(bodies.values()), kit.PART_MIN - 1, kit.PART_MIN)

    def test_range_of_an_abandoned_answer(self):
        """A client that stops reading disturbs nobody else."""
        content = kit.data(8 * kit.MIB)
        self.put("big", content)
        for _ in range(8):
            connection = raw.connect()
            signer = raw.Signer()
            headers = {
                "host": f"{connection.host}:{connection.port}",
                "x-amz-date": signer.stamp,
                "x-amz-content-sha256": raw.UNSIGNED,
            }
            path = f"/{self.bucket}/big"
            headers["authorization"] = signer.authorization("GET", path, [], headers, raw.UNSIGNED)
            connection.request("GET", path, headers=headers)
            self.assertEqual(len(connection.getresponse().read(1000)), 1000)
            connection.close()
        self.assertBody("big", content)


kit.main()
