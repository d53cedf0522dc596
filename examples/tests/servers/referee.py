# An independent comparison of `source` and `destination` by boto3: bytes, headers, metadata, tags, unfinished uploads.
import hashlib, json, os
from concurrent.futures import ThreadPoolExecutor
import boto3
from botocore.config import Config

config = Config(max_pool_connections=16, retries={"max_attempts": 5}, read_timeout=120, s3={"addressing_style": "path"},
                response_checksum_validation="when_required", request_checksum_calculation="when_required", parameter_validation=False)


def side(name):
    return boto3.client("s3", endpoint_url=os.environ[f"{name}_ENDPOINT"], region_name="us-east-1", config=config,
                        aws_access_key_id=os.environ[f"{name}_KEY"], aws_secret_access_key=os.environ[f"{name}_SECRET"])


sides = {"source": side("SOURCE"), "destination": side("DESTINATION")}
HEADERS = ["content-type", "cache-control", "content-encoding", "content-disposition", "content-language", "expires"]


def keys(bucket):
    # With start-after: tokens of some servers hold control characters.
    found, last = set(), None
    while True:
        more = {} if last is None else {"StartAfter": last}
        page = sides[bucket].list_objects_v2(Bucket=bucket, **more)
        for entry in page.get("Contents", []):
            last = entry["Key"]
            found.add(last)
        if not page["IsTruncated"]:
            return found


def look(bucket, key):
    got = sides[bucket].get_object(Bucket=bucket, Key=key)
    digest, size = hashlib.sha256(), 0
    for chunk in got["Body"].iter_chunks(1 << 20):
        digest.update(chunk)
        size += len(chunk)
    headers = got["ResponseMetadata"]["HTTPHeaders"]
    seen = {name: headers.get(name) for name in HEADERS}
    seen |= {name: value for name, value in headers.items() if name.startswith("x-amz-meta-")}
    seen |= {"sha256": digest.hexdigest(), "size": size}
    if headers.get("x-amz-tagging-count", "0") != "0":
        tags = sides[bucket].get_object_tagging(Bucket=bucket, Key=key)["TagSet"]
        seen["tags"] = sorted((tag["Key"], tag["Value"]) for tag in tags)
    return seen


def differs(key):
    here, there = look("source", key), look("destination", key)
    fields = [f for f in here.keys() | there.keys() if here.get(f) != there.get(f)]
    return f"{key!r}: " + ", ".join(f"{f}: {here.get(f)!r} != {there.get(f)!r}" for f in fields) if fields else None


here, there = keys("source"), keys("destination")
with ThreadPoolExecutor(6) as workers:
    different = [found for found in workers.map(differs, sorted(here & there)) if found]
uploads = [upload["Key"] for upload in sides["destination"].list_multipart_uploads(Bucket="destination").get("Uploads", [])]
print(json.dumps({"compared": len(here & there), "missing": sorted(here - there), "extra": sorted(there - here), "different": different,
                  "uploads": uploads}))
