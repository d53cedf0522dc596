//! What the engine relies on in a queue.

use super::{Broken, Checked, QueueBench, Verdict, hold, promises};
use crate::{
    error::ErrorKind,
    queue::{Delivery, Message},
};
use std::{collections::BTreeSet, future::poll_fn, task::Poll, time::Duration};
use tokio::time::{Instant, sleep};

promises! { $ queue, QueueBench, conformance_queue:
    what_is_sent_is_received
    bodies_stay_themselves
    a_leased_message_is_hidden
    an_ended_lease_shows_it_again
    an_extended_lease_holds
    an_acknowledged_message_is_gone
    a_released_message_comes_back
    a_delayed_message_waits
    a_stale_receipt_does_nothing
    a_dead_letter_keeps_body_and_reason
    a_dead_letter_can_be_sent_again
    a_message_that_is_too_large_is_refused_alone
    a_receiver_is_woken
    a_dropped_receive_hands_nothing_out
    depth_is_counted
}

impl QueueBench {
    async fn send(&self, body: &str, delay: Duration) -> Result<(), Broken> {
        for sent in self.queue.send(&[Message { body: body.into(), delay }]).await? {
            sent?;
        }
        Ok(())
    }

    async fn receive(&self, lease: Duration, wait: Duration) -> Result<Option<Delivery>, Broken> {
        Ok(self.queue.receive(1, lease, wait).await?.pop())
    }

    /// The next message, which must be there.
    async fn next(&self, lease: Duration) -> Result<Delivery, Broken> {
        self.receive(lease, self.tick * 5).await?.ok_or_else(|| Broken("no message came".into()))
    }

    fn long(&self) -> Duration {
        self.tick * 60
    }
}

/// Every message that was sent is received, once while its lease runs.
pub async fn what_is_sent_is_received(bench: &QueueBench) -> Checked {
    let bodies: BTreeSet<String> = (0..25).map(|n| format!("m{n}")).collect();
    let messages: Vec<_> = bodies.iter().map(|body| Message { body: body.clone(), delay: Duration::ZERO }).collect();
    let sent = bench.queue.send(&messages).await?;
    hold!(sent.len() == messages.len(), "{} results for {} messages", sent.len(), messages.len());
    for sent in sent {
        sent?;
    }
    let mut received = BTreeSet::new();
    while received.len() < bodies.len() {
        let delivery = bench.next(bench.long()).await?;
        hold!(delivery.receives == 1, "received {} times", delivery.receives);
        hold!(received.insert(delivery.body.clone()), "`{}` was received twice while it was leased", delivery.body);
    }
    hold!(received == bodies, "other messages were received: {received:?}");
    Ok(Verdict::Held)
}

/// A body comes out as it went in.
pub async fn bodies_stay_themselves(bench: &QueueBench) -> Checked {
    let large = "x".repeat(bench.queue.capability().max_body.min(200 << 10));
    for body in [r#"{"k":"\u00e9\n\"<&>"}"#, "", " a  b ", &large] {
        if body.is_empty() {
            continue;
        }
        bench.send(body, Duration::ZERO).await?;
        let delivery = bench.next(bench.long()).await?;
        hold!(delivery.body == body, "`{body:.40}` became `{:.40}`", delivery.body);
        bench.queue.ack(&delivery.receipt).await?;
    }
    Ok(Verdict::Held)
}

/// Where a receive may be dropped, no message stays hidden by it, nor counts as handed out.
pub async fn a_dropped_receive_hands_nothing_out(bench: &QueueBench) -> Checked {
    if !bench.queue.capability().receive_is_cancel_safe {
        return Ok(Verdict::NotMade("a receive that was sent takes effect"));
    }
    bench.send("m", Duration::ZERO).await?;
    for round in 0..60u32 {
        let delivery = {
            let mut receive = bench.queue.receive(1, bench.long(), bench.long());
            // Dropped now while it looks, now while it takes, now with the answer that nobody has heard yet.
            let mut polls = round * round;
            loop {
                match poll_fn(|cx| Poll::Ready(receive.as_mut().poll(cx))).await {
                    Poll::Ready(received) => break received?.pop(),
                    Poll::Pending if polls == 0 => break None,
                    Poll::Pending => polls -= 1,
                }
            }
        };
        let delivery = match delivery {
            Some(delivery) => delivery,
            None => bench.next(bench.long()).await?,
        };
        hold!(delivery.receives == round + 1, "received {} times after {round} receives", delivery.receives);
        bench.queue.release(&delivery.receipt, Duration::ZERO).await?;
    }
    Ok(Verdict::Held)
}

/// Nobody else receives a message while its lease runs.
pub async fn a_leased_message_is_hidden(bench: &QueueBench) -> Checked {
    bench.send("m", Duration::ZERO).await?;
    bench.next(bench.long()).await?;
    hold!(bench.receive(bench.long(), bench.tick * 2).await?.is_none(), "a leased message was handed out again");
    Ok(Verdict::Held)
}

/// When a lease ends without an answer, the message is handed out again, and counts how often.
pub async fn an_ended_lease_shows_it_again(bench: &QueueBench) -> Checked {
    bench.send("m", Duration::ZERO).await?;
    bench.next(bench.tick).await?;
    let again = bench.next(bench.long()).await?;
    hold!(again.receives == 2, "received {} times, and says {}", 2, again.receives);
    Ok(Verdict::Held)
}

/// An extension keeps a message hidden past the end of its first lease.
pub async fn an_extended_lease_holds(bench: &QueueBench) -> Checked {
    bench.send("m", Duration::ZERO).await?;
    let delivery = bench.next(bench.tick * 2).await?;
    bench.queue.extend(&delivery.receipt, bench.long()).await?;
    sleep(bench.tick * 3).await;
    hold!(bench.receive(bench.long(), bench.tick).await?.is_none(), "the message came back though its lease was extended");
    Ok(Verdict::Held)
}

/// An acknowledged message never comes back.
pub async fn an_acknowledged_message_is_gone(bench: &QueueBench) -> Checked {
    bench.send("m", Duration::ZERO).await?;
    let delivery = bench.next(bench.tick).await?;
    bench.queue.ack(&delivery.receipt).await?;
    sleep(bench.tick * 2).await;
    hold!(bench.receive(bench.tick, bench.tick).await?.is_none(), "an acknowledged message came back");
    Ok(Verdict::Held)
}

/// A released message comes back after the delay, and not before.
pub async fn a_released_message_comes_back(bench: &QueueBench) -> Checked {
    bench.send("m", Duration::ZERO).await?;
    let delivery = bench.next(bench.long()).await?;
    bench.queue.release(&delivery.receipt, Duration::ZERO).await?;
    let delivery = bench.next(bench.long()).await?;
    bench.queue.release(&delivery.receipt, bench.tick * 3).await?;
    hold!(bench.receive(bench.long(), Duration::ZERO).await?.is_none(), "it came back before its delay was over");
    bench.next(bench.long()).await?;
    Ok(Verdict::Held)
}

/// A delayed message is not handed out before its time.
pub async fn a_delayed_message_waits(bench: &QueueBench) -> Checked {
    bench.send("m", bench.tick * 3).await?;
    hold!(bench.receive(bench.long(), Duration::ZERO).await?.is_none(), "a delayed message was handed out at once");
    bench.next(bench.long()).await?;
    Ok(Verdict::Held)
}

/// The receipt of an ended lease cannot extend, release or give up the message of the next receiver.
pub async fn a_stale_receipt_does_nothing(bench: &QueueBench) -> Checked {
    bench.send("m", Duration::ZERO).await?;
    let stale = bench.next(bench.tick).await?;
    let live = bench.next(bench.long()).await?;
    let extended = bench.queue.extend(&stale.receipt, bench.tick).await;
    let refused = matches!(&extended, Err(error) if error.kind() == ErrorKind::NotFound);
    hold!(refused, "a stale receipt extends: {extended:?}");
    bench.queue.release(&stale.receipt, Duration::ZERO).await?;
    bench.queue.dead_letter(&stale, "stale").await?;
    hold!(bench.receive(bench.long(), bench.tick).await?.is_none(), "a stale receipt released the message of another");
    hold!(bench.queue.dead_letters(None, 10).await?.is_empty(), "a stale receipt gave up the message of another");
    bench.queue.extend(&live.receipt, bench.long()).await?;
    Ok(Verdict::Held)
}

/// A message that is given up is kept with its body and the reason, and is handed out no more.
pub async fn a_dead_letter_keeps_body_and_reason(bench: &QueueBench) -> Checked {
    bench.send("poison", Duration::ZERO).await?;
    let delivery = bench.next(bench.tick).await?;
    bench.queue.dead_letter(&delivery, "cannot be read: é").await?;
    sleep(bench.tick * 2).await;
    hold!(bench.receive(bench.tick, bench.tick).await?.is_none(), "a dead letter was handed out");
    let dead = bench.queue.dead_letters(None, 10).await?;
    let [letter] = dead.as_slice() else { return Err(Broken(format!("{} dead letters", dead.len()))) };
    hold!(letter.body == "poison" && letter.reason == "cannot be read: é" && letter.receives == 1, "it became {letter:?}");
    hold!(bench.queue.dead_letters(Some(&letter.id), 10).await?.is_empty(), "paging does not go on behind a letter");
    Ok(Verdict::Held)
}

/// A dead letter can be sent again with a new body, once.
pub async fn a_dead_letter_can_be_sent_again(bench: &QueueBench) -> Checked {
    bench.send("poison", Duration::ZERO).await?;
    let delivery = bench.next(bench.long()).await?;
    bench.queue.dead_letter(&delivery, "why").await?;
    let id = bench.queue.dead_letters(None, 10).await?.pop().map(|letter| letter.id).unwrap_or_default();
    bench.queue.redrive(&id, "mended").await?;
    let delivery = bench.next(bench.long()).await?;
    hold!(delivery.body == "mended" && delivery.receives == 1, "it came back as {delivery:?}");
    hold!(bench.queue.dead_letters(None, 10).await?.is_empty(), "it is a dead letter still");
    let again = bench.queue.redrive(&id, "again").await;
    hold!(matches!(&again, Err(error) if error.kind() == ErrorKind::NotFound), "it was sent a second time: {again:?}");
    Ok(Verdict::Held)
}

/// In a batch, one bad message does not take the others along.
pub async fn a_message_that_is_too_large_is_refused_alone(bench: &QueueBench) -> Checked {
    let max = bench.queue.capability().max_body;
    if max > 64 << 20 {
        return Ok(Verdict::NotMade("it takes messages of any size"));
    }
    let message = |body: String| Message { body, delay: Duration::ZERO };
    let sent = bench.queue.send(&[message("x".repeat(max + 1)), message("good".into())]).await?;
    let [large, good] = sent.as_slice() else { return Err(Broken(format!("{} results for 2 messages", sent.len()))) };
    hold!(matches!(large, Err(error) if !error.is_retryable()), "too large: {large:?}");
    hold!(good.is_ok(), "the good one: {good:?}");
    hold!(bench.next(bench.long()).await?.body == "good", "another message came");
    hold!(bench.receive(bench.long(), bench.tick).await?.is_none(), "the refused one came as well");
    Ok(Verdict::Held)
}

/// A receiver that waits gets a message soon after it was sent.
pub async fn a_receiver_is_woken(bench: &QueueBench) -> Checked {
    let begun = Instant::now();
    let wait = bench.tick * 20;
    let send = async {
        sleep(bench.tick).await;
        bench.send("m", Duration::ZERO).await
    };
    let (received, sent) = tokio::join!(bench.receive(bench.long(), wait), send);
    sent?;
    hold!(received?.is_some(), "nothing came");
    hold!(begun.elapsed() < wait, "it came only when the wait was over");
    Ok(Verdict::Held)
}

/// The depth tells what is ready, leased, delayed and dead.
pub async fn depth_is_counted(bench: &QueueBench) -> Checked {
    for body in ["dead", "leased", "ready"] {
        bench.send(body, Duration::ZERO).await?;
    }
    bench.send("delayed", bench.long()).await?;
    let dead = bench.next(bench.long()).await?;
    bench.queue.dead_letter(&dead, "why").await?;
    bench.next(bench.long()).await?;
    let depth = bench.queue.depth().await?;
    let counted = (depth.ready, depth.leased, depth.delayed, depth.dead);
    hold!(counted == (1, 1, 1, 1), "one each, and it says {depth:?}");
    Ok(Verdict::Held)
}
