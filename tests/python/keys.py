"""Keys are opaque strings: whatever bytes they are made of, each names its own object and lists in byte order."""

import kit

KEYS = [
    "a/b", "a//b", "a///b", "/a", "//", "/", "a/", "a//", ".", "..", "../x", "a/../b", "a/./b", "./a", "b/..", "../../etc/passwd",
    "sp ace", " lead", "trail ", "a+b", "a b", "a%20b", "a%2Bb", "%", "%%", "%2F", "%2f", "%00", "%zz",
    "\x01", "\x7f", "nul\x00inside", "tab\there", "new\nline", "carriage\rreturn", "crlf\r\n", "bell\x07", "esc\x1b[31m",
    "ü", "u\u0308", "é", "e\u0301", "日本語/キー", "😀", "\u00a0", "\u200b", "\u2028", "\ufeffbom", "\ufffd", "\U0010fffd", "ß", "ſ", "İ",
    "&", "<tag>", "a&amp;b", '"quoted"', "it's", "]]>", "<!-- -->", "?query=1", "#fragment", ";", "=", ",", ":", "@", "$", "!", "*", "(x)", "[x]", "{x}",
    "\\back\\slash", "|", "^", "`", "~", "a=b&c=d", "?uploads", "?acl",
    "x" * 1024, "é" * 512, "x/" * 512, "." * 1024, "%" * 300,
    "-", "_", "A", "a", "Z", "z", "0", "a\uffffb", "a\U00010000b",
]


def byte_order(keys):
    return sorted(keys, key=lambda k: k.encode())


class Keys(kit.Case):
    def setUp(self):
        super().setUp()
        self.assertEqual(len(KEYS), len(set(KEYS)))
        kit.in_parallel(lambda k: self.put(k, self.content(k), Metadata={"n": str(KEYS.index(k))}), KEYS)

    @staticmethod
    def content(key):
        return b"content of " + key.encode()

    def test_each_names_its_own(self):
        for key in KEYS:
            with self.subTest(key=key):
                self.assertBody(key, self.content(key))
                head = self.head(key)
                self.assertEqual(head["Metadata"]["n"], str(KEYS.index(key)))
                self.assertEqual(head["ContentLength"], len(self.content(key)))

    def test_listed_in_byte_order(self):
        expected = byte_order(KEYS)
        self.assertEqual(self.keys(), expected)
        for size in (1, 2, 7):
            self.assertEqual(self.keys(PaginationConfig={"PageSize": size}), expected, size)
        pages = self.s3.get_paginator("list_objects").paginate(
            Bucket=self.bucket, PaginationConfig={"PageSize": 5}
        )
        self.assertEqual([o["Key"] for p in pages for o in p["Contents"]], expected)

    def test_as_prefix(self):
        for prefix in KEYS:
            with self.subTest(prefix=prefix):
                expected = byte_order(k for k in KEYS if k.encode().startswith(prefix.encode()))
                self.assertEqual(self.keys(Prefix=prefix), expected)

    def test_as_start(self):
        for start in KEYS:
            with self.subTest(start=start):
                expected = byte_order(k for k in KEYS if k.encode() > start.encode())
                self.assertEqual(self.keys(StartAfter=start), expected)

    def test_removed_one_by_one(self):
        left = list(KEYS)
        for key in KEYS[::2]:
            self.delete(key)
            left.remove(key)
        self.assertEqual(self.keys(), byte_order(left))
        entries = [{"Key": k} for k in left if all(c in "\t\n\r" or " " <= c for c in k) and "\uffff" not in k]
        answer = self.s3.delete_objects(Bucket=self.bucket, Delete={"Objects": entries})
        self.assertNotIn("Errors", answer)
        left = [k for k in left if {"Key": k} not in entries]
        self.assertEqual(self.keys(), byte_order(left))

    def test_copied(self):
        for key in KEYS:
            with self.subTest(key=key):
                source = {"Bucket": self.bucket, "Key": key}
                self.s3.copy_object(Bucket=self.bucket, Key="the copy", CopySource=source)
                self.assertBody("the copy", self.content(key))

    def test_multipart(self):
        for key in ("a//b", "../x", "new\nline", "%2F", "ü", "&<>", "x" * 1024):
            with self.subTest(key=key):
                body = kit.data(100_000, key)
                upload = self.start(key)
                part = self.part(key, upload, 1, body)
                listed = self.s3.list_multipart_uploads(Bucket=self.bucket)["Uploads"]
                self.assertEqual([u["Key"] for u in listed], [key])
                self.complete(key, upload, [part])
                self.assertBody(key, body)


kit.main()
