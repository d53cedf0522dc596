#![doc = include_str!("../README.md")]

mod clouds;
#[cfg(feature = "opendal")]
mod opendal;

#[cfg(feature = "opendal")]
pub use crate::opendal::{OpendalSink, OpendalSource, over_http};
pub use clouds::{Cos, Kodo, Oss};
