//! The engine against real servers of others. `cargo xtask test` installs and starts them; by hand:
//! `DTH_VENV=target/xtask/venv cargo test -p dth-examples --test servers -- --ignored`.

#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(clippy::disallowed_methods, reason = "these tests start and kill real processes in real time")]

mod crash;
mod objects;
mod support;
mod torn;
