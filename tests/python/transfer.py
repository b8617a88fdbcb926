"""boto3's transfer manager with files of real size: `transfer.py up`, and later `transfer.py down` compares."""

import hashlib
import os
import sys
import tempfile
import time

from boto3.s3.transfer import TransferConfig

import kit

SIZE = (1024 if kit.LONG else 200) * kit.MIB + 12_345
BUCKET = "transfer"
# The default thresholds, and some that cut a file into many parts.
CONFIGS = {
    "defaults": TransferConfig(),
    "many-parts": TransferConfig(multipart_threshold=5 * kit.MIB, multipart_chunksize=5 * kit.MIB, max_concurrency=16),
    "one-piece": TransferConfig(multipart_threshold=SIZE + 1, use_threads=False),
}


def size_of(name):
    return SIZE if name == "defaults" else SIZE // 4


def pieces(name):
    """The content, made anew from the name, a piece at a time."""
    left = size_of(name)
    key = hashlib.sha256(name.encode()).digest()
    block = hashlib.shake_256(key).digest(kit.MIB)
    number = 0
    while left:
        piece = (number.to_bytes(8, "big") + block)[: min(kit.MIB, left)]
        yield piece
        left -= len(piece)
        number += 1


def digest_of(chunks):
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def chunks_of(path):
    with open(path, "rb") as file:
        while chunk := file.read(kit.MIB):
            yield chunk


def main(direction):
    s3 = kit.client(retries={"total_max_attempts": 3, "mode": "standard"})
    with tempfile.TemporaryDirectory(dir=os.environ["STRONGROOM_TEST_SCRATCH"]) as scratch:
        path = os.path.join(scratch, "file")
        if direction == "up":
            s3.create_bucket(Bucket=BUCKET)
        for name, config in CONFIGS.items():
            start = time.monotonic()
            if direction == "up":
                with open(path, "wb") as file:
                    file.writelines(pieces(name))
                s3.upload_file(path, BUCKET, name, Config=config, ExtraArgs={"Metadata": {"from": name}})
            else:
                s3.download_file(BUCKET, name, path, Config=config)
                if digest_of(chunks_of(path)) != digest_of(pieces(name)):
                    sys.exit(f"{name} is not what was sent")
                head = s3.head_object(Bucket=BUCKET, Key=name)
                assert head["ContentLength"] == size_of(name), head
                assert head["Metadata"] == {"from": name}, head
            print(f"{direction} {name}: {size_of(name) / kit.MIB:.0f} MiB in {time.monotonic() - start:.1f} s")


main(sys.argv[1])
