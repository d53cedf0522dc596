//! The engine against real servers of others. `cargo xtask test` installs and starts them; by hand:
//! `DTH_VENV=target/xtask/venv cargo test -p dth-examples --test servers -- --ignored`.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod canary;
mod chaos;
mod clouds;
mod cluster;
mod conformance;
mod faults;
mod features;
mod fidelity;
mod long_path;
mod objects;
mod registries;
mod support;
mod torn;
