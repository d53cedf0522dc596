//! Notices through Amazon SNS: e-mail, text messages, queues, whatever is subscribed to the topic.

use super::{client_config, error::classify, is_fifo};
use async_trait::async_trait;
use aws_config::{Region, SdkConfig};
use aws_sdk_sns::Client;
use dth_core::{
    error::{Error, ErrorKind, Op, Result},
    notify::{Notice, Notifier},
};
use std::fmt;

/// Characters of a subject.
const MAX_SUBJECT: usize = 99;
/// Bytes of a message in all its forms, escapes included.
/// <https://docs.aws.amazon.com/sns/latest/api/API_Publish.html>
const MAX_MESSAGE: usize = 256 << 10;
/// Bytes of the text: alone it fits even where JSON writes six bytes for one.
const MAX_TEXT: usize = 40 << 10;

/// Publishes notices to an SNS topic: text to people (e-mail), JSON to programs (queues, functions, HTTP).
#[derive(Clone)]
pub struct SnsNotifier {
    client: Client,
    topic: String,
}

impl fmt::Debug for SnsNotifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SnsNotifier({})", self.topic)
    }
}

impl SnsNotifier {
    /// Publishes to the topic of this ARN, in the topic's region. `Invalid` when it is no ARN of a topic, or of a FIFO topic, which
    /// people cannot subscribe to.
    pub fn new(config: &SdkConfig, topic: &str) -> Result<Self> {
        let parts: Vec<&str> = topic.split(':').collect();
        let refused =
            |why: &str| Err(Error::new(ErrorKind::Invalid, Op::Configure, format!("topic `{topic}`")).with_source(why.to_owned()));
        let ["arn", _, "sns", region, _, name] = parts[..] else {
            return refused("this is not of the form arn:aws:sns:REGION:ACCOUNT:NAME");
        };
        if is_fifo(name) {
            return refused("this is a FIFO topic: take a standard one");
        }
        let config = config.clone().into_builder().region(Region::new(region.to_owned())).build();
        Ok(Self { client: Client::from_conf(client_config!(aws_sdk_sns, &config)), topic: topic.to_owned() })
    }
}

#[async_trait]
impl Notifier for SnsNotifier {
    async fn notify(&self, notice: &Notice) -> Result<()> {
        let call = self.client.publish().topic_arn(&self.topic).subject(subject(&notice.subject));
        let call = call.message_structure("json").message(forms(notice));
        call.send().await.map_err(|e| classify(Op::Notify, &self.topic, e))?;
        Ok(())
    }
}

/// The text for people and the JSON form for programs; only the text where both are too long.
fn forms(notice: &Notice) -> String {
    let text = shortened(&notice.text);
    let json = serde_json::to_string(notice).unwrap_or_else(|_| text.clone());
    // "default" is for protocols without a form of their own, e-mail among them.
    let forms = serde_json::json!({ "default": text, "sqs": json, "lambda": json, "http": json, "https": json, "firehose": json });
    Some(forms.to_string()).filter(|forms| forms.len() <= MAX_MESSAGE).unwrap_or_else(|| serde_json::json!({ "default": text }).to_string())
}

/// A subject is ASCII without control characters, begins with a letter, digit or mark, and is shorter than 100 characters.
/// <https://docs.aws.amazon.com/sns/latest/api/API_Publish.html>
fn subject(text: &str) -> String {
    let ascii = text.chars().map(|c| if (' '..='~').contains(&c) { c } else { '?' });
    ascii.collect::<String>().trim_start().chars().take(MAX_SUBJECT).collect()
}

fn shortened(text: &str) -> String {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use dth_core::{
        notify::{DeadLetterSample, Happened},
        state::RunId,
    };
    use jiff::Timestamp;

    #[test]
    fn subjects_are_made_fit() {
        assert_eq!(subject(" fotos é\n: 3 jobs"), "fotos ??: 3 jobs");
        assert_eq!(subject(&"x".repeat(300)).len(), MAX_SUBJECT);
        assert_eq!(shortened(&"é".repeat(MAX_TEXT)).len(), MAX_TEXT);
    }

    #[test]
    fn a_message_fits_whatever_is_told() {
        let read = |notice: &Notice| {
            let forms = forms(notice);
            assert!(forms.len() <= MAX_MESSAGE, "{}", forms.len());
            serde_json::from_str::<serde_json::Value>(&forms).unwrap()
        };
        let cause = |text: &str| Happened::FinderFailed { run: RunId::new("r"), cause: text.to_owned() };
        let forms = read(&Notice::new("t", Timestamp::UNIX_EPOCH, cause("denied")));
        let told: serde_json::Value = serde_json::from_str(forms["sqs"].as_str().unwrap()).unwrap();
        assert_eq!((told["kind"].as_str(), told["cause"].as_str()), (Some("finder_failed"), Some("denied")));
        assert!(forms["default"].as_str().unwrap().starts_with("t: the finder failed"));
        let sample = DeadLetterSample { key: Some("k".repeat(1024).into()), reason: "\u{1}é\"".repeat(5_000) };
        for happened in [cause(&"\u{1}".repeat(300_000)), Happened::DeadLetters { count: 10, samples: vec![sample; 10] }] {
            let forms = read(&Notice::new("t", Timestamp::UNIX_EPOCH, happened));
            assert!(forms.get("sqs").is_none() && forms["default"].as_str().is_some_and(|text| !text.is_empty()));
        }
    }
}
