//! Every order of events, at random.

use super::*;

/// Numbers that look random and are the same every time (xorshift64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// Processes do anything at any time. There are never more of a device than one that serves, one that stands by and those
/// that were told to go; and once they behave, the device is served again.
#[test]
fn any_order_of_events_ends_with_a_process_that_serves() {
    for seed in 1..400 {
        let mut dice = Dice(u64::wrapping_mul(seed, 0x9e37_79b9_7f4a_7c15));
        let mut story = Story::new(seed % 2 == 0);
        let mut alive = vec![1];
        let mut swaps = 0;
        let mut run = |story: &mut Story, alive: &mut Vec<u64>, event: Event| {
            swaps += i32::from(event == Event::Swap(0));
            for action in story.on(event) {
                match action {
                    Action::Start { device: 0, process, .. } => alive.push(process.0),
                    Action::KillCore | Action::KillDevices => panic!("seed {seed}: a device ended the VM"),
                    Action::SwapDone { .. } => swaps -= 1,
                    Action::Adopt { .. } => assert!(swaps > 0, "seed {seed}: adopted without a swap"),
                    _ => {}
                }
            }
            let under_way = i32::from(story.disk0().is_swapping);
            assert_eq!(swaps, under_way, "seed {seed}: each swap is answered once");
        };
        run(&mut story, &mut alive, Event::Said(ProcessId(1), Word::Serving));
        for _ in 0..300 {
            let id = alive.get(dice.below(alive.len().max(1) as u64) as usize).copied().unwrap_or(99);
            let event = match dice.below(14) {
                0 => Event::Said(ProcessId(id), Word::Ready),
                1 => Event::Said(ProcessId(id), Word::StandingBy),
                2 | 3 => Event::Said(ProcessId(id), Word::Serving),
                4 | 5 => {
                    alive.retain(|other| *other != id);
                    let deaths = [KILLED, FAULT, Death::Exited(0), Death::Exited(7)];
                    Event::Ended(ProcessId(id), deaths[dice.below(4) as usize].clone())
                }
                6 => Event::Swap(0),
                12 => Event::Said(ProcessId(id), Word::Quiet),
                7 => Event::Swapped(0, MS),
                8 => Event::SwapFailed(0, String::new()),
                9 => Event::CutOff { device: 0, had_channels: dice.below(2) == 0, reason: String::new() },
                10 => Event::Restart(0),
                13 => Event::Renew(0),
                _ => {
                    story.now += MS * dice.below(400) as u32;
                    let _ = story.says(2, Word::Alive);
                    Event::Tick
                }
            };
            run(&mut story, &mut alive, event);
            let known = story.vm.devices[0].processes();
            assert_eq!(known, alive.len(), "seed {seed}: {alive:?} {:?}", story.vm.devices[0]);
        }
        // Now they behave: whoever is told to go goes, and whoever is the heir serves.
        for _ in 0..400 {
            story.now += SPARE_PAUSE;
            let _ = story.says(2, Word::Alive);
            run(&mut story, &mut alive, Event::Tick);
            let view = story.disk0();
            let (main, spare) = (view.main, view.spare);
            for id in alive.clone() {
                let id = ProcessId(id);
                let event = match () {
                    () if Some(id) == main && story.disk0().state != State::Hung => {
                        Event::Said(id, Word::Serving)
                    }
                    () if Some(id) == spare => Event::Said(id, Word::Alive),
                    () => {
                        alive.retain(|other| *other != id.0);
                        Event::Ended(id, KILLED)
                    }
                };
                run(&mut story, &mut alive, event);
            }
        }
        assert_eq!(story.disk0().state, State::Serving, "seed {seed}: {:?}", story.vm.devices[0]);
    }
}
