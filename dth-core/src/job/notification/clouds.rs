//! What other clouds tell: Alibaba OSS, Tencent COS, Qiniu Kodo. Their events carry no sequencer, and may come twice and in any order.

use super::{Kind, Place, Reader, Told};
use crate::error::Result;
use serde::Deserialize;
use serde_json::Value;

/// A number, which some of these forms write as a text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Size {
    Number(u64),
    Text(String),
}

impl Size {
    fn text(self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => text,
        }
    }

    fn bytes(self) -> Option<u64> {
        match self {
            Self::Number(bytes) => Some(bytes),
            Self::Text(text) => text.parse().ok(),
        }
    }
}

impl Reader<'_> {
    /// One of the `events` of a message (SMQ, Function Compute), or the `data` of a CloudEvent (EventBridge). Keys are not encoded.
    /// <https://www.alibabacloud.com/help/en/mns/user-guide/create-a-rule-to-generate-oss-event-notifications>,
    /// <https://help.aliyun.com/en/eventbridge/user-guide/oss-events>
    pub(super) fn oss(&self, event: &Value, told: &mut Told) -> Result<()> {
        #[derive(Deserialize)]
        struct Event {
            #[serde(rename = "eventName")]
            name: String,
            oss: Place<Size>,
        }
        let Event { name, oss: Place { bucket, object } } = self.parse(event)?;
        let (class, what) = name.trim_start_matches("oss:").split_once(':').unwrap_or((&name, ""));
        let kind = match (class, what) {
            // `ObjectCreated:*` tells of uploads, too, when there is no object yet.
            ("ObjectCreated", "InitiateMultipartUpload" | "UploadPart" | "UploadPartCopy") => Kind::Other,
            ("ObjectRemoved", "AbortMultipartUpload") => Kind::Other,
            ("ObjectReplication", "ObjectRemoved") | ("ObjectRemoved", _) => Kind::Delete,
            ("ObjectCreated" | "ObjectReplication", _) | ("ObjectRestore", "FinishRestore") => Kind::Create,
            ("ObjectModified" | "ObjectDownloaded" | "ObjectRestore", _) => Kind::Other,
            _ => return Err(self.invalid(format!("event `{name}` is not known: take it out of the bucket's notifications"))),
        };
        // In upper case here; the store's are known in lower case.
        let etag = object.etag.map(|etag| etag.to_ascii_lowercase());
        self.take(&kind, &name, Some(&bucket.name), object.key, object.size.and_then(Size::bytes), etag.as_deref(), None, told)
    }

    /// One of the `Records` of an SCF trigger. <https://cloud.tencent.com/document/product/583/9707>
    pub(super) fn cos(&self, record: &Value, told: &mut Told) -> Result<()> {
        #[derive(Deserialize)]
        struct Record {
            cos: Cos,
            event: Event,
        }
        #[derive(Deserialize)]
        struct Event {
            #[serde(rename = "eventName")]
            name: String,
        }
        #[derive(Deserialize)]
        struct Cos {
            #[serde(rename = "cosBucket")]
            bucket: Bucket,
            #[serde(rename = "cosObject")]
            object: Object,
        }
        #[derive(Deserialize)]
        struct Bucket {
            name: String,
            appid: Option<Size>,
        }
        #[derive(Deserialize)]
        struct Object {
            key: String,
            size: Option<Size>,
        }
        let Record { cos: Cos { bucket, object }, event: Event { name } } = self.parse(record)?;
        let (class, what) = name.trim_start_matches("cos:").split_once(':').unwrap_or((&name, ""));
        let kind = match (class, what) {
            ("ObjectCreated", _) | ("ObjectRestore", "Completed") => Kind::Create,
            ("ObjectRemove", _) => Kind::Delete,
            ("ObjectRestore", _) => Kind::Other,
            _ => return Err(self.invalid(format!("event `{name}` is not known: take it out of the trigger"))),
        };
        // `/appid/bucket/key`; older ones `/key`.
        let appid = bucket.appid.map(Size::text).unwrap_or_default();
        let place = format!("/{appid}/{}/", bucket.name);
        let key = object.key.strip_prefix(&place).or_else(|| object.key.strip_prefix('/')).unwrap_or(&object.key).to_owned();
        let whole_name = if appid.is_empty() { bucket.name } else { format!("{}-{appid}", bucket.name) };
        self.take(&kind, &name, Some(&whole_name), key, object.size.and_then(Size::bytes), None, None, told)
    }

    /// The message of a notification rule, which stands as a text in its envelope, or as what it is.
    /// <https://developer.qiniu.com/kodo/8610/dev-event-notification>
    pub(super) fn kodo(&self, envelope: &Value, told: &mut Told) -> Result<()> {
        #[derive(Deserialize)]
        struct Message {
            event: String,
            bucket: String,
            key: String,
            fsize: Option<u64>,
            dest_bucket: Option<String>,
            dest_key: Option<String>,
        }
        let message = match &envelope["Message"] {
            Value::String(text) => serde_json::from_str(text).map_err(|e| self.invalid(e))?,
            message => message.clone(),
        };
        let Message { event, bucket, key, fsize, dest_bucket, dest_key } = self.parse(&message)?;
        let mut one = |kind: Kind, bucket: &str, key: String, size| self.take(&kind, &event, Some(bucket), key, size, None, None, told);
        let destination = dest_bucket.unwrap_or_else(|| bucket.clone());
        match (&*event, dest_key) {
            ("put" | "mkfile" | "append" | "restore:completed", _) => one(Kind::Create, &bucket, key, fsize),
            ("copy", Some(to)) => one(Kind::Create, &destination, to, fsize),
            ("move", Some(to)) => {
                one(Kind::Delete, &bucket, key, None)?;
                one(Kind::Create, &destination, to, fsize)
            }
            ("delete", _) => one(Kind::Delete, &bucket, key, None),
            ("disable" | "enable", _) => one(Kind::Other, &bucket, key, None),
            _ => Err(self.invalid(format!("event `{event}` is not known, or lacks `dest_key`: take it out of the rule"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{EventSettings, read};
    use super::*;
    use crate::{
        job::{Action, Intake, Job},
        object::ETag,
    };
    use serde_json::json;

    const ALL: EventSettings = EventSettings { deletes: true, bucket: None };

    fn told(message: &Value, events: &EventSettings) -> Told {
        let intake = Intake { events: events.clone(), ..Intake::default() };
        read(&message.to_string(), message, &intake).unwrap()
    }

    fn jobs(message: &Value) -> Vec<Job> {
        told(message, &ALL).jobs
    }

    /// The sample of "Function Compute", OSS trigger (alibabacloud.com/help/doc-detail/62922.htm).
    fn oss(name: &str) -> Value {
        json!({"eventName": name, "eventSource": "acs:oss", "eventTime": "2019-01-16T12:46:37.000Z", "eventVersion": "1.0",
            "oss": {
                "bucket": {"arn": "acs:oss:ap-southeast-1:229814243474603096:fc-with-oss-trigger", "name": "fc-with-oss-trigger",
                    "ownerIdentity": "229814243474603096", "virtualBucket": ""},
                "object": {"deltaSize": 122_539, "eTag": "688A7BF4F233DC9C88A80BF985AB7329", "key": "source/serverless.png", "size": 122_539},
                "ossSchemaVersion": "1.0", "ruleId": "9adac8e253828f4f7c0466d941fa3db81161e853"},
            "region": "ap-southeast-1", "requestParameters": {"sourceIPAddress": "140.205.128.221"},
            "responseElements": {"requestId": "58F9FF2D3DF792092E12044C"}, "userIdentity": {"principalId": "229814243474603096"}})
    }

    #[test]
    fn oss_events_are_jobs() {
        let message = json!({"events": [oss("ObjectCreated:PutObject")]});
        let [job] = &jobs(&message)[..] else { panic!("one job") };
        assert_eq!((job.key.as_str(), job.size, job.action), ("source/serverless.png", Some(122_539), Action::Copy));
        assert_eq!(job.etag, Some(ETag::new("688a7bf4f233dc9c88a80bf985ab7329")));
        // EventBridge puts it into a CloudEvent, and `oss:` before the type.
        let bridged = json!({"source": "acs.oss", "type": "oss:ObjectCreated:PostObject", "specversion": "1.0", "id": "69B1",
            "datacontenttype": "application/json;charset=utf-8", "data": oss("ObjectCreated:PostObject")});
        assert_eq!(jobs(&bridged)[0].key.as_str(), "source/serverless.png");
        for (name, action) in [
            ("ObjectCreated:CompleteMultipartUpload", Some(Action::Copy)),
            ("ObjectCreated:InitiateMultipartUpload", None),
            ("ObjectCreated:UploadPart", None),
            ("ObjectRemoved:AbortMultipartUpload", None),
            ("ObjectRemoved:DeleteObject", Some(Action::Delete)),
            ("ObjectDownloaded:GetObject", None),
        ] {
            let message = json!({"events": [oss(name)]});
            assert_eq!(jobs(&message).first().map(|job| job.action), action, "{name}");
        }
        // Which came first, nobody says: a deletion looks at both sides, and brings what the source holds.
        for order in [["ObjectCreated:PutObject", "ObjectRemoved:DeleteObject"], ["ObjectRemoved:DeleteObject", "ObjectCreated:PutObject"]]
        {
            let both = jobs(&json!({"events": order.map(oss)}));
            assert_eq!(both.iter().map(|job| job.action).collect::<Vec<_>>(), [Action::Delete], "{order:?}");
        }
        let other = EventSettings { bucket: Some("another".into()), ..ALL };
        assert!(told(&message, &other).jobs.is_empty(), "of another bucket");
        let unknown = json!({"events": [oss("ObjectPainted:Red"), oss("ObjectCreated:PutObject")]});
        let told = told(&unknown, &ALL);
        assert_eq!((told.jobs.len(), told.refused.len()), (1, 1));
    }

    /// The sample of the SCF documents (cloud.tencent.com/document/product/583/9707).
    fn cos(name: &str, key: &str) -> Value {
        json!({"Records": [{
            "cos": {"cosSchemaVersion": "1.0",
                "cosObject": {"url": "http://testpic-1253970026.cos.ap-chengdu.myqcloud.com/testfile",
                    "meta": {"x-cos-request-id": "NWMxOWY4MGFfMjViMjU4NjRfMTUyMVxxxxxxxxx=", "Content-Type": "", "x-cos-meta-mykey": "myvalue"},
                    "vid": "", "key": key, "size": 1029},
                "cosBucket": {"region": "cd", "name": "testpic", "appid": "1253970026"}, "cosNotificationId": "unkown"},
            "event": {"eventName": name, "eventVersion": "1.0", "eventTime": 1_545_205_770, "eventSource": "qcs::cos",
                "requestParameters": {"requestSourceIP": "192.168.15.101", "requestHeaders": {}},
                "eventQueue": "qcs:0:scf:cd:appid/1253970026:default.printevent.$LATEST", "reservedInfo": "", "reqid": 179_398_952}}]})
    }

    #[test]
    fn cos_events_are_jobs() {
        let message = cos("cos:ObjectCreated:*", "/1253970026/testpic/testfile");
        let [job] = &jobs(&message)[..] else { panic!("one job") };
        assert_eq!((job.key.as_str(), job.size, job.action), ("testfile", Some(1029), Action::Copy));
        assert_eq!(jobs(&cos("cos:ObjectCreated:Put", "/1253970026/testpic/a/b c"))[0].key.as_str(), "a/b c");
        assert_eq!(jobs(&cos("cos:ObjectCreated:Put", "/test.jpg"))[0].key.as_str(), "test.jpg", "the older form");
        assert_eq!(jobs(&cos("cos:ObjectRemove:Delete", "/1253970026/testpic/x"))[0].action, Action::Delete);
        let ours = |bucket: &str| EventSettings { bucket: Some(bucket.into()), ..ALL };
        assert_eq!(told(&message, &ours("testpic-1253970026")).jobs.len(), 1);
        assert!(told(&message, &ours("testpic")).jobs.is_empty(), "buckets are known by their whole names");
    }

    /// The sample of "event notification" (developer.qiniu.com/kodo/8610), with straight quotes.
    fn kodo(event: &str) -> Value {
        json!({"event": event, "time": 1_547_551_207_786_351_434u64, "reqid": "niNkZJy_3M9903AEA", "source_ip": "33.236.132.29",
            "user_id": "uid:111111", "access_key": "akjFT8jsaYB8kj-90HJJkds", "bucket": "bucket_name", "key": "event1_tets.txt", "fsize": 6,
            "hash": "FhWqsP2Lk36zuwGEFpPzXct12i-v", "ftype": 0, "mimetype": "application/octet-stream",
            "restore_expiration": "2019-01-20T19:20:07+08:00", "dest_bucket": "dest_bucket_name", "dest_key": "dest_key_name"})
    }

    #[test]
    fn kodo_events_are_jobs() {
        let envelope = |message: Value| json!({"Message": message, "Subject": "Qiniu KODO Notification", "Timestamp": "2019-01-"});
        let told_of = |event: &str, bucket: &str| -> Vec<(String, Action)> {
            let settings = EventSettings { bucket: Some(bucket.into()), ..ALL };
            let by_text = told(&envelope(Value::String(kodo(event).to_string())), &settings);
            let by_value = told(&envelope(kodo(event)), &settings);
            assert_eq!(by_text.jobs, by_value.jobs);
            by_text.jobs.into_iter().map(|job| (job.key.as_str().to_owned(), job.action)).collect()
        };
        for event in ["put", "mkfile", "append", "restore:completed"] {
            assert_eq!(told_of(event, "bucket_name"), [("event1_tets.txt".to_owned(), Action::Copy)], "{event}");
        }
        assert_eq!(told_of("delete", "bucket_name"), [("event1_tets.txt".to_owned(), Action::Delete)]);
        assert_eq!(told_of("move", "bucket_name"), [("event1_tets.txt".to_owned(), Action::Delete)], "it is elsewhere now");
        for event in ["copy", "move"] {
            assert_eq!(told_of(event, "dest_bucket_name"), [("dest_key_name".to_owned(), Action::Copy)], "{event}");
        }
        assert_eq!(told_of("disable", "bucket_name"), []);
    }
}
