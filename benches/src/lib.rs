//! What the measurements share.

pub mod mems3;

use dth_core::report::human_bytes;

/// The text of the first element of this name, as it stands there.
pub fn between<'a>(document: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = document.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(text, _)| text)
}

/// Memory of this process at its highest, in bytes, as Linux tells it; 0 elsewhere.
pub fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().split(' ').next()?.parse::<u64>().ok());
    peak.unwrap_or(0) << 10
}

/// An error when this process ever took more than so many MiB.
pub fn at_most(mib: Option<u64>) -> anyhow::Result<()> {
    let peak = peak_memory();
    anyhow::ensure!(mib.is_none_or(|mib| peak <= mib << 20), "peak memory {} is more than {} MiB", human_bytes(peak), mib.unwrap_or(0));
    Ok(())
}
