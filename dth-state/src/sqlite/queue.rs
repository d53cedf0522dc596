//! The queue in the file.

use super::Sqlite;
use async_trait::async_trait;
use dth_core::{
    error::{Error, ErrorKind, Op, Result},
    queue::{DeadLetter, Delivery, Depth, Message, Queue, QueueCapability, Receipt},
};
use rusqlite::{OptionalExtension, params};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Bytes of a message; larger ones would only make transactions long.
const MAX_BODY: usize = 1 << 20;
/// How often the file is asked for messages of other processes: at first, and after a while without any.
const POLL: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX / 4)
}

/// Message and delivery that a receipt names.
fn parts(receipt: &Receipt) -> Option<(i64, i64)> {
    let (id, receives) = receipt.0.split_once('.')?;
    Some((id.parse().ok()?, receives.parse().ok()?))
}

/// A receive under way: one that is dropped lets its messages go, uncounted, for others to take.
struct Receiving<'a> {
    queue: &'a Sqlite,
    /// When the leases end, by which they are known to be the same.
    until: i64,
    hands: Arc<Mutex<Hands>>,
}

/// What a receive has taken and not told yet, and whether it is still to be told.
#[derive(Default)]
struct Hands {
    taken: Vec<(i64, u32)>,
    gone: bool,
}

impl Receiving<'_> {
    fn lock(hands: &Mutex<Hands>) -> MutexGuard<'_, Hands> {
        hands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        let taken = {
            let mut hands = Self::lock(&self.hands);
            hands.gone = true;
            std::mem::take(&mut hands.taken)
        };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if taken.is_empty() {
            return;
        }
        let (queue, until) = (self.queue.clone(), self.until);
        runtime.spawn(async move {
            let now = queue.now();
            let let_go = queue.write(Op::Release, move |t| {
                let mut release = t.prepare_cached(
                    "UPDATE message SET visible_at = ?1, leased = 0, receives = receives - 1
                     WHERE id = ?2 AND receives = ?3 AND visible_at = ?4 AND leased = 1",
                )?;
                for (id, receives) in taken {
                    release.execute(params![now, id, receives, until])?;
                }
                Ok(())
            });
            if let Err(error) = let_go.await {
                tracing::debug!(error = %error.chain(), "messages that nobody was told of stay hidden until their lease ends");
            }
            queue.sent.notify_waiters();
        });
    }
}

impl Sqlite {
    async fn take(&self, max: usize, lease: Duration) -> Result<Vec<Delivery>> {
        let (now, until, max) = (self.now(), self.now() + millis(lease), max as i64);
        let receiving = Receiving { queue: self, until, hands: Arc::default() };
        let hands = Arc::clone(&receiving.hands);
        let deliveries = self.write(Op::Receive, move |t| {
            let mut take = t.prepare_cached(
                "UPDATE message SET visible_at = ?1, leased = 1, receives = receives + 1
                 WHERE id IN (SELECT id FROM message WHERE visible_at <= ?2 ORDER BY visible_at, id LIMIT ?3)
                 RETURNING id, receives, body",
            )?;
            let rows = take.query_map(params![until, now, max], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            let rows: Vec<(i64, u32, String)> = rows.collect::<Result<_, _>>()?;
            let mut hands = Receiving::lock(&hands);
            if hands.gone {
                let gone = Error::new(ErrorKind::Unavailable, Op::Receive, "receive").with_source("nobody waits for it any more");
                return Err(gone.into());
            }
            hands.taken = rows.iter().map(|(id, receives, _)| (*id, *receives)).collect();
            let told = |(id, receives, body)| Delivery { body, receives, receipt: Receipt(format!("{id}.{receives}").into()) };
            Ok(rows.into_iter().map(told).collect())
        });
        let deliveries = deliveries.await;
        Receiving::lock(&receiving.hands).taken.clear();
        deliveries
    }

    async fn is_ready(&self) -> Result<bool> {
        let now = self.now();
        self.read(Op::Receive, move |t| Ok(t.prepare_cached("SELECT 1 FROM message WHERE visible_at <= ?1 LIMIT 1")?.exists([now])?)).await
    }
}

#[async_trait]
impl Queue for Sqlite {
    fn capability(&self) -> QueueCapability {
        QueueCapability { max_body: MAX_BODY, max_lease: Duration::from_secs(7 * 24 * 3600), receive_is_cancel_safe: true }
    }

    async fn send(&self, messages: &[Message]) -> Result<Vec<Result<()>>> {
        let now = self.now();
        let fits = |message: &Message| message.body.len() <= MAX_BODY;
        let rows: Vec<_> = messages.iter().filter(|m| fits(m)).map(|m| (m.body.clone(), now + millis(m.delay))).collect();
        let results = messages.iter().map(|message| {
            if fits(message) {
                return Ok(());
            }
            let text = format!("message of {} bytes", message.body.len());
            Err(Error::new(ErrorKind::Invalid, Op::Send, text).with_source(format!("at most {MAX_BODY} bytes")))
        });
        let results = results.collect();
        self.write(Op::Send, move |t| {
            let mut insert = t.prepare_cached("INSERT INTO message (body, visible_at) VALUES (?1, ?2)")?;
            for (body, at) in rows {
                insert.execute(params![body, at])?;
            }
            Ok(())
        })
        .await?;
        self.sent.notify_waiters();
        Ok(results)
    }

    async fn receive(&self, max: usize, lease: Duration, wait: Duration) -> Result<Vec<Delivery>> {
        let give_up = Instant::now() + wait;
        let mut pause = POLL.0;
        loop {
            let sent = self.sent.notified();
            if self.is_ready().await? {
                let taken = self.take(max, lease).await?;
                if !taken.is_empty() {
                    return Ok(taken);
                }
            }
            let now = Instant::now();
            if now >= give_up {
                return Ok(Vec::new());
            }
            tokio::select! {
                biased;
                () = sent => pause = POLL.0,
                () = tokio::time::sleep_until((now + pause).min(give_up)) => pause = (pause * 2).min(POLL.1),
            }
        }
    }

    async fn extend(&self, receipt: &Receipt, lease: Duration) -> Result<()> {
        let stale = || Error::new(ErrorKind::NotFound, Op::Extend, self.path.display().to_string());
        let (id, receives) = parts(receipt).ok_or_else(stale)?;
        let (now, until) = (self.now(), self.now() + millis(lease));
        let changed = self
            .write(Op::Extend, move |t| {
                let mut extend = t.prepare_cached(
                    "UPDATE message SET visible_at = ?1 WHERE id = ?2 AND receives = ?3 AND leased = 1 AND visible_at > ?4",
                )?;
                Ok(extend.execute(params![until, id, receives, now])?)
            })
            .await?;
        if changed == 0 { Err(stale()) } else { Ok(()) }
    }

    async fn ack(&self, receipt: &Receipt) -> Result<()> {
        let Some((id, receives)) = parts(receipt) else { return Ok(()) };
        self.write(Op::Ack, move |t| {
            t.prepare_cached("DELETE FROM message WHERE id = ?1 AND receives = ?2 AND leased = 1")?.execute(params![id, receives])?;
            Ok(())
        })
        .await
    }

    async fn release(&self, receipt: &Receipt, delay: Duration) -> Result<()> {
        let Some((id, receives)) = parts(receipt) else { return Ok(()) };
        let at = self.now() + millis(delay);
        self.write(Op::Release, move |t| {
            t.prepare_cached("UPDATE message SET visible_at = ?1, leased = 0 WHERE id = ?2 AND receives = ?3 AND leased = 1")?
                .execute(params![at, id, receives])?;
            Ok(())
        })
        .await?;
        self.sent.notify_waiters();
        Ok(())
    }

    async fn dead_letter(&self, delivery: &Delivery, reason: &str) -> Result<()> {
        let Some((id, receives)) = parts(&delivery.receipt) else { return Ok(()) };
        let (now, reason) = (self.now(), reason.to_owned());
        self.write(Op::DeadLetter, move |t| {
            t.prepare_cached(
                "INSERT INTO dead_letter (id, body, reason, receives, given_up_at)
                 SELECT id, body, ?3, receives, ?4 FROM message WHERE id = ?1 AND receives = ?2 AND leased = 1",
            )?
            .execute(params![id, receives, reason, now])?;
            t.prepare_cached("DELETE FROM message WHERE id = ?1 AND receives = ?2 AND leased = 1")?.execute(params![id, receives])?;
            Ok(())
        })
        .await
    }

    async fn depth(&self) -> Result<Depth> {
        let now = self.now();
        self.read(Op::Depth, move |t| {
            let messages = "SELECT count(*) FILTER (WHERE visible_at <= ?1), count(*) FILTER (WHERE visible_at > ?1 AND leased = 1),
                            count(*) FILTER (WHERE visible_at > ?1 AND leased = 0) FROM message";
            let number = |row: &rusqlite::Row<'_>, i| row.get::<_, i64>(i).map(|n| n as u64);
            let (ready, leased, delayed) =
                t.prepare_cached(messages)?.query_row([now], |row| Ok((number(row, 0)?, number(row, 1)?, number(row, 2)?)))?;
            let dead = t.prepare_cached("SELECT count(*) FROM dead_letter")?.query_row([], |row| number(row, 0))?;
            Ok(Depth { ready, leased, delayed, dead })
        })
        .await
    }

    async fn dead_letters(&self, after: Option<&str>, max: usize) -> Result<Vec<DeadLetter>> {
        let after: i64 = after.and_then(|id| id.parse().ok()).unwrap_or(0);
        let max = max as i64;
        self.read(Op::DeadLetter, move |t| {
            let mut select = t.prepare_cached("SELECT id, body, reason, receives FROM dead_letter WHERE id > ?1 ORDER BY id LIMIT ?2")?;
            let rows = select.query_map(params![after, max], |row| {
                let id: i64 = row.get(0)?;
                Ok(DeadLetter { id: id.to_string(), body: row.get(1)?, reason: row.get(2)?, receives: row.get(3)? })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    async fn redrive(&self, id: &str, body: &str) -> Result<()> {
        let missing = Error::new(ErrorKind::NotFound, Op::DeadLetter, format!("dead letter {id}"));
        let Ok(number) = id.parse::<i64>() else { return Err(missing) };
        let (now, body) = (self.now(), body.to_owned());
        self.write(Op::DeadLetter, move |t| {
            let found =
                t.prepare_cached("DELETE FROM dead_letter WHERE id = ?1 RETURNING id")?.query_row([number], |_| Ok(())).optional()?;
            if found.is_none() {
                return Err(missing.into());
            }
            t.prepare_cached("INSERT INTO message (body, visible_at) VALUES (?1, ?2)")?.execute(params![body, now])?;
            Ok(())
        })
        .await?;
        self.sent.notify_waiters();
        Ok(())
    }
}
