//! Memory of devices' own that the guest sees.

use std::os::fd::AsFd;

use ipc::message::MAX_DEVICE_MAPPINGS;

use super::*;
use crate::layout::{VMBUS_HIGH_MMIO_BASE, VMBUS_LOW_MMIO};

const GPA: u64 = VMBUS_LOW_MMIO.0;
/// What device "a" may map; "bb" may as much.
const MOST: u64 = 8 * PAGE;

fn memory(pages: u64) -> SharedMemory {
    SharedMemory::create("test-device", pages * PAGE).unwrap()
}

impl Rig {
    fn asks_to_map(&mut self, device: &Peer, gpa: u64, bytes: u64, memory: &[&SharedMemory]) {
        let fds: Vec<_> = memory.iter().map(|memory| memory.as_fd()).collect();
        device.send(&ToCore::MapMemory { gpa, bytes }, &fds).unwrap();
        self.poll();
    }

    fn map(&mut self, device: &Peer, gpa: u64, bytes: u64, memory: &[&SharedMemory]) -> Result<(), String> {
        self.asks_to_map(device, gpa, bytes, memory);
        match said(device) {
            Some(ToVsp::MemoryMapped { gpa: g, result }) if g == gpa => result,
            other => panic!("{other:?}"),
        }
    }

    /// What the guest sees: addresses and lengths.
    fn seen(&self) -> Vec<(u64, u64)> {
        self.mock.mapped.borrow().iter().map(|(gpa, (bytes, _))| (*gpa, *bytes)).collect()
    }

    /// Whether it sees this memory there.
    fn sees(&self, gpa: u64, memory: &SharedMemory) -> bool {
        let mapped = self.mock.mapped.borrow();
        mapped.get(&gpa).is_some_and(|(_, fd)| same(fd, &memory.try_clone().unwrap().into()))
    }
}

/// Channels 1 of "a" and 2 of "bb" open.
fn ready() -> (Rig, Peer, Peer) {
    let slots = ["a", "bb"].map(|name| DeviceSlot { device_memory: MOST, ..slot(name) });
    let mut rig = Rig::with(slots.into(), vec![own_uid()]);
    let (a, b) = (rig.attach("a"), rig.attach("bb"));
    rig.contact();
    rig.post(GuestMessage::RequestOffers);
    rig.heard();
    rig.open(&a, 1, 1);
    rig.open(&b, 2, 2);
    (rig, a, b)
}

/// All that a process is told, up to the first request to open a channel.
fn told_first(device: &Peer) -> Vec<(u64, u64, OwnedFd)> {
    let mut all = Vec::new();
    loop {
        match told(device) {
            Some((ToVsp::Memory { gpa, bytes }, mut fds)) => all.push((gpa, bytes, fds.remove(0))),
            Some((ToVsp::ChannelOpen { .. }, _)) => return all,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_devices_memory_is_seen_where_it_wants_it() {
    let (mut rig, a, _b) = ready();
    let own = memory(4);
    assert_eq!(rig.map(&a, GPA, 3 * PAGE, &[&own]), Ok(()));
    assert!(rig.sees(GPA, &own));
    assert_eq!(rig.map(&a, VMBUS_HIGH_MMIO_BASE, PAGE, &[&own]), Ok(()), "twice, elsewhere");
    assert_eq!(rig.seen(), [(GPA, 3 * PAGE), (VMBUS_HIGH_MMIO_BASE, PAGE)]);
    rig.says(&a, &ToCore::UnmapMemory { gpa: GPA });
    rig.says(&a, &ToCore::UnmapMemory { gpa: GPA });
    assert_eq!(rig.seen(), [(VMBUS_HIGH_MMIO_BASE, PAGE)]);
    assert!(told(&a).is_none() && !is_cut_off(&a));
}

#[test]
fn the_same_place_again_is_a_replacement() {
    let (mut rig, a, _b) = ready();
    let (first, second) = (memory(4), memory(8));
    rig.map(&a, GPA, 4 * PAGE, &[&first]).unwrap();
    // The mock would not have it mapped twice: the same is left alone.
    rig.map(&a, GPA, 4 * PAGE, &[&first]).unwrap();
    rig.map(&a, GPA, 8 * PAGE, &[&second]).unwrap();
    assert_eq!(rig.seen(), [(GPA, 8 * PAGE)]);
    assert!(rig.sees(GPA, &second));
    assert!(rig.map(&a, GPA, 9 * PAGE, &[&memory(9)]).is_err());
    assert!(rig.sees(GPA, &second), "a refusal leaves it");
}

#[test]
fn what_was_there_comes_back_if_the_next_cannot_be_mapped() {
    let (mut rig, a, _b) = ready();
    let (first, second) = (memory(4), memory(1));
    rig.mock.failing_maps.set(1);
    assert!(rig.map(&a, GPA, 4 * PAGE, &[&first]).is_err());
    assert_eq!(rig.map(&a, GPA, 4 * PAGE, &[&first]), Ok(()), "nothing is left of it");
    rig.mock.failing_maps.set(1);
    assert!(rig.map(&a, GPA, PAGE, &[&second]).is_err());
    assert_eq!(rig.seen(), [(GPA, 4 * PAGE)]);
    assert!(rig.sees(GPA, &first));
    assert!(rig.map(&a, GPA + PAGE, PAGE, &[&second]).is_err(), "and it is known to be there");

    rig.mock.failing_maps.set(2);
    assert!(rig.map(&a, GPA, PAGE, &[&second]).is_err());
    assert_eq!(rig.seen(), [], "neither could be");
    assert_eq!(rig.map(&a, GPA, PAGE, &[&second]), Ok(()), "and nothing is left of either");
    assert!(rig.sees(GPA, &second));
    assert!(rig.server.failure().is_none());
}

#[test]
fn the_vm_ends_if_a_devices_memory_cannot_be_taken_back() {
    for how in 0..4 {
        let (mut rig, a, _b) = ready();
        rig.map(&a, GPA, PAGE, &[&memory(1)]).unwrap();
        rig.mock.fails_to_unmap.set(true);
        match how {
            0 => rig.says(&a, &ToCore::UnmapMemory { gpa: GPA }),
            1 => assert!(rig.map(&a, GPA, PAGE, &[&memory(1)]).is_err()),
            2 => rig.closes(1),
            _ => rig.server.reset(&rig.mock),
        }
        assert!(rig.server.failure().is_some_and(|why| why.contains("taken back")), "{how}");
    }
}

#[test]
fn nothing_is_mapped_that_is_in_the_way_or_too_much() {
    let (mut rig, a, b) = ready();
    let own = memory(8);
    let no = |rig: &mut Rig, device: &Peer, gpa, bytes, memory: &[&SharedMemory]| {
        let seen = rig.seen();
        assert!(rig.map(device, gpa, bytes, memory).is_err(), "{gpa:#x} {bytes:#x}");
        assert_eq!(rig.seen(), seen);
    };
    for (gpa, bytes) in [
        (GPA, 0),
        (GPA + 8, PAGE),
        (GPA, PAGE + 8),
        (GPA - PAGE, PAGE),
        (0, PAGE),
        (RAM - PAGE, PAGE),
        (u64::MAX - PAGE + 1, PAGE),
        (GPA, u64::MAX - PAGE + 1),
        (GPA, 9 * PAGE),
    ] {
        no(&mut rig, &a, gpa, bytes, &[&own]);
    }
    no(&mut rig, &a, GPA, PAGE, &[]);
    no(&mut rig, &a, GPA, PAGE, &[&own, &own]);
    no(&mut rig, &a, GPA, 8 * PAGE, &[&memory(7)]);
    rig.map(&a, GPA + PAGE, 2 * PAGE, &[&own]).unwrap();
    for (gpa, bytes) in [(GPA, 2 * PAGE), (GPA + 2 * PAGE, PAGE), (GPA, 4 * PAGE)] {
        no(&mut rig, &a, gpa, bytes, &[&own]);
        no(&mut rig, &b, gpa, bytes, &[&own]);
    }
    no(&mut rig, &b, GPA + PAGE, 2 * PAGE, &[&own]);
    // 6 pages are left, and three more mappings.
    no(&mut rig, &a, GPA + 16 * PAGE, 7 * PAGE, &[&own]);
    for n in 1..MAX_DEVICE_MAPPINGS as u64 {
        rig.map(&a, GPA + 16 * n * PAGE, PAGE, &[&own]).unwrap();
    }
    no(&mut rig, &a, GPA + 128 * PAGE, PAGE, &[&own]);
    rig.map(&a, GPA + 16 * PAGE, 4 * PAGE, &[&own]).unwrap();
    rig.map(&b, GPA + 3 * PAGE, 8 * PAGE, &[&own]).unwrap();
    rig.says(&b, &ToCore::UnmapMemory { gpa: GPA + PAGE });
    assert_eq!(rig.seen().len(), 5, "another device's stays");
}

#[test]
fn files_that_could_end_the_vm_are_refused() {
    let (mut rig, a, _b) = ready();
    let map = |rig: &mut Rig, fd: &OwnedFd| {
        a.send(&ToCore::MapMemory { gpa: GPA, bytes: PAGE }, &[fd.as_fd()]).unwrap();
        rig.poll();
        matches!(said(&a), Some(ToVsp::MemoryMapped { result: Ok(()), .. }))
    };
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let unsealed = memfd_create(c"open", MFdFlags::MFD_ALLOW_SEALING).unwrap();
    nix::unistd::ftruncate(&unsealed, PAGE as i64).unwrap();
    assert!(!map(&mut rig, &unsealed));
    let plain = std::fs::File::open("/proc/self/exe").unwrap();
    assert!(!map(&mut rig, &plain.into()));
    if let Ok(large) = memfd_create(c"large", MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_HUGETLB) {
        use nix::fcntl::{FcntlArg, SealFlag, fcntl};
        nix::unistd::ftruncate(&large, 8 << 20).unwrap();
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&large, FcntlArg::F_ADD_SEALS(seals)).unwrap();
        assert!(!map(&mut rig, &large));
    }
    assert!(map(&mut rig, &memory(1).into()));
}

#[test]
fn it_ends_with_the_channel_or_the_guest() {
    for how in 0..3 {
        let (mut rig, a, b) = ready();
        rig.map(&a, GPA, PAGE, &[&memory(1)]).unwrap();
        rig.map(&b, GPA + PAGE, PAGE, &[&memory(1)]).unwrap();
        match how {
            0 => {
                rig.closes(1);
                assert_eq!(rig.seen(), [(GPA + PAGE, PAGE)], "at once, whatever the device does");
                assert_eq!(said(&a), Some(ToVsp::ChannelClose { channel: 1 }));
                assert!(rig.map(&a, GPA, PAGE, &[&memory(1)]).is_err(), "it is closing");
                rig.says(&a, &ToCore::Closed { channel: 1 });
                assert!(rig.map(&a, GPA, PAGE, &[&memory(1)]).is_err(), "it is closed");
            }
            1 => rig.server.reset(&rig.mock),
            _ => rig.post(GuestMessage::Unload),
        }
        assert_eq!(rig.seen().len(), usize::from(how == 0), "{how}");
        assert!(!is_cut_off(&a));
    }
}

#[test]
fn it_ends_while_nobody_serves() {
    let (mut rig, a, _b) = ready();
    rig.map(&a, GPA, PAGE, &[&memory(1)]).unwrap();
    drop(a);
    rig.poll();
    assert_eq!(rig.seen(), [(GPA, PAGE)]);
    rig.closes(1);
    assert_eq!(rig.seen(), []);
    let next = rig.attach_again("a");
    assert!(told(&next).is_none(), "nothing is left for the next one");
}

#[test]
fn a_successor_is_given_it_before_any_channel() {
    let (mut rig, a, _b) = ready();
    let own = memory(2);
    rig.map(&a, GPA, PAGE, &[&own]).unwrap();
    rig.map(&a, GPA + PAGE, 2 * PAGE, &[&own]).unwrap();
    drop(a);
    rig.poll();
    assert_eq!(rig.seen().len(), 2, "the guest notices nothing");
    let next = rig.attach_again("a");
    let given = told_first(&next);
    assert_eq!(given.iter().map(|(gpa, bytes, _)| (*gpa, *bytes)).collect::<Vec<_>>(), rig.seen());
    let own: OwnedFd = own.into();
    assert!(given.iter().all(|(_, _, fd)| same(fd, &own)));
    // It may map before it has answered for its channel: it has it.
    let other = memory(1);
    rig.map(&next, GPA, PAGE, &[&other]).unwrap();
    assert!(rig.sees(GPA, &other));
    rig.answers(&next, 1, 0);
}

#[test]
fn a_hand_over_gives_it_to_whoever_serves_in_the_end() {
    let (mut rig, a, _b) = ready();
    rig.map(&a, GPA, PAGE, &[&memory(1)]).unwrap();
    let new = rig.arrive("a", true);
    let operator = rig.operator();
    rig.asks(&operator, &Request::Swap { device: "a".into(), wait_ms: 0 });
    assert_eq!(said(&a), Some(ToVsp::Quiesce {}));
    rig.says(&a, &ToCore::Quiesced {});
    rig.asks_to_map(&new, GPA, PAGE, &[]);
    assert!(is_cut_off(&new), "it does not serve yet");
    drop(new);
    rig.poll();
    // The old one has it back.
    rig.serve(&a, true);
    assert_eq!(told_first(&a).len(), 1);
    rig.answers(&a, 1, 0);
    assert_eq!(rig.seen(), [(GPA, PAGE)]);
}

#[test]
fn who_may_not_map_is_told_so_and_who_cannot_know_of_it_is_cut_off() {
    let (mut rig, a, _b) = Rig::running();
    rig.open(&a, 1, 1);
    assert!(rig.map(&a, GPA, PAGE, &[&memory(1)]).is_err(), "its slot has none");

    let (mut rig, a, _b) = ready();
    rig.map(&a, GPA, PAGE, &[&memory(1)]).unwrap();
    drop(a);
    rig.poll();
    let ToCore::Hello { device, offer, ledger, build, .. } = hello("a") else { unreachable!() };
    let versions = Versions { min: 2, max: 4 };
    let old = rig.meet(&ToCore::Hello { versions, device, offer, ledger, build });
    assert!(matches!(said(&old), Some(ToVsp::Welcome { version: 4, .. })));
    rig.serve(&old, true);
    assert!(told_first(&old).is_empty(), "it would not understand");
    rig.answers(&old, 1, 0);
    assert_eq!(rig.seen(), [(GPA, PAGE)]);
    rig.asks_to_map(&old, GPA, PAGE, &[&memory(1)]);
    assert!(is_cut_off(&old));
}

#[test]
fn a_device_that_maps_and_does_not_listen_is_cut_off() {
    let (mut rig, a, _b) = ready();
    let own = memory(1);
    for _ in 0..100_000 {
        if a.send(&ToCore::MapMemory { gpa: GPA, bytes: PAGE }, &[own.as_fd()]).is_err() {
            break;
        }
        rig.poll();
    }
    assert!(is_cut_off(&a));
    assert_eq!(rig.seen(), [(GPA, PAGE)], "what it has mapped is its successor's");
}

#[test]
fn a_device_that_maps_and_takes_back_all_the_time_soon_maps_nothing() {
    let (mut rig, a, b) = ready();
    let own = memory(1);
    let start = std::time::Instant::now();
    let mut mapped = 0;
    let mut storm = |rig: &mut Rig, device: &Peer| {
        for _ in 0..500 {
            mapped += u128::from(rig.map(device, GPA, PAGE, &[&own]).is_ok());
            rig.says(device, &ToCore::UnmapMemory { gpa: GPA });
        }
        let most = 64 + start.elapsed().as_millis() / 31;
        assert!((64..=most).contains(&mapped), "{mapped} of {most}");
    };
    storm(&mut rig, &a);
    assert!(!is_cut_off(&a), "it may be the guest that makes it ask");
    assert_eq!(rig.map(&b, GPA + PAGE, PAGE, &[&own]), Ok(()), "another device has its own share");
    drop(a);
    rig.poll();
    let next = rig.attach_again("a");
    assert!(told_first(&next).is_empty());
    rig.answers(&next, 1, 0);
    storm(&mut rig, &next);
}
