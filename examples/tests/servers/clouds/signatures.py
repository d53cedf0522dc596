"""What the vendors' own code makes of a request: its signature, computed again.

- OSS: alibabacloud-oss-v2 (`SignerV4`), and its predecessor oss2 (`ProviderAuthV4`), which must agree
- COS: cos-python-sdk-v5 (`CosS3Auth`)
- stores that are spoken to as Amazon S3 is (Qiniu Kodo's documents, among others, prescribe the AWS SDKs): botocore (`S3SigV4Auth`)

A request has `method`, `url`, `bucket`, `key` (decoded), `pairs` of its query (decoded), `headers` (names in lower case) and `body`.
"""

import datetime
import hashlib
import threading
from collections import namedtuple

Keys = namedtuple("Keys", "access secret region now")
patching = threading.Lock()


class Refused(Exception):
    """An error answer."""

    def __init__(self, status, code, message="", more=""):
        self.status, self.code, self.message, self.more = status, code, message or code, more


def oss_signature(request, keys):
    from alibabacloud_oss_v2 import credentials, types
    from alibabacloud_oss_v2.signer import SignerV4

    given = request.headers.get("authorization", "").replace(", ", ",")
    if not given.startswith("OSS4-HMAC-SHA256 "):
        raise Refused(403, "AccessDenied", "Anonymous access is forbidden for this operation.")
    fields = dict(field.split("=", 1) for field in given[len("OSS4-HMAC-SHA256 ") :].split(","))
    if fields["Credential"].split("/")[0] != keys.access:
        raise Refused(403, "InvalidAccessKeyId", "The OSS Access Key Id you provided does not exist in our records.")
    moment = datetime.datetime.strptime(request.headers["x-oss-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.timezone.utc)
    too_late(moment.timestamp(), keys)
    headers = {name: value for name, value in request.headers.items() if name not in ("authorization", "date")}
    again = types.HttpRequest(request.method, request.url, headers=headers)
    context = types.SigningContext(
        product="oss",
        region=keys.region,
        bucket=request.bucket,
        key=request.key,
        request=again,
        credentials=credentials.StaticCredentialsProvider(keys.access, keys.secret, headers.get("x-oss-security-token")).get_credentials(),
        signing_time=moment,
    )
    # What else was signed, by its own word.
    context.additional_headers = set(fields.get("AdditionalHeaders", "").split(";")) - {""}
    SignerV4().sign(context)
    computed = again.headers["Authorization"]
    if not context.additional_headers and (older := oss_signature_by_oss2(request, keys, headers, moment)) != computed:
        raise AssertionError(f"the vendor's SDKs do not agree: {older} and {computed}")
    return given, computed


def oss_signature_by_oss2(request, keys, headers, moment):
    import oss2

    class Provider:
        def get_credentials(self):
            return oss2.credentials.Credentials(keys.access, keys.secret, headers.get("x-oss-security-token"))

    class Standing:
        @staticmethod
        def utcnow():
            return moment.replace(tzinfo=None)

    again = oss2.http.Request(request.method, request.url, params=dict(request.pairs), headers=dict(headers), region=keys.region, product="oss")
    # It signs for now: it is told when that is.
    with patching:
        real, oss2.auth.datetime = oss2.auth.datetime, Standing
        try:
            oss2.ProviderAuthV4(Provider())._sign_request(again, request.bucket, request.key)
        finally:
            oss2.auth.datetime = real
    return again.headers["authorization"].replace(", ", ",")


class Clock(threading.local):
    """The time that a thread believes it is."""

    now = 0

    def time(self):
        return self.now


def cos_signature(request, keys):
    from qcloud_cos import CosConfig, cos_auth

    given = request.headers.get("authorization", "")
    if not given.startswith("q-sign-algorithm=sha1&"):
        raise Refused(403, "AccessDenied", "Access Denied.")
    fields = dict(field.split("=", 1) for field in given.split("&"))
    if fields["q-ak"] != keys.access:
        raise Refused(403, "InvalidAccessKeyId", "The Access Key Id you provided does not exist in our records")
    begin, end = (int(text) for text in fields["q-sign-time"].split(";"))
    if not begin - 900 <= keys.now() <= end:
        raise Refused(403, "Request has expired")
    signed = fields["q-header-list"].split(";")
    # The documents ask for these: whoever changes them on the way is found out.
    for name in request.headers:
        if name not in signed and (name.startswith("x-cos-") or name in ("host", "content-md5", "range")):
            raise Refused(403, "SignatureDoesNotMatch", f"{name} is not signed")
    again = type("Request", (), {})()
    again.method, again.url = request.method, request.url
    again.headers = {name: value for name, value in request.headers.items() if name in signed}
    params = {name: value for name, value in request.pairs}
    if not isinstance(cos_auth.time, Clock):
        cos_auth.time = Clock()
    cos_auth.time.now = begin + 60
    config = CosConfig(Region=keys.region, SecretId=keys.access, SecretKey=keys.secret)
    cos_auth.CosS3Auth(config, "/" + request.key, params, expire=end - begin - 60)(again)
    return given, again.headers["Authorization"]


def amazon_signature(request, keys):
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    given = request.headers.get("authorization", "")
    if not given.startswith("AWS4-HMAC-SHA256 "):
        raise Refused(403, "AccessDenied", "Access Denied.")
    fields = dict(field.strip().split("=", 1) for field in given[len("AWS4-HMAC-SHA256 ") :].split(","))
    if fields["Credential"].split("/")[0] != keys.access:
        raise Refused(403, "InvalidAccessKeyId", "The access key id you provided does not exist in our records.")
    date = request.headers["x-amz-date"]
    too_late(datetime.datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.timezone.utc).timestamp(), keys)
    headers = {name: request.headers[name] for name in fields["SignedHeaders"].split(";")}
    again = AWSRequest(method=request.method, url=request.url, headers=headers)
    again.context["timestamp"] = date
    signer = S3SigV4Auth(Credentials(keys.access, keys.secret), "s3", keys.region)
    text = signer.string_to_sign(again, signer.canonical_request(again))
    hashed = request.headers["x-amz-content-sha256"]
    if hashed != "UNSIGNED-PAYLOAD" and not hashed.startswith("STREAMING-") and hashed != hashlib.sha256(request.body).hexdigest():
        raise Refused(400, "XAmzContentSHA256Mismatch")
    return fields["Signature"], signer.signature(text, again)


def too_late(moment, keys):
    if abs(keys.now() - moment) > 900:
        raise Refused(403, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large.")



def signature_of(dialect):
    return {"oss": oss_signature, "cos": cos_signature}.get(dialect, amazon_signature)
