"""Alibaba Cloud OSS, Tencent Cloud COS and Qiniu Kodo on loopback, for tests: nobody can install these.

    server.py CLOUD PORT ACCESS_KEY SECRET_KEY REGION

What decides over a request is the vendor's own code: the signature is computed again by its SDK (alibabacloud-oss-v2, cos-python-sdk-v5;
for Kodo, whose documents prescribe the AWS SDKs, botocore), and a wrong one is refused. Answers have the forms of the vendors' documents:

- OSS: https://help.aliyun.com/en/oss/developer-reference/ PutObject, GetObject, ListObjectsV2, InitiateMultipartUpload,
  CompleteMultipartUpload, ListParts, ListMultipartUploads, CopyObject, PutObjectTagging, RestoreObject, ListObjectVersions
  (GetBucketVersions), GetBucketVersioning, "Error responses"
- COS: https://cloud.tencent.com/document/product/436/ 7749 (PUT Object), 7734 (GET Bucket), 7753 (GET Object), 7746 (Initiate),
  7750 (Upload Part), 7742 (Complete), 7747 (List Parts), 7736 (List Multipart Uploads), 10881 (Copy), 12633 (restore), 35521 (GET Bucket Object versions),
  19888 (GET Bucket versioning), 7730 (errors)
- Kodo: https://developer.qiniu.com/kodo/4086/aws-s3-compatible

The vendors' SDKs are driven against this server as well (`sdk.py`): what they cannot read is no answer of theirs.

It is a proxy for plain HTTP: clients name the real hosts, and end here. One process, in memory.
"""

import base64
import datetime
import email.utils
import hashlib
import sys
import threading
import xml.etree.ElementTree as tree
import time
import urllib.parse
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from xml.sax.saxutils import escape

from alibabacloud_oss_v2.crc import Crc64

from signatures import Keys, Refused, signature_of

CLOUD, PORT, ACCESS_KEY, SECRET_KEY, REGION = sys.argv[1:6]
KEYS = Keys(ACCESS_KEY, SECRET_KEY, REGION, time.time)
PREFIX = {"oss": "x-oss-", "cos": "x-cos-", "kodo": "x-amz-"}[CLOUD]
HOSTS = {
    "oss": [f"oss-{REGION}.aliyuncs.com", f"oss-{REGION}-internal.aliyuncs.com", "oss-accelerate.aliyuncs.com"],
    "cos": [f"cos.{REGION}.myqcloud.com", f"cos-internal.{REGION}.tencentcos.cn", "cos.accelerate.myqcloud.com"],
    "kodo": [f"s3.{REGION}.qiniucs.com"],
}[CLOUD]
MIN_PART = {"oss": 100 << 10, "cos": 1 << 20, "kodo": 1 << 20}[CLOUD]
ARCHIVED = {"oss": ["Archive", "ColdArchive", "DeepColdArchive"], "cos": ["ARCHIVE", "DEEP_ARCHIVE"], "kodo": ["GLACIER", "DEEP_ARCHIVE"]}[CLOUD]
CONTENT = ["content-type", "content-encoding", "content-language", "content-disposition", "cache-control", "expires"]

lock = threading.RLock()
buckets = {}
uploads = {}


class Object:
    def __init__(self, body, headers, kind="Normal", etag=None):
        self.body, self.kind = body, kind
        self.md5 = hashlib.md5(body).hexdigest()
        self.etag = etag or (self.md5.upper() if CLOUD == "oss" else self.md5)
        self.modified = time.time()
        self.content = {name: headers[name] for name in CONTENT if name in headers}
        self.meta = {name: value for name, value in headers.items() if name.startswith(PREFIX + "meta-")}
        self.tags = urllib.parse.parse_qsl(headers.get(PREFIX + "tagging", ""), keep_blank_values=True)
        self.storage_class = headers.get(PREFIX + "storage-class", "Standard" if CLOUD == "oss" else "STANDARD")
        self.acl = headers.get(PREFIX + ("object-acl" if CLOUD == "oss" else "acl"))
        self.encryption = headers.get(PREFIX + "server-side-encryption")
        if self.encryption and not etag:
            # COS: "not necessarily the MD5; differs if the uploaded object is encrypted"
            self.etag = uuid.uuid4().hex.upper() if CLOUD == "oss" else uuid.uuid4().hex
        # When it can be read.
        self.restored = None
        self.version = None
        if CLOUD != "kodo":
            crc = Crc64(0)
            crc.update(body)
            self.crc = crc.sum64()

    def describe(self):
        told = dict(self.content, **self.meta)
        told.setdefault("content-type", "application/octet-stream")
        told["etag"] = f'"{self.etag}"'
        told["last-modified"] = email.utils.formatdate(self.modified, usegmt=True)
        if self.tags:
            told[PREFIX + "tagging-count"] = str(len(self.tags))
        if self.encryption:
            told[PREFIX + "server-side-encryption"] = self.encryption
        if CLOUD == "oss":
            told["x-oss-object-type"] = self.kind
            told["x-oss-storage-class"] = self.storage_class
        elif self.storage_class != "STANDARD":
            told[PREFIX + "storage-class"] = self.storage_class
        if self.restored and not self.is_readable():
            told[PREFIX + "restore"] = 'ongoing-request="true"'
        elif self.restored:
            told[PREFIX + "restore"] = 'ongoing-request="false", expiry-date="Thu, 01 Jan 2099 00:00:00 GMT"'
        if self.version:
            told[PREFIX + "version-id"] = self.version
        if CLOUD != "kodo":
            told[PREFIX + "hash-crc64ecma"] = str(self.crc)
        return told

    def is_readable(self):
        return self.storage_class not in ARCHIVED or (self.restored is not None and time.time() >= self.restored)

    def check_readable(self):
        if not self.is_readable():
            raise Refused(403, "InvalidObjectState", "The operation is not valid for the object's state.")


def iso(moment):
    return datetime.datetime.fromtimestamp(moment, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def check_md5(headers, body):
    given = headers.get("content-md5")
    if given and base64.b64decode(given) != hashlib.md5(body).digest():
        code = {"oss": "InvalidDigest"}.get(CLOUD, "BadDigest")
        raise Refused(400, code, "The Content-MD5 you specified did not match what we received.")


def check_key(key):
    size = len(key.encode())
    if CLOUD == "oss" and (size > 1023 or key[:1] in ("/", "\\")):
        raise Refused(400, "InvalidObjectName", f'The specified object is not valid: "{key[:10]}".')
    if CLOUD == "cos" and size > 850:
        raise Refused(400, "KeyTooLong")
    if CLOUD == "cos" and (key.startswith("/") or any(part in (".", "..") for part in key.split("/"))):
        raise Refused(400, "InvalidURI", "Could not parse the specified URI.")
    if size > 1024:
        raise Refused(400, "KeyTooLongError")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 64 << 10

    def log_message(self, *_):
        pass

    def serve(self):
        # Header values are bytes: UTF-8 where somebody wrote it so.
        for name, value in list(self.headers.items()):
            del self.headers[name]
            try:
                self.headers[name.lower()] = value.encode("latin-1").decode()
            except UnicodeError:
                self.headers[name.lower()] = value
        self.headers = {name: value for name, value in self.headers.items()}
        length = int(self.headers.get("content-length", 0))
        self.body = self.rfile.read(length)
        if len(self.body) < length:
            # The client has gone: nothing of it is kept.
            self.close_connection = True
            return
        path = self.path
        if path.startswith("http://"):
            path = "/" + path.split("/", 3)[3] if path.count("/") > 2 else "/"
        self.raw, _, self.query = path.partition("?")
        self.method, self.url = self.command, f"http://{self.headers.get('host')}{path}"
        self.pairs = urllib.parse.parse_qsl(self.query, keep_blank_values=True)
        self.asked = dict(self.pairs)
        try:
            self.key = urllib.parse.unquote(self.raw[1:], errors="strict")
            self.route()
        except Refused as refused:
            self.refuse(refused)
        self.send()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = serve

    def route(self):
        host = self.headers["host"].split(":")[0]
        self.bucket, _, endpoint = host.partition(".")
        if host in HOSTS:
            raise Refused(403, "SecondLevelDomainForbidden", "Please use virtual hosted style to access.")
        if endpoint not in HOSTS:
            if CLOUD == "oss" and endpoint.endswith(".aliyuncs.com"):
                message = "The bucket you are attempting to access must be addressed using the specified endpoint."
                raise Refused(403, "AccessDenied", message, f"<Bucket>{self.bucket}</Bucket><Endpoint>{HOSTS[0]}</Endpoint>")
            raise Refused(404, "NoSuchBucket", "The specified bucket does not exist.")
        with lock:
            is_public = buckets.get(self.bucket, {}).get("public") and self.command in ("GET", "HEAD")
        if "authorization" in self.headers or not is_public:
            given, again = signature_of(CLOUD)(self, KEYS)
            if given != again:
                raise Refused(403, "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided.")
        with lock:
            if not self.key:
                return self.on_bucket()
            if self.bucket not in buckets:
                raise Refused(404, "NoSuchBucket", "The specified bucket does not exist.")
            self.objects = buckets[self.bucket]["objects"]
            self.on_object()

    def on_bucket(self):
        if self.command == "PUT":
            # For the tests: the name says who may read.
            bucket = buckets.setdefault(self.bucket, {"objects": {}})
            bucket["public"] = self.bucket.startswith("public-")
            # Of each key, the oldest first: id, object or nothing (a delete marker), time.
            bucket["history"] = {} if self.bucket.startswith("versioned-") else None
            return self.answer(200)
        if self.bucket not in buckets:
            raise Refused(404, "NoSuchBucket", "The specified bucket does not exist.")
        self.objects = buckets[self.bucket]["objects"]
        if self.command == "HEAD":
            return self.answer(200)
        if self.command != "GET":
            raise Refused(405, "MethodNotAllowed")
        if "uploads" in self.asked:
            return self.list_uploads()
        if CLOUD == "cos" and "list-type" in self.asked:
            raise Refused(400, "InvalidArgument", "list-type")
        if "versioning" in self.asked and CLOUD != "kodo":
            status = "<Status>Enabled</Status>" if buckets[self.bucket]["history"] is not None else ""
            return self.document("VersioningConfiguration", status)
        if "versions" in self.asked and CLOUD != "kodo":
            return self.list_versions()
        if set(self.asked) & {"versioning", "object-lock", "encryption", "acl", "bucketInfo"}:
            raise Refused(404, "NoSuchConfiguration")
        return self.list_objects()

    def encoded(self, text):
        """As SDKs read it: a plus sign stays."""
        return urllib.parse.quote(text, safe="/+") if self.encodes() else escape(text)

    def encodes(self):
        """Kodo knows nothing of it (kodo/4087)."""
        return CLOUD != "kodo" and self.asked.get("encoding-type") == "url"

    def page(self):
        v2 = self.asked.get("list-type") == "2"
        prefix = self.asked.get("prefix", "")
        most = int(self.asked.get("max-keys", 100 if CLOUD == "oss" else 1000))
        if most > 1000:
            raise Refused(400, "InvalidArgument", "The max-keys is over 1000.")
        after = self.asked.get("start-after" if v2 else "marker", "")
        token = self.asked.get("continuation-token")
        if token:
            after = base64.urlsafe_b64decode(token.encode()).decode()
        keys = [k for k in sorted(self.objects, key=str.encode) if k.startswith(prefix) and k.encode() > after.encode()]
        more = len(keys) > most
        return v2, prefix, most, keys[:most], more

    def list_objects(self):
        v2, prefix, most, keys, more = self.page()
        out = [f"<Name>{self.bucket}</Name><Prefix>{self.encoded(prefix)}</Prefix><MaxKeys>{most}</MaxKeys>"]
        out.append(f"<IsTruncated>{str(more).lower()}</IsTruncated>")
        if self.encodes():
            out.append("<EncodingType>url</EncodingType>")
        if v2:
            out.append(f"<KeyCount>{len(keys)}</KeyCount>")
            if more:
                token = base64.urlsafe_b64encode(keys[-1].encode()).decode()
                out.append(f"<NextContinuationToken>{self.encoded(token)}</NextContinuationToken>")
        else:
            out.append(f"<Marker>{self.encoded(self.asked.get('marker', ''))}</Marker>")
            if more:
                out.append(f"<NextMarker>{self.encoded(keys[-1])}</NextMarker>")
        for key in keys:
            o = self.objects[key]
            kind = f"<Type>{o.kind}</Type>" if CLOUD == "oss" else ""
            out.append(
                f"<Contents><Key>{self.encoded(key)}</Key><LastModified>{iso(o.modified)}</LastModified><ETag>&quot;{o.etag}&quot;</ETag>"
                f"{kind}<Size>{len(o.body)}</Size><StorageClass>{o.storage_class}</StorageClass></Contents>"
            )
        self.document("ListBucketResult", "".join(out))

    def list_versions(self):
        prefix, most = self.asked.get("prefix", ""), int(self.asked.get("max-keys", 100 if CLOUD == "oss" else 1000))
        after, behind = self.asked.get("key-marker", ""), self.asked.get("version-id-marker", "")
        history = buckets[self.bucket]["history"] or {}
        listed = []
        for key in sorted(history, key=str.encode):
            if not key.startswith(prefix) or key.encode() < after.encode() or (key == after and not behind):
                continue
            youngest_first = list(reversed(history[key]))
            if key == after:
                ids = [id for id, _, _ in youngest_first]
                youngest_first = youngest_first[ids.index(behind) + 1 :]
            listed += [(key, entry) for entry in youngest_first]
        more = len(listed) > most
        out = [f"<Name>{self.bucket}</Name><Prefix>{self.encoded(prefix)}</Prefix><KeyMarker>{self.encoded(after)}</KeyMarker>"]
        out.append(f"<VersionIdMarker>{behind}</VersionIdMarker><MaxKeys>{most}</MaxKeys><IsTruncated>{str(more).lower()}</IsTruncated>")
        if self.encodes():
            out.append("<EncodingType>url</EncodingType>")
        for key, (id, o, moment) in listed[:most]:
            latest = str(history[key][-1][0] == id).lower()
            head = f"<Key>{self.encoded(key)}</Key><VersionId>{id}</VersionId><IsLatest>{latest}</IsLatest><LastModified>{iso(moment)}</LastModified>"
            if o is None:
                out.append(f"<DeleteMarker>{head}</DeleteMarker>")
            else:
                body = f"<ETag>&quot;{o.etag}&quot;</ETag><Size>{len(o.body)}</Size><StorageClass>{o.storage_class}</StorageClass>"
                out.append(f"<Version>{head}{body}</Version>")
        if more:
            key, (id, _, _) = listed[most - 1]
            out.append(f"<NextKeyMarker>{self.encoded(key)}</NextKeyMarker><NextVersionIdMarker>{id}</NextVersionIdMarker>")
        self.document("ListVersionsResult", "".join(out))

    def list_uploads(self):
        prefix = self.asked.get("prefix", "")
        after = (self.asked.get("key-marker", ""), self.asked.get("upload-id-marker", ""))
        mine = sorted((u["key"], id) for id, u in uploads.items() if u["bucket"] == self.bucket and u["key"].startswith(prefix))
        mine = [pair for pair in mine if pair > after or not after[0]]
        most = int(self.asked.get("max-uploads", 1000))
        id_name = "UploadID" if CLOUD == "cos" else "UploadId"
        out = [f"<Bucket>{self.bucket}</Bucket><IsTruncated>{str(len(mine) > most).lower()}</IsTruncated>"]
        if self.encodes():
            name = "Encoding-Type" if CLOUD == "cos" else "EncodingType"
            out.append(f"<{name}>url</{name}>")
        if len(mine) > most:
            key, id = mine[most - 1]
            out.append(f"<NextKeyMarker>{self.encoded(key)}</NextKeyMarker><NextUploadIdMarker>{id}</NextUploadIdMarker>")
        for key, id in mine[:most]:
            begun = iso(uploads[id]["begun"])
            out.append(f"<Upload><Key>{self.encoded(key)}</Key><{id_name}>{id}</{id_name}><Initiated>{begun}</Initiated></Upload>")
        self.document("ListMultipartUploadsResult", "".join(out))

    def on_object(self):
        check_key(self.key)
        do = {
            "GET": self.get,
            "HEAD": self.get,
            "PUT": self.put,
            "POST": self.post,
            "DELETE": self.delete,
        }[self.command]
        do()

    def stands(self, o):
        """What the key holds from now on; nothing, when it is deleted."""
        if o is None:
            self.objects.pop(self.key, None)
        else:
            self.objects[self.key] = o
        history = buckets[self.bucket]["history"]
        if history is None:
            return
        version = "CAEQ" + uuid.uuid4().hex
        history.setdefault(self.key, []).append((version, o, time.time()))
        if o is not None:
            o.version = version

    def found(self):
        if self.asked.get("versionId"):
            for id, o, _ in (buckets[self.bucket]["history"] or {}).get(self.key, []):
                if id == self.asked["versionId"] and o is not None:
                    return o
            raise Refused(404, "NoSuchVersion", "The specified version does not exist.")
        if self.key not in self.objects:
            raise Refused(404, "NoSuchKey", "The specified key does not exist.")
        return self.objects[self.key]

    def get(self):
        if "uploadId" in self.asked:
            return self.list_parts()
        o = self.found()
        if "tagging" in self.asked:
            tags = "".join(f"<Tag><Key>{escape(k)}</Key><Value>{escape(v)}</Value></Tag>" for k, v in o.tags)
            return self.document("Tagging", f"<TagSet>{tags}</TagSet>")
        if "acl" in self.asked:
            return self.document("AccessControlPolicy", f"<AccessControlList><Grant>{o.acl}</Grant></AccessControlList>")
        told = o.describe()
        self.check_match(self.headers.get("if-match"), o)
        if self.command == "GET":
            o.check_readable()
        wanted = self.headers.get("range")
        if self.command == "HEAD" or not wanted:
            return self.answer(200, o.body, told)
        first, last = wanted.removeprefix("bytes=").split("-")
        first, size = int(first), len(o.body)
        last = int(last) if last else size - 1
        if CLOUD == "oss" and self.headers.get("x-oss-range-behavior") != "standard" and last >= size:
            # "the entire object"
            return self.answer(200, o.body, told)
        if first >= size:
            raise Refused(416, "InvalidRange", "The requested range cannot be satisfied.")
        last = min(last, size - 1)
        told["content-range"] = f"bytes {first}-{last}/{size}"
        self.answer(206, o.body[first : last + 1], told)

    def check_match(self, wanted, o):
        if wanted and wanted.strip('"') != o.etag:
            raise Refused(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold.")

    def check_overwrite(self):
        if CLOUD == "kodo":
            return
        if self.headers.get(PREFIX + "forbid-overwrite") == "true" and self.key in self.objects:
            raise Refused(409, "FileAlreadyExists", "The object you specified already exists and can not be overwritten.")
        if CLOUD == "oss":
            for name in ("if-match", "if-none-match"):
                if name in self.headers:
                    message = "A header you provided implies functionality that is not implemented."
                    raise Refused(400, "NotImplemented", message, f"<Header>{name}</Header>")

    def check_meta(self):
        names = [name.removeprefix(PREFIX + "meta-") for name in self.headers if name.startswith(PREFIX + "meta-")]
        if CLOUD == "oss" and any("_" in name for name in names):
            raise Refused(400, "InvalidArgument", "The user metadata name is invalid.")

    def origin(self):
        source = urllib.parse.unquote(self.headers[PREFIX + "copy-source"]).lstrip("/")
        place, _, key = source.partition("/")
        bucket = place.partition(".")[0] if CLOUD == "cos" else place
        if CLOUD == "cos" and place.partition(".")[2] not in HOSTS:
            raise Refused(400, "InvalidArgument", "x-cos-copy-source")
        key, _, version = key.partition("?versionId=")
        if bucket not in buckets:
            raise Refused(404, "NoSuchKey", "The specified key does not exist.")
        of_version = [o for id, o, _ in (buckets[bucket]["history"] or {}).get(key, []) if id == version and o is not None]
        o = of_version[0] if of_version else None if version else buckets[bucket]["objects"].get(key)
        if o is None:
            raise Refused(404, "NoSuchKey", "The specified key does not exist.")
        self.check_match(self.headers.get(PREFIX + "copy-source-if-match"), o)
        o.check_readable()
        return o

    def put(self):
        if "tagging" in self.asked:
            self.found().tags = [(tag.find("{*}Key").text, tag.find("{*}Value").text or "") for tag in tree.fromstring(self.body).iter() if tag.tag.endswith("Tag")]
            return self.answer(200)
        if "uploadId" in self.asked:
            return self.put_part()
        self.check_meta()
        self.check_overwrite()
        if PREFIX + "copy-source" in self.headers:
            o = self.origin()
            directive = self.headers.get(PREFIX + "metadata-directive", "COPY")
            if directive not in {"cos": ("Copy", "Replaced")}.get(CLOUD, ("COPY", "REPLACE")):
                raise Refused(400, "InvalidArgument", "metadata-directive")
            made = Object(o.body, self.headers if directive.startswith("R") or directive.startswith("Re") else dict(o.content, **o.meta))
            self.stands(made)
            return self.document("CopyObjectResult", f"<ETag>&quot;{made.etag}&quot;</ETag><LastModified>{iso(made.modified)}</LastModified>", self.told(made))
        check_md5(self.headers, self.body)
        made = Object(self.body, self.headers)
        self.stands(made)
        self.answer(200, b"", self.told(made))

    def told(self, o):
        told = {"etag": f'"{o.etag}"'}
        if CLOUD != "kodo":
            told[PREFIX + "hash-crc64ecma"] = str(o.crc)
        if o.encryption:
            told[PREFIX + "server-side-encryption"] = o.encryption
        if o.version:
            told[PREFIX + "version-id"] = o.version
        return told

    def upload(self):
        upload = uploads.get(self.asked["uploadId"])
        if not upload or (upload["bucket"], upload["key"]) != (self.bucket, self.key):
            raise Refused(404, "NoSuchUpload", "The specified multipart upload does not exist.")
        return upload

    def put_part(self):
        upload, number = self.upload(), int(self.asked["partNumber"])
        if PREFIX + "copy-source" in self.headers:
            body = self.origin().body
            wanted = self.headers.get(PREFIX + "copy-source-range")
            if wanted:
                first, last = wanted.removeprefix("bytes=").split("-")
                body = body[int(first) : int(last) + 1]
            part = upload["parts"][number] = Object(body, {})
            return self.document("CopyPartResult", f"<ETag>&quot;{part.etag}&quot;</ETag><LastModified>{iso(part.modified)}</LastModified>")
        if CLOUD == "oss" and PREFIX + "server-side-encryption" in self.headers:
            raise Refused(400, "InvalidArgument")
        check_md5(self.headers, self.body)
        part = upload["parts"][number] = Object(self.body, {})
        self.answer(200, b"", self.told(part))

    def list_parts(self):
        upload = self.upload()
        after, most = int(self.asked.get("part-number-marker", 0)), int(self.asked.get("max-parts", 1000))
        numbers = [n for n in sorted(upload["parts"]) if n > after]
        out = [f"<Bucket>{self.bucket}</Bucket><Key>{self.encoded(self.key)}</Key><UploadId>{self.asked['uploadId']}</UploadId>"]
        out.append(f"<IsTruncated>{str(len(numbers) > most).lower()}</IsTruncated><MaxParts>{most}</MaxParts>")
        if numbers[:most]:
            out.append(f"<NextPartNumberMarker>{numbers[:most][-1]}</NextPartNumberMarker>")
        for n in numbers[:most]:
            part = upload["parts"][n]
            crc = f"<HashCrc64ecma>{part.crc}</HashCrc64ecma>" if CLOUD == "oss" else ""
            out.append(
                f"<Part><PartNumber>{n}</PartNumber><LastModified>{iso(part.modified)}</LastModified>"
                f"<ETag>&quot;{part.etag}&quot;</ETag>{crc}<Size>{len(part.body)}</Size></Part>"
            )
        self.document("ListPartsResult", "".join(out))

    def post(self):
        if "uploads" in self.asked:
            self.check_meta()
            if CLOUD == "oss" and "x-oss-object-acl" in self.headers:
                raise Refused(400, "InvalidArgument", "x-oss-object-acl")
            id = uuid.uuid4().hex.upper()
            uploads[id] = {"bucket": self.bucket, "key": self.key, "parts": {}, "headers": self.headers, "begun": time.time()}
            out = f"<Bucket>{self.bucket}</Bucket><Key>{self.encoded(self.key)}</Key><UploadId>{id}</UploadId>"
            return self.document("InitiateMultipartUploadResult", out)
        if "restore" in self.asked:
            o = self.found()
            if o.storage_class not in ARCHIVED:
                raise Refused(400, "OperationNotSupported")
            if o.restored and not o.is_readable():
                raise Refused(409, "RestoreAlreadyInProgress")
            root = tree.fromstring(self.body)
            days = root.find("Days")
            tier = {"oss": "JobParameters", "cos": "CASJobParameters", "kodo": "GlacierJobParameters"}[CLOUD]
            if root.tag != "RestoreRequest" or days is None or int(days.text) < 1 or {c.tag for c in root} - {"Days", tier}:
                raise Refused(400, "MalformedXML")
            ready = o.is_readable()
            o.restored = o.restored or time.time() + 1
            return self.answer(200 if ready else 202)
        if "uploadId" not in self.asked:
            raise Refused(405, "MethodNotAllowed")
        upload = self.upload()
        named = [(int(p.find("{*}PartNumber").text), p.find("{*}ETag").text.strip('"')) for p in tree.fromstring(self.body) if p.tag.endswith("Part")]
        if not named or [n for n, _ in named] != sorted({n for n, _ in named}):
            raise Refused(400, "InvalidPartOrder", "The list of parts was not in ascending order.")
        parts = []
        for n, etag in named:
            part = upload["parts"].get(n)
            if not part or part.etag != etag:
                raise Refused(400, "InvalidPart", "One or more of the specified parts could not be found.")
            parts.append(part)
        if any(len(part.body) < MIN_PART for part in parts[:-1]):
            raise Refused(400, "EntityTooSmall", "Your proposed upload is smaller than the minimum allowed size.")
        self.check_overwrite()
        # "a unique value"
        etag = f"{uuid.uuid4().hex}-{len(parts)}"
        headers = dict(upload["headers"])
        if CLOUD == "oss" and "x-oss-object-acl" in self.headers:
            headers["x-oss-object-acl"] = self.headers["x-oss-object-acl"]
        made = Object(b"".join(part.body for part in parts), headers, "Multipart", etag.upper() if CLOUD == "oss" else etag)
        self.stands(made)
        del uploads[self.asked["uploadId"]]
        out = f"<Location>http://{self.headers['host']}{self.raw}</Location><Bucket>{self.bucket}</Bucket>"
        out += f"<Key>{self.encoded(self.key)}</Key><ETag>&quot;{made.etag}&quot;</ETag>"
        told = self.told(made)
        del told["etag"]
        self.document("CompleteMultipartUploadResult", out, told)

    def delete(self):
        if "uploadId" in self.asked:
            self.upload()
            del uploads[self.asked["uploadId"]]
            return self.answer(204)
        if self.asked.get("versionId"):
            raise Refused(501, "NotImplemented")
        self.stands(None)
        self.answer(204)

    def answer(self, status, body=b"", headers=None):
        """Nothing is sent before the lock is free: whoever reads may want to write first."""
        self.pending = status, body, headers or {}

    def send(self):
        status, body, headers = self.pending
        self.send_response(status)
        for name, value in headers.items():
            name = {"etag": "ETag"}.get(name, name if name.startswith("x-") else name.title())
            self.send_header(name, value.encode().decode("latin-1"))
        self.send_header(PREFIX + "request-id", uuid.uuid4().hex.upper())
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def document(self, root, inner, headers=None):
        # The vendors' SDKs find nothing in documents of a namespace, but for the one of Amazon.
        namespace = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"' if CLOUD == "kodo" else ""
        body = f'<?xml version="1.0" encoding="UTF-8"?>\n<{root}{namespace}>{inner}</{root}>'.encode()
        self.answer(200, body, dict(headers or {}, **{"content-type": "application/xml"}))

    def refuse(self, refused):
        host = {"oss": "HostId", "cos": "Resource", "kodo": "HostId"}[CLOUD]
        body = (
            f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{refused.code}</Code><Message>{escape(refused.message)}</Message>'
            f"<RequestId>{uuid.uuid4().hex.upper()}</RequestId><{host}>{escape(self.headers['host'])}</{host}>{refused.more}</Error>"
        ).encode()
        headers = {"content-type": "application/xml"}
        if self.command == "HEAD" and CLOUD == "oss":
            headers["x-oss-err"] = base64.b64encode(body).decode()
        self.answer(refused.status, b"" if self.command == "HEAD" else body, headers)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


print("ready", file=sys.stderr, flush=True)
Server(("127.0.0.1", int(PORT)), Handler).serve_forever()
