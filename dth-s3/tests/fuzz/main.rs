//! Fuzz targets of all that a server can answer, through the whole client: HTTP, headers, XML, errors; and of the settings of a
//! bucket. Each runs for some seconds under `cargo test`; `cargo bolero test NAME` runs one for longer, guided by coverage.

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../../../dth-core/tests/fuzz/mutate.rs"]
mod mutate;

use async_trait::async_trait;
use dth_core::{
    env::SystemEnv,
    error::{Error, ErrorKind, Result},
    index::{Index, ListFrom, ListRequest},
    object::{ETag, ObjectKey, Tags},
    scope::TaskScope,
    sink::{Body, Condition, PutOptions, Sink, UploadId},
    source::{ReadOptions, ReadRange, Source},
};
use dth_s3::{Connector, CredentialsConfig, Proxy, S3Config, S3Store, Secret, Transport};
use futures_util::StreamExt;
use mutate::{Edits, mutated, mutated_text, time};
use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

/// It must be in no error.
const CANARY: &str = "canary-secret-of-the-fuzzer";

/// A server that answers the same to everybody.
#[derive(Debug, Default)]
struct Canned {
    answer: Mutex<Vec<u8>>,
    tasks: Mutex<TaskScope>,
}

#[async_trait]
impl Connector for Canned {
    async fn connect(&self, _: &str, _: u16) -> std::io::Result<Box<dyn Transport>> {
        let (client, mut server) = duplex(64 << 10);
        let answer = self.answer.lock().unwrap().clone();
        self.tasks.lock().unwrap().spawn(async move {
            let mut asked = Vec::new();
            while !asked.windows(4).any(|w| w == b"\r\n\r\n") {
                match server.read_buf(&mut asked).await {
                    Ok(n) if n > 0 => {}
                    _ => return,
                }
            }
            let _ = server.write_all(&answer).await;
            let _ = server.shutdown().await;
            // What else it sends is read, so that it does not wait.
            let _ = tokio::io::copy(&mut server, &mut tokio::io::sink()).await;
        });
        Ok(Box::new(client))
    }
}

struct Target {
    runtime: tokio::runtime::Runtime,
    server: Arc<Canned>,
    store: S3Store,
}

impl Target {
    fn new() -> AssertUnwindSafe<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let config = S3Config {
            bucket: "b".into(),
            region: "us-east-1".into(),
            endpoint: Some("http://fuzzed".into()),
            credentials: CredentialsConfig::Static {
                access_key_id: "FUZZ".into(),
                secret_access_key: Secret::new(CANARY),
                session_token: None,
            },
            ..S3Config::default()
        };
        let server = Arc::new(Canned::default());
        let store = S3Store::with_connector(config, Arc::new(SystemEnv), Arc::clone(&server) as _).unwrap();
        // A panic ends the test.
        AssertUnwindSafe(Self { runtime, server, store })
    }

    /// What becomes of a call that is answered so; errors must be fit to be shown.
    fn ask<T>(&self, answer: &[u8], call: impl AsyncFnOnce(&S3Store) -> Result<T>) -> Option<T> {
        *self.server.answer.lock().unwrap() = answer.to_vec();
        match self.runtime.block_on(call(&self.store)) {
            Ok(value) => Some(value),
            Err(error) => {
                fit_to_be_shown(&error);
                None
            }
        }
    }
}

fn fit_to_be_shown(error: &Error) {
    let chain = error.chain();
    assert!(!chain.contains(CANARY), "{chain}");
    assert_ne!(error.kind(), ErrorKind::Internal, "{chain}");
}

fn http(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

const XML: [&str; 26] = [
    "<",
    ">",
    "</",
    "/>",
    "&amp;",
    "&lt;",
    "&#0;",
    "&#x1F980;",
    "&bogus;",
    "<![CDATA[",
    "]]>",
    "<!--",
    "-->",
    "<?xml?>",
    "<!DOCTYPE a>",
    "<Key>",
    "</Key>",
    "<Contents>",
    "<IsTruncated>true</IsTruncated>",
    "<Size>-1</Size>",
    "<Size>18446744073709551616</Size>",
    "%2F",
    "%",
    "+",
    "<EncodingType>url</EncodingType>",
    "\u{0}",
];

const LISTING: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
    <Name>b</Name><Prefix>p/</Prefix><EncodingType>url</EncodingType><KeyCount>2</KeyCount><IsTruncated>true</IsTruncated>\
    <NextContinuationToken>t&amp;1</NextContinuationToken>\
    <Contents><Key>p/a%20b%2Bc</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified>\
    <ETag>&quot;d41d8cd98f00b204e9800998ecf8427e&quot;</ETag><Size>7</Size><StorageClass>STANDARD</StorageClass></Contents>\
    <Contents><Key>p/c</Key><Size>0</Size><ETag>\"x-3\"</ETag></Contents></ListBucketResult>";

/// A listing that is accepted has only keys below the prefix, each with a size, and a token when there is more.
#[test]
fn listings() {
    let target = Target::new();
    bolero::check!().with_test_time(time()).with_type::<Edits>().for_each(|edits| {
        let answer = http("200 OK", "", &mutated(LISTING.as_bytes(), edits, &XML));
        let request = ListRequest { prefix: "p/".into(), from: ListFrom::Beginning, max: None };
        if let Some(page) = target.ask(&answer, async |store| store.list(&request).await) {
            assert!(page.entries.iter().all(|e| e.key.as_str().starts_with("p/") && e.size.is_some()));
            assert!(page.next.is_none_or(|token| !token.is_empty()));
        }
    });
}

/// Every other document, in answer to every call that reads one: nothing is taken for a result that is none.
#[test]
fn documents() {
    const DOCUMENTS: [&str; 6] = [
        "<InitiateMultipartUploadResult><Bucket>b</Bucket><Key>k</Key><UploadId>u1</UploadId></InitiateMultipartUploadResult>",
        "<CompleteMultipartUploadResult><ETag>\"x-1\"</ETag><Key>k</Key></CompleteMultipartUploadResult>",
        "<ListPartsResult><IsTruncated>false</IsTruncated><Part><PartNumber>1</PartNumber><ETag>\"e\"</ETag><Size>5</Size></Part></ListPartsResult>",
        "<ListMultipartUploadsResult><IsTruncated>true</IsTruncated><NextKeyMarker>k</NextKeyMarker><NextUploadIdMarker>u</NextUploadIdMarker>\
         <Upload><Key>k</Key><UploadId>u</UploadId><Initiated>2026-01-02T03:04:05Z</Initiated></Upload></ListMultipartUploadsResult>",
        "<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>",
        "<CopyObjectResult><ETag>\"e\"</ETag><LastModified>2026-01-02T03:04:05Z</LastModified></CopyObjectResult>",
    ];
    let target = Target::new();
    let (key, upload): (ObjectKey, _) = ("k".into(), UploadId::new("u"));
    bolero::check!().with_test_time(time()).with_type::<(u8, u8, Edits)>().for_each(|(document, call, edits)| {
        let body = mutated(DOCUMENTS[usize::from(*document) % 6].as_bytes(), edits, &XML);
        let answer = http("200 OK", "", &body);
        let options = PutOptions::default();
        match call % 6 {
            0 => drop(target.ask(&answer, async |s| s.create_upload(&key, &options).await).inspect(|id| assert!(!id.as_str().is_empty()))),
            1 => drop(target.ask(&answer, async |s| s.complete_upload(&key, &upload, &[], &options).await)),
            2 => drop(target.ask(&answer, async |s| s.list_parts(&key, &upload).await)),
            3 => drop(target.ask(&answer, async |s| s.list_uploads("", None).await)),
            4 => drop(target.ask(&answer, async |s| s.tags(&key, None).await)),
            _ => {
                let origin = target.store.copy_origin(&key, None).unwrap();
                drop(target.ask(&answer, async |s| s.copy(&origin, &ETag::new("e"), &key, &options).await));
            }
        }
    });
}

/// Refusals, in form and out of form, of every call: an error each time.
#[test]
fn refusals() {
    const STATUS: [&str; 16] = [
        "301 Moved",
        "307 Temporary",
        "400 Bad",
        "401 No",
        "403 No",
        "404 Not",
        "405 No",
        "408 Late",
        "409 Conflict",
        "410 Gone",
        "412 Pre",
        "416 Range",
        "429 Slow",
        "500 Bad",
        "503 Slow",
        "599 ?",
    ];
    let body = "<?xml version=\"1.0\"?><Error><Code>NoSuchKey</Code><Message>no</Message><Region>eu-west-1</Region></Error>";
    let codes =
        ["SlowDown", "RequestTimeTooSkewed", "ExpiredToken", "PreconditionFailed", "NoSuchUpload", "InternalError", "<Code>", "</Code>"];
    let words = [XML.as_slice(), &codes].concat();
    let target = Target::new();
    let (key, upload): (ObjectKey, _) = ("k".into(), UploadId::new("u"));
    bolero::check!().with_test_time(time()).with_type::<(u8, u8, Edits, u8)>().for_each(|(status, call, edits, header)| {
        let headers =
            ["", "retry-after: 7\r\n", "retry-after: -1\r\n", "date: Thu, 01 Jan 1970 00:00:00 GMT\r\n", "x-amz-bucket-region: \r\n"];
        let headers = headers[usize::from(*header) % headers.len()];
        let answer = http(STATUS[usize::from(*status) % 16], headers, &mutated(body.as_bytes(), edits, &words));
        let (options, none) = (PutOptions::default(), Condition::None);
        let bytes = || Body::Bytes(vec!["x".into()]);
        let refused = match call % 9 {
            0 => target.ask(&answer, async |s| s.list(&ListRequest::default()).await).is_none(),
            1 => target.ask(&answer, async |s| s.head(&key, None).await).is_none(),
            2 => target.ask(&answer, async |s| s.read(&key, &ReadOptions::default()).await.map(drop)).is_none(),
            3 => target.ask(&answer, async |s| s.put(&key, bytes(), &options).await).is_none(),
            4 => target.ask(&answer, async |s| s.put_part(&key, &upload, 1, bytes(), None).await).is_none(),
            5 => target.ask(&answer, async |s| s.complete_upload(&key, &upload, &[], &options).await).is_none(),
            6 => target.ask(&answer, async |s| s.put_tags(&key, &Tags::new()).await).is_none(),
            // What is gone is gone.
            7 => target.ask(&answer, async |s| s.delete(&key, &none).await).is_none() || answer.starts_with(b"HTTP/1.1 4"),
            _ => target.ask(&answer, async |s| s.abort_upload(&key, &upload).await).is_none() || answer.starts_with(b"HTTP/1.1 4"),
        };
        assert!(refused, "{} was taken for success", String::from_utf8_lossy(&answer));
    });
}

/// The answers to reads: what is delivered is the range that was asked for, whole, or an error.
#[test]
fn objects() {
    let headers = "etag: \"d41d8cd98f00b204e9800998ecf8427e-2\"\r\nlast-modified: Fri, 02 Jan 2026 03:04:05 GMT\r\ncontent-type: a/b\r\n\
        x-amz-meta-a: \u{e9}\r\nx-amz-mp-parts-count: 2\r\nx-amz-tagging-count: 1\r\nx-amz-version-id: v\r\nx-amz-checksum-type: FULL_OBJECT\r\n\
        x-amz-checksum-crc64nvme: AAAAAAAAAAA=\r\nx-amz-server-side-encryption: AES256\r\ncontent-range: bytes 2-6/10\r\n";
    let words = [
        "\r\n",
        ":",
        ": ",
        "etag",
        "\"",
        "bytes ",
        "0-0/0",
        "*/10",
        "5-2/10",
        "2-6/*",
        "18446744073709551615",
        "-",
        "content-range: bytes 0-9/10\r\n",
        "content-length: 3\r\n",
        "transfer-encoding: chunked\r\n",
        "x-amz-checksum-sha256: !\r\n",
        "COMPOSITE",
        "aws:kms",
        "\u{7f}",
        "W/",
    ];
    let target = Target::new();
    let key: ObjectKey = "k".into();
    bolero::check!().with_test_time(time()).with_type::<(bool, u8, Edits)>().for_each(|(partial, ask, edits)| {
        let status = if *partial { "206 Partial Content" } else { "200 OK" };
        let answer = http(status, &mutated_text(headers, edits, &words), b"23456");
        let range = [ReadRange::Full, ReadRange::Bytes(2..7), ReadRange::FirstPart][usize::from(*ask) % 3].clone();
        let options = ReadOptions { range: range.clone(), ..ReadOptions::default() };
        if ask % 4 == 3 {
            target.ask(&answer, async |s| s.head(&key, None).await);
            return;
        }
        let read = target.ask(&answer, async |s| {
            let mut read = s.read(&key, &options).await?;
            let mut got = 0;
            while let Some(chunk) = read.body.next().await {
                got += chunk?.len() as u64;
            }
            Ok((read.info, read.range, got))
        });
        if let Some((info, told, got)) = read {
            assert_eq!(told.end - told.start, got);
            assert!(told.end <= info.entry.size.unwrap() && info.entry.etag.is_some());
            if let ReadRange::Bytes(asked) = range {
                assert_eq!(asked, told);
            }
        }
    });
}

/// The settings of a bucket: what is accepted makes a client, or says which setting does not.
#[test]
fn configuration() {
    let seeds = [
        "bucket = 'b'\nregion = 'eu-west-1'\nendpoint = 'https://host:9000/path'\nstyle = 'path'\nprofile = 'compatible'\nmin_part = 1\n",
        "bucket = 'arn:aws:s3:eu-west-1:123456789012:accesspoint/name'\nregion = 'eu-west-1'\nfips = true\ndual_stack = true\n",
        "bucket = 'b'\nproxy = { kind = 'url', url = 'http://proxy:3128', user = 'u', password = 'x' }\n",
        "bucket = 'b'\ncredentials = { kind = 'static', access_key_id = 'a', secret_access_key = 'x' }\n",
        "bucket = 'b'\nencryption = { kind = 'kms', key_id = 'k' }\nidle_timeout_seconds = 5\nconnect_timeout_seconds = 0\n",
    ];
    let words = [
        "=",
        "'",
        "\n",
        "://",
        "@",
        ":",
        "/",
        "[::1]",
        "%zz",
        "arn:",
        "cn-north-1",
        "us-gov-west-1",
        "xn--",
        "..",
        "é",
        " ",
        "18446744073709551615",
        "-1",
        "{}",
        "kind = 'none'",
        "http://",
        "ftp://",
        "kind = 'environment'",
        "\u{0}",
    ];
    bolero::check!().with_test_time(time()).with_type::<(u8, Edits)>().for_each(|(seed, edits)| {
        let text = mutated_text(seeds[usize::from(*seed) % seeds.len()], edits, &words);
        let Ok(mut config) = toml::from_str::<S3Config>(&text) else { return };
        config.credentials = CredentialsConfig::Static {
            access_key_id: "FUZZ".into(),
            secret_access_key: Secret::new(CANARY),
            session_token: Some(Secret::new(CANARY)),
        };
        if let Proxy::Url { password, .. } = &mut config.proxy {
            *password = Some(Secret::new(CANARY));
        }
        assert!(!format!("{config:?}").contains(CANARY));
        if let Err(error) = S3Store::new(config) {
            assert_eq!(error.kind(), ErrorKind::Invalid, "{}", error.chain());
            fit_to_be_shown(&error);
        }
    });
}
