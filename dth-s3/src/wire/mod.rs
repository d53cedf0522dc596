//! The S3 wire protocol: raw keys, our own signing of raw paths, streaming bodies. `http::Uri` keeps `.` and `..` and `//`
//! as they are, which clients over `url::Url` do not.

mod client;
mod dialect;
mod sign;
pub(crate) mod uri;
pub(crate) mod words;
pub(crate) mod xml;

pub(crate) use client::{Answer, Request, RequestBody, Wire};
