//! Eight quiet scenarios, and every single fault at every remote call of each.

use crate::world::{InMemory, Options, Outcome, WORKERS, World};
use dth_core::{
    env::{SeededEnv, SharedEnv, random_below},
    error::Op,
    object::ObjectKey,
    scope::TaskScope,
    wrap::chaos::{Faults, Strike},
};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::sleep;

/// What happens when nothing goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// Small objects, each one request.
    Small,
    /// Objects in the parts of their source; one is continued from an event.
    Parts,
    /// Objects in parts of our own, to a store whose etags say nothing.
    OwnLayout,
    /// Old versions at the destination, and overwrites with events while the finder works.
    Overwrite,
    /// Extra objects at the destination, and messages that nobody can read.
    Extra,
    /// A destination like a directory: one stream an object, no conditions.
    Directory,
    /// Both sides are one store, which copies at once or in parts.
    Inside,
    /// Objects whose parts are jobs of their own; one is overwritten meanwhile.
    Giant,
}

impl Scenario {
    pub(crate) const ALL: [Self; 8] =
        [Self::Small, Self::Parts, Self::OwnLayout, Self::Overwrite, Self::Extra, Self::Directory, Self::Inside, Self::Giant];

    fn options(self) -> Options {
        let plain = Options {
            faults: Faults { latency: 40, ..Faults::default() },
            opaque_source: false,
            opaque_sink: false,
            source_sums: true,
            sink_sums: true,
            bare_sink: false,
            calm: false,
            filled: false,
            hot: false,
            unpinned: false,
            inside: None,
            giants: None,
            images: false,
        };
        match self {
            Self::OwnLayout => Options { opaque_sink: true, ..plain },
            Self::Directory => Options { opaque_sink: true, sink_sums: false, bare_sink: true, ..plain },
            Self::Inside => Options { inside: Some(16), ..plain },
            Self::Giant => Options { giants: Some(17), ..plain },
            _ => plain,
        }
    }

    fn set_up(self, world: &World<'_>) {
        let write = |key: &str, size| world.write_source(&format!("t/{key}").into(), size);
        match self {
            Self::Small => ["a", "a/b", "ab", "é", "z//"].into_iter().zip([0, 1, 7, 8, 8]).for_each(|(key, size)| write(key, size)),
            Self::Parts | Self::Directory | Self::Inside | Self::Giant => {
                ["big", "big.bak", "a"].into_iter().zip([64, 40, 3]).for_each(|(key, size)| write(key, size));
            }
            Self::OwnLayout => ["big", "big.bak"].into_iter().zip([40, 31]).for_each(|(key, size)| write(key, size)),
            Self::Overwrite => {
                for (key, size) in [("a", 8), ("big", 40), ("x", 24)] {
                    write(key, size);
                    let old = world.source.get(&format!("t/{key}").into()).unwrap();
                    world.sink.insert(format!("copy/t/{key}"), old.body.clone());
                    write(key, size);
                }
            }
            Self::Extra => {
                write("a", 8);
                for key in ["b", "c", "d"] {
                    write(key, 5);
                    let key = format!("t/{key}");
                    world.sink.insert(format!("copy/{key}"), world.source.get(&key.as_str().into()).unwrap().body.clone());
                    world.source.remove(&key.into());
                }
            }
        }
    }

    async fn happens(self, world: &World<'_>) {
        match self {
            Self::Parts => {
                sleep(Duration::from_millis(200)).await;
                world.event(&"t/big".into()).await;
            }
            Self::Giant => {
                sleep(Duration::from_millis(300)).await;
                world.write_source(&"t/big.bak".into(), 31);
                world.event(&"t/big.bak".into()).await;
            }
            Self::Overwrite => {
                for (key, size) in [("t/a", 8), ("t/big", 40)] {
                    sleep(Duration::from_millis(150)).await;
                    world.write_source(&key.into(), size);
                    world.event(&key.into()).await;
                }
            }
            Self::Extra => {
                // One comes back while it is being deleted.
                sleep(Duration::from_millis(250)).await;
                world.write_source(&"t/c".into(), 5);
                world.event(&"t/c".into()).await;
            }
            _ => {}
        }
    }
}

/// One scenario with these calls struck.
pub(crate) async fn play(scenario: Scenario, strikes: &[(u64, Strike)]) -> Outcome {
    let env: SharedEnv = Arc::new(SeededEnv::new(7));
    let fabric = InMemory;
    let world = World::new(env, scenario.options(), &fabric);
    world.watch();
    scenario.set_up(&world);
    if scenario == Scenario::Extra {
        world.poison().await;
    }
    world.weather.script(strikes.iter().copied());
    let workers: Mutex<Vec<TaskScope>> = Mutex::new((0..WORKERS).map(|i| world.worker(i, Duration::ZERO)).collect());
    let all = async {
        tokio::join!(world.find(0), scenario.happens(&world));
        world.heal_and_judge(&BTreeSet::new(), scenario == Scenario::Extra).await
    };
    let violations = tokio::select! {
        violations = all => violations,
        () = world.keep_alive(&workers) => unreachable!("it goes on for ever"),
    };
    drop(workers);
    world.outcome(violations)
}

/// One key, one message that may be delivered twice, one worker that is slow, one fault at one operation, and a source that is
/// overwritten silently at some moment: few things happen, so that no later one covers what an earlier one did.
pub(crate) async fn race(seed: u64) -> Outcome {
    let env: SharedEnv = Arc::new(SeededEnv::new(seed));
    let draw = |bound: u64| random_below(&*env, bound);
    // Some are aimed at a late write over the same bytes.
    let late = seed % 8 == 1;
    // Some at copies inside the store that no etag proves.
    let inside = seed % 8 == 5;
    let mut options = Options {
        faults: Faults { latency: 40, duplicate: [0, 500, 900][draw(3) as usize], ..Faults::default() },
        opaque_sink: !late && draw(4) == 0,
        ..Scenario::Small.options()
    };
    options.source_sums |= options.opaque_source;
    if inside {
        (options.inside, options.opaque_sink, options.faults.latency) = (Some(16), true, 400);
    }
    let fabric = InMemory;
    let world = World::new(Arc::clone(&env), options, &fabric);
    world.watch();
    world.weather.slow(0, [40, 1_000, 3_000][draw(3) as usize]);
    let ops = if inside {
        [Op::Copy, Op::Copy, Op::Head, Op::CompleteUpload, Op::CopyPart, Op::CopyPart, Op::SaveState, Op::Delete]
    } else {
        [Op::Put, Op::Put, Op::Put, Op::CompleteUpload, Op::PutPart, Op::Read, Op::SaveState, Op::Delete]
    };
    if late {
        world.weather.script_op(Op::Put, 1, Strike::Late);
    } else {
        world.weather.script_op(ops[draw(8) as usize], 1 + draw(2), Strike::ALL[draw(6) as usize]);
    }
    let key: ObjectKey = "t/big".into();
    let size = [8, 16, 24, 40][draw(4) as usize];
    world.write_source(&key, size);
    let first = world.source.get(&key).unwrap();
    match if late { draw(2) } else { draw(4) } {
        0 => drop(world.sink.insert_parts("copy/t/big", first.body.clone(), 5)),
        1 => drop(world.sink.insert("copy/t/big", first.body.clone())),
        2 => drop(world.source.remove(&key)),
        _ => {}
    }
    if !late && draw(3) == 0 {
        world.write_source(&key, size);
    }
    let workers: Mutex<Vec<TaskScope>> = Mutex::new((0..WORKERS).map(|i| world.worker(i, Duration::ZERO)).collect());
    let silent: Mutex<BTreeSet<ObjectKey>> = Mutex::default();
    let overwrites = async {
        for _ in 0..if inside { 20 } else { draw(3) } {
            let longest = if inside { 500 } else { [500, 5_000, 30_000][draw(3) as usize] };
            sleep(Duration::from_millis(draw(longest))).await;
            match (world.source.get(&key), draw(4)) {
                (Some(now), 0) => world.write_bytes(&key, now.body.to_vec()),
                (Some(_), 1) => drop(world.source.remove(&key)),
                _ => world.write_source(&key, size),
            }
            if draw(4) == 0 {
                world.event(&key).await;
            } else {
                silent.lock().unwrap().insert(key.clone());
            }
        }
    };
    let all = async {
        if late {
            world.event(&key).await;
        } else {
            tokio::join!(world.find(0), overwrites);
        }
        let silent = silent.lock().unwrap().clone();
        world.heal_and_judge(&silent, false).await
    };
    let violations = tokio::select! {
        violations = all => violations,
        () = world.keep_alive(&workers) => unreachable!("it goes on for ever"),
    };
    drop(workers);
    world.outcome(violations)
}
