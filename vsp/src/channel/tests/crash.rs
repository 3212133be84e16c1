//! A process dies after each single store; so does its successor, in the smaller scripts.

use std::collections::BTreeSet;

use super::super::*;
use super::world::Kind::{Both, Bulky, Long, Note, NoteState, Once, Plain, Reply, State};
use super::world::Step::{
    Collect, Complete, Flush, GiveBack, Lend, Notify, NotifyState, Publish, Regain, Save, Send, Take,
};
use super::world::{Death, FIRST_OWN, Step, World};

/// Where rings begin, so that packets lie across their end.
const WRAP: u32 = 4096 - 88;

/// A script, where its rings begin, and whether the successor dies at each store, too.
type Scenario = (&'static str, &'static [Step], u32, bool);

const SCENARIOS: &[Scenario] = &[
    ("one", &[Send(1, Plain), Take(1), Publish, Complete(1), Flush], 0, true),
    (
        "a batch of two",
        &[Send(1, Plain), Send(2, Plain), Take(2), Publish, Complete(2), Complete(1), Flush],
        0,
        true,
    ),
    (
        "a batch of three around the rings' ends",
        &[
            Send(1, Plain),
            Send(2, Plain),
            Send(3, Plain),
            Take(3),
            Publish,
            Complete(3),
            Complete(1),
            Complete(2),
            Flush,
            Send(4, Plain),
            Take(1),
            Complete(4),
            Flush,
        ],
        WRAP,
        true,
    ),
    (
        "completions leave one by one while others are taken",
        &[
            Send(1, Plain),
            Send(2, Plain),
            Take(2),
            Publish,
            Complete(2),
            Send(3, Plain),
            Take(1),
            Flush,
            Complete(3),
            Flush,
            Collect(1),
            Send(4, Plain),
            Complete(1),
            Take(1),
            Complete(4),
            Flush,
        ],
        WRAP,
        false,
    ),
    (
        "the guest has no room, and makes some",
        &[
            Send(1, Long),
            Send(2, Long),
            Send(3, Plain),
            Take(3),
            Publish,
            Complete(1),
            Complete(2),
            Complete(3),
            Flush,
            Send(4, Plain),
            Collect(1),
            Flush,
            Take(1),
            Complete(4),
            Flush,
        ],
        WRAP,
        false,
    ),
    (
        "states that change in one batch",
        &[
            Send(1, State),
            Send(2, Plain),
            Send(3, State),
            Take(3),
            Complete(1),
            Complete(2),
            Complete(3),
            Flush,
            Send(4, State),
            Take(1),
            Complete(4),
            Flush,
        ],
        0,
        true,
    ),
    (
        "states that have to wait for room",
        &[
            Send(1, Long),
            Send(2, Long),
            Send(3, State),
            Send(4, State),
            Take(4),
            Complete(1),
            Complete(2),
            Complete(3),
            Complete(4),
            Flush,
            Collect(1),
            Flush,
        ],
        0,
        false,
    ),
    (
        "a state without an answer behind states that have to wait for room",
        &[
            Send(1, Long),
            Send(2, Long),
            Send(3, State),
            Send(4, NoteState),
            Take(4),
            Complete(1),
            Complete(2),
            Complete(3),
            Complete(4),
            Flush,
            Collect(1),
            Flush,
            Send(5, Plain),
            Take(1),
            Complete(5),
            Flush,
        ],
        0,
        false,
    ),
    (
        "packets that want no answer",
        &[
            Send(1, Note),
            Send(2, Plain),
            Send(3, NoteState),
            Take(3),
            Complete(1),
            Complete(3),
            Complete(2),
            Flush,
        ],
        WRAP,
        true,
    ),
    (
        "a state with an answer, then one without",
        &[Send(1, State), Send(2, NoteState), Take(2), Complete(1), Complete(2), Flush],
        0,
        true,
    ),
    (
        "more than once around the rings",
        &[
            Send(1, Bulky),
            Take(1),
            Complete(1),
            Flush,
            Send(2, Bulky),
            Take(1),
            Complete(2),
            Flush,
            Collect(2),
            Send(3, Bulky),
            Send(4, Plain),
            Take(2),
            Complete(4),
            Flush,
            Send(5, Bulky),
            Take(1),
            Complete(5),
            Complete(3),
            Flush,
        ],
        WRAP,
        false,
    ),
    (
        "what must not happen twice",
        &[Send(1, Once), Send(2, Plain), Take(2), Complete(1), Complete(2), Flush],
        0,
        true,
    ),
    (
        "more than there are slots",
        &[
            Send(1, Plain),
            Send(2, Plain),
            Send(3, Plain),
            Send(4, Plain),
            Send(5, Plain),
            Send(6, Plain),
            Send(7, Plain),
            Take(6),
            Complete(2),
            Complete(1),
            Flush,
            Take(1),
            Complete(7),
            Flush,
        ],
        0,
        false,
    ),
    ("a loan", &[Lend(0), Flush, Collect(1), GiveBack, Regain(1), Publish, Lend(0), Flush], 0, true),
    (
        "loans that come back one by one, and go out again at once",
        &[
            Lend(2),
            Lend(0),
            Flush,
            Collect(2),
            Lend(1),
            GiveBack,
            Regain(1),
            Publish,
            Lend(0),
            Flush,
            Collect(2),
            Regain(1),
            GiveBack,
            Regain(1),
            Flush,
            Lend(2),
            Flush,
        ],
        WRAP,
        false,
    ),
    (
        "loans between requests",
        &[
            Send(1, State),
            Lend(0),
            Take(1),
            Lend(1),
            Complete(1),
            Lend(2),
            Flush,
            Collect(3),
            GiveBack,
            Send(2, Plain),
            Regain(2),
            Take(1),
            Publish,
            Lend(1),
            Complete(2),
            Flush,
            Collect(9),
            GiveBack,
            Regain(2),
            Send(3, State),
            Take(1),
            Complete(3),
            Lend(0),
            Flush,
        ],
        WRAP,
        false,
    ),
    (
        "loans when there is no room",
        &[
            Lend(0),
            Send(1, Long),
            Send(2, Long),
            Take(2),
            Publish,
            Complete(1),
            Complete(2),
            Lend(1),
            Flush,
            Collect(2),
            GiveBack,
            Flush,
            Regain(1),
            Flush,
            Lend(0),
            Flush,
        ],
        WRAP,
        false,
    ),
    ("an answer of two packets", &[Send(1, Reply), Take(1), Publish, Complete(1), Flush], WRAP, true),
    (
        "answers of all kinds in one batch",
        &[
            Send(1, Both),
            Send(2, Reply),
            Send(3, State),
            Send(4, Reply),
            Take(4),
            Complete(2),
            Complete(1),
            Notify(1),
            Complete(3),
            Flush,
            Complete(4),
            Notify(2),
            Flush,
            Collect(9),
        ],
        WRAP,
        false,
    ),
    (
        "answers of several packets that have to wait for room",
        &[
            Send(1, Long),
            Send(2, Long),
            Send(3, Both),
            Send(4, Reply),
            Take(4),
            Complete(1),
            Complete(2),
            Complete(3),
            Notify(1),
            Complete(4),
            Save(FIRST_OWN),
            Flush,
            Collect(1),
            Flush,
            Notify(2),
            Save(FIRST_OWN + 1),
            Flush,
        ],
        0,
        false,
    ),
    (
        "a state that changes by itself",
        &[
            Save(FIRST_OWN),
            Notify(1),
            Flush,
            Notify(2),
            Save(FIRST_OWN + 1),
            Send(1, Reply),
            Take(1),
            Complete(1),
            Save(FIRST_OWN + 2),
            Notify(3),
            Send(2, State),
            Take(1),
            Complete(2),
            Flush,
        ],
        0,
        false,
    ),
    (
        "states that change with notices",
        &[
            NotifyState(FIRST_OWN),
            Notify(1),
            NotifyState(FIRST_OWN + 1),
            Flush,
            Send(1, Both),
            Take(1),
            Complete(1),
            NotifyState(FIRST_OWN + 2),
            Save(FIRST_OWN + 3),
            NotifyState(FIRST_OWN + 4),
            Flush,
            Collect(9),
        ],
        WRAP,
        false,
    ),
    ("a notice and a state", &[NotifyState(FIRST_OWN), Notify(1), Save(FIRST_OWN + 1), Flush], WRAP, true),
    (
        "notices when there is no room",
        &[
            Send(1, Long),
            Take(1),
            Complete(1),
            Notify(1),
            Send(2, Long),
            Take(1),
            Complete(2),
            Notify(2),
            Flush,
            Collect(1),
            Flush,
            Notify(3),
            Flush,
            Collect(9),
        ],
        WRAP,
        false,
    ),
];

fn all() -> impl Iterator<Item = KillPoint> {
    KillPoint::ALL.into_iter().chain(KillPoint::LOANS).chain(KillPoint::NOTICES)
}

fn stores(world: &World, process: usize) -> u32 {
    world.stores[process]
}

#[test]
fn nothing_is_lost_or_doubled_wherever_a_process_dies() {
    for &(name, script, start, twice) in SCENARIOS {
        let whole = World::run(script, start, &[]);
        assert_eq!(whole.deaths, 0);
        for first in 0..stores(&whole, 0) {
            let run = |deaths: &[Death]| {
                let attempt = std::panic::catch_unwind(|| World::run(script, start, deaths));
                attempt.unwrap_or_else(|_| panic!("{name}: {deaths:?}"))
            };
            let once = run(&[Death::Store(first)]);
            assert_eq!(once.deaths, 1, "{name}");
            if !twice {
                continue;
            }
            for second in 0..stores(&once, 1) {
                let world = run(&[Death::Store(first), Death::Store(second)]);
                assert_eq!(world.deaths, 2, "{name}");
            }
        }
    }
}

/// At each kill point: the first, the middle and the last time that a process comes by. Those of a successor's adoption
/// are met by a successor of one that died at each store.
#[test]
fn every_kill_point_is_died_at() {
    let mut met = BTreeSet::new();
    for &(name, script, start, _) in SCENARIOS {
        let whole = World::run(script, start, &[]);
        for point in all() {
            let times =
                (1..).find(|&time| World::run(script, start, &[Death::Point(point, time)]).deaths == 0);
            let times = times.unwrap() - 1;
            for time in [1, times.div_ceil(2), times].into_iter().filter(|_| times > 0) {
                assert_eq!(World::run(script, start, &[Death::Point(point, time)]).deaths, 1, "{name}");
                met.insert(point.name());
            }
        }
        for first in (0..stores(&whole, 0)).step_by(3) {
            for point in all() {
                let world = World::run(script, start, &[Death::Store(first), Death::Point(point, 1)]);
                if world.deaths == 2 {
                    met.insert(point.name());
                }
            }
        }
    }
    let missed: Vec<_> = all().filter(|point| !met.contains(point.name())).collect();
    assert!(missed.is_empty(), "nobody died at {missed:?}");
}

#[test]
fn kill_points_are_named_once_and_armed_by_name() {
    let names: BTreeSet<_> = all().map(KillPoint::name).collect();
    assert_eq!(names.len(), all().count());
    for bad in ["", "nowhere:1", "taken:0", "taken:x", "taken:-1"] {
        assert!(arm_kill_point(bad).is_err(), "{bad}");
    }
    assert!(arm_kill_point("taken:3").is_ok());
    assert!(super::super::kill::armed::disarm());
}
