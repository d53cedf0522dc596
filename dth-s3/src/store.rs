//! One bucket: what can be asked of it.

use crate::{
    config::{CredentialsConfig, Encryption, S3Config},
    headers,
    profile::{Dialect, Facts, Keys, Listing, Plus, Profile, RestoreForm},
    wire::{Answer, Request, RequestBody, Wire, xml},
};
use async_trait::async_trait;
use dth_core::{
    attribute::Attribute,
    env::{SharedEnv, SystemEnv},
    error::{Error, ErrorKind, Op, Result},
    http::Connector,
    index::{Index, IndexCapability, ListFrom, ListOrder, ListPage, ListRequest, must_carry},
    object::{Entry, EtagKind, ObjectInfo, ObjectKey, Tags, VersionId},
    source::{CopyOrigin, Read, ReadOptions, ReadRange, Restore, Restoring, Source, SourceCapability},
    versions::{Version, VersionsPage},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use std::{borrow::Cow, fmt, sync::Arc};

/// A bucket of an S3 store, as source and as sink. Clones share connections and credentials.
#[derive(Clone)]
pub struct S3Store {
    pub(crate) config: Arc<S3Config>,
    pub(crate) facts: Facts,
    pub(crate) wire: Arc<Wire>,
}

impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3Store({} at {})", self.config.bucket, self.wire.store())
    }
}

/// What a bucket is set to, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BucketFacts {
    /// Where it is.
    pub region: String,
    /// `Enabled`, `Suspended`, `never enabled`.
    pub versioning: Option<String>,
    /// `Enabled`, where it has Object Lock.
    pub object_lock: Option<String>,
    /// How it encrypts by itself: `AES256`, `aws:kms`.
    pub encryption: Option<String>,
    /// Seconds by which the store's clock is ahead of ours.
    pub clock_ahead_seconds: Option<i64>,
}

impl S3Store {
    /// Checks the settings and makes a client; nothing is sent yet.
    pub fn new(config: S3Config) -> Result<Self> {
        Self::with_env(config, Arc::new(SystemEnv))
    }

    /// As [`new`](Self::new), with the clock that signatures are dated by.
    pub fn with_env(config: S3Config, env: SharedEnv) -> Result<Self> {
        Self::make(config, env, None)
    }

    /// As [`with_env`](Self::with_env), over connections of another kind than TCP.
    pub fn with_connector(config: S3Config, env: SharedEnv, connector: Arc<dyn Connector>) -> Result<Self> {
        Self::make(config, env, Some(connector))
    }

    fn make(config: S3Config, env: SharedEnv, connector: Option<Arc<dyn Connector>>) -> Result<Self> {
        config.validate()?;
        let wire = Wire::new(&config, env, connector)?;
        let facts = *config.profile.facts();
        let facts = Facts { min_part: config.min_part.unwrap_or(facts.min_part), ..facts };
        Ok(Self { facts, config: Arc::new(config), wire: Arc::new(wire) })
    }

    /// Makes the bucket; one of ours that is there already is no error.
    pub async fn create_bucket(&self) -> Result<()> {
        let mut request = Request::new(Op::Configure, Method::PUT, None);
        let region = self.config.region();
        if self.config.profile == Profile::Aws && self.config.endpoint.is_none() && region != "us-east-1" {
            request.body = RequestBody::Document(format!(
                "<CreateBucketConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><LocationConstraint>{}</LocationConstraint></CreateBucketConfiguration>",
                xml::escape(region)
            ));
        }
        match self.wire.send(request).await {
            Err(error) if error.code().is_some_and(|c| c.ends_with("BucketAlreadyOwnedByYou") || c.ends_with("BucketAlreadyExists")) => {
                Ok(())
            }
            Err(error) => Err(error),
            Ok(answer) => answer.done().await,
        }
    }

    /// What the bucket is set to; a setting that may not be read, or that the store does not know, is `None`.
    pub async fn bucket_facts(&self) -> Result<BucketFacts> {
        let mut facts = BucketFacts::default();
        for (setting, place) in
            [("versioning", &mut facts.versioning), ("object-lock", &mut facts.object_lock), ("encryption", &mut facts.encryption)]
        {
            let request = Request::new(Op::Configure, Method::GET, None).query(setting, "");
            let answer = match self.wire.send(request).await {
                Ok(answer) => answer,
                Err(error) if matches!(error.kind(), ErrorKind::CredentialsExpired | ErrorKind::Unavailable) => return Err(error),
                Err(_) => continue,
            };
            facts.clock_ahead_seconds = self.wire.clock_ahead(&answer.headers).or(facts.clock_ahead_seconds);
            let document = answer.document().await?;
            let document = xml::parse(&document).unwrap_or_default();
            let root = document.root();
            let rule = root.all("Rule").flat_map(|r| r.all("ApplyServerSideEncryptionByDefault")).next();
            *place = match setting {
                "versioning" => Some(root.filled("Status").unwrap_or("never enabled").to_owned()),
                "object-lock" => root.filled("ObjectLockEnabled").map(str::to_owned),
                _ => rule.and_then(|r| r.filled("SSEAlgorithm")).map(str::to_owned),
            };
        }
        facts.region = self.wire.region();
        Ok(facts)
    }

    fn etag_kind(&self) -> EtagKind {
        match self.config.encryption {
            Encryption::Kms { .. } => EtagKind::Opaque,
            Encryption::Aes256 if self.facts.vouches_for_puts_only() => EtagKind::Opaque,
            Encryption::None | Encryption::Aes256 => self.facts.etag_kind(),
        }
    }

    /// Names whose rights are used, without a secret.
    pub(crate) fn identity(&self) -> String {
        match &self.config.credentials {
            CredentialsConfig::Static { access_key_id, .. } => access_key_id.clone(),
            other => format!("{other:?}"),
        }
    }

    fn read_headers(&self, headers: &mut HeaderMap, options: &ReadOptions) -> Result<()> {
        if self.facts.checksum_mode {
            headers.insert("x-amz-checksum-mode", HeaderValue::from_static("ENABLED"));
        }
        if let Some(etag) = &options.if_match {
            headers.insert("if-match", headers::quoted(etag, &self.facts, Op::Read)?);
        }
        if let ReadRange::Bytes(range) = &options.range {
            let value = HeaderValue::from_str(&format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
            headers.insert("range", value.expect("digits are a header value"));
            if self.facts.strict_ranges {
                headers.insert("x-amz-range-behavior", HeaderValue::from_static("standard"));
            }
        }
        Ok(())
    }

    /// What was read, by the answer: status, length and range must be those that were asked for (T4, T5).
    fn judge_read(&self, key: &ObjectKey, options: &ReadOptions, answer: &Answer) -> Result<(ObjectInfo, std::ops::Range<u64>)> {
        let wrong = |why: String| answer.error(ErrorKind::Corrupt, why);
        let length = headers::content_length(&answer.headers).ok_or_else(|| wrong("the answer names no length".into()))?;
        if headers::etag(&answer.headers, &self.facts).is_none() {
            // A gateway's page, or an error after all: every answer of a store names the version that it gives.
            return Err(wrong("the answer names no etag".into()));
        }
        let (range, total) = match (answer.status, &options.range) {
            (StatusCode::PARTIAL_CONTENT, ReadRange::Full) => return Err(wrong("206 to a request without a range".into())),
            (StatusCode::PARTIAL_CONTENT, _) => {
                headers::content_range(&answer.headers).ok_or_else(|| wrong("206 without a valid Content-Range".into()))?
            }
            (StatusCode::OK, ReadRange::Full | ReadRange::FirstPart) => (0..length, length),
            // The whole object where the range is all of it: nothing is missing, nothing too much.
            (StatusCode::OK, ReadRange::Bytes(range)) if *range == (0..length) => (0..length, length),
            (status, asked) => return Err(wrong(format!("{status} with {length} bytes to a request for {asked:?}"))),
        };
        if range.end - range.start != length || range.end > total {
            return Err(wrong(format!("{length} bytes for the range {range:?} of {total}")));
        }
        match &options.range {
            ReadRange::Bytes(asked) if *asked != range => return Err(wrong(format!("bytes {range:?} of {total} for {asked:?}"))),
            ReadRange::FirstPart if range.start != 0 => return Err(wrong(format!("the first part begins at {}", range.start))),
            _ => {}
        }
        Ok((headers::info(key, total, &answer.headers, &self.facts), range))
    }

    /// Where the store may join paths, a key with dots in it is perhaps another object's.
    fn must_be_itself(&self, key: &ObjectKey, op: Op) -> Result<()> {
        if self.facts.keys == Keys::NoDots { must_carry(self, key, op) } else { Ok(()) }
    }

    /// What an element of a listing tells of an object. Most are of the class of the one before.
    fn listed_entry(&self, key: ObjectKey, element: xml::Element<'_>, before: Option<&Entry>) -> Entry {
        let class_before = before.and_then(|before| before.storage_class.as_ref());
        let class = |class: &str| class_before.filter(|before| ***before == *class).map_or_else(|| class.into(), Arc::clone);
        Entry {
            size: element.text("Size").and_then(|size| size.trim().parse().ok()),
            etag: element.etag("ETag", &self.facts),
            modified: element.time("LastModified"),
            version: None,
            storage_class: element.filled("StorageClass").map(class),
            key,
        }
    }

    fn list_query<'a>(&self, request: &ListRequest) -> Request<'a> {
        let mut query = Request::new(Op::List, Method::GET, None);
        if self.facts.listing == Listing::V2 {
            query = query.query("list-type", "2");
        }
        query = query.query("prefix", request.prefix.clone());
        if self.facts.encoded_lists {
            query = query.query("encoding-type", "url");
        }
        match (&request.from, self.facts.listing) {
            (ListFrom::Beginning, _) => {}
            (ListFrom::After(key), Listing::V2) => query = query.query("start-after", key.as_str()),
            (ListFrom::Token(token), Listing::V2) => query = query.query("continuation-token", token.clone()),
            (ListFrom::After(key), Listing::V1) => query = query.query("marker", key.as_str()),
            (ListFrom::Token(marker), Listing::V1) => query = query.query("marker", marker.clone()),
        }
        match request.max.or(self.facts.page) {
            Some(max) => query.query("max-keys", max.to_string()),
            None => query,
        }
    }
}

#[async_trait]
impl Index for S3Store {
    fn name(&self) -> String {
        format!("{}://{}", self.facts.scheme, self.config.bucket)
    }

    fn index_capability(&self) -> IndexCapability {
        let order = if self.config.unordered_listing { ListOrder::Unordered } else { ListOrder::Bytes };
        let Facts { seeks, max_key, archived, .. } = self.facts;
        IndexCapability { order, start_after: seeks, max_key, archived, ..IndexCapability::like_s3(self.etag_kind()) }
    }

    fn carries(&self, key: &ObjectKey) -> bool {
        self.facts.carries(key.as_str())
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        let document = self.wire.send(self.list_query(request)).await?.document().await?;
        let broken = |why: String| Error::new(ErrorKind::Corrupt, Op::List, self.wire.target(None)).with_source(why);
        let document = xml::parse(&document).map_err(broken)?;
        let root = document.root();
        if !root.is("ListBucketResult") {
            return Err(broken("the answer is no listing".into()));
        }
        let encoded = self.facts.encoded_lists && root.is_encoded();
        let listed = |text| self.facts.listed(text, encoded);
        let mut entries: Vec<Entry> = Vec::with_capacity(1000);
        for contents in root.all("Contents") {
            let key = contents.text("Key").and_then(listed).map(ObjectKey::new);
            let key = key.filter(|k| k.starts_with(&request.prefix));
            let key = key.ok_or_else(|| broken(format!("an entry without a readable key below the prefix: {:?}", contents.text("Key"))))?;
            let entry = self.listed_entry(key, contents, entries.last());
            if entry.size.is_none() {
                return Err(broken(format!("`{}` has no size", entry.key)));
            }
            entries.push(entry);
        }
        let truncated = root.is_truncated();
        let next = match self.facts.listing {
            // OSS encodes it as it does the keys.
            Listing::V2 if self.facts.plus == Plus::Itself => root.filled("NextContinuationToken").and_then(listed),
            Listing::V2 => root.filled("NextContinuationToken").map(Cow::Borrowed),
            // Some name it only where there is a delimiter.
            Listing::V1 => {
                root.filled("NextMarker").and_then(listed).or_else(|| entries.last().map(|e: &Entry| e.key.as_str().to_owned().into()))
            }
        };
        if truncated && next.is_none() {
            return Err(broken("a truncated listing without a token to go on".into()));
        }
        Ok(ListPage { entries, next: next.filter(|_| truncated).map(Cow::into_owned) })
    }

    async fn versions(&self, request: &ListRequest) -> Result<VersionsPage> {
        let target = || self.wire.target(None);
        if !self.facts.versions {
            let why = format!("no document says that profile `{}` lists versions", self.config.profile.as_str());
            return Err(Error::new(ErrorKind::Unsupported, Op::List, target()).with_source(why));
        }
        let mut query = Request::new(Op::List, Method::GET, None).query("versions", "").query("prefix", request.prefix.clone());
        if self.facts.encoded_lists {
            query = query.query("encoding-type", "url");
        }
        query = match &request.from {
            ListFrom::Beginning => query,
            ListFrom::After(key) => query.query("key-marker", key.as_str()),
            // Our token is the pair of markers; no key holds a NUL.
            ListFrom::Token(token) => match token.split_once('\0') {
                Some((key, version)) => query.query("key-marker", key).query("version-id-marker", version),
                None => return Err(Error::new(ErrorKind::Invalid, Op::List, target()).with_source("a token of another listing")),
            },
        };
        if let Some(max) = request.max.or(self.facts.page) {
            query = query.query("max-keys", max.to_string());
        }
        let document = self.wire.send(query).await?.document().await?;
        let broken = |why: String| Error::new(ErrorKind::Corrupt, Op::List, target()).with_source(why);
        let document = xml::parse(&document).map_err(broken)?;
        let root = document.root();
        // OSS, and older answers of COS.
        if !root.is("ListVersionsResult") && !root.is("ListBucketVersionsResult") {
            return Err(broken("the answer is no listing of versions".into()));
        }
        let encoded = self.facts.encoded_lists && root.is_encoded();
        let listed = |text| self.facts.listed(text, encoded);
        let mut versions = Vec::with_capacity(1000);
        for (marker, version) in root.either("DeleteMarker", "Version") {
            let key = version.text("Key").and_then(listed).map(ObjectKey::new).filter(|k| k.starts_with(&request.prefix));
            let key = key.ok_or_else(|| broken(format!("a version without a readable key below the prefix: {:?}", version.text("Key"))))?;
            let id =
                version.filled("VersionId").map(VersionId::new).ok_or_else(|| broken(format!("a version of `{key}` without an id")))?;
            let begins = versions.last().is_none_or(|last: &Version| last.entry.key != key);
            let goes_on =
                versions.is_empty() && matches!(&request.from, ListFrom::Token(token) if token.starts_with(&format!("{}\0", key.as_str())));
            if begins && !goes_on && version.text("IsLatest").is_some_and(|latest| latest.trim() == "false") {
                return Err(broken(format!("the versions of `{key}` are not listed with the youngest one first")));
            }
            let entry = Entry { version: Some(id), ..self.listed_entry(key, version, versions.last().map(|last| &last.entry)) };
            if entry.size.is_none() && !marker {
                return Err(broken(format!("a version of `{}` has no size", entry.key)));
            }
            let entry = if marker { Entry { size: None, etag: None, ..entry } } else { entry };
            versions.push(Version { entry, marker });
        }
        let next = root.text("NextKeyMarker").and_then(listed);
        let next = next.map(|key| format!("{key}\0{}", root.text("NextVersionIdMarker").unwrap_or_default()));
        if root.is_truncated() && next.is_none() {
            return Err(broken("a truncated listing without a marker to go on".into()));
        }
        Ok(VersionsPage { versions, next: next.filter(|_| root.is_truncated()) })
    }

    async fn keeps_versions(&self) -> Result<bool> {
        if !self.facts.versions {
            return Ok(false);
        }
        let answer = self.wire.send(Request::new(Op::Configure, Method::GET, None).query("versioning", "")).await?;
        let broken = |why: String| Error::new(ErrorKind::Corrupt, Op::Configure, self.wire.target(None)).with_source(why);
        let document = answer.document().await?;
        let document = xml::parse(&document).map_err(broken)?;
        let root = document.root();
        Ok(root.filled("Status").is_some_and(|status| status.trim() == "Enabled"))
    }

    async fn head(&self, key: &ObjectKey, version: Option<&VersionId>) -> Result<ObjectInfo> {
        self.must_be_itself(key, Op::Head)?;
        let ask = |op, method: Method, header: Option<(&'static str, &str)>| {
            let mut request = Request::new(op, method, Some(key));
            if let Some((name, value)) = header {
                request = request.header(name, value)?;
            }
            Ok::<_, Error>(request.of_version(version))
        };
        let head = || ask(Op::Head, Method::HEAD, self.facts.checksum_mode.then_some(("x-amz-checksum-mode", "ENABLED")));
        let answer = match self.wire.send(head()?).await {
            // An answer to HEAD has no body that says why; to a read of one byte it has.
            Err(error) if matches!(error.code(), Some("400" | "403")) => {
                match self.wire.send(ask(Op::Read, Method::GET, Some(("range", "bytes=0-0")))?).await {
                    Ok(_) => {}
                    // An empty object has no such byte.
                    Err(why) if why.code().is_some_and(|code| code.starts_with("416")) => {}
                    Err(why) => return Err(why),
                }
                self.wire.send(head()?).await?
            }
            answer => answer?,
        };
        let size = headers::content_length(&answer.headers);
        let size = size.ok_or_else(|| answer.error(ErrorKind::Corrupt, "the answer names no length"))?;
        let info = headers::info(key, size, &answer.headers, &self.facts);
        if info.entry.etag.is_some() { Ok(info) } else { Err(answer.error(ErrorKind::Corrupt, "the answer names no etag")) }
    }
}

#[async_trait]
impl Source for S3Store {
    fn source_capability(&self) -> SourceCapability {
        SourceCapability {
            conditional_read: self.facts.conditional_read,
            ranged: true,
            first_part: self.facts.part_reads,
            checksums: self.facts.offers,
            // Whatever a store does with them, what it gives is passed on.
            gives: self.facts.attributes().with(Attribute::NonAsciiMetadata, true).with(Attribute::ObjectLock, true),
            tags: self.facts.tags,
            children: false,
        }
    }

    async fn read(&self, key: &ObjectKey, options: &ReadOptions) -> Result<Read> {
        self.must_be_itself(key, Op::Read)?;
        let mut request = Request::new(Op::Read, Method::GET, Some(key));
        self.read_headers(&mut request.headers, options)?;
        if options.range == ReadRange::FirstPart && self.facts.part_reads {
            request = request.query("partNumber", "1");
        }
        let answer = self.wire.send(request.of_version(options.version.as_ref())).await?;
        let (mut info, range) = self.judge_read(key, options, &answer)?;
        let of_what = options.range == ReadRange::FirstPart || self.facts.dialect == Dialect::Cos;
        if answer.status == StatusCode::PARTIAL_CONTENT && of_what {
            // With a part number, some stores give the checksum of the part; of COS, nobody has said.
            info.checksum = None;
        }
        Ok(Read { info, range, body: answer.stream() })
    }

    async fn restore(&self, key: &ObjectKey, version: Option<&VersionId>, restore: &Restore) -> Result<Restoring> {
        let Some(form) = self.facts.restore else {
            return Err(Error::new(ErrorKind::Unsupported, Op::Restore, self.wire.target(Some(key))));
        };
        let of_version = |op, method| Request::new(op, method, Some(key)).of_version(version);
        // Where it stands, and of what class it is: one that moves by itself takes no number of days.
        let answer = self.wire.send(of_version(Op::Head, Method::HEAD)).await?;
        let said = |name: &str| answer.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
        match said("x-amz-restore") {
            stands if stands.contains("ongoing-request=\"true\"") => return Ok(Restoring::UnderWay),
            stands if stands.contains("ongoing-request=\"false\"") => return Ok(Restoring::Ready),
            _ => {}
        }
        let by_itself = said("x-amz-storage-class") == "INTELLIGENT_TIERING";
        let days = if by_itself { String::new() } else { format!("<Days>{}</Days>", restore.days) };
        let parameters = match form {
            RestoreForm::Glacier => "GlacierJobParameters",
            RestoreForm::Oss => "JobParameters",
            RestoreForm::Cos => "CASJobParameters",
        };
        let tier = restore.tier.as_ref().map(|tier| format!("<{parameters}><Tier>{}</Tier></{parameters}>", xml::escape(tier)));
        let mut request = of_version(Op::Restore, Method::POST).query("restore", "");
        let namespace = self.namespace();
        request.body = RequestBody::Document(format!("<RestoreRequest{namespace}>{days}{}</RestoreRequest>", tier.unwrap_or_default()));
        match self.wire.send(request).await {
            // 202 when it begins, 200 when it can be read already.
            Ok(answer) => {
                let ready = answer.status == StatusCode::OK;
                answer.done().await?;
                Ok(if ready { Restoring::Ready } else { Restoring::UnderWay })
            }
            Err(error) if error.code().is_some_and(|code| code.ends_with("RestoreAlreadyInProgress")) => Ok(Restoring::UnderWay),
            Err(error) if error.code().is_some_and(|code| code.ends_with("ObjectAlreadyInActiveTierError")) => Ok(Restoring::Ready),
            Err(error) => Err(error),
        }
    }

    async fn tags(&self, key: &ObjectKey, version: Option<&VersionId>) -> Result<Tags> {
        let request = Request::new(Op::Tags, Method::GET, Some(key)).query("tagging", "").of_version(version);
        let answer = match self.wire.send(request).await {
            // Some say so of an object without tags.
            Err(error) if error.code().is_some_and(|code| code.contains("NoSuchTagSet")) => return Ok(Tags::new()),
            answer => answer?,
        };
        let document = answer.document().await?;
        let broken = |why: String| Error::new(ErrorKind::Corrupt, Op::Tags, self.wire.target(Some(key))).with_source(why);
        let document = xml::parse(&document).map_err(broken)?;
        let root = document.root();
        if !root.is("Tagging") {
            return Err(broken("the answer is no Tagging".into()));
        }
        let sets = root.all("TagSet").flat_map(|set| set.all("Tag"));
        let pair = |tag: xml::Element<'_>| Some((tag.text("Key")?.to_owned(), tag.text("Value").unwrap_or_default().to_owned()));
        sets.map(|tag| pair(tag).ok_or_else(|| broken("a tag without a key".into()))).collect()
    }

    fn copy_origin(&self, key: &ObjectKey, version: Option<&VersionId>) -> Option<CopyOrigin> {
        // The header that names a source has another form for access points: bytes go through us.
        (!self.config.bucket.starts_with("arn:")).then(|| CopyOrigin {
            endpoint: self.wire.store(),
            container: self.config.bucket.clone(),
            key: key.clone(),
            version: version.cloned(),
            identity: self.identity(),
        })
    }
}

/// A header by name.
pub(crate) fn set(headers: &mut HeaderMap, name: &'static str, value: &str, op: Op) -> Result<()> {
    let value = HeaderValue::from_bytes(value.as_bytes())
        .map_err(|e| Error::new(ErrorKind::Invalid, op, format!("header {name}")).with_source(e))?;
    headers.insert(HeaderName::from_static(name), value);
    Ok(())
}
