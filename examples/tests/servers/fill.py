# fill.py OBJECTS LARGE_MIB: a bucket `source` with odd keys, sizes, headers, metadata and tags.
import hashlib, os, random, sys
from concurrent.futures import ThreadPoolExecutor
import boto3
from botocore.config import Config

M = 1 << 20
objects, large = int(sys.argv[1]), int(sys.argv[2])
bucket = "source"
config = Config(max_pool_connections=16, request_checksum_calculation="when_required", parameter_validation=False,
                s3={"addressing_style": "path"})
s3 = boto3.client("s3", endpoint_url=os.environ["SOURCE_ENDPOINT"], region_name="us-east-1", config=config,
                  aws_access_key_id=os.environ["SOURCE_KEY"], aws_secret_access_key=os.environ["SOURCE_SECRET"])
rnd = random.Random(7)
pool = rnd.randbytes(M)


def blob(n, seed):
    head = hashlib.sha256(str(seed).encode()).digest()[: min(32, n)]
    return head + pool[seed % 100000 :][: max(0, n - 32)]


def big(n, seed):
    b = random.Random(seed).randbytes(M)
    return b"".join(b[(i * 7919) % M :] + b[: (i * 7919) % M] for i in range(n // M)) + b[: n % M]


jobs = []
for i in range(objects):
    n = rnd.choice([0, 1, 100, 1000]) if i % 50 == 0 else rnd.randint(0, 20480)
    more = {}
    if i % 20 == 0:
        more["Tagging"] = f"n={i}&k%20k=v%2Bv"
    if i % 10 == 3:
        more |= {"ContentType": "text/plain; charset=utf-8", "CacheControl": "max-age=60", "ContentLanguage": "de, en",
                 "ContentDisposition": 'attachment; filename="a b.txt"', "ContentEncoding": "gzip"}
    if i % 10 == 4:
        more["Metadata"] = {"one": str(i), "two-b": "x  y", "empty": ""}
    jobs.append((f"d{i % 37:02d}/e{i % 5}/o{i:06d}.bin", blob(n, i), more))
# T18
hostile = ["sp ace", "plus+plus", "per%2Fcent", "per%", "%41", 'quo"te', "quo'te", "back\\slash", "new\nline", "ctl\x01x",
           "ctl\x1f", "a//b", "//", "//x", "/lead", "/", "a", "a/b", "a/", "mark/", "markbody/", ".", "..", "./x", "a/..", "a/../b",
           "a/./b", "dir/.", "emoji-\U0001F600", "e\u0301-nfd", "\u00e9-nfc", "q?versionId=1", "q?x", "trail ", " lead", "x" * 1024,
           "ü" * 512, "<&>;", "tab\tx", "cr\rx", "crlf\r\nx", "star*~", "hash#x", "semi;colon:@=,$!", "del\x7f", "\u2028sep", "\ufeffbom",
           "dir//", "k", "k/", "k/x", "AbC", "abc", "..//x", "../up", "~", "[b]{c}|^`", "+", "%", "%2B", "%252B", "http://x/y", "uploads",
           "?uploads", "?acl", "a&b=c", "x-amz-meta"]
for i, key in enumerate(dict.fromkeys(hostile)):
    jobs.append((key, blob(0 if key in ("mark/", "a/") else 10 + i, 100000 + i), {"Metadata": {"h": str(i)}}))
# T19
for n in [0, 1, 5 * M - 1, 5 * M, 5 * M + 1, 8 * M, 16 * M + 1]:
    jobs.append((f"size/{n}", big(n, n), {"Metadata": {"sz": str(n)}, "ContentType": "x/y", "Tagging": "big=1"}))


def put(job):
    s3.put_object(Bucket=bucket, Key=job[0], Body=job[1], **job[2])


def parts(key, sizes, seed, **more):
    upload = s3.create_multipart_upload(Bucket=bucket, Key=key, **more)["UploadId"]
    body, done, at = big(sum(sizes), seed), [], 0
    for number, n in enumerate(sizes, 1):
        etag = s3.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=body[at : at + n])["ETag"]
        done.append({"PartNumber": number, "ETag": etag})
        at += n
    s3.complete_multipart_upload(Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": done})


with ThreadPoolExecutor(8) as workers:
    list(workers.map(put, jobs))
put(("big/single", big(large * M, 1), {"ContentType": "application/zip", "Metadata": {"a": "b"}, "Tagging": "t=1"}))
for i in range(4):
    parts(f"big/parts{i}", [8 * M] * (large // 8) + [17], 2 + i, ContentType="video/mp4", Metadata={"m": "p"})
    s3.put_object_tagging(Bucket=bucket, Key=f"big/parts{i}", Tagging={"TagSet": [{"Key": "mp", "Value": "ta g+ü"}]})
parts("big/one part", [5], 9)
parts("big/odd parts", [5 * M, 6 * M + 3, 5 * M, 17], 10)
print(len(jobs) + 1 + 4 + 2)
