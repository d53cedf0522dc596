//! XML of S3, read leniently where stores write what XML 1.0 forbids, and strictly where a truncated answer could be taken
//! for a short one.

use crate::{error::ErrorBody, profile::Facts};
use dth_core::object::ETag;
use jiff::Timestamp;
use quick_xml::{Reader, escape::resolve_xml_entity, events::Event};
use std::{borrow::Cow, ops::Range};

/// A document, its elements in the order in which they begin. Those of S3 are small and flat: a page of 1,000 keys is 0.3 MB and 6,000
/// elements, of which nothing is copied that stands there as it is meant.
#[derive(Debug, Default)]
pub(crate) struct Document<'a> {
    nodes: Vec<Node<'a>>,
    /// Texts that stand there in pieces, as most etags do.
    joined: String,
}

#[derive(Debug)]
struct Node<'a> {
    name: Cow<'static, str>,
    text: Text<'a>,
    /// How many nodes it is with all that it holds.
    len: usize,
}

#[derive(Debug)]
enum Text<'a> {
    AsItStands(Cow<'a, str>),
    Joined(Range<usize>),
}

/// An element: a node, and behind it all that it holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Element<'d> {
    nodes: &'d [Node<'d>],
    joined: &'d str,
}

/// Of these names, listings have thousands: they are not copied.
macro_rules! known {
    ($name:expr, $($known:literal)*) => {
        match $name {
            $($known => Cow::Borrowed($known),)*
            other => Cow::Owned(other.to_owned()),
        }
    };
}

impl Node<'_> {
    fn begin(name: &str) -> Self {
        let name = known!(
            name,
            "Key" "Size" "ETag" "Contents" "LastModified" "StorageClass" "ChecksumAlgorithm" "ChecksumType"
            "Owner" "ID" "DisplayName" "Version" "VersionId" "IsLatest"
        );
        Self { name, text: Text::AsItStands("".into()), len: 1 }
    }
}

/// Reads a document; what is wrong with it otherwise.
pub(crate) fn parse(document: &str) -> Result<Document<'_>, String> {
    let mut reader = Reader::from_str(document);
    // An element of a listing takes some forty bytes.
    let mut made = Document { nodes: Vec::with_capacity(document.len() / 32 + 1), joined: String::new() };
    let mut open: Vec<usize> = Vec::new();
    loop {
        match reader.read_event().map_err(|e| e.to_string())? {
            Event::Start(start) => {
                if open.len() > 16 {
                    return Err("elements nest too deeply".into());
                }
                open.push(made.nodes.len());
                made.nodes.push(Node::begin(start.local_name().as_ref()));
            }
            Event::Empty(empty) => {
                made.nodes.push(Node::begin(empty.local_name().as_ref()));
                if open.is_empty() {
                    return Ok(made);
                }
            }
            Event::End(_) => {
                let at = open.pop().ok_or("an end without a beginning")?;
                made.nodes[at].len = made.nodes.len() - at;
                if open.is_empty() {
                    return Ok(made);
                }
            }
            Event::Text(text) => made.push(&open, text.into_inner()),
            Event::CData(text) => made.push(&open, text.into_inner()),
            Event::GeneralRef(entity) => {
                if let Some(c) = entity.resolve_char_ref().map_err(|e| e.to_string())? {
                    made.push(&open, c.to_string().into());
                } else {
                    let text = resolve_xml_entity(&entity).ok_or_else(|| format!("unknown entity `{}`", &*entity))?;
                    made.push(&open, text.into());
                }
            }
            Event::DocType(_) => return Err("a document type is not expected".into()),
            Event::Eof => return Err("the document ends early".into()),
            Event::Decl(_) | Event::Comment(_) | Event::PI(_) => {}
        }
    }
}

impl<'a> Document<'a> {
    /// Text of the innermost open element. White space between elements is no text of anybody.
    fn push(&mut self, open: &[usize], piece: Cow<'a, str>) {
        let Some([node]) = open.last().map(|at| &mut self.nodes[*at..]) else { return };
        match &mut node.text {
            Text::AsItStands(text) if text.is_empty() => *text = piece,
            Text::AsItStands(text) => {
                let from = self.joined.len();
                self.joined.push_str(text);
                self.joined.push_str(&piece);
                node.text = Text::Joined(from..self.joined.len());
            }
            // No other element has had text since.
            Text::Joined(range) => {
                self.joined.push_str(&piece);
                range.end = self.joined.len();
            }
        }
    }

    /// The outermost element.
    pub(crate) fn root(&self) -> Element<'_> {
        Element { nodes: &self.nodes, joined: &self.joined }
    }

    /// The same, for itself.
    pub(crate) fn into_owned(self) -> Document<'static> {
        let text = |text| match text {
            Text::AsItStands(text) => Text::AsItStands(Cow::Owned(text.into_owned())),
            Text::Joined(range) => Text::Joined(range),
        };
        let nodes = self.nodes.into_iter().map(|node| Node { name: node.name, text: text(node.text), len: node.len });
        Document { nodes: nodes.collect(), joined: self.joined }
    }
}

impl<'d> Element<'d> {
    fn children(self) -> impl Iterator<Item = Element<'d>> {
        let mut rest = self.nodes.get(1..).unwrap_or_default();
        std::iter::from_fn(move || {
            let (nodes, behind) = rest.split_at_checked(rest.first()?.len)?;
            rest = behind;
            Some(Element { nodes, ..self })
        })
    }

    pub(crate) fn is(self, name: &str) -> bool {
        self.nodes.first().is_some_and(|node| node.name == name)
    }

    pub(crate) fn all(self, name: &str) -> impl Iterator<Item = Element<'d>> {
        self.children().filter(move |child| child.is(name))
    }

    /// Children of several names, in their order, each with whether it is of the first one.
    pub(crate) fn either(self, first: &str, second: &str) -> impl Iterator<Item = (bool, Element<'d>)> {
        self.children().filter(move |child| child.is(first) || child.is(second)).map(move |child| (child.is(first), child))
    }

    /// The text of a child.
    pub(crate) fn text(self, name: &str) -> Option<&'d str> {
        match &self.children().find(|child| child.is(name))?.nodes.first()?.text {
            Text::AsItStands(text) => Some(text),
            Text::Joined(range) => self.joined.get(range.clone()),
        }
    }

    /// The text of a child, where it is not empty.
    pub(crate) fn filled(self, name: &str) -> Option<&'d str> {
        self.text(name).filter(|t| !t.is_empty())
    }

    pub(crate) fn etag(self, name: &str, facts: &Facts) -> Option<ETag> {
        facts.etag(self.text(name)?)
    }

    /// Whether the keys of a listing are percent-encoded. COS writes the name in three ways.
    pub(crate) fn is_encoded(self) -> bool {
        ["EncodingType", "Encoding-Type", "Encoding-type"].iter().any(|name| self.text(name) == Some("url"))
    }

    /// Whether a listing goes on.
    pub(crate) fn is_truncated(self) -> bool {
        self.text("IsTruncated").is_some_and(|text| text.trim() == "true")
    }

    pub(crate) fn time(self, name: &str) -> Option<Timestamp> {
        self.text(name)?.trim().parse().ok()
    }
}

/// An error document; `None` when it is none.
pub(crate) fn error(document: &str) -> Option<ErrorBody> {
    let document = parse(document).ok()?;
    let root = document.root();
    root.is("Error").then(|| ErrorBody {
        code: root.text("Code").unwrap_or_default().trim().to_owned(),
        message: root.text("Message").unwrap_or_default().trim().to_owned(),
        region: root.filled("Region").map(|r| r.trim().to_owned()),
        endpoint: root.filled("Endpoint").map(|e| e.trim().to_owned()),
    })
}

/// The date of an HTTP header.
pub(crate) fn http_date(text: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::DateTimeParser::new().relaxed_weekday(true).parse_timestamp(text).ok()
}

/// Text as it may stand inside an element.
pub(crate) fn escape(text: &str) -> String {
    quick_xml::escape::escape(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Profile;

    #[test]
    fn forbidden_characters_and_entities_are_read() {
        let document =
            parse("<?xml version=\"1.0\"?>\n<A xmlns=\"x\"> <K>a&amp;b&#x1;&#10; <![CDATA[<c>]]></K>\n<E>&quot;x&quot;</E></A>").unwrap();
        let root = document.root();
        assert_eq!(root.text("K"), Some("a&b\u{1}\n <c>"));
        assert_eq!(root.etag("E", Profile::Aws.facts()), Some(ETag::new("x")));
    }

    #[test]
    fn a_truncated_document_is_an_error_at_every_byte() {
        let document = "<L><C><Key>a&amp;b</Key></C><IsTruncated>false</IsTruncated></L>";
        for end in 0..document.len() {
            assert!(parse(&document[..end]).is_err(), "{end}");
        }
        assert!(parse(document).is_ok());
    }

    #[test]
    fn children_are_those_of_their_parent() {
        let document =
            parse("<L><C><Key>a</Key><O><Key>b</Key></O></C><E/><C>\n<Key>c</Key> </C>x<Key>d&amp;&lt;</Key></L>").unwrap().into_owned();
        let root = document.root();
        let keys: Vec<_> = root.all("C").map(|c| c.text("Key")).collect();
        assert_eq!(keys, [Some("a"), Some("c")]);
        assert_eq!((root.text("Key"), root.text("E"), root.text("O")), (Some("d&<"), Some(""), None));
        assert_eq!(root.all("C").next().and_then(|c| c.text("O")), Some(""));
        assert_eq!(root.either("E", "Key").map(|(first, _)| first).collect::<Vec<_>>(), [true, false]);
        assert_eq!(Document::default().root().text("Key"), None);
    }

    #[test]
    fn errors_are_found_behind_keep_alive_space() {
        let found = error("<?xml version=\"1.0\"?>\n   \n<Error><Code>InternalError</Code><Message>m</Message></Error>").unwrap();
        assert_eq!((found.code.as_str(), found.message.as_str()), ("InternalError", "m"));
        assert_eq!(error("<CompleteMultipartUploadResult/>"), None);
        assert_eq!(error("no xml"), None);
    }

    #[test]
    fn http_dates() {
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap().as_second(), 784_111_777);
    }
}
