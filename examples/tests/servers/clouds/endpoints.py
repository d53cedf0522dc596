"""Hosts of the vendors, by their SDKs: prints JSON rows of cloud, region, way, host.

The SDK of Kodo (qiniu 7.18.0) knows neither hosts nor signatures of its S3 interface.
"""

import json
from urllib.parse import urlparse

from alibabacloud_oss_v2 import endpoints
from qcloud_cos import CosConfig

rows = []
for name in ["cn-hangzhou", "cn-beijing", "ap-southeast-1", "us-east-1"]:
    for way, kind in [("public", "default"), ("internal", "internal"), ("dual_stack", "dualstack")]:
        rows.append(["oss", name, way, urlparse(endpoints.from_region(name, False, kind)).netloc])
rows.append(["oss", "cn-hangzhou", "accelerate", urlparse(endpoints.from_region("cn-hangzhou", False, "accelerate")).netloc])
for name in ["ap-guangzhou", "ap-singapore", "eu-frankfurt"]:
    host = urlparse(CosConfig(Region=name, SecretId="a", SecretKey="b").uri(bucket="b-1")).netloc
    rows.append(["cos", name, "public", host.split(".", 1)[1]])
    host = urlparse(CosConfig(Region=name, SecretId="a", SecretKey="b", EnableInternalDomain=True, EnableOldDomain=False).uri(bucket="b-1")).netloc
    if "internal" in host:
        rows.append(["cos", name, "internal", host.split(".", 1)[1]])
print(json.dumps(rows))
