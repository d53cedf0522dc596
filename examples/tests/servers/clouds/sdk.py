"""Drives the vendor's own SDK against `server.py`: what it cannot read is no answer of the vendor's.

    sdk.py CLOUD PROXY ACCESS_KEY SECRET_KEY REGION BUCKET

Writes objects below `by-sdk/`, reads what others wrote below `by-dth/`, and prints what it found as JSON.
"""

import hashlib
import json
import sys

CLOUD, PROXY, ACCESS, SECRET, REGION, BUCKET = sys.argv[1:7]
KEY = "by-sdk/é +&%2F.txt"
BODY = b"written by the vendor's SDK"
PARTS = [bytes([n]) * (1 << 20) for n in (1, 2)] + [b"end"]


def told(body, content_type, meta, tags, crc):
    return {"sha256": hashlib.sha256(body).hexdigest(), "type": content_type, "meta": meta, "tags": tags, "crc": crc}


def oss():
    import alibabacloud_oss_v2 as v2

    config = v2.config.load_default()
    config.credentials_provider = v2.credentials.StaticCredentialsProvider(ACCESS, SECRET)
    config.region, config.disable_ssl, config.proxy_host = REGION, True, {"http": PROXY}
    client = v2.Client(config)
    client.put_object(v2.PutObjectRequest(bucket=BUCKET, key=KEY, body=BODY, content_type="text/x-sdk", metadata={"from": "sdk"}, tagging="a=1&b=x%20y"))
    begun = client.initiate_multipart_upload(v2.InitiateMultipartUploadRequest(bucket=BUCKET, key="by-sdk/parts", metadata={"from": "sdk"}))
    made = []
    for n, body in enumerate(PARTS, 1):
        part = client.upload_part(v2.UploadPartRequest(bucket=BUCKET, key="by-sdk/parts", upload_id=begun.upload_id, part_number=n, body=body))
        made.append(v2.UploadPart(part_number=n, etag=part.etag))
    listed = client.list_parts(v2.ListPartsRequest(bucket=BUCKET, key="by-sdk/parts", upload_id=begun.upload_id))
    assert [(p.part_number, p.size) for p in listed.parts] == [(1, 1 << 20), (2, 1 << 20), (3, 3)], listed
    uploads = client.list_multipart_uploads(v2.ListMultipartUploadsRequest(bucket=BUCKET, prefix="by-sdk/"))
    assert [u.key for u in uploads.uploads] == ["by-sdk/parts"], uploads
    done = client.complete_multipart_upload(
        v2.CompleteMultipartUploadRequest(bucket=BUCKET, key="by-sdk/parts", upload_id=begun.upload_id, complete_multipart_upload=v2.CompleteMultipartUpload(parts=made))
    )
    assert done.etag and done.hash_crc64, done
    client.copy_object(v2.CopyObjectRequest(bucket=BUCKET, key="by-sdk/copy", source_bucket=BUCKET, source_key=KEY))
    client.put_object(v2.PutObjectRequest(bucket=BUCKET, key="by-sdk/gone", body=b"x"))
    client.delete_object(v2.DeleteObjectRequest(bucket=BUCKET, key="by-sdk/gone"))
    keys = [o.key for page in client.list_objects_v2_paginator(limit=2).iter_page(v2.ListObjectsV2Request(bucket=BUCKET)) for o in page.contents]
    found = {}
    for key in keys:
        got = client.get_object(v2.GetObjectRequest(bucket=BUCKET, key=key))
        tags = client.get_object_tagging(v2.GetObjectTaggingRequest(bucket=BUCKET, key=key)).tag_set.tags or []
        body = got.body.read()
        found[key] = told(body, got.content_type, dict(got.metadata or {}), [[t.key, t.value] for t in tags], got.hash_crc64)
    try:
        client.head_object(v2.HeadObjectRequest(bucket=BUCKET, key="nothing"))
    except v2.exceptions.OperationError as error:
        assert error.unwrap().code == "NoSuchKey", error
    return found


def cos():
    from qcloud_cos import CosConfig, CosS3Client
    from qcloud_cos.cos_exception import CosServiceError

    client = CosS3Client(CosConfig(Region=REGION, SecretId=ACCESS, SecretKey=SECRET, Scheme="http", Proxies={"http": PROXY}))
    client.put_object(Bucket=BUCKET, Key=KEY, Body=BODY, ContentType="text/x-sdk", Metadata={"x-cos-meta-from": "sdk"}, Tagging="a=1&b=x%20y")
    begun = client.create_multipart_upload(Bucket=BUCKET, Key="by-sdk/parts", Metadata={"x-cos-meta-from": "sdk"})
    made = []
    for n, body in enumerate(PARTS, 1):
        part = client.upload_part(Bucket=BUCKET, Key="by-sdk/parts", Body=body, PartNumber=n, UploadId=begun["UploadId"])
        made.append({"PartNumber": n, "ETag": part["ETag"]})
    listed = client.list_parts(Bucket=BUCKET, Key="by-sdk/parts", UploadId=begun["UploadId"])
    assert [(p["PartNumber"], p["Size"]) for p in listed["Part"]] == [("1", str(1 << 20)), ("2", str(1 << 20)), ("3", "3")], listed
    uploads = client.list_multipart_uploads(Bucket=BUCKET, Prefix="by-sdk/")
    assert [u["Key"] for u in uploads["Upload"]] == ["by-sdk/parts"], uploads
    done = client.complete_multipart_upload(Bucket=BUCKET, Key="by-sdk/parts", UploadId=begun["UploadId"], MultipartUpload={"Part": made})
    assert done["ETag"] and done["x-cos-hash-crc64ecma"], done
    client.copy_object(Bucket=BUCKET, Key="by-sdk/copy", CopySource={"Bucket": BUCKET, "Key": KEY, "Region": REGION})
    client.put_object(Bucket=BUCKET, Key="by-sdk/gone", Body=b"x")
    client.delete_object(Bucket=BUCKET, Key="by-sdk/gone")
    keys, marker = [], ""
    while True:
        page = client.list_objects(Bucket=BUCKET, MaxKeys=2, Marker=marker)
        keys += [o["Key"] for o in page.get("Contents", [])]
        if page["IsTruncated"] != "true":
            break
        marker = page["NextMarker"]
    found = {}
    for key in keys:
        got = client.get_object(Bucket=BUCKET, Key=key)
        tags = client.get_object_tagging(Bucket=BUCKET, Key=key)["TagSet"]["Tag"] if "x-cos-tagging-count" in got else []
        meta = {name.removeprefix("x-cos-meta-"): value for name, value in got.items() if name.startswith("x-cos-meta-")}
        body = got["Body"].get_raw_stream().read()
        found[key] = told(body, got["Content-Type"], meta, [[t["Key"], t["Value"]] for t in tags], got["x-cos-hash-crc64ecma"])
    try:
        client.get_object(Bucket=BUCKET, Key="nothing")
        raise AssertionError("an object that is not there was read")
    except CosServiceError as error:
        assert error.get_error_code() == "NoSuchKey", error
    return found


def kodo():
    """https://developer.qiniu.com/kodo/12553: by the AWS SDK for Python."""
    import boto3
    from botocore.config import Config

    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "virtual"},
        proxies={"http": PROXY},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    host = f"http://s3.{REGION}.qiniucs.com"
    client = boto3.client("s3", endpoint_url=host, region_name=REGION, aws_access_key_id=ACCESS, aws_secret_access_key=SECRET, config=config)
    client.put_object(Bucket=BUCKET, Key=KEY, Body=BODY, ContentType="text/x-sdk", Metadata={"from": "sdk"})
    begun = client.create_multipart_upload(Bucket=BUCKET, Key="by-sdk/parts", Metadata={"from": "sdk"})
    at = {"Bucket": BUCKET, "Key": "by-sdk/parts", "UploadId": begun["UploadId"]}
    made = [{"PartNumber": n, "ETag": client.upload_part(Body=body, PartNumber=n, **at)["ETag"]} for n, body in enumerate(PARTS, 1)]
    assert [(p["PartNumber"], p["Size"]) for p in client.list_parts(**at)["Parts"]] == [(1, 1 << 20), (2, 1 << 20), (3, 3)]
    assert [u["Key"] for u in client.list_multipart_uploads(Bucket=BUCKET, Prefix="by-sdk/")["Uploads"]] == ["by-sdk/parts"]
    assert client.complete_multipart_upload(MultipartUpload={"Parts": made}, **at)["ETag"]
    client.copy_object(Bucket=BUCKET, Key="by-sdk/copy", CopySource={"Bucket": BUCKET, "Key": KEY})
    client.put_object(Bucket=BUCKET, Key="by-sdk/gone", Body=b"x")
    client.delete_object(Bucket=BUCKET, Key="by-sdk/gone")
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, PaginationConfig={"PageSize": 2})
    keys = [o["Key"] for page in pages for o in page.get("Contents", [])]
    found = {}
    for key in keys:
        got = client.get_object(Bucket=BUCKET, Key=key)
        found[key] = told(got["Body"].read(), got["ContentType"], got["Metadata"], [], None)
    return found


print(json.dumps({"oss": oss, "cos": cos, "kodo": kodo}[CLOUD]()))
