//! The one moment at which something becomes visible, and what to do when nobody knows whether it did.

use super::{Transfer, check::Expected, note};
use crate::{
    error::{Error, ErrorKind, Op, Result},
    object::{ETag, ObjectKey},
    proof::{Branch, Bug, reached, wrong},
    sink::{Condition, Written},
};
use std::future::Future;

/// What became of a publication.
pub(super) enum Published {
    /// The destination holds our bytes under this etag.
    Ours(ETag),
    /// The destination holds something else: start again from a fresh look.
    Changed,
}

impl Transfer {
    /// Publishes with a call that can be repeated. A lost answer is neither success nor failure: look first.
    pub(super) async fn publish<F: Future<Output = Result<Written>>>(
        &self,
        key: &ObjectKey,
        expected: &Expected,
        mut call: impl FnMut() -> F,
    ) -> Result<Published> {
        let mut tried = 0;
        loop {
            tried += 1;
            let answer = {
                let permit = self.sink_permit().await;
                note(&permit, call().await)
            };
            let error = match answer {
                Ok(written) => return self.believe(key, expected, written).await,
                Err(error) => error,
            };
            if let Some(published) = self.judge(key, expected, &error).await? {
                return Ok(published);
            }
            let Some(pause) = self.settings.retry.pause(&error, tried, &*self.env) else { return Err(error) };
            tracing::debug!(%key, error = %error.chain(), tried, "publishing again");
            tokio::time::sleep(pause).await;
        }
    }

    /// What a failed publication came to; `None` when it may simply be repeated (or given up).
    pub(super) async fn judge(&self, key: &ObjectKey, expected: &Expected, error: &Error) -> Result<Option<Published>> {
        let refused = matches!(error.kind(), ErrorKind::Precondition | ErrorKind::Conflict);
        if !refused && !error.maybe_applied() {
            return Ok(None);
        }
        if !refused && wrong(Bug::LostAnswerIsSuccess) {
            return Ok(Some(Published::Ours(expected.etag.clone().unwrap_or_else(|| ETag::new("")))));
        }
        match self.look(key).await? {
            Some(found)
                if !refused && found.entry.etag.is_some() && found.entry.etag == expected.replaces && !wrong(Bug::LateWriteForgotten) =>
            {
                reached(Branch::LateWriteAwaited);
                Ok(None)
            }
            Some(found) if expected.matches(&found) => {
                reached(Branch::LookedAndOurs);
                Ok(Some(Published::Ours(found.entry.etag.unwrap_or_else(|| ETag::new("")))))
            }
            _ if refused => Ok(Some(Published::Changed)),
            _ => {
                reached(Branch::LookedAndNot);
                Ok(None)
            }
        }
    }

    /// A good answer must fit what was sent.
    pub(super) async fn believe(&self, key: &ObjectKey, expected: &Expected, written: Written) -> Result<Published> {
        if !wrong(Bug::NoUploadChecksum)
            && expected.contradicts(written.etag.as_ref().filter(|_| !written.opaque_etag), written.checksum.as_ref())
        {
            return Err(
                Error::new(ErrorKind::Corrupt, Op::Put, self.name_of(key)).with_source("the destination stored other bytes than were sent")
            );
        }
        match written.etag {
            Some(etag) => Ok(Published::Ours(etag)),
            // Some stores do not name what they stored.
            None => match self.look(key).await? {
                Some(found) if expected.matches(&found) => Ok(Published::Ours(found.entry.etag.unwrap_or_else(|| ETag::new("")))),
                _ => Ok(Published::Changed),
            },
        }
    }

    /// The condition as far as the sink honours it.
    pub(super) fn effective(&self, held: &Condition) -> Condition {
        if self.sink.sink_capability().conditions.honours(held) && !wrong(Bug::UnconditionalPut) { held.clone() } else { Condition::None }
    }

    /// Where the sink honours not all conditions, a late write of a dead worker can land on ours: look once more when that is
    /// possible at all.
    pub(super) async fn look_after(&self, key: &ObjectKey, expected: &Expected, redelivered: bool) -> Result<bool> {
        let conditions = self.sink.sink_capability().conditions;
        if conditions.absent && conditions.unchanged || !redelivered {
            return Ok(true);
        }
        Ok(self.look(key).await?.is_some_and(|found| expected.matches(&found) || expected.etag.is_none()))
    }
}
