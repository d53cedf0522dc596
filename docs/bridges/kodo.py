"""A WSGI application, at the address of a notification rule of Qiniu Kodo: passes events on to the queue of a dth task.

Environment: DTH_QUEUE_URL, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (rights: sqs:SendMessage). Package: boto3.
Who may call it is for the server before it to say: a forged event makes dth look at an object, and no more.
"""

import os

import boto3

queue = boto3.client("sqs", endpoint_url=os.environ.get("DTH_QUEUE_ENDPOINT"))


def application(environ, start_response):
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    # An error becomes status 500.
    queue.send_message(QueueUrl=os.environ["DTH_QUEUE_URL"], MessageBody=body.decode())
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b""]
