//! What stores tell of changed objects: the event notifications of Amazon S3, directly, by EventBridge or by SNS, and the
//! messages of the original system; and those of other clouds.
//!
//! An event is a hint to look, never an order: whoever takes it asks the source what it holds now, so that any order and any
//! number of events end in the same state. What an event says of the object helps to plan the look, and its sequencer saves
//! looks that a later event has made already.

mod clouds;

use super::{Action, Intake, Job, Seen, excerpt};
use crate::{
    checksum::hex,
    error::{Error, ErrorKind, Op, Result},
    object::{ETag, Entry, ObjectKey, Sequencer},
    state::{Origin, PackId},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Which events a task deals with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventSettings {
    /// Carry out deletions; otherwise objects stay at the destination when they are removed from the source.
    pub deletes: bool,
    /// Only events of this bucket, where they name one.
    pub bucket: Option<String>,
}

/// What a message says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) jobs: Vec<Job>,
    /// Events that are not this task's, and why.
    pub(super) left_alone: Vec<String>,
    /// Events beside those jobs that cannot be understood, and why.
    pub(super) refused: Vec<String>,
    /// The text that the message is about, without what carried it.
    pub(super) text: String,
}

/// The forms, from most to least telling.
pub(super) fn read(body: &str, value: &Value, intake: &Intake) -> Result<Told> {
    let reader = Reader { body, intake };
    let mut told = Told { text: body.to_owned(), ..Told::default() };
    if let Some(records) = value.get("Records").and_then(Value::as_array) {
        let is_of_cos = |record: &Value| record.get("cos").is_some();
        let one = |record: &Value, told: &mut Told| if is_of_cos(record) { reader.cos(record, told) } else { reader.record(record, told) };
        reader.each(records, one, &mut told)?;
    } else if let Some(events) = value.get("events").and_then(Value::as_array) {
        reader.each(events, |event, told| reader.oss(event, told), &mut told)?;
    } else if let Some(data) = value.get("data").filter(|_| value.get("source").and_then(Value::as_str) == Some("acs.oss")) {
        reader.oss(data, &mut told)?;
    } else if value.get("Subject").and_then(Value::as_str) == Some("Qiniu KODO Notification") {
        reader.kodo(value, &mut told)?;
    } else if value.get("detail-type").is_some() {
        reader.event_bridge(value, &mut told)?;
    } else if value.get("TopicArn").is_some() || value.get("Type").and_then(Value::as_str) == Some("Notification") {
        return reader.sns(value);
    } else if value.get("Event").and_then(Value::as_str) == Some("s3:TestEvent") {
        told.left_alone.push("a test message of S3".into());
    } else if value.get("objectKey").is_some() {
        reader.part(value, &mut told)?;
    } else {
        reader.minimal(value, &mut told)?;
    }
    told.jobs = latest_of_each_key(told.jobs);
    Ok(told)
}

struct Reader<'a> {
    body: &'a str,
    intake: &'a Intake,
}

/// Where an event was, as Amazon and OSS say it.
#[derive(Deserialize)]
struct Place<Size = u64> {
    bucket: Bucket,
    object: Object<Size>,
}

#[derive(Deserialize)]
struct Bucket {
    name: String,
}

#[derive(Deserialize)]
struct Object<Size> {
    key: String,
    size: Option<Size>,
    #[serde(alias = "eTag")]
    etag: Option<String>,
    sequencer: Option<String>,
}

/// What an event was about.
enum Kind {
    Create,
    Delete,
    /// Something that changes no bytes.
    Other,
}

impl Reader<'_> {
    fn invalid(&self, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::new(ErrorKind::Invalid, Op::Receive, excerpt(self.body)).with_source(why)
    }

    /// Several in one message: one that nobody understands does not keep its neighbours from being done.
    fn each(&self, events: &[Value], one: impl Fn(&Value, &mut Told) -> Result<()>, told: &mut Told) -> Result<()> {
        told.refused = events.iter().filter_map(|event| one(event, told).err()).map(|error| error.chain()).collect();
        if told.jobs.is_empty() && !told.refused.is_empty() {
            return Err(self.invalid(told.refused.join("; ")));
        }
        Ok(())
    }

    fn parse<'de, T: Deserialize<'de>>(&self, value: &'de Value) -> Result<T> {
        T::deserialize(value).map_err(|e| self.invalid(e))
    }

    /// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html>
    fn record(&self, record: &Value, told: &mut Told) -> Result<()> {
        #[derive(Deserialize)]
        struct Record {
            #[serde(rename = "eventName")]
            name: String,
            s3: Place,
        }
        let Record { name, s3: Place { bucket, object } } = self.parse(record)?;
        // https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-how-to-event-types-and-destinations.html
        let kind = match name.trim_start_matches("s3:").split(':').next().unwrap_or_default() {
            "ObjectCreated" => Kind::Create,
            "ObjectRemoved" | "LifecycleExpiration" => Kind::Delete,
            // What was archived can be read now.
            "ObjectRestore" if name.ends_with(":Completed") => Kind::Create,
            "ObjectRestore" | "ObjectTagging" | "ObjectAcl" | "Replication" | "ReducedRedundancyLostObject" => Kind::Other,
            "LifecycleTransition" | "IntelligentTiering" => Kind::Other,
            _ => return Err(self.invalid(format!("event `{name}` is not known: take it out of the bucket's notifications"))),
        };
        let key = decode(&object.key).ok_or_else(|| self.invalid(format!("key `{}` is no url-encoded UTF-8", object.key)))?;
        let sequencer = object.sequencer.as_deref().and_then(Sequencer::new);
        self.take(&kind, &name, Some(&bucket.name), key, object.size, object.etag.as_deref(), sequencer, told)
    }

    /// Keys are not encoded here. <https://docs.aws.amazon.com/AmazonS3/latest/userguide/ev-events.html>
    fn event_bridge(&self, event: &Value, told: &mut Told) -> Result<()> {
        #[derive(Deserialize)]
        struct Event {
            #[serde(rename = "detail-type")]
            kind: String,
            detail: Place,
        }
        let Event { kind: name, detail: Place { bucket, object } } = self.parse(event)?;
        let kind = match name.as_str() {
            "Object Created" | "Object Restore Completed" => Kind::Create,
            "Object Deleted" => Kind::Delete,
            "Object Restore Initiated" | "Object Restore Expired" | "Object Tags Added" | "Object Tags Deleted" => Kind::Other,
            "Object ACL Updated" | "Object Storage Class Changed" | "Object Access Tier Changed" => Kind::Other,
            _ => return Err(self.invalid(format!("event `{name}` is not known: take it out of the rule"))),
        };
        let sequencer = object.sequencer.as_deref().and_then(Sequencer::new);
        self.take(&kind, &name, Some(&bucket.name), object.key, object.size, object.etag.as_deref(), sequencer, told)
    }

    fn sns(&self, envelope: &Value) -> Result<Told> {
        #[derive(Deserialize)]
        struct Envelope {
            #[serde(rename = "Type")]
            kind: String,
            #[serde(rename = "Message")]
            message: String,
        }
        let Envelope { kind, message } = self.parse(envelope)?;
        if kind != "Notification" {
            return Err(self.invalid(format!("a message of SNS of type `{kind}`: the subscription is to be confirmed by whoever made it")));
        }
        let value: Value = serde_json::from_str(&message).map_err(|e| self.invalid(e))?;
        if value.get("TopicArn").is_some() {
            return Err(self.invalid("a message of SNS within a message of SNS"));
        }
        read(&message, &value, self.intake)
    }

    /// A part of an upload of the original system. Its upload is not ours to continue: the object is brought whole, once.
    fn part(&self, part: &Value, told: &mut Told) -> Result<()> {
        #[derive(Deserialize)]
        struct Part {
            #[serde(rename = "objectKey")]
            key: ObjectKey,
            #[serde(rename = "uploadID", alias = "uploadId")]
            upload: String,
        }
        let Part { key, upload } = self.parse(part)?;
        let name = hex(&Sha256::digest(format!("{upload}\n{key}"))[..16]);
        let mut job = self.job(key, None, None)?;
        if !self.intake.filter.takes_key(&job.key) {
            told.left_alone.push(format!("{}: filtered", job.key));
            return Ok(());
        }
        // Whichever part comes first brings the object; the others find that it has ended.
        job.origin = Some(Origin(PackId::new(name), 0));
        told.jobs.push(job);
        Ok(())
    }

    /// `{"key","size"}` of the original system and of other clouds' bridge functions, which may add a sequencer, and say what
    /// happened.
    fn minimal(&self, message: &Value, told: &mut Told) -> Result<()> {
        #[derive(Deserialize)]
        struct Minimal {
            key: ObjectKey,
            size: Option<u64>,
            sequencer: Option<Sequencer>,
            event: Option<What>,
        }
        #[derive(Deserialize, PartialEq)]
        #[serde(rename_all = "lowercase")]
        enum What {
            Create,
            Delete,
        }
        let Minimal { key, size, sequencer, event } = self.parse(message)?;
        let mut job = Job { sequencer, ..self.job(key, size, None)? };
        if !self.intake.filter.takes_key(&job.key) {
            told.left_alone.push(format!("{}: filtered", job.key));
            return Ok(());
        }
        if event == Some(What::Delete) {
            if !self.intake.events.deletes {
                told.left_alone.push(format!("{}: deletions are not carried out", job.key));
                return Ok(());
            }
            job.action = Action::Delete;
        }
        told.jobs.push(job);
        Ok(())
    }

    /// A job of this task, or an error that says why it is none.
    fn job(&self, key: ObjectKey, size: Option<u64>, etag: Option<ETag>) -> Result<Job> {
        if key.as_str().is_empty() {
            return Err(self.invalid("the key is empty"));
        }
        if !self.intake.covers(&key)? {
            // E5: it was made for this task, and is not of it.
            return Err(self.invalid(format!("key `{key}` begins {}", self.intake.outside())));
        }
        Ok(Job { size, overwrite: self.intake.overwrite, ..Job::copy(&Entry::new(key, 0, etag), Seen::Unknown) })
    }

    /// A store's notification may be wider than the task: what is not of it is left alone.
    fn take(
        &self,
        kind: &Kind,
        name: &str,
        bucket: Option<&str>,
        key: String,
        size: Option<u64>,
        etag: Option<&str>,
        sequencer: Option<Sequencer>,
        told: &mut Told,
    ) -> Result<()> {
        if key.is_empty() {
            return Err(self.invalid("the key is empty"));
        }
        let Intake { filter, events, .. } = self.intake;
        let key = ObjectKey::new(key);
        let other_bucket = events.bucket.as_deref().zip(bucket).is_some_and(|(ours, theirs)| ours != theirs);
        let why = match kind {
            _ if other_bucket => format!("{key}: an event of bucket `{}`", bucket.unwrap_or_default()),
            _ if !self.intake.covers(&key)? => format!("{key}: begins {}", self.intake.outside()),
            _ if !filter.takes_key(&key) => format!("{key}: filtered"),
            Kind::Other => format!("{key}: `{name}` changes no bytes"),
            Kind::Delete if !events.deletes => format!("{key}: deletions are not carried out"),
            Kind::Create | Kind::Delete => {
                let etag = etag.filter(|e| !e.is_empty()).map(ETag::new);
                let action = if matches!(kind, Kind::Delete) { Action::Delete } else { Action::Copy };
                told.jobs.push(Job { action, sequencer, ..self.job(key, size, etag)? });
                return Ok(());
            }
        };
        told.left_alone.push(why);
        Ok(())
    }
}

/// A message may tell of one key several times: the last event stands for all.
fn latest_of_each_key(jobs: Vec<Job>) -> Vec<Job> {
    let mut latest: Vec<Job> = Vec::new();
    for job in jobs {
        match latest.iter_mut().find(|known| known.key == job.key) {
            // Where they do not say which came first, the one that looks at both sides stands.
            Some(known) if (known.sequencer.is_none() || job.sequencer.is_none()) && known.action == Action::Delete => {}
            Some(known) if known.sequencer > job.sequencer => {}
            Some(known) => *known = job,
            None => latest.push(job),
        }
    }
    latest
}

/// Keys in notifications are encoded like forms: `+` is a space.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok().filter(|_| digits.iter().all(u8::is_ascii_hexdigit))?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Overwrite, Pack},
        *,
    };
    use crate::{env::SystemEnv, filter::FilterSettings, finder::FinderSettings};
    use proptest::prelude::*;
    use serde_json::json;

    const ALL: EventSettings = EventSettings { deletes: true, bucket: None };

    fn intake(prefix: &str, settings: &EventSettings) -> Intake {
        Intake { prefix: prefix.into(), events: settings.clone(), ..Intake::default() }
    }

    fn jobs(body: &Value, settings: &EventSettings) -> Result<Vec<Job>> {
        Pack::read(&body.to_string(), &intake("photos/", settings), &SystemEnv).map(|pack| pack.jobs)
    }

    /// As in Amazon's documentation of the message structure.
    fn record(name: &str, key: &str, sequencer: &str) -> Value {
        json!({
            "eventVersion": "2.1", "eventSource": "aws:s3", "awsRegion": "us-west-2", "eventTime": "1970-01-01T00:00:00.000Z",
            "eventName": name, "userIdentity": {"principalId": "AIDAJDPLRKLG7UEXAMPLE"},
            "requestParameters": {"sourceIPAddress": "127.0.0.1"},
            "responseElements": {"x-amz-request-id": "C3D13FE58DE4C810", "x-amz-id-2": "FMyUVURIY8/IgAtTv8xRjskZQpcIZ9KG4V5Wp6S7S/JRWeUWerMUE5JgHvANOjpD"},
            "s3": {
                "s3SchemaVersion": "1.0", "configurationId": "testConfigRule",
                "bucket": {"name": "amzn-s3-demo-bucket", "ownerIdentity": {"principalId": "A3NL1KOZZKExample"}, "arn": "arn:aws:s3:::amzn-s3-demo-bucket"},
                "object": {"key": key, "size": 1024, "eTag": "d41d8cd98f00b204e9800998ecf8427e", "versionId": "096fKKXTRTtl3on89fVO.nfljtsv6qko", "sequencer": sequencer},
            },
        })
    }

    #[test]
    fn records_of_s3_become_jobs_of_the_task() {
        let body = json!({"Records": [
            record("ObjectCreated:Put", "photos/a+b%2Bc%26%E6%97%A5.jpg", "0055AED6DCD90281E5"),
            record("ObjectRemoved:DeleteMarkerCreated", "photos/gone", "1"),
            record("s3:LifecycleExpiration:Delete", "photos/old", "1"),
            record("ObjectTagging:Put", "photos/tagged", "1"),
            record("ObjectCreated:Copy", "elsewhere/x", "1"),
        ]});
        let found = jobs(&body, &ALL).unwrap();
        let told: Vec<_> = found.iter().map(|j| (j.key.as_str(), j.action)).collect();
        let expected = [("photos/a b+c&日.jpg", Action::Copy), ("photos/gone", Action::Delete), ("photos/old", Action::Delete)];
        assert_eq!(told, expected);
        assert_eq!((found[0].size, found[0].sequencer.clone()), (Some(1024), Sequencer::new("0055AED6DCD90281E5")));
        let creates = jobs(&body, &EventSettings::default()).unwrap();
        assert_eq!(creates.len(), 1, "deletions are carried out only where that is asked for");
        let other = EventSettings { bucket: Some("another".into()), ..ALL };
        assert!(jobs(&body, &other).unwrap().is_empty());
    }

    #[test]
    fn other_forms_say_the_same() {
        let bridge = |kind: &str| {
            json!({
                "version": "0", "id": "17793124-05d4-b198-2fde-7ededc63b103", "detail-type": kind, "source": "aws.s3",
                "account": "111122223333", "time": "2021-11-12T00:00:00Z", "region": "ca-central-1",
                "resources": ["arn:aws:s3:::amzn-s3-demo-bucket1"],
                "detail": {
                    "version": "0", "bucket": {"name": "amzn-s3-demo-bucket1"},
                    "object": {"key": "photos/a b+c", "size": 5, "etag": "b1946ac92492d2347c6235b4d2611184", "version-id": "IYV3p45BT0ac8hjHg1houSdS1a.Mro8e", "sequencer": "617f08299329d189"},
                    "request-id": "N4N7GDK58NMKJ12R", "requester": "123456789012", "source-ip-address": "1.2.3.4", "reason": "PutObject",
                },
            })
        };
        for (kind, action) in
            [("Object Created", Some(Action::Copy)), ("Object Deleted", Some(Action::Delete)), ("Object Tags Added", None)]
        {
            let told: Vec<_> = jobs(&bridge(kind), &ALL).unwrap().into_iter().map(|j| (j.key.to_string(), j.action)).collect();
            assert_eq!(told, action.map(|a| ("photos/a b+c".to_owned(), a)).into_iter().collect::<Vec<_>>(), "{kind}");
        }
        let inner = json!({"Records": [record("ObjectCreated:Put", "photos/a", "2")]});
        let wrapped = json!({
            "Type": "Notification", "MessageId": "22b80b92", "TopicArn": "arn:aws:sns:us-west-2:123456789012:MyTopic",
            "Subject": "Amazon S3 Notification", "Message": inner.to_string(), "Timestamp": "2012-05-02T00:54:06.655Z",
        });
        assert_eq!(jobs(&wrapped, &ALL).unwrap(), jobs(&inner, &ALL).unwrap());
        let pack = |value: &Value| Pack::read(&value.to_string(), &intake("", &ALL), &SystemEnv).unwrap();
        assert_eq!(pack(&wrapped).id, pack(&inner).id, "the same event by two ways is one");
        let test = json!({"Service": "Amazon S3", "Event": "s3:TestEvent", "Time": "2014-10-13T15:57:02.089Z", "Bucket": "bucketname", "RequestId": "5582815E1AEA5ADF", "HostId": "8cLeGAmw"});
        assert!(jobs(&test, &ALL).unwrap().is_empty());
        let delete = json!({"key": "photos/x", "sequencer": "a0", "event": "delete"});
        assert_eq!(jobs(&delete, &ALL).unwrap()[0].action, Action::Delete);
        assert!(jobs(&delete, &EventSettings::default()).unwrap().is_empty());
    }

    /// Parts of an unfinished upload of the original system: the object is brought once.
    #[test]
    fn parts_of_the_original_are_read() {
        let part = |number: u32| json!({"objectKey": "photos/big", "partNumber": number, "totalPartsCount": 3, "uploadID": "u", "bodyRange": "bytes=0-5242879"});
        let packs: Vec<Pack> = [1, 2].map(|n| Pack::read(&part(n).to_string(), &intake("", &ALL), &SystemEnv).unwrap()).into();
        assert_ne!(packs[0].id, packs[1].id, "two messages");
        assert_eq!(packs[0].origin(0), packs[1].origin(0), "one job");
        assert!(packs[0].origin(0).is_some());
    }

    #[test]
    fn unknown_and_broken_ones_are_refused_with_the_reason() {
        let unknown = json!({"Records": [record("ObjectExploded:Put", "photos/a", "1")]});
        let bad_key = json!({"Records": [record("ObjectCreated:Put", "photos/%FF", "1")]});
        let confirm = json!({"Type": "SubscriptionConfirmation", "TopicArn": "t", "Message": "You have chosen to subscribe"});
        let stray = json!({"key": "elsewhere/x", "size": 1});
        let cases = [
            (unknown, "ObjectExploded"),
            (bad_key, "url-encoded"),
            (confirm, "confirmed"),
            (stray, "prefix"),
            (json!({"Records": [{}]}), "eventName"),
            (json!({"key": "photos/a", "sequencer": "xyz"}), "sequencer"),
            (json!({"detail-type": "Object Created", "detail": {}}), "bucket"),
        ];
        for (body, reason) in cases {
            let error = jobs(&body, &ALL).unwrap_err();
            assert!(error.kind() == ErrorKind::Invalid && error.chain().contains(reason), "{body}: {}", error.chain());
        }
    }

    /// Those that can be understood are done; the message is given up with the reason all the same.
    #[test]
    fn one_that_is_not_understood_does_not_keep_the_others_back() {
        let body = json!({"Records": [
            record("ObjectCreated:Put", "photos/a", "1"),
            record("ObjectExploded:Put", "photos/b", "1"),
            record("ObjectTagging:Put", "photos/c", "1"),
        ]});
        let pack = Pack::read(&body.to_string(), &intake("photos/", &ALL), &SystemEnv).unwrap();
        assert_eq!(pack.jobs.iter().map(|j| j.key.as_str()).collect::<Vec<_>>(), ["photos/a"]);
        assert!(pack.refused.len() == 1 && pack.refused[0].contains("ObjectExploded"), "{:?}", pack.refused);
    }

    /// What a finder of the task would leave alone, an event does not bring.
    #[test]
    fn events_keep_to_what_the_task_selects() {
        let filter = FilterSettings { exclude: vec!["**/tmp/*".into()], ..FilterSettings::default() };
        let finder = FinderSettings { prefix: "photos/".into(), filter, overwrite: Overwrite::Never, ..FinderSettings::default() };
        let intake = Intake::new(&finder, &ALL).unwrap();
        let body = json!({"Records": [
            record("ObjectCreated:Put", "photos/tmp/a", "1"),
            record("ObjectRemoved:Delete", "photos/tmp/b", "1"),
            record("ObjectCreated:Put", "photos/c", "1"),
        ]});
        let read = |body: &Value| Pack::read(&body.to_string(), &intake, &SystemEnv).unwrap().jobs;
        let found = read(&body);
        assert_eq!((found.len(), found[0].key.as_str(), found[0].overwrite), (1, "photos/c", Overwrite::Never));
        assert!(read(&json!({"key": "photos/tmp/x"})).is_empty());
    }

    #[test]
    fn the_last_of_several_events_of_a_key_stands() {
        let body = json!({"Records": [
            record("ObjectCreated:Put", "photos/a", "0055AED6DCD90281E5"),
            record("ObjectRemoved:Delete", "photos/a", "0055AED6DCD90281E50"),
            record("ObjectCreated:Put", "photos/a", "0055AED6DCD90281E4FF"),
        ]});
        let found = jobs(&body, &ALL).unwrap();
        assert_eq!((found.len(), found[0].action), (1, Action::Delete), "equal but for zeros, and the later of them");
    }

    proptest! {
        #[test]
        fn keys_come_out_as_they_went_in(key in "\\PC{1,20}|[+%& ]{1,9}") {
            let encoded: String = key.bytes().map(|b| match b {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => (b as char).to_string(),
                b' ' => "+".to_owned(),
                b => format!("%{b:02X}"),
            }).collect();
            prop_assert_eq!(decode(&encoded), Some(key));
        }
    }
}
