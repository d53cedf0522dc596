//! An S3 server in memory, for measuring: `mems3 PORT`. See [`dth_benches::mems3`].

use anyhow::Context;
use dth_benches::mems3::MemS3;

#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let port = std::env::args().nth(1).and_then(|port| port.parse::<u16>().ok()).context("usage: mems3 PORT")?;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    Ok(MemS3::default().serve(listener).await?)
}
