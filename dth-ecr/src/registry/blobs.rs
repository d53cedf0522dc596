//! What is known of the blobs of a destination: which repositories have them, who is sending them, and uploads that were begun.

use bytes::Bytes;
use dth_core::{
    checksum::{Algorithm, Checksum},
    env::{SharedEnv, random_id},
    error::Result,
    state::StateStore,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::Instant;

/// Blobs that are remembered in this process; of older ones the notes, or a look, tell.
const REMEMBERED: usize = 100_000;

/// For so long a worker that sends a blob keeps others from sending it; sending for longer, it says so again.
pub(super) const CLAIM: Duration = Duration::from_secs(20);

/// The same from when it is decided until the first byte is sent: permits and memory are waited for.
const BEGIN: Duration = Duration::from_secs(60);

/// Uploads that were begun by links that failed, and that nobody has gone on with: registries drop them after a day or less.
const BEGUN: usize = 1000;

/// After so many links in a row that failed, none is tried for this time: Amazon ECR links only where that is switched on, and
/// only what a manifest names (<https://docs.aws.amazon.com/AmazonECR/latest/userguide/blob-mounting.html>).
const UNLINKED: (u32, Duration) = (3, Duration::from_secs(60));

/// For so long a worker may change a list of referrers before others take it for dead.
const LEASE: Duration = Duration::from_secs(180);

/// Claims that are remembered; one that was forgotten is not renewed, and no more.
const CLAIMS: usize = 10_000;

/// Repositories that are remembered of one blob.
const PLACES: usize = 256;

/// Those who wait ask again after this time.
pub(super) const AGAIN: Duration = Duration::from_secs(1);

/// What is noted of a blob between workers and runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Noted {
    /// A repository that had it.
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<String>,
    /// The worker that sends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    /// Until when nobody else should.
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
}

impl Noted {
    /// The note, and its version; nothing where there is none, or none that is understood.
    async fn read(notes: &dyn StateStore, name: &str) -> Result<(Self, u64)> {
        let note = notes.note(name).await?;
        let version = note.as_ref().map_or(0, |note| note.version);
        Ok((note.and_then(|note| serde_json::from_str(&note.text).ok()).unwrap_or_default(), version))
    }

    /// Whether another worker has it now; nobody can have it for longer than this.
    fn is_with_others(&self, worker: &str, now: Timestamp, longest: Duration) -> bool {
        let others = self.by.as_ref().is_some_and(|by| by != worker);
        others && self.until.is_some_and(|until| until > now && until <= now + longest)
    }
}

#[derive(Default)]
struct Known {
    /// Of each digest, the repositories that have it.
    at: HashMap<String, HashSet<String>>,
    order: VecDeque<String>,
    /// Where uploads that were begun by a link that failed go on.
    begun: HashMap<(String, String), String>,
    /// Notes of claims, with the version that they have.
    claims: HashMap<String, u64>,
    /// How many links in a row failed, of blobs that are there.
    unlinked: u32,
    /// Until then none is tried.
    links_again: Option<Instant>,
}

pub(super) struct Blobs {
    registry: String,
    worker: String,
    notes: Option<Arc<dyn StateStore>>,
    env: SharedEnv,
    known: Mutex<Known>,
}

impl fmt::Debug for Blobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Blobs")
    }
}

/// Whether to send a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Turn {
    /// Yes, unless it is at this repository, from which it may be linked.
    Ours(Option<String>),
    /// Another worker is sending it.
    Theirs,
}

impl Blobs {
    pub(super) fn new(registry: &str, notes: Option<Arc<dyn StateStore>>, env: SharedEnv) -> Self {
        Self { registry: registry.to_owned(), worker: random_id(&*env)[..16].to_owned(), notes, env, known: Mutex::default() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Whether this process has seen a blob in a repository.
    pub(super) fn is_at(&self, name: &str, digest: &str) -> bool {
        self.lock().at.get(digest).is_some_and(|names| names.contains(name))
    }

    /// A repository in which this process has seen it.
    pub(super) fn elsewhere(&self, digest: &str) -> Option<String> {
        self.lock().at.get(digest)?.iter().min().cloned()
    }

    /// A blob is in a repository.
    pub(super) fn seen(&self, name: &str, digest: &str) {
        let mut known = self.lock();
        if !known.at.contains_key(digest) {
            known.order.push_back(digest.to_owned());
            if known.order.len() > REMEMBERED
                && let Some(oldest) = known.order.pop_front()
            {
                known.at.remove(&oldest);
            }
        }
        let names = known.at.entry(digest.to_owned()).or_default();
        if names.len() < PLACES {
            names.insert(name.to_owned());
        }
    }

    /// The registry says that what was seen is not there any more.
    pub(super) fn forget(&self, name: &str) {
        self.lock().at.values_mut().for_each(|names| {
            names.remove(name);
        });
    }

    /// Whether links are worth trying.
    pub(super) fn are_linked(&self) -> bool {
        self.lock().links_again.is_none_or(|again| again <= Instant::now())
    }

    /// A link was tried of what is there.
    pub(super) fn was_linked(&self, linked: bool) {
        let mut known = self.lock();
        known.unlinked = if linked { 0 } else { known.unlinked + 1 };
        known.links_again = (known.unlinked >= UNLINKED.0).then(|| Instant::now() + UNLINKED.1);
    }

    /// An upload goes on at this location.
    pub(super) fn begun(&self, name: &str, digest: &str, location: String) {
        let mut known = self.lock();
        if known.begun.len() >= BEGUN {
            known.begun.clear();
        }
        known.begun.insert((name.to_owned(), digest.to_owned()), location);
    }

    pub(super) fn take_begun(&self, name: &str, digest: &str) -> Option<String> {
        self.lock().begun.remove(&(name.to_owned(), digest.to_owned()))
    }

    fn note_of(&self, digest: &str) -> String {
        format!("blob {} {digest}", self.registry)
    }

    /// A repository that is noted to have it.
    pub(super) async fn noted_at(&self, digest: &str) -> Result<Option<String>> {
        let Some(notes) = &self.notes else { return Ok(None) };
        Ok(Noted::read(&**notes, &self.note_of(digest)).await?.0.at)
    }

    /// Claims a blob for this worker, unless another one is sending it.
    pub(super) async fn claim(&self, digest: &str) -> Result<Turn> {
        let Some(notes) = &self.notes else { return Ok(Turn::Ours(None)) };
        let name = self.note_of(digest);
        let (noted, version) = Noted::read(&**notes, &name).await?;
        let now = self.env.now();
        // Of what cannot be linked, another copy is sent.
        if noted.at.is_some() && self.are_linked() {
            return Ok(Turn::Ours(noted.at));
        }
        if noted.is_with_others(&self.worker, now, 2 * BEGIN) {
            return Ok(Turn::Theirs);
        }
        let claimed = notes.save_note(&name, &self.claim_text(now, BEGIN), version).await?;
        if !claimed {
            // Somebody was faster; or it was we, and the answer was lost: the next look tells.
            return Ok(Turn::Theirs);
        }
        let mut known = self.lock();
        if known.claims.len() >= CLAIMS {
            known.claims.clear();
        }
        known.claims.insert(digest.to_owned(), version + 1);
        Ok(Turn::Ours(None))
    }

    /// The right to change something of the registry that has no conditional writes, among all workers; waited for. `None` where
    /// nothing is noted.
    pub(super) async fn lease(&self, what: &str) -> Result<Option<u64>> {
        let Some(notes) = &self.notes else { return Ok(None) };
        let name = self.lease_of(what);
        loop {
            let (noted, version) = Noted::read(&**notes, &name).await?;
            let now = self.env.now();
            let taken = noted.is_with_others(&self.worker, now, 2 * LEASE);
            if !taken && notes.save_note(&name, &self.claim_text(now, LEASE), version).await? {
                return Ok(Some(version + 1));
            }
            tokio::time::sleep(AGAIN / 4).await;
        }
    }

    /// Gives it back.
    pub(super) async fn release(&self, what: &str, lease: Option<u64>) {
        if let (Some(notes), Some(version)) = (&self.notes, lease) {
            clear(&**notes, &self.lease_of(what), version).await;
        }
    }

    /// Names may be longer than those of notes.
    fn lease_of(&self, what: &str) -> String {
        let text = Bytes::from(format!("{} {what}", self.registry));
        format!("refer {}", Checksum::of(Algorithm::Sha256, &[text]).to_hex())
    }

    fn claim_text(&self, now: Timestamp, time: Duration) -> String {
        let noted = Noted { at: None, by: Some(self.worker.clone()), until: Some(now + time) };
        serde_json::to_string(&noted).expect("plain data")
    }

    /// Says again that this worker is sending a blob. What fails costs nothing but that another may send it, too.
    pub(super) async fn claim_again(&self, digest: &str) {
        let (Some(notes), Some(version)) = (&self.notes, self.lock().claims.get(digest).copied()) else { return };
        if let Ok(true) = notes.save_note(&self.note_of(digest), &self.claim_text(self.env.now(), CLAIM), version).await {
            self.lock().claims.insert(digest.to_owned(), version + 1);
        }
    }

    /// A blob has been sent, or found: noted for the others.
    pub(super) async fn landed(&self, name: &str, digest: &str) {
        self.seen(name, digest);
        let Some(notes) = &self.notes else { return };
        let claimed = self.lock().claims.remove(digest);
        let text = serde_json::to_string(&Noted { at: Some(name.to_owned()), ..Noted::default() }).expect("plain data");
        let note = self.note_of(digest);
        let written = async {
            let version = match claimed {
                Some(version) => version,
                None => Noted::read(&**notes, &note).await?.1,
            };
            notes.save_note(&note, &text, version).await
        };
        // A hint that is lost is a link that is not tried.
        if let Err(error) = written.await {
            tracing::debug!(digest, error = %error.chain(), "not noted");
        }
    }

    /// A blob was not sent after all: others need not wait for it.
    pub(super) async fn given_up(&self, digest: &str) {
        let claimed = self.lock().claims.remove(digest);
        if let (Some(notes), Some(version)) = (&self.notes, claimed) {
            clear(&**notes, &self.note_of(digest), version).await;
        }
    }

    /// It is not to be had from this repository, whatever was seen or noted.
    pub(super) async fn not_at(&self, from: &str, digest: &str) {
        if let Some(names) = self.lock().at.get_mut(digest) {
            names.remove(from);
        }
        let Some(notes) = &self.notes else { return };
        let name = self.note_of(digest);
        if let Ok((noted, version)) = Noted::read(&**notes, &name).await
            && noted.at.as_deref() == Some(from)
        {
            clear(&**notes, &name, version).await;
        }
    }
}

async fn clear(notes: &dyn StateStore, name: &str, version: u64) {
    if let Err(error) = notes.save_note(name, "{}", version).await {
        tracing::debug!(name, error = %error.chain(), "others wait until it ends");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dth_core::{env::SeededEnv, memory::MemoryState};

    /// Between workers, a blob is sent by one, and linked by the others; one that died keeps nobody for ever.
    #[tokio::test(start_paused = true)]
    async fn a_blob_is_claimed_by_one_worker() {
        let state: Arc<dyn StateStore> = Arc::new(MemoryState::new());
        let worker = |seed| Blobs::new("r", Some(Arc::clone(&state)), Arc::new(SeededEnv::new(seed)));
        let (one, two) = (worker(1), worker(2));
        assert_eq!(one.claim("sha256:a").await.unwrap(), Turn::Ours(None));
        assert_eq!(one.claim("sha256:a").await.unwrap(), Turn::Ours(None), "its own");
        assert_eq!(two.claim("sha256:a").await.unwrap(), Turn::Theirs);
        one.landed("app", "sha256:a").await;
        assert_eq!(two.claim("sha256:a").await.unwrap(), Turn::Ours(Some("app".into())));
        // Given up: free at once. Silent: free after a while.
        assert_eq!(one.claim("sha256:b").await.unwrap(), Turn::Ours(None));
        one.given_up("sha256:b").await;
        assert_eq!(two.claim("sha256:b").await.unwrap(), Turn::Ours(None));
        assert_eq!(one.claim("sha256:b").await.unwrap(), Turn::Theirs);
        tokio::time::sleep(BEGIN * 9 / 10).await;
        two.claim_again("sha256:b").await;
        tokio::time::sleep(CLAIM * 3 / 4).await;
        assert_eq!(one.claim("sha256:b").await.unwrap(), Turn::Theirs, "it said so again");
        tokio::time::sleep(CLAIM / 2).await;
        assert_eq!(one.claim("sha256:b").await.unwrap(), Turn::Ours(None));
        // A note that leads nowhere is taken back.
        one.not_at("other", "sha256:a").await;
        assert_eq!(two.claim("sha256:a").await.unwrap(), Turn::Ours(Some("app".into())), "another note");
        one.not_at("app", "sha256:a").await;
        assert_eq!(two.claim("sha256:a").await.unwrap(), Turn::Ours(None));
    }
}
