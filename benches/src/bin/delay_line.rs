//! A TCP proxy that is far away: `delay_line PORT UPSTREAM_PORT MILLISECONDS`. What it receives it passes on when half the time is over,
//! in both directions; so a round trip takes the whole, however much is under way.

use std::{io, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp},
    sync::mpsc,
    task::JoinSet,
    time::Instant,
};

/// Pieces under way in one direction.
const UNDER_WAY: usize = 4096;

#[tokio::main(worker_threads = 1)]
async fn main() -> anyhow::Result<()> {
    let numbers: Vec<u16> = std::env::args().skip(1).filter_map(|n| n.parse().ok()).collect();
    let [port, upstream, milliseconds] = numbers[..] else { anyhow::bail!("usage: delay_line PORT UPSTREAM_PORT MILLISECONDS") };
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let delay = Duration::from_micros(u64::from(milliseconds) * 500);
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await?;
        connections.spawn(async move {
            // Whichever side has gone, the other one sees it.
            let _ = connect(client, upstream, delay).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn connect(client: TcpStream, upstream: u16, delay: Duration) -> io::Result<()> {
    let server = TcpStream::connect(("127.0.0.1", upstream)).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::try_join!(pass(from_client, to_server, delay), pass(from_server, to_client, delay))?;
    Ok(())
}

async fn pass(mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf, delay: Duration) -> io::Result<()> {
    let (sender, mut under_way) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let reading = async move {
        loop {
            let mut piece = vec![0; 64 << 10];
            let len = from.read(&mut piece).await?;
            piece.truncate(len);
            if len == 0 || sender.send((Instant::now() + delay, piece)).await.is_err() {
                return Ok(());
            }
        }
    };
    let writing = async move {
        while let Some((due, piece)) = under_way.recv().await {
            tokio::time::sleep_until(due).await;
            to.write_all(&piece).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(reading, writing)?;
    Ok(())
}
