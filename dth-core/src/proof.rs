//! What the simulation must know about the engine: branches that a run of many schedules has to take, or it proves nothing
//! about them, and wrong variants that it has to find, or it proves nothing at all.
//!
//! Branches are counted with the feature `conformance` only. Wrong variants exist only in a build with
//! `--cfg dth_seeded_bugs`, where one is chosen at run time, per thread; elsewhere [`wrong`] is a constant `false`.

#![cfg_attr(not(feature = "conformance"), allow(dead_code, unreachable_pub, reason = "only the conformance suite sees it"))]

macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident => $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name {
            $(#[doc = $text] $(#[$variant_doc])* $variant,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// What it is, for reports.
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }
    };
}

named! {
    /// A branch that some schedule must take.
    Branch {
        UploadContinued => "an upload is continued with parts of an earlier try",
        UploadOfOtherVersion => "an upload of another version, or in another layout, is thrown away",
        UploadEnded => "an upload ended under the hands of the worker that fills it",
        LookedAndOurs => "the answer was lost, and a look shows our object",
        LookedAndNot => "the answer was lost, and a look shows that nothing is known",
        LateWriteAwaited => "the answer was lost, and a look shows what was there before",
        SourceChanged => "the source was overwritten while its parts were read",
        DestinationChanged => "the destination was written by somebody else",
        Refused => "bytes were refused because they lack the source's checksum",
        WrongPartsEtag => "the parts together lack the source's etag",
        RecordedAlready => "a duplicate finds its work recorded",
        AlreadyThere => "the destination already holds what the source holds",
        Vanished => "the source object is gone",
        CopyRefused => "a store refuses to copy inside, and the bytes go through us",
        DeleteRefused => "an object that is to be deleted is back at the source",
        CameBack => "an object is back at the source once it is deleted",
        EventKnown => "an event is older than what was dealt with",
        DeleteConflict => "an object that is to be deleted was written meanwhile",
        CommitFenced => "a commit comes from a delivery that was superseded",
        PublishedUnrecorded => "what was published and could not be recorded is announced",
        DoneTakenBack => "a record is taken back before a redelivered message publishes again",
        NotOursAnyMore => "a worker that slept finds its message taken over",
        OwnCommitSeen => "a commit conflicts with itself, because its first answer was lost",
        SameFactFound => "two jobs found the same fact",
        PackSplit => "a pack is taken apart after deaths",
        SingleResent => "a job that failed leaves its pack",
        LeaseLost => "a lease is lost",
        OutboxResent => "a finder sends what a dead one left",
        ShardResumed => "a finder goes on from a cursor",
        ShardSplit => "a range is cut in two",
        Looked => "the finder looks at what the listings do not tell",
        AskedRecord => "the finder decides by a recorded pair of etags",
        SweptUpload => "an upload that nobody finishes is swept",
        GiantHandedOut => "the parts of a giant become jobs",
        GiantClosed => "a giant is completed by whoever saw its last parts in",
        GiantClosedAgain => "a giant is completed over what was written at its destination meanwhile",
        GiantBegunAgain => "a giant is begun again, because its source changed or its upload ended",
        CloserAwaited => "a job finds that its giant is about to be completed, and waits for that",
        ClosedByAnother => "the message that closes a giant is received again",
        ChildThere => "a child is at the destination already, or is linked there",
    }
}

named! {
    /// A wrong variant of the engine.
    Bug {
        NoIfMatch => "reads are not pinned to a version",
        StaleUpload => "an upload of another version is continued",
        UploadByPrefix => "an upload found in a listing is continued",
        EarlyAck => "a message is acknowledged before its work is done",
        BatchFailuresIgnored => "refused entries of a batch are not sent again by the finder",
        ResendIgnored => "a pack is acknowledged though its failed jobs could not be sent again",
        NoLengthCheck => "a body that ends early is taken for whole",
        NoUploadChecksum => "what the destination stored is not checked",
        StateWrittenEarly => "the record says done before the object is published",
        NoLeaseExtension => "leases are not extended",
        UnconditionalPut => "objects are published without a condition",
        NoSweep => "nothing is swept",
        PoisonPanics => "an unreadable message kills its worker",
        SizeOnlyCompare => "objects of equal size are taken for equal",
        NoEndToEnd => "bytes held in memory are not compared with the source's checksum",
        NoProofOfStreams => "a streamed body is not compared with the source's checksum before its last chunk",
        NoProofOfParts => "the parts together are not compared with the source's etag or checksum",
        UnfencedState => "a commit is accepted whatever its epoch and whatever it replaces",
        Unfenced => "deliveries of one message know nothing of each other: the five that cover for each other, together",
        NoClaim => "deliveries of one message share one epoch, so that none is ever superseded",
        PublishedUntold => "what was published and could not be recorded is not announced",
        SleeperPublishes => "a worker that slept does not ask whether its message is still its own",
        DoneLeftStanding => "a record says done while a redelivered message publishes again",
        UnversionedRecords => "a record is overwritten whatever its version",
        RecordTrusted => "a record is believed without a look at the destination",
        LostAnswerIsSuccess => "a lost answer is taken for success",
        LateWriteForgotten => "a look that shows what was there before is taken for success",
        OpaqueEtagBelieved => "an object of the right size under an opaque etag is taken for ours",
        LastBatchDropped => "results that do not fill a batch are not committed",
        OutcomeCountedTwice => "a duplicate counts in the ledger again",
        OutboxForgotten => "packs are sent without being kept until then",
        SentMarkedEarly => "packs are marked as sent before they are",
        UnversionedCursor => "a cursor is moved whatever its version",
        SplitGap => "a range that was cut in two lacks its key in the middle",
        AnyErrorIsGone => "an object that cannot be read now is taken for gone",
        DeleteUnseen => "an object is deleted without a look at the source",
        UnconditionalDelete => "an object is deleted without a condition",
        NoBudget => "bytes are held without asking the memory budget",
        UploadsUnnoted => "uploads are begun without a note for the sweep",
        CursorAhead => "a cursor moves past jobs that are not kept yet",
        CopyNotPinned => "a copy inside the store is of whatever version is there",
        ManyClosers => "whoever sees all parts of a giant completes it, whether or not somebody else does",
        WaitingForgotten => "a job whose object is handed out in parts does not end with it",
        AnswerNotCompared => "an answer that is another version than was asked for is believed",
        ChildrenLast => "an entry is published before its children",
        ChildrenOfAnother => "an entry is published with the children of another version of it",
    }
}

impl Bug {
    /// One of several protections that cover for each other: alone, its loss shows in one of a great many schedules.
    pub const fn is_covered(self) -> bool {
        matches!(self, Self::NoClaim | Self::PublishedUntold | Self::SleeperPublishes | Self::DoneLeftStanding | Self::ManyClosers)
    }
}

#[cfg(feature = "conformance")]
mod counted {
    use super::Branch;
    use std::{cell::RefCell, collections::BTreeMap};

    thread_local! {
        static REACHED: RefCell<BTreeMap<Branch, u64>> = const { RefCell::new(BTreeMap::new()) };
    }

    /// Notes that a branch was taken, on this thread.
    pub(crate) fn reached(branch: Branch) {
        REACHED.with_borrow_mut(|reached| *reached.entry(branch).or_default() += 1);
    }

    /// The branches taken on this thread since the last call.
    pub fn take_reached() -> BTreeMap<Branch, u64> {
        REACHED.take()
    }
}
#[cfg(feature = "conformance")]
pub(crate) use counted::reached;
#[cfg(feature = "conformance")]
pub use counted::take_reached;

/// Notes nothing.
#[cfg(not(feature = "conformance"))]
pub(crate) const fn reached(_: Branch) {}

#[cfg(dth_seeded_bugs)]
mod planted {
    use super::Bug;
    use std::cell::Cell;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Chooses the wrong variant for this thread.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }

    /// Whether this variant is chosen.
    pub(crate) fn wrong(bug: Bug) -> bool {
        PLANTED.get().is_some_and(|planted| planted == bug || planted == Bug::Unfenced && bug.is_covered())
    }
}
#[cfg(dth_seeded_bugs)]
pub use planted::plant;
#[cfg(dth_seeded_bugs)]
pub(crate) use planted::wrong;

/// Nothing is wrong.
#[cfg(not(dth_seeded_bugs))]
pub(crate) const fn wrong(_: Bug) -> bool {
    false
}
