"""Listings: prefixes, delimiters and pages, against a model that lists a sorted list of names."""

import random
import urllib.parse

import kit
import raw

TREE = [
    "a", "a/", "a/1", "a/2", "a/b/1", "a/b/c/1", "a//1", "a0", "aa/1", "b/1", "b/2/3", "c", "d.txt", "d/1.txt", "photos/2025/a b.jpg",
    "photos/2025/ü.jpg", "photos/2026/x.jpg", "photos/index", "z--1", "z--2", "z-3",
]


def model(names, prefix="", delimiter="", after=""):
    """Entries in the order of a listing: ("key", k) or ("prefix", p)."""
    entries = []
    for name in sorted(names, key=str.encode):
        if not name.startswith(prefix) or name.encode() <= after.encode():
            continue
        cut = name.find(delimiter, len(prefix)) if delimiter else -1
        entry = ("prefix", name[: cut + len(delimiter)]) if cut >= 0 else ("key", name)
        if entry not in entries:
            entries.append(entry)
    return entries


def entries(page):
    """The entries of one page, merged into one order as the bucket has them."""
    found = [("key", o["Key"]) for o in page.get("Contents", [])]
    found += [("prefix", p["Prefix"]) for p in page.get("CommonPrefixes", [])]
    return sorted(found, key=lambda e: e[1].encode())


class Listing(kit.Case):
    def fill(self, names=TREE):
        kit.in_parallel(lambda n: self.put(n, n.encode()), names)

    def pages_v2(self, **more):
        token = {}
        while True:
            page = self.s3.list_objects_v2(Bucket=self.bucket, **more, **token)
            self.assertEqual(page["KeyCount"], len(entries(page)))
            self.assertLessEqual(page["KeyCount"], page["MaxKeys"])
            yield page
            self.assertEqual(page["IsTruncated"], "NextContinuationToken" in page)
            if not page["IsTruncated"]:
                return
            self.assertGreater(page["KeyCount"], 0, "a page that leads nowhere")
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def pages_v1(self, **more):
        marker = {}
        while True:
            page = self.s3.list_objects(Bucket=self.bucket, **more, **marker)
            yield page
            if not page["IsTruncated"]:
                return
            self.assertEqual("NextMarker" in page, "Delimiter" in more)
            marker = {"Marker": page.get("NextMarker") or page["Contents"][-1]["Key"]}

    def check(self, names, **more):
        expected = model(names, more.get("Prefix", ""), more.get("Delimiter", ""))
        for pages in (self.pages_v1, self.pages_v2):
            with self.subTest(version=pages.__name__, **more):
                found = [entry for page in pages(**more) for entry in entries(page)]
                self.assertEqual(found, expected)

    def test_empty(self):
        self.check([])
        self.check([], Prefix="a", Delimiter="/")

    def test_prefixes_and_delimiters(self):
        self.fill()
        for prefix in ("", "a", "a/", "a/b", "photos/", "photos/2025/", "z--", "missing", "d"):
            for delimiter in ("", "/", "-", "--", ".txt", "5/", "missing"):
                more = {"Prefix": prefix, "Delimiter": delimiter}
                self.check(TREE, **{n: v for n, v in more.items() if v})

    def test_pages_of_every_size(self):
        self.fill()
        for size in (1, 2, 3, 5, len(TREE) - 1, len(TREE), len(TREE) + 1):
            self.check(TREE, MaxKeys=size)
            self.check(TREE, MaxKeys=size, Delimiter="/")
            self.check(TREE, MaxKeys=size, Delimiter="/", Prefix="a/")

    def test_random_trees(self):
        chance = random.Random(7)
        names = {"".join(chance.choices("ab/-é", k=chance.randrange(1, 9))) for _ in range(120)}
        self.fill(names)
        for _ in range(40):
            more = {"MaxKeys": chance.randrange(1, 30)}
            more["Prefix"] = "".join(chance.choices("ab/-é", k=chance.randrange(0, 3)))
            more["Delimiter"] = chance.choice(["/", "-", "ab", "é", ""])
            self.check(names, **{n: v for n, v in more.items() if v})

    def test_start_after(self):
        self.fill()
        for after in ("", "a", "a/", "a0", "a00", "photos/2025/", "zz"):
            found = [o["Key"] for p in self.pages_v2(StartAfter=after, MaxKeys=4) for o in p.get("Contents", [])]
            self.assertEqual(found, [k for _, k in model(TREE, after=after)], after)
            page = self.s3.list_objects(Bucket=self.bucket, Marker=after)
            self.assertEqual([o["Key"] for o in page.get("Contents", [])], found, after)

    def test_no_keys_wanted(self):
        self.fill(["a", "b"])
        for call in (self.s3.list_objects, self.s3.list_objects_v2):
            page = call(Bucket=self.bucket, MaxKeys=0)
            self.assertEqual((page.get("Contents", []), page["IsTruncated"], page["MaxKeys"]), ([], False, 0))

    def test_more_than_a_page(self):
        names = [f"{n:04}" for n in range(1100)]
        kit.in_parallel(lambda n: self.put(n, b""), names, threads=32)
        first = self.s3.list_objects_v2(Bucket=self.bucket)
        self.assertEqual((first["KeyCount"], first["MaxKeys"], first["IsTruncated"]), (1000, 1000, True))
        over = self.s3.list_objects_v2(Bucket=self.bucket, MaxKeys=5000)
        self.assertEqual(over["KeyCount"], 1000)
        self.assertEqual(self.keys(), names)
        self.assertEqual([o["Key"] for p in self.pages_v1() for o in p["Contents"]], names)

    def test_what_an_entry_says(self):
        self.put("key", kit.data(70_000))
        for page in (
            self.s3.list_objects_v2(Bucket=self.bucket, FetchOwner=True),
            self.s3.list_objects(Bucket=self.bucket),
        ):
            entry = page["Contents"][0]
            self.assertEqual(entry["Size"], 70_000)
            self.assertEqual(entry["ETag"], f'"{kit.md5(kit.data(70_000))}"')
            self.assertEqual(entry["StorageClass"], "STANDARD")
            self.assertTrue(entry["Owner"]["ID"])
        plain = self.s3.list_objects_v2(Bucket=self.bucket)
        self.assertNotIn("Owner", plain["Contents"][0])
        self.assertEqual(plain["Name"], self.bucket)

    def test_url_encoding(self):
        names = ["a b/ü&<>", "a b/\x01\n", "a b/%41+"]
        self.fill(names)
        query = [("list-type", "2"), ("encoding-type", "url"), ("prefix", "a b/"), ("delimiter", "&")]
        answer = raw.request("GET", f"/{self.bucket}", query)
        self.assertEqual(answer.status, 200, answer)
        self.assertEqual(answer.element("EncodingType"), "url")
        for name in (names[1], names[2], "a b/ü&"):
            encoded = {urllib.parse.quote(name, safe="/"), urllib.parse.quote_plus(name, safe="/")}
            self.assertTrue(any(f">{e}<" in answer.text for e in encoded), (name, answer.text))
        unescaped = urllib.parse.unquote_plus(answer.element("Delimiter"))
        self.assertEqual(unescaped, "&")

    def test_plain_encoding(self):
        self.fill(["a<b>&'\"", "ü", "p q/x"])
        answer = raw.request("GET", f"/{self.bucket}", [("list-type", "2"), ("delimiter", "/")])
        self.assertIn("a&lt;b&gt;&amp;", answer.text)
        self.assertIn("<Key>ü</Key>", answer.text)
        self.assertIn("<Prefix>p q/</Prefix>", answer.text)
        self.assertIsNone(answer.element("EncodingType"))

    def test_parameters_out_of_range(self):
        for query in (
            [("max-keys", "-1")],
            [("max-keys", "many")],
            [("list-type", "2"), ("max-keys", "-1")],
            [("list-type", "2"), ("continuation-token", "")],
            [("list-type", "2"), ("continuation-token", "!not a token!")],
            [("encoding-type", "base64")],
        ):
            with self.subTest(query=query):
                answer = raw.request("GET", f"/{self.bucket}", query)
                self.assertEqual((answer.status, answer.code), (400, "InvalidArgument"), answer)

    def test_seen_at_once(self):
        for n in range(30):
            self.put(f"k{n:02}")
            self.assertEqual(len(self.keys()), n + 1)
        for n in range(30):
            self.delete(f"k{n:02}")
            self.assertEqual(len(self.keys()), 29 - n)


kit.main()
