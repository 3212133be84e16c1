//! What passes a host device through, between a device and its core: what is asked and answered, what outlives the process, and what an old core does not have.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use ipc::event::Doorbell;
use ipc::message::{Offer, PASSTHROUGH_VERSION, ToCore, ToVsp};
use ipc::shm::{PAGE, SharedMemory};
use vsp::testing::{Bench, FakeCore, Target};
use vsp::{Access, Channels, Device, Packet, Request};

const GPA: u64 = 0xf800_0000;
const BYTES: u64 = PAGE as u64;

fn file() -> Arc<OwnedFd> {
    Arc::new(SharedMemory::create("host-device", BYTES).expect("memory").into())
}

fn bell() -> Arc<OwnedFd> {
    Arc::new(Doorbell::new().expect("an eventfd").into())
}

/// Writes down what it is told, and answers a read with the place that was read.
#[derive(Default)]
struct Diary {
    events: Vec<String>,
    kept: Vec<(u32, String, usize)>,
    /// Accesses that it keeps to itself.
    holds: bool,
    held: Vec<Access>,
}

impl Device for Diary {
    fn offer(&self) -> Offer {
        Offer::default()
    }

    fn packet(&mut self, _: Packet<'_>, request: Request, channels: &mut Channels) {
        request.complete(channels, &[]);
    }

    fn fence(&mut self, _: bool) -> Result<bool, String> {
        self.events.push("fence".into());
        Ok(true)
    }

    fn kept(&mut self, key: u32, note: String, fds: Vec<OwnedFd>) {
        self.events.push("kept".into());
        self.kept.push((key, note, fds.len()));
    }

    fn adopted(&mut self, _: &mut Channels) {
        self.events.push("adopted".into());
    }

    fn region(&mut self, gpa: u64, bytes: u64, offset: u64) {
        self.events.push(format!("region {gpa:#x} {bytes} {offset}"));
    }

    fn region_lost(&mut self, gpa: u64, _: &mut Channels) {
        self.events.push(format!("lost {gpa:#x}"));
    }

    fn trap(&mut self, gpa: u64, bytes: u64) {
        self.events.push(format!("trap {gpa:#x} {bytes}"));
    }

    fn trapped(&mut self, gpa: u64, result: Result<(), String>, _: &mut Channels) {
        self.events.push(format!("trapped {gpa:#x} {}", result.is_ok()));
    }

    fn memory_mapped(&mut self, gpa: u64, result: Result<(), String>, _: &mut Channels) {
        self.events.push(format!("mapped {gpa:#x} {}", result.is_ok()));
    }

    fn interrupt_ready(&mut self, id: u32, result: Result<(), String>, _: &mut Channels) {
        self.events.push(format!("interrupt {id} {}", result.is_ok()));
    }

    fn access(&mut self, access: Access, channels: &mut Channels) {
        self.events.push("access".into());
        if self.holds {
            self.held.push(access);
        } else {
            channels.access_done(access.id, access.gpa);
        }
    }
}

/// With a channel that the guest has opened.
fn open() -> (Bench<Diary>, vsp::testing::GuestEnd) {
    let mut bench = Bench::new(Diary::default(), 0);
    let guest = bench.open(1, 4);
    bench.settle();
    bench.runtime.with_device(|device, _| device.events.clear());
    (bench, guest)
}

fn ask(bench: &mut Bench<Diary>, act: impl FnOnce(&mut Channels)) {
    bench.runtime.with_channels(act);
    bench.settle();
}

fn events(bench: &mut Bench<Diary>) -> Vec<String> {
    bench.runtime.with_device(|device, _| std::mem::take(&mut device.events))
}

/// All that a device with one of each has.
fn furnish(bench: &mut Bench<Diary>) {
    ask(bench, |channels| {
        channels.keep(3, "file", &[file(), file()]);
        channels.map_region(GPA, BYTES, &file(), 4096);
        channels.trap(GPA + BYTES, 2 * BYTES);
        channels.interrupt(5, 40, 0, &bell());
    });
}

#[test]
fn what_is_asked_is_answered() {
    let (mut bench, _guest) = open();
    furnish(&mut bench);
    assert_eq!(events(&mut bench), ["mapped 0xf8000000 true", "trapped 0xf8001000 true", "interrupt 5 true"]);
    assert_eq!(bench.core.kept(), [(3, "file".to_owned(), 2)]);
    assert_eq!(bench.core.regions(), [(GPA, BYTES, 4096)]);
    assert_eq!(bench.core.traps(), [(GPA + BYTES, 2 * BYTES)]);
    assert_eq!(bench.core.interrupts(), [(5, Target { vector: 40, vp: 0 })]);
    assert_eq!(bench.read_trap(GPA + BYTES + 8, 4), GPA + BYTES + 8);
    bench.write_trap(GPA + BYTES, 8, 1);
    ask(&mut bench, |channels| {
        channels.forget(3);
        channels.unmap_memory(GPA);
        channels.untrap(GPA + BYTES);
        channels.delete_interrupt(5);
    });
    assert!(bench.core.kept().is_empty() && bench.core.regions().is_empty());
    assert!(bench.core.traps().is_empty() && bench.core.interrupts().is_empty());
}

#[test]
fn a_lost_region_is_told() {
    let (mut bench, _guest) = open();
    furnish(&mut bench);
    events(&mut bench);
    bench.core.lose_region(GPA);
    bench.settle();
    assert_eq!(events(&mut bench), ["lost 0xf8000000"]);
}

#[test]
fn nobody_hears_answers_to_what_was_asked_of_a_channel_that_has_closed() {
    let (mut bench, guest) = open();
    bench.runtime.with_channels(|channels| {
        channels.trap(GPA, BYTES);
        channels.interrupt(1, 40, 0, &bell());
    });
    bench.core.close(1);
    bench.settle();
    drop(guest);
    assert!(bench.core.traps().is_empty());
    assert_eq!(events(&mut bench), [] as [&str; 0]);
}

#[test]
fn a_successor_has_it_all_before_anything_else() {
    let (mut bench, _guest) = open();
    furnish(&mut bench);
    bench.runtime.with_device(|device, _| device.holds = true);
    let access = bench.core.access(GPA + BYTES, 4, None);
    bench.settle();
    assert_eq!(bench.runtime.device().held.len(), 1);
    let core = bench.kill();
    let mut bench = Bench::take_over(core, Diary::default());
    // As the core does, when all channels have been given.
    bench.core.send(&ToVsp::Access { id: access, gpa: GPA + BYTES, bytes: 4, write: None });
    assert_eq!(bench.answer(), ToCore::AccessDone { id: access, value: GPA + BYTES });
    // This core tells of what is mapped a little early.
    let expected =
        ["kept", "region 0xf8000000 4096 4096", "trap 0xf8001000 8192", "fence", "adopted", "access"];
    assert_eq!(events(&mut bench), expected);
    assert_eq!(bench.runtime.device().kept, [(3, "file".to_owned(), 2)]);
}

#[test]
fn an_access_waits_until_the_device_knows_its_channels() {
    let (mut bench, _guest) = open();
    furnish(&mut bench);
    let mut core = bench.kill();
    let (_, vsp) = core.successor();
    let mut next = Bench::with_core(core, vsp, Diary::default());
    // Before its channel: the core would not, but the device need not know that.
    let access = next.core.access(GPA + BYTES, 4, None);
    next.settle();
    assert!(!events(&mut next).contains(&"access".to_owned()));
    next.reopen_all();
    assert_eq!(next.answer(), ToCore::AccessDone { id: access, value: GPA + BYTES });
}

#[test]
fn a_channel_that_was_closed_meanwhile_is_let_go_of_when_the_device_knows() {
    let (mut core, _first) = FakeCore::new(0);
    let (_, vsp) = core.successor();
    let mut bench = Bench::with_core(core, vsp, Diary::default());
    bench.quiesce();
    events(&mut bench);
    let peer = bench.core.peer();
    peer.send(&ToVsp::Serve { predecessor: true }, &[]).unwrap();
    peer.send(&ToVsp::ChannelClose { channel: 7 }, &[]).unwrap();
    assert_eq!(bench.answer(), ToCore::Serving {});
    bench.settle();
    assert!(bench.core.try_answer().is_none(), "what the device does about it, it does in `adopted`");
    bench.core.peer().send(&ToVsp::Adopted {}, &[]).unwrap();
    assert_eq!(bench.answer(), ToCore::Closed { channel: 7 });
    assert_eq!(events(&mut bench), ["fence", "adopted"]);
    bench.core.peer().send(&ToVsp::ChannelClose { channel: 8 }, &[]).unwrap();
    assert_eq!(bench.answer(), ToCore::Closed { channel: 8 }, "later it is as ever");
}

#[test]
fn whoever_hands_over_forgets_what_it_was_asked() {
    let (mut bench, _guest) = open();
    furnish(&mut bench);
    bench.runtime.with_device(|device, _| device.holds = true);
    bench.core.access(GPA + BYTES, 4, None);
    bench.settle();
    bench.quiesce();
    // It is told to serve again, and of everything again.
    bench.serve(true);
    bench.reopen_all();
    bench.settle();
    let seen = events(&mut bench);
    let again = ["kept", "region 0xf8000000 4096 4096", "trap 0xf8001000 8192", "fence", "adopted"];
    assert!(seen.ends_with(&again.map(str::to_owned)), "{seen:?}");
}

#[test]
fn an_old_core_refuses_and_is_not_asked() {
    let (mut core, vsp) = FakeCore::new(0);
    core.version = PASSTHROUGH_VERSION - 1;
    let mut bench = Bench::with_core(core, vsp, Diary::default());
    let _guest = bench.open(1, 4);
    events(&mut bench);
    furnish(&mut bench);
    ask(&mut bench, |channels| channels.untrap(GPA));
    let mut seen = events(&mut bench);
    seen.sort();
    assert_eq!(seen, ["interrupt 5 false", "mapped 0xf8000000 false", "trapped 0xf8001000 false"]);
    assert!(bench.core.try_answer().is_none() && bench.core.kept().is_empty());
}

#[test]
fn bells_are_the_devices_own() {
    let (mut bench, _guest) = open();
    let own = bell();
    ask(&mut bench, |channels| channels.interrupt(1, 50, 0, &own));
    nix::unistd::write(own.as_fd(), &1u64.to_ne_bytes()).unwrap();
    let theirs = Doorbell::from_fd(bench.core.interrupt_bell(1).unwrap()).unwrap();
    assert!(theirs.drain().unwrap());
}
