"""Alibaba Cloud Function Compute, behind an OSS trigger or an EventBridge rule: passes events on to the queue of a dth task.

Environment: DTH_QUEUE_URL, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (rights: sqs:SendMessage). Package: boto3.
"""

import os

import boto3

queue = boto3.client("sqs", endpoint_url=os.environ.get("DTH_QUEUE_ENDPOINT"))


def handler(event, context):
    # An error is thrown on: Function Compute calls again.
    queue.send_message(QueueUrl=os.environ["DTH_QUEUE_URL"], MessageBody=event.decode())
