//! XML of S3, read leniently where stores write what XML 1.0 forbids, and strictly where a truncated answer could be taken
//! for a short one.

use crate::{error::ErrorBody, profile::Facts};
use dth_core::object::ETag;
use jiff::Timestamp;
use quick_xml::{Reader, escape::resolve_xml_entity, events::Event};
use std::borrow::Cow;

/// An element with its text and children. Documents of S3 are small and flat: a page of 1,000 keys is 0.3 MB, of which nothing is copied
/// that stands there as it is meant.
#[derive(Debug, Default, Clone)]
pub(crate) struct Element<'a> {
    name: Cow<'static, str>,
    text: Cow<'a, str>,
    children: Vec<Element<'a>>,
}

impl Element<'_> {
    /// What listings have thousands of is not copied either, nor is there room for more than such an entry has.
    fn begin(name: &str) -> Self {
        let known = |name: &'static str, children| (Cow::Borrowed(name), children);
        let (name, children) = match name {
            "Key" => known("Key", 0),
            "Size" => known("Size", 0),
            "ETag" => known("ETag", 0),
            "Contents" => known("Contents", 6),
            "LastModified" => known("LastModified", 0),
            "StorageClass" => known("StorageClass", 0),
            "Version" => known("Version", 8),
            "VersionId" => known("VersionId", 0),
            "IsLatest" => known("IsLatest", 0),
            other => (Cow::Owned(other.to_owned()), 0),
        };
        Self { name, text: Cow::Borrowed(""), children: Vec::with_capacity(children) }
    }
}

/// Reads a document; what is wrong with it otherwise.
pub(crate) fn parse(document: &str) -> Result<Element<'_>, String> {
    let mut reader = Reader::from_str(document);
    let mut open: Vec<Element<'_>> = Vec::new();
    loop {
        match reader.read_event().map_err(|e| e.to_string())? {
            Event::Start(start) => {
                if open.len() > 16 {
                    return Err("elements nest too deeply".into());
                }
                open.push(Element::begin(start.local_name().as_ref()));
            }
            Event::Empty(empty) => {
                let element = Element::begin(empty.local_name().as_ref());
                match open.last_mut() {
                    Some(parent) => parent.children.push(element),
                    None => return Ok(element),
                }
            }
            Event::End(_) => {
                let element = open.pop().ok_or("an end without a beginning")?;
                match open.last_mut() {
                    Some(parent) => parent.children.push(element),
                    None => return Ok(element),
                }
            }
            Event::Text(text) => push(&mut open, text.into_inner()),
            Event::CData(text) => push(&mut open, text.into_inner()),
            Event::GeneralRef(entity) => {
                if let Some(c) = entity.resolve_char_ref().map_err(|e| e.to_string())? {
                    push(&mut open, c.to_string().into());
                } else {
                    let text = resolve_xml_entity(&entity).ok_or_else(|| format!("unknown entity `{}`", &*entity))?;
                    push(&mut open, text.into());
                }
            }
            Event::DocType(_) => return Err("a document type is not expected".into()),
            Event::Eof => return Err("the document ends early".into()),
            Event::Decl(_) | Event::Comment(_) | Event::PI(_) => {}
        }
    }
}

fn push<'a>(open: &mut [Element<'a>], text: Cow<'a, str>) {
    if let Some(element) = open.last_mut() {
        // White space between elements is no text of anybody.
        match (element.children.is_empty(), element.text.is_empty()) {
            (true, true) => element.text = text,
            (true, false) => element.text.to_mut().push_str(&text),
            (false, _) => {}
        }
    }
}

impl<'a> Element<'a> {
    /// The same, for itself.
    pub(crate) fn into_owned(self) -> Element<'static> {
        let children = self.children.into_iter().map(Element::into_owned).collect();
        Element { name: self.name, text: Cow::Owned(self.text.into_owned()), children }
    }

    pub(crate) fn is(&self, name: &str) -> bool {
        self.name == name
    }

    pub(crate) fn all<'b>(&'b self, name: &'b str) -> impl Iterator<Item = &'b Element<'a>> {
        self.children.iter().filter(move |c| c.name == name)
    }

    /// Children of several names, in their order, each with whether it is of the first one.
    pub(crate) fn either<'b>(&'b self, first: &'b str, second: &'b str) -> impl Iterator<Item = (bool, &'b Element<'a>)> {
        self.children.iter().filter(move |c| c.name == first || c.name == second).map(move |c| (c.name == first, c))
    }

    /// The text of a child.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.children.iter().find(|c| c.name == name).map(|c| &*c.text)
    }

    /// The text of a child, where it is not empty.
    pub(crate) fn filled(&self, name: &str) -> Option<&str> {
        self.text(name).filter(|t| !t.is_empty())
    }

    pub(crate) fn etag(&self, name: &str, facts: &Facts) -> Option<ETag> {
        facts.etag(self.text(name)?)
    }

    /// Whether the keys of a listing are percent-encoded. COS writes the name in three ways.
    pub(crate) fn is_encoded(&self) -> bool {
        ["EncodingType", "Encoding-Type", "Encoding-type"].iter().any(|name| self.text(name) == Some("url"))
    }

    /// Whether a listing goes on.
    pub(crate) fn is_truncated(&self) -> bool {
        self.text("IsTruncated").is_some_and(|text| text.trim() == "true")
    }

    pub(crate) fn time(&self, name: &str) -> Option<Timestamp> {
        self.text(name)?.trim().parse().ok()
    }
}

/// An error document; `None` when it is none.
pub(crate) fn error(document: &str) -> Option<ErrorBody> {
    let root = parse(document).ok()?;
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
        let root =
            parse("<?xml version=\"1.0\"?>\n<A xmlns=\"x\"> <K>a&amp;b&#x1;&#10; <![CDATA[<c>]]></K>\n<E>&quot;x&quot;</E></A>").unwrap();
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
