//! Who serves, without processes: letters stand for them.

use super::*;

type S = Slot<char>;

const NOBODY: Vec<Act<char>> = Vec::new();

fn serve(role: Role, predecessor: bool) -> Act<char> {
    Act::Serve { role, predecessor }
}

fn at(seconds: u64, start: Instant) -> Instant {
    start + Duration::from_secs(seconds)
}

/// 'a' serves.
fn served(now: Instant) -> S {
    let mut slot = S::new();
    assert_eq!(slot.attach('a', now), [serve(Role::Seated, false)]);
    assert_eq!(slot.serving(Role::Seated, now), Ok(vec![Act::Open]));
    slot
}

/// 'a' hands over to 'b'.
fn swapping(now: Instant) -> (S, Order) {
    let mut slot = served(now);
    assert_eq!(slot.attach('b', now), NOBODY);
    assert_eq!(slot.swap(9, now, now), Ok(vec![Act::Quiesce]));
    (slot, Order { operator: 9, since: now, is_old_stray: false })
}

#[test]
fn one_serves_one_stands_by_a_third_has_no_room() {
    let now = Instant::now();
    let mut slot = S::new();
    assert_eq!(slot.room(), Ok(false));
    slot.attach('a', now);
    assert!(slot.taker().is_none() && !slot.is_served());
    assert_eq!(slot.room(), Ok(true));
    slot.attach('b', now);
    assert!(slot.room().is_err());
    assert_eq!(slot.serving(Role::Standby, now), Err(()));
    assert_eq!(slot.serving(Role::Seated, now), Ok(vec![Act::Open]));
    assert_eq!(slot.serving(Role::Seated, now), Err(()), "once");
    assert_eq!(slot.taker(), Some((Role::Seated, &'a')));
}

#[test]
fn every_message_out_of_turn_is_an_error_and_changes_nothing() {
    let now = Instant::now();
    let mut slots = vec![S::new(), served(now), swapping(now).0];
    let mut handing = swapping(now).0;
    handing.quiesced(Role::Old, now).unwrap();
    slots.push(handing);
    let mut adopting = swapping(now).0;
    adopting.quiesced(Role::Old, now).unwrap();
    adopting.serving(Role::New, now).unwrap();
    slots.push(adopting);
    let legal = [(2, Role::Old, false), (3, Role::New, true)];
    for (i, slot) in slots.iter_mut().enumerate() {
        for role in [Role::Seated, Role::Old, Role::New, Role::Standby, Role::Ghost] {
            for serving in [true, false] {
                if legal.contains(&(i, role, serving)) {
                    continue;
                }
                let before = format!("{slot:?}");
                let result = if serving { slot.serving(role, now) } else { slot.quiesced(role, now) };
                assert_eq!(result, Err(()), "{i} {role:?} {serving}");
                assert_eq!(format!("{slot:?}"), before);
            }
        }
    }
}

#[test]
fn a_death_promotes_the_standby_and_opens_the_fence_again() {
    let now = Instant::now();
    let mut slot = served(now);
    slot.attach('b', now);
    assert!(slot.is_fenced());
    let acts = slot.leave(Role::Seated, Leave::Gone, now);
    assert_eq!(acts, [Act::Release, serve(Role::Seated, true)]);
    assert!(!slot.is_fenced() && slot.get(Role::Seated) == Some(&'b'));
    assert_eq!(slot.leave(Role::Seated, Leave::Gone, now), [Act::Release], "it may have begun");
    assert!(!slot.is_fenced() && slot.is_empty());
    slot.attach('c', now);
    slot.serving(Role::Seated, now).unwrap();
    assert!(slot.is_fenced());
    assert_eq!(slot.takeovers(), 1);
}

#[test]
fn nobody_serves_while_one_that_had_channels_lives_on() {
    let now = Instant::now();
    let mut slot = served(now);
    let why = Leave::CutOff("x".into());
    let acts = slot.leave(Role::Seated, why.clone(), now);
    assert_eq!(acts, [Act::Dismiss(None, why), Act::Release]);
    assert_eq!(slot.get(Role::Ghost), Some(&'a'));
    assert_eq!(slot.room(), Ok(true), "it will have to stand by");
    assert_eq!(slot.attach('b', now), NOBODY);
    assert_eq!(slot.attach('c', now), NOBODY);
    assert_eq!(slot.serving(Role::Seated, now), Err(()), "not told to");
    // Whoever is first in line when the ghost ends.
    assert_eq!(slot.leave(Role::Seated, Leave::Gone, now), NOBODY);
    assert_eq!(slot.get(Role::Seated), Some(&'c'));
    assert_eq!(slot.leave(Role::Ghost, Leave::Gone, now), [serve(Role::Seated, true)]);
}

#[test]
fn one_that_was_dismissed_and_does_not_end_is_reported_again_and_again() {
    for why in [Leave::Refused("x".into()), Leave::CutOff("x".into())] {
        let mut now = Instant::now();
        let mut slot = served(now);
        slot.leave(Role::Seated, why, now);
        for _ in 0..3 {
            assert_eq!(slot.deadline(), Some(now + GHOST_GRACE));
            assert_eq!(slot.tick(now), NOBODY);
            now += GHOST_GRACE;
            assert_eq!(slot.tick(now), [Act::Lingers]);
        }
        slot.leave(Role::Ghost, Leave::Gone, now);
        assert_eq!((slot.deadline(), slot.tick(at(9, now))), (None, NOBODY));
    }
}

#[test]
fn an_old_process_that_strays_is_reported_with_the_loss_of_the_new_one() {
    let now = Instant::now();
    let (mut slot, order) = swapping(now);
    slot.quiesced(Role::Old, now).unwrap();
    let why = Leave::CutOff("x".into());
    assert_eq!(slot.leave(Role::Old, why.clone(), now), [Act::Discard('a', why)]);
    // The new one serves: nothing is left to say.
    slot.serving(Role::Seated, now).unwrap();
    assert_eq!(slot.adopted(now), [Act::Swapped(Order { is_old_stray: true, ..order })]);
    assert_eq!(slot.deadline(), None);
    // It does not: the old one, which nobody hears any more, has to be ended.
    let (mut slot, _) = swapping(now);
    slot.quiesced(Role::Old, now).unwrap();
    slot.leave(Role::Old, Leave::CutOff("x".into()), now);
    let acts = slot.leave(Role::Seated, Leave::Gone, now);
    assert!(matches!(acts.as_slice(), [Act::Release, Act::Failed(9, _)]), "{acts:?}");
    assert_eq!(slot.tick(now), NOBODY);
    assert_eq!(slot.tick(now + GHOST_GRACE), [Act::Strays]);
    assert_eq!((slot.deadline(), slot.tick(at(9, now))), (None, NOBODY));
}

#[test]
fn a_hand_over_step_by_step() {
    let now = Instant::now();
    let (mut slot, order) = swapping(now);
    assert_eq!((slot.holder(), slot.taker()), (Some((Role::Old, &'a')), None));
    assert_eq!(slot.deadline(), Some(now + QUIESCE_GRACE));
    assert!(slot.swap(3, at(5, now), now).is_err(), "one at a time");
    let acts = slot.quiesced(Role::Old, now).unwrap();
    assert_eq!(acts, [Act::Release, serve(Role::New, true)]);
    assert!(slot.holder().is_none() && slot.is_fenced());
    assert_eq!(slot.serving(Role::New, now), Ok(vec![Act::Open]));
    assert_eq!(slot.taker(), Some((Role::New, &'b')));
    assert_eq!(slot.adopted(now), [Act::Retire('a'), Act::Swapped(order)]);
    assert_eq!((slot.taker(), slot.takeovers()), (Some((Role::Seated, &'b')), 1));
    assert_eq!(slot.adopted(now), NOBODY);
}

#[test]
fn whoever_is_lost_the_other_one_serves() {
    let now = Instant::now();
    for (step, lost) in (0..3).flat_map(|step| [(step, Role::Old), (step, Role::New)]) {
        let (mut slot, order) = swapping(now);
        if step > 0 {
            slot.quiesced(Role::Old, now).unwrap();
        }
        if step > 1 {
            slot.serving(Role::New, now).unwrap();
        }
        let mut acts = slot.leave(lost, Leave::Gone, now);
        if lost == Role::New && step == 0 {
            // Told to stop, it stops first.
            assert_eq!(acts, NOBODY);
            acts = slot.quiesced(Role::Old, now).unwrap();
        }
        let told = acts.contains(&serve(Role::Seated, true));
        let (left, expected) = if lost == Role::Old { ('b', step == 0) } else { ('a', true) };
        assert_eq!(told, expected, "step {step}, {lost:?} is lost");
        if slot.get(Role::Seated).is_some() {
            let acts = slot.serving(Role::Seated, now).unwrap();
            assert!(acts.contains(&Act::Open));
            if lost == Role::New {
                assert!(matches!(acts.as_slice(), [Act::Open, Act::Failed(9, _)]), "{acts:?}");
            }
        }
        if lost == Role::Old {
            assert_eq!(slot.adopted(now), [Act::Swapped(order)]);
        }
        assert_eq!(slot.get(Role::Seated), Some(&left));
        assert!(matches!(slot.seat, Seat::Serving { .. }));
        assert_eq!(slot.takeovers(), u64::from(lost == Role::Old));
    }
}

#[test]
fn time_limits_decide_every_step() {
    let now = Instant::now();
    // The old one does not stop: it is cut off, and the new one waits for its end.
    let (mut slot, _) = swapping(now);
    let acts = slot.tick(now + QUIESCE_GRACE);
    assert!(matches!(acts.as_slice(), [Act::Dismiss(None, Leave::CutOff(_)), Act::Release]), "{acts:?}");
    assert_eq!(slot.get(Role::Seated), Some(&'b'));
    assert_eq!(slot.leave(Role::Ghost, Leave::Gone, now), [serve(Role::Seated, true)]);
    // The new one does not say that it serves, and may have begun all the same: the old one waits for its end.
    let (mut slot, _) = swapping(now);
    slot.quiesced(Role::Old, now).unwrap();
    let acts = slot.tick(now + FENCE_GRACE);
    assert!(matches!(acts.as_slice(), [Act::Dismiss(None, Leave::CutOff(_)), Act::Release]), "{acts:?}");
    assert!(!slot.is_fenced() && !slot.has_ghost_served() && slot.get(Role::Ghost) == Some(&'b'));
    assert_eq!(slot.leave(Role::Ghost, Leave::Gone, now), [serve(Role::Seated, true)]);
    // The new one has said so: the same.
    let (mut slot, _) = swapping(now);
    slot.quiesced(Role::Old, now).unwrap();
    slot.serving(Role::New, now).unwrap();
    let acts = slot.tick(now + ADOPT_GRACE);
    assert!(matches!(acts.as_slice(), [Act::Dismiss(None, Leave::CutOff(_)), Act::Release]), "{acts:?}");
    assert!(!slot.is_fenced() && slot.has_ghost_served());
    assert_eq!(slot.leave(Role::Ghost, Leave::Gone, now), [serve(Role::Seated, true)]);
}

#[test]
fn one_that_was_told_to_serve_is_waited_for_though_it_has_not_said_that_it_does() {
    let now = Instant::now();
    let why = Leave::CutOff("x".into());
    let mut slot = S::new();
    slot.attach('a', now);
    slot.attach('b', now);
    assert_eq!(slot.leave(Role::Seated, why.clone(), now), [Act::Dismiss(None, why.clone()), Act::Release]);
    assert_eq!((slot.get(Role::Ghost), slot.get(Role::Seated)), (Some(&'a'), Some(&'b')));
    assert!(slot.is_fenced() && !slot.has_ghost_served(), "no channel was served before");
    assert_eq!(slot.serving(Role::Seated, now), Err(()), "not told to");
    assert_eq!(slot.leave(Role::Ghost, Leave::Gone, now), [serve(Role::Seated, false)]);
    slot.serving(Role::Seated, now).unwrap();
    // A successor may have begun with what 'b' has left.
    slot.leave(Role::Seated, Leave::Gone, now);
    assert_eq!(slot.attach('c', now), [serve(Role::Seated, true)]);
    slot.attach('d', now);
    assert_eq!(slot.leave(Role::Seated, why.clone(), now), [Act::Dismiss(None, why), Act::Release]);
    assert!(!slot.is_fenced() && !slot.has_ghost_served());
    assert_eq!(slot.tick(now + GHOST_GRACE), [Act::Lingers]);
    assert_eq!(slot.leave(Role::Ghost, Leave::Gone, now), [serve(Role::Seated, true)]);
}

#[test]
fn an_operator_waits_for_both() {
    let now = Instant::now();
    let mut slot = S::new();
    assert_eq!(slot.swap(1, at(5, now), now), Ok(NOBODY));
    assert_eq!(slot.deadline(), Some(at(5, now)));
    slot.attach('a', now);
    slot.attach('b', now);
    assert_eq!(slot.serving(Role::Seated, now), Ok(vec![Act::Open, Act::Quiesce]));
    let mut slot = served(now);
    slot.swap(1, at(5, now), now).unwrap();
    assert_eq!(slot.tick(at(4, now)), NOBODY);
    assert_eq!(slot.tick(at(5, now)), [Act::Failed(1, "no process stands by".into())]);
    assert_eq!(slot.swap(1, now, now), Err("no process stands by".into()));
    assert_eq!(slot.attach('b', now), NOBODY, "nobody waits any more");
}

/// Every sequence of events of some length, with what must always hold.
#[test]
fn whatever_happens_one_process_at_most_has_channels() {
    let now = Instant::now();
    let roles = [Role::Seated, Role::Old, Role::New, Role::Standby, Role::Ghost];
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..20_000_u64 {
        let mut dice = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut roll = |sides: u64| {
            dice ^= dice >> 12;
            dice ^= dice << 25;
            dice ^= dice >> 27;
            (dice.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
        };
        let mut slot: Slot<u32> = Slot::new();
        let (mut next, mut time) = (0, now);
        // The one that was told to serve last and has neither given up nor ended.
        let mut owner: Option<u32> = None;
        let mut owed = 0;
        for _ in 0..40 {
            let role = roles[roll(5) as usize];
            let who = slot.get(role).copied();
            let mut dead = None;
            let mut gave_up = None;
            let acts = match roll(8) {
                0 | 1 if slot.room().is_ok() => {
                    next += 1;
                    slot.attach(next, time)
                }
                2 | 3 => slot.serving(role, time).unwrap_or_default(),
                4 => {
                    let said = slot.quiesced(role, time);
                    gave_up = who.filter(|_| said.is_ok());
                    said.unwrap_or_default()
                }
                5 if who.is_some() => {
                    dead = who;
                    slot.leave(role, Leave::Gone, time)
                }
                6 if who.is_some() && role != Role::Ghost => {
                    slot.leave(role, Leave::CutOff(String::new()), time)
                }
                7 => {
                    if roll(2) == 0 {
                        slot.swap(1, at(roll(20), time), time).inspect(|_| owed += 1).unwrap_or_default()
                    } else if slot.is_adopting() {
                        slot.adopted(time)
                    } else {
                        time = at(roll(8), time);
                        slot.tick(time)
                    }
                }
                _ => continue,
            };
            if owner == dead || owner == gave_up {
                owner = None;
            }
            seen.insert(format!("{:?}", std::mem::discriminant(&slot.seat)));
            for act in acts {
                match act {
                    Act::Serve { role, .. } => {
                        assert!(owner.is_none(), "seed {seed}: {owner:?} has not given up: {slot:?}");
                        owner = slot.get(role).copied();
                        assert!(owner.is_some());
                    }
                    Act::Swapped(_) | Act::Failed(..) => {
                        assert!(owed > 0, "seed {seed}: answered twice");
                        owed -= 1;
                    }
                    _ => {}
                }
            }
            // From the order to serve on, whether or not it has said that it does.
            assert!(
                owner.is_none_or(|o| slot.all().any(|(_, &p)| p == o)),
                "seed {seed}: {owner:?} is forgotten"
            );
            assert!(slot.all().count() <= 4);
            assert!(!(slot.is_empty() && slot.has_standby()));
        }
        // With time every operator is answered, or a ghost holds things up.
        for _ in 0..8 {
            if slot.get(Role::Ghost).is_some() {
                slot.leave(Role::Ghost, Leave::Gone, time);
            }
            for role in [Role::Seated, Role::New, Role::Old] {
                time = at(20, time);
                let mut acts = slot.tick(time);
                acts.extend(slot.serving(role, time).unwrap_or_default());
                acts.extend(slot.quiesced(role, time).unwrap_or_default());
                acts.extend(slot.adopted(time));
                let answers = acts.iter().filter(|a| matches!(a, Act::Swapped(_) | Act::Failed(..)));
                owed -= answers.count();
            }
        }
        assert_eq!(owed, 0, "seed {seed}: an operator waits for ever: {slot:?}");
    }
    assert!(seen.len() >= 7, "{seen:?}");
}
