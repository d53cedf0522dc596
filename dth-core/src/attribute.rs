//! What belongs to an object besides its bytes, and what becomes of it between two stores: kept, replaced by something that is told, or
//! reported as lost. Nothing is dropped in silence.

use crate::{sink::SinkCapability, source::SourceCapability};

macro_rules! attributes {
    ($($(#[$doc:meta])* $name:ident => $text:literal,)*) => {
        /// Something that belongs to an object.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Attribute {
            $($(#[$doc])* $name,)*
        }

        impl Attribute {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its stable name; what a record names as not carried begins with it, or with `metadata `.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

attributes! {
    /// `Content-Type`.
    ContentType => "content-type",
    /// `Content-Encoding`.
    ContentEncoding => "content-encoding",
    /// `Content-Language`.
    ContentLanguage => "content-language",
    /// `Content-Disposition`.
    ContentDisposition => "content-disposition",
    /// `Cache-Control`.
    CacheControl => "cache-control",
    /// `Expires`.
    Expires => "expires",
    /// User metadata whose values are ASCII.
    Metadata => "metadata",
    /// User metadata with other characters.
    NonAsciiMetadata => "metadata (not ASCII)",
    /// Tags.
    Tags => "tags",
    /// Who may do what with it.
    Acl => "acl",
    /// How it is stored.
    StorageClass => "storage-class",
    /// Where a website request is redirected to.
    WebsiteRedirect => "website-redirect",
    /// Retention and legal hold.
    ObjectLock => "object-lock",
    /// A checksum of the whole.
    Checksum => "checksum",
    /// When it was written.
    Modified => "modified",
    /// Its version id.
    Version => "version",
}

/// Some of the attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AttributeSet(u32);

impl AttributeSet {
    /// None of them.
    pub const NONE: Self = Self(0);
    /// Headers that describe the content, and user metadata of any characters.
    pub const CONTENT: Self = Self::of(&[
        Attribute::ContentType,
        Attribute::ContentEncoding,
        Attribute::ContentLanguage,
        Attribute::ContentDisposition,
        Attribute::CacheControl,
        Attribute::Expires,
        Attribute::Metadata,
        Attribute::NonAsciiMetadata,
    ]);

    /// These.
    pub const fn of(attributes: &[Attribute]) -> Self {
        let (mut bits, mut at) = (0, 0);
        while at < attributes.len() {
            bits |= 1 << attributes[at] as u32;
            at += 1;
        }
        Self(bits)
    }

    /// With this one, where something holds.
    #[must_use]
    pub const fn with(self, attribute: Attribute, holds: bool) -> Self {
        if holds { Self(self.0 | 1 << attribute as u32) } else { self }
    }

    /// Without this one.
    #[must_use]
    pub const fn without(self, attribute: Attribute) -> Self {
        Self(self.0 & !(1 << attribute as u32))
    }

    /// Whether this one is among them.
    pub const fn contains(self, attribute: Attribute) -> bool {
        self.0 & 1 << attribute as u32 != 0
    }
}

/// What becomes of an attribute between two stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The source has no such thing.
    None,
    /// It arrives as it is.
    Kept,
    /// The destination has its own, by its settings or by itself.
    Own,
    /// It is checked against what arrives, and stands in the record and the manifest.
    Recorded,
    /// It is lost; where an object has it, its record names it, and the report counts the object.
    Reported,
}

impl Fate {
    /// What becomes of an attribute from this source to this sink.
    pub fn of(attribute: Attribute, source: &SourceCapability, sink: &SinkCapability) -> Self {
        match attribute {
            // What the destination asks for decides; an ACL names people that the destination does not know.
            Attribute::Acl | Attribute::StorageClass | Attribute::Modified => Self::Own,
            Attribute::Checksum | Attribute::Version => Self::Recorded,
            _ if !source.gives.contains(attribute) => Self::None,
            _ if sink.keeps.contains(attribute) => Self::Kept,
            _ => Self::Reported,
        }
    }

    /// The word for it in tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "–",
            Self::Kept => "kept",
            Self::Own => "own",
            Self::Recorded => "recorded",
            Self::Reported => "reported",
        }
    }
}
