//! The distribution protocol over HTTP: challenges, tokens, redirects, patience. Nothing here tries again, but for a login that
//! was refused.

mod auth;
mod challenge;
mod client;

pub(crate) use auth::Scope;
pub(crate) use client::{Action, Answer, Call, CallBody, Wire};
