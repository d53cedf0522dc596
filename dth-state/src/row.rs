//! What both stores write of a record in the same words.

use dth_core::{
    checksum::Checksum,
    error::{Error, ErrorKind, Op, Result},
    object::{Sequencer, VersionId},
    state::{Appended, Failure, Record, RunState, Status, UploadRecord, Verified, Waiting},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What few records have, as JSON.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct More {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) source_version: Option<VersionId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) checksum: Option<Checksum>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) verified: Option<Verified>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) upload: Option<UploadRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) uploads_since: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) failure: Option<Failure>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) not_carried: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sequencer: Option<Sequencer>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) appended: Option<Appended>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) waiting: Vec<Waiting>,
}

impl More {
    pub(crate) fn of(record: &Record) -> Self {
        Self {
            source_version: record.source.as_ref().and_then(|s| s.version.clone()),
            checksum: record.checksum.clone(),
            verified: record.verified,
            upload: record.upload.clone(),
            uploads_since: record.uploads_since,
            failure: record.failure.clone(),
            not_carried: record.not_carried.clone(),
            sequencer: record.sequencer.clone(),
            appended: record.appended.clone(),
            waiting: record.waiting.clone(),
        }
    }

    /// `None` when there is nothing to say.
    pub(crate) fn to_json(&self) -> Option<String> {
        (*self != Self::default()).then(|| serde_json::to_string(self).expect("plain data"))
    }

    pub(crate) fn parse(json: Option<&str>) -> Result<Self> {
        let parsed = json.map(serde_json::from_str).transpose().map_err(|e| corrupt("a row").with_source(e))?;
        Ok(parsed.unwrap_or_default())
    }
}

pub(crate) fn status(name: &str) -> Result<Status> {
    Status::ALL.into_iter().find(|s| s.as_str() == name).ok_or_else(|| corrupt(&format!("status `{name}`")))
}

pub(crate) fn run_state(name: &str) -> Result<RunState> {
    [RunState::Finding, RunState::Transferring, RunState::Finished, RunState::Cancelled]
        .into_iter()
        .find(|s| s.as_str() == name)
        .ok_or_else(|| corrupt(&format!("run state `{name}`")))
}

/// The state store holds something that we did not write.
pub(crate) fn corrupt(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, Op::LoadState, what)
}
