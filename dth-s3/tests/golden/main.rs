//! Every request that each profile sends, byte by byte: `PROFILE.txt` beside this file. `DTH_BLESS=1` writes them anew.
//!
//! They are no proof by themselves: `examples/tests/servers/clouds/golden.py` computes their signatures again with the code of others
//! (the SDKs of the vendors, botocore), and fails where one is another.

#![expect(clippy::unwrap_used, reason = "a test")]

use async_trait::async_trait;
use bytes::Bytes;
use dth_core::{
    checksum::{Algorithm, Checksum},
    env::Env,
    error::{ErrorKind, Result},
    index::{Index, ListFrom, ListRequest},
    object::{Attributes, ETag, ObjectKey, VersionId},
    scope::TaskScope,
    sink::{Body, Condition, Part, PutOptions, Sink, UploadId},
    source::{ReadOptions, ReadRange, Restore, Source},
};
use dth_s3::{Connector, CredentialsConfig, Profile, S3Config, S3Store, Secret, Transport};
use http_body_util::BodyExt;
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use std::{
    convert::Infallible,
    fmt::{self, Write as _},
    path::Path,
    sync::{Arc, Mutex},
};

const KEY: &str = "dir/é +&?#%2F'(1)";
const ETAG: &str = "25f9e794323b453885f5181f1b624d0b";

/// A clock that stands.
#[derive(Debug)]
struct Standing;

impl Env for Standing {
    fn now(&self) -> Timestamp {
        "2026-01-02T03:04:05Z".parse().unwrap()
    }
    fn random(&self) -> u64 {
        0
    }
}

/// Takes down what is sent, and answers so that whoever asked goes on.
struct Recorder {
    taken: Arc<Mutex<Vec<String>>>,
    tasks: Mutex<TaskScope>,
    prefix: &'static str,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recorder")
    }
}

#[async_trait]
impl Connector for Recorder {
    async fn connect(&self, _: &str, _: u16) -> std::io::Result<Box<dyn Transport>> {
        let (client, server) = tokio::io::duplex(64 << 10);
        let (taken, prefix) = (Arc::clone(&self.taken), self.prefix);
        let answer = service_fn(move |request| {
            let taken = Arc::clone(&taken);
            async move { Ok::<_, Infallible>(take_down(request, &taken, prefix).await) }
        });
        self.tasks.lock().unwrap().spawn(async move {
            let _ = http1::Builder::new().serve_connection(TokioIo::new(server), answer).await;
        });
        Ok(Box::new(client))
    }
}

async fn take_down(request: Request<Incoming>, taken: &Mutex<Vec<String>>, prefix: &str) -> Response<String> {
    let (parts, body) = request.into_parts();
    let mut text = format!("{} {}\n", parts.method, parts.uri);
    let mut headers: Vec<_> = parts.headers.iter().map(|(n, v)| format!("{n}: {}\n", String::from_utf8_lossy(v.as_bytes()))).collect();
    headers.sort();
    text.extend(headers);
    let bytes = body.collect().await.unwrap().to_bytes();
    if !bytes.is_empty() {
        let _ = writeln!(text, "\n{}", String::from_utf8_lossy(&bytes));
    }
    taken.lock().unwrap().push(text);
    let query = parts.uri.query().unwrap_or_default();
    let has = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
    let document = |root: &str, inner: &str| Response::new(format!("<{root}>{inner}</{root}>"));
    let method = parts.method.as_str();
    let copies = parts.headers.contains_key(format!("{prefix}copy-source"));
    match method {
        "GET" if has("versions") => document("ListVersionsResult", "<IsTruncated>false</IsTruncated>"),
        "POST" if has("restore") => Response::builder().status(202).body(String::new()).unwrap(),
        "GET" if has("uploads") => document("ListMultipartUploadsResult", "<IsTruncated>false</IsTruncated>"),
        "GET" if has("uploadId") => document("ListPartsResult", "<IsTruncated>false</IsTruncated>"),
        "GET" if has("tagging") => document("Tagging", "<TagSet></TagSet>"),
        "GET" if has("prefix") => document("ListBucketResult", "<IsTruncated>false</IsTruncated>"),
        "GET" if has("versioning") || has("object-lock") || has("encryption") => document("Configuration", ""),
        "POST" if has("uploads") => document("InitiateMultipartUploadResult", "<UploadId>id</UploadId>"),
        "POST" => document("CompleteMultipartUploadResult", &format!("<ETag>\"{ETAG}\"</ETag>")),
        "PUT" if copies && has("uploadId") => document("CopyPartResult", &format!("<ETag>\"{ETAG}\"</ETag>")),
        "PUT" if copies => document("CopyObjectResult", &format!("<ETag>\"{ETAG}\"</ETag>")),
        _ => {
            let answer = Response::builder().header("etag", format!("\"{ETAG}\""));
            let (answer, body) = match parts.headers.get("range").and_then(|v| v.to_str().ok()) {
                Some("bytes=2-4") => (answer.status(206).header("content-range", "bytes 2-4/9"), "345"),
                _ if method == "GET" || method == "HEAD" => (answer, "123456789"),
                _ => (answer, ""),
            };
            answer.body(body.to_owned()).unwrap()
        }
    }
}

struct Book {
    store: S3Store,
    taken: Arc<Mutex<Vec<String>>>,
    text: String,
}

impl Book {
    /// Writes down what a call sent; what a profile refuses without sending anything, too.
    fn page<T: fmt::Debug>(&mut self, title: &str, outcome: Result<T>) {
        let sent = std::mem::take(&mut *self.taken.lock().unwrap());
        let _ = writeln!(self.text, "### {title}");
        match outcome {
            Err(error) if sent.is_empty() => {
                assert!(matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::Unrepresentable), "{title}: {}", error.chain());
                let _ = writeln!(self.text, "not sent: {}\n", error.kind().as_str());
            }
            outcome => {
                outcome.unwrap_or_else(|error| panic!("{title}: {}\n{sent:?}", error.chain()));
                let _ = writeln!(self.text, "{}", sent.join("\n"));
            }
        }
    }
}

fn options() -> PutOptions {
    let text = |t: &str| Some(t.to_owned());
    let attributes = Attributes {
        content_type: text("text/plain; charset=utf-8"),
        content_encoding: text("identity"),
        content_language: text("de"),
        content_disposition: text("attachment; filename=\"x.txt\""),
        cache_control: text("max-age=60"),
        expires: text("Thu, 01 Jan 2099 00:00:00 GMT"),
        website_redirect: text("/elsewhere"),
        object_lock: None,
        user: [("name".to_owned(), Bytes::from("value")), ("umlaut".to_owned(), Bytes::from("ä")), ("a_b".to_owned(), Bytes::from("1"))]
            .into(),
    };
    PutOptions {
        attributes,
        tags: vec![("a".into(), "1".into()), ("key two".into(), "x=y&z".into())],
        condition: Condition::Absent,
        checksum: Some(Checksum::of(Algorithm::Md5, &[Bytes::from_static(b"123456789")])),
        child: false,
    }
}

fn body() -> Body {
    Body::Bytes(vec![Bytes::from_static(b"123456789")])
}

async fn book_of(profile: Profile) -> String {
    let taken = Arc::<Mutex<Vec<String>>>::default();
    let prefix = match profile {
        Profile::Oss => "x-oss-",
        Profile::Cos => "x-cos-",
        _ => "x-amz-",
    };
    let recorder = Recorder { taken: Arc::clone(&taken), tasks: Mutex::default(), prefix };
    let (region, host) = match profile {
        Profile::Oss => ("cn-hangzhou", "oss-cn-hangzhou.aliyuncs.com"),
        Profile::Cos => ("ap-guangzhou", "cos.ap-guangzhou.myqcloud.com"),
        Profile::Kodo => ("cn-east-1", "s3.cn-east-1.qiniucs.com"),
        Profile::Obs => ("cn-north-4", "obs.cn-north-4.myhuaweicloud.com"),
        Profile::Bos => ("bj", "s3.bj.bcebos.com"),
        Profile::R2 => ("auto", "account.r2.cloudflarestorage.com"),
        Profile::B2 => ("us-west-004", "s3.us-west-004.backblazeb2.com"),
        Profile::Gcs => ("auto", "storage.googleapis.com"),
        Profile::Wasabi => ("eu-central-1", "s3.eu-central-1.wasabisys.com"),
        _ => ("eu-west-1", "store.example"),
    };
    let config = S3Config {
        bucket: "bucket-1250000000".into(),
        region: region.into(),
        endpoint: Some(format!("http://{host}")),
        profile,
        credentials: CredentialsConfig::Static {
            access_key_id: "AKIDGOLDEN".into(),
            secret_access_key: Secret::new("golden/secret+key"),
            session_token: Some(Secret::new("golden-token")),
        },
        ..S3Config::default()
    };
    let store = S3Store::with_connector(config, Arc::new(Standing), Arc::new(recorder)).unwrap();
    let mut book = Book { store: store.clone(), taken, text: format!("# profile {}, region {region}\n\n", profile.as_str()) };
    let key: ObjectKey = KEY.into();
    let (etag, upload, version) = (ETag::new(ETAG), UploadId::new("id/1+2"), VersionId::new("v1"));
    let list = |prefix: &str, from| ListRequest { prefix: prefix.into(), from, max: None };
    book.page("list", store.list(&list("dir/", ListFrom::Beginning)).await);
    book.page("list behind a key", store.list(&list("", ListFrom::After(key.clone()))).await);
    book.page("list on", store.list(&list("", ListFrom::Token("token/+=".into()))).await);
    book.page("list one", store.list(&ListRequest { max: Some(1), ..list("dir/é", ListFrom::Beginning) }).await);
    book.page("head", store.head(&key, None).await);
    book.page("head a version", store.head(&key, Some(&version)).await);
    book.page("read", store.read(&key, &ReadOptions::default()).await);
    let pinned = ReadOptions { range: ReadRange::Bytes(2..5), if_match: Some(etag.clone()), version: None };
    book.page("read a range, pinned", store.read(&key, &pinned).await);
    let first = ReadOptions { range: ReadRange::FirstPart, ..ReadOptions::default() };
    book.page("read the first part", store.read(&key, &first).await);
    book.page("read a version", store.read(&key, &ReadOptions { version: Some(version.clone()), ..ReadOptions::default() }).await);
    book.page("read tags", store.tags(&key, Some(&version)).await);
    book.page("put where nothing is", store.put(&key, body(), &options()).await);
    let replacing = PutOptions { condition: Condition::Match(etag.clone()), checksum: None, ..PutOptions::default() };
    book.page("put over a version", store.put(&key, body(), &replacing).await);
    book.page("delete", store.delete(&key, &Condition::Match(etag.clone())).await);
    book.page("create an upload", store.create_upload(&key, &options()).await);
    let sum = options().checksum;
    book.page("put a part", store.put_part(&key, &upload, 2, body(), sum.as_ref()).await);
    book.page("list parts", store.list_parts(&key, &upload).await);
    book.page("list uploads", store.list_uploads("dir/é", None).await);
    book.page("list uploads on", store.list_uploads("", Some("dir/é\0id/1")).await);
    let part = |number| Part { number, size: 9, etag: etag.clone(), opaque_etag: false, checksum: None };
    let completing = PutOptions { checksum: None, ..options() };
    book.page("complete", store.complete_upload(&key, &upload, &[part(1), part(2)], &completing).await);
    book.page("abort", store.abort_upload(&key, &upload).await);
    book.page("write tags", store.put_tags(&key, &options().tags).await);
    let origin = store.copy_origin(&"from/é".into(), None).unwrap();
    book.page("copy inside", store.copy(&origin, &etag, &key, &completing).await);
    book.page("copy a part inside", store.copy_part(&origin, &etag, 0..9, &key, &upload, 1).await);
    book.page("list versions", store.versions(&list("dir/é", ListFrom::Beginning)).await);
    book.page("list versions on", store.versions(&list("", ListFrom::Token("dir/é\0v/1".into()))).await);
    book.page("ask whether versions are kept", store.keeps_versions().await);
    let restore = Restore { days: 3, tier: Some("Bulk".into()) };
    book.page("restore a version", store.restore(&key, Some(&version), &restore).await);
    book.page("make the bucket", store.create_bucket().await);
    book.page("ask for the bucket's settings", store.bucket_facts().await);
    let _ = &book.store;
    book.text
}

/// F7 and the requests of every profile.
#[tokio::test]
async fn requests_are_the_golden_ones() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for profile in Profile::ALL {
        let file = folder.join(format!("{}.txt", profile.as_str()));
        let book = book_of(profile).await;
        if std::env::var_os("DTH_BLESS").is_some() {
            std::fs::write(&file, &book).unwrap();
        }
        let golden = std::fs::read_to_string(&file).unwrap_or_default();
        let first = book.lines().zip(golden.lines()).find(|(a, b)| a != b);
        assert!(book == golden, "{}: the first line that is another: {first:?}", file.display());
    }
}
