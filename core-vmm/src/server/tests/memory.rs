//! Guest memory that devices ask for: GPADLs, and what packets name.

use ipc::{
    message::{MAX_FETCH, MAX_SHARED_GPADLS},
    shm::Mapping,
};
use vmbus::{
    packet::{Outgoing, gpa_direct_header},
    ring::{ControlWord, RingWriter},
};

use super::*;

/// Where GPADL `n` of these tests lies, in pages.
fn buffer(n: u32) -> [u64; 3] {
    [0, 2, 1].map(|page| 0x300 + u64::from(n) * 4 + page)
}

impl Rig {
    /// The guest makes a GPADL for channel `relid`.
    fn make_gpadl(&mut self, relid: Relid, n: u32) {
        for message in vmbus::gpadl::messages(relid, n, &buffer(n)) {
            self.post_raw(&message);
        }
        assert!(matches!(self.heard().as_slice(), [HostMessage::GpadlCreated(c)] if c.status == 0));
    }

    /// A device asks for it: its memory.
    fn share(&mut self, device: &Peer, channel: Relid, gpadl: u32) -> Result<OwnedFd, String> {
        self.says(device, &ToCore::ShareGpadl { channel, gpadl });
        match told(device) {
            Some((ToVsp::GpadlShared { channel: c, gpadl: g, result }, mut fds)) => {
                assert_eq!((c, g, fds.len()), (channel, gpadl, usize::from(result.is_ok())));
                result.map(|bytes| {
                    assert_eq!(bytes, 3 * PAGE);
                    fds.remove(0)
                })
            }
            other => panic!("{other:?}"),
        }
    }

    fn is_page_shared(&mut self, pfn: u64) -> bool {
        match self.server.donations.donate(&self.ram, "probe", vec![pfn * PAGE], &self.mock) {
            Ok(probe) => self.server.donations.take_back(&self.ram, probe, &self.mock).is_err(),
            Err(_) => true,
        }
    }

    fn fetch(&mut self, device: &Peer, offset: u32, len: u32) -> (Result<u32, String>, Vec<OwnedFd>) {
        self.says(device, &ToCore::Fetch { channel: 1, offset, len });
        match told(device) {
            Some((ToVsp::Fetched { channel: 1, result }, fds)) => (result, fds),
            other => panic!("{other:?}"),
        }
    }
}

/// Channel 1 of "a" open, GPADL 20 made for it.
fn ready() -> (Rig, Peer, Peer) {
    let (mut rig, a, b) = Rig::running();
    rig.open(&a, 1, 1);
    rig.make_gpadl(1, 20);
    (rig, a, b)
}

#[test]
fn a_gpadl_is_shared_in_the_order_of_its_pages_and_taken_back_by_the_guest() {
    let (mut rig, a, _b) = ready();
    let third = buffer(20)[2] * PAGE;
    rig.ram.write(third, b"guest").unwrap();
    let fd = rig.share(&a, 1, 20).unwrap();
    let mut seen = [0; 5];
    nix::sys::uio::pread(&fd, &mut seen, 2 * PAGE as i64).unwrap();
    assert_eq!(&seen, b"guest");
    nix::sys::uio::pwrite(&fd, b"there", 2 * PAGE as i64).unwrap();
    rig.ram.read(third, &mut seen).unwrap();
    assert_eq!(&seen, b"there");
    let again = rig.share(&a, 1, 20).unwrap();
    assert!(same(&fd, &again), "who asks twice gets the same");

    rig.post(GuestMessage::GpadlTeardown { relid: 1, gpadl: 20 });
    assert_eq!(rig.heard(), [HostMessage::GpadlTorndown(20)], "the device is not asked");
    assert!(!rig.is_page_shared(buffer(20)[2]));
    let left = nix::sys::stat::fstat(&fd).unwrap().st_blocks;
    assert_eq!(left, 0, "a device that keeps it has no memory of ours with it");
    nix::sys::uio::pwrite(&fd, b"late!", 2 * PAGE as i64).unwrap();
    rig.ram.read(third, &mut seen).unwrap();
    assert_eq!(&seen, b"there");
    assert!(rig.share(&a, 1, 20).is_err() && told(&a).is_none());
}

#[test]
fn a_successor_gets_the_same_memory() {
    let (mut rig, a, _b) = ready();
    let fd = rig.share(&a, 1, 20).unwrap();
    drop(a);
    rig.poll();
    assert!(rig.is_page_shared(buffer(20)[0]), "it is the guest's and its device's, not a process's");
    let next = rig.attach_again("a");
    asked_to_open(&next, 1);
    // It may ask before it has answered: it has the channel.
    assert!(same(&fd, &rig.share(&next, 1, 20).unwrap()));
    rig.answers(&next, 1, 0);
    rig.post(GuestMessage::GpadlTeardown { relid: 1, gpadl: 20 });
    assert!(!rig.is_page_shared(buffer(20)[0]));
}

#[test]
fn a_gpadl_ends_with_its_channel_or_its_guest_or_when_the_device_is_done() {
    for how in 0..4 {
        let (mut rig, a, _b) = ready();
        rig.share(&a, 1, 20).unwrap();
        let operator = rig.operator();
        let exposed = |rig: &mut Rig| {
            rig.asks(&operator, &Request::Devices {});
            let Some(Reply::Devices(devices)) = reply(&operator) else { panic!("no answer") };
            devices[0].exposed_bytes / PAGE
        };
        assert_eq!(exposed(&mut rig), 8 + 1 + 3);
        match how {
            0 => {
                rig.closes(1);
                assert_eq!(said(&a), Some(ToVsp::ChannelClose { channel: 1 }));
                assert!(rig.share(&a, 1, 20).is_err(), "it is closing");
                rig.says(&a, &ToCore::Closed { channel: 1 });
            }
            1 => rig.server.reset(&rig.mock),
            2 => rig.post(GuestMessage::Unload),
            _ => {
                rig.says(&a, &ToCore::ReturnGpadl { channel: 1, gpadl: 20 });
                assert_eq!(exposed(&mut rig), 8 + 1);
                rig.says(&a, &ToCore::ReturnGpadl { channel: 1, gpadl: 20 });
                assert!(rig.share(&a, 1, 20).is_err(), "once is enough");
            }
        }
        assert!(!rig.is_page_shared(buffer(20)[0]), "{how}");
        assert!(!is_cut_off(&a));
    }
}

#[test]
fn a_device_gets_nothing_but_its_own() {
    let (mut rig, a, b) = ready();
    rig.open(&b, 2, 2);
    rig.make_gpadl(2, 21);
    for gpadl in [1, 2, 21, 404] {
        assert!(rig.share(&a, 1, gpadl).is_err(), "{gpadl}");
    }
    // Pages that are no RAM, or a ring's, or shared already.
    rig.share(&b, 2, 21).unwrap();
    for (gpadl, pfn) in [(30, RAM / PAGE), (31, RINGS + 8), (32, buffer(21)[1])] {
        for message in vmbus::gpadl::messages(1, gpadl, &[0x3f0, pfn]) {
            rig.post_raw(&message);
        }
        rig.heard();
        assert!(rig.share(&a, 1, gpadl).is_err(), "{gpadl}");
        assert!(!rig.is_page_shared(0x3f0));
    }
    for n in 40..=40 + MAX_SHARED_GPADLS as u32 {
        rig.make_gpadl(1, n);
        assert_eq!(rig.share(&a, 1, n).is_ok(), n < 40 + MAX_SHARED_GPADLS as u32);
    }
    rig.says(&a, &ToCore::ShareGpadl { channel: 2, gpadl: 21 });
    assert!(is_cut_off(&a), "another device's channel");
}

#[test]
fn an_older_process_has_no_words_for_it() {
    let (mut rig, a, _b) = ready();
    drop(a);
    rig.poll();
    let ToCore::Hello { device, offer, ledger, build, .. } = hello("a") else { unreachable!() };
    let versions = Versions { min: 2, max: 3 };
    let old = rig.meet(&ToCore::Hello { versions, device, offer, ledger, build });
    assert!(matches!(said(&old), Some(ToVsp::Welcome { version: 3, .. })));
    rig.serve(&old, true);
    asked_to_open(&old, 1);
    rig.answers(&old, 1, 0);
    rig.says(&old, &ToCore::ShareGpadl { channel: 1, gpadl: 20 });
    assert!(is_cut_off(&old));
}

#[test]
fn a_device_that_asks_and_does_not_listen_is_cut_off_and_one_that_is_slow_is_not() {
    let (mut rig, a, b) = ready();
    rig.open(&b, 2, 2);
    for n in 0..10_000 {
        rig.post(GuestMessage::ModifyChannel(ModifyChannel { relid: 1, target_vp: n % 2 }));
        rig.heard();
    }
    rig.says(&a, &ToCore::ShareGpadl { channel: 1, gpadl: 20 });
    assert!(rig.server.deadline().is_some());
    let mut answer = None;
    while answer.is_none() {
        match told(&a) {
            Some((ToVsp::GpadlShared { result, .. }, fds)) => answer = Some((result, fds.len())),
            Some(_) => {}
            None => rig.server.tick(&rig.mock, Instant::now() + TELL_AGAIN),
        }
    }
    assert_eq!(answer, Some((Ok(3 * PAGE), 1)));
    rig.make_gpadl(2, 21);
    for _ in 0..100_000 {
        if b.send(&ToCore::ShareGpadl { channel: 2, gpadl: 21 }, &[]).is_err() {
            break;
        }
        rig.poll();
    }
    assert!(is_cut_off(&b));
}

/// Channel 1 of "a" open, which may fetch; the guest's end of its ring.
fn fetching() -> (Rig, Peer, RingWriter<ipc::shm::RingMapping>, Mapping) {
    let mut rig = Rig::with(vec![DeviceSlot { fetch: true, ..slot("a") }, slot("bb")], vec![own_uid()]);
    let (a, _b) = (rig.attach("a"), rig.attach("bb"));
    rig.contact();
    rig.post(GuestMessage::RequestOffers);
    rig.heard();
    let mut fds = rig.open(&a, 1, 1);
    let memory = SharedMemory::from_fd(fds.remove(0), 8 * PAGE).unwrap();
    let ring = ipc::shm::RingMapping::new(&memory, 0, 4).unwrap();
    vmbus::ring::initialize(&ring);
    (rig, a, RingWriter::new(ring).unwrap(), Mapping::new(&memory, 0, 4 * PAGE).unwrap())
}

fn send(ring: &mut RingWriter<ipc::shm::RingMapping>, ranges: &[(u32, u32, &[u64])]) -> u32 {
    let at = ring.write_position();
    let header = gpa_direct_header(ranges);
    ring.push(&Outgoing::gpa_direct(7, &header), &[&header, b"payload!"]).unwrap();
    let _ = ring.publish();
    at
}

#[test]
fn what_a_packet_names_is_fetched_and_nothing_else() {
    let (mut rig, a, mut ring, _raw) = fetching();
    rig.ram.write(0x30_0ffe, b"abcd").unwrap();
    rig.ram.write(0x32_0000, b"efgh").unwrap();
    let one = send(&mut ring, &[(0xffe, 4, &[0x300, 0x301]), (0, 3, &[0x320])]);
    let two = send(&mut ring, &[(2, 2, &[0x320])]);
    let (result, fds) = rig.fetch(&a, one, 100);
    assert_eq!((result, fds.len()), (Ok(7), 1));
    let mut seen = [0; 8];
    nix::sys::uio::pread(&fds[0], &mut seen, 0).unwrap();
    assert_eq!(&seen, b"abcdefg\0");
    assert_eq!(nix::sys::stat::fstat(&fds[0]).unwrap().st_size, i64::from(MAX_FETCH));
    let (result, none) = rig.fetch(&a, two, 1);
    assert_eq!((result, none.len()), (Ok(1), 0), "no more than was wanted, into the same memory");
    nix::sys::uio::pread(&fds[0], &mut seen, 0).unwrap();
    assert_eq!(&seen[..1], b"g");
    let three = send(&mut ring, &[(0, 3, &[0x320]), (0, 4, &[RAM / PAGE])]);
    assert_eq!(rig.fetch(&a, three, 3).0, Ok(3), "what is not wanted need not be there");
    // A successor has another one: nobody sees what is fetched for somebody else.
    drop(a);
    rig.poll();
    let next = rig.attach_again("a");
    asked_to_open(&next, 1);
    let (result, new) = rig.fetch(&next, one, 2);
    assert_eq!((result, new.len()), (Ok(2), 1));
    assert!(!same(&fds[0], &new[0]));
}

#[test]
fn a_packet_may_lie_across_the_rings_end() {
    let (mut rig, a, mut ring, raw) = fetching();
    rig.ram.write(0x32_0000, b"efgh").unwrap();
    let end = 3 * PAGE as u32;
    let mut at = 0;
    while at + 24 < end {
        at = send(&mut ring, &[(0, 4, &[0x320])]);
        assert_eq!(rig.fetch(&a, at, 4).0, Ok(4), "{at}");
        raw.word(ControlWord::ReadIndex.offset())
            .store(ring.write_position(), std::sync::atomic::Ordering::Release);
        if ring.write_position() < at {
            break;
        }
    }
}

#[test]
fn what_is_no_packet_in_the_ring_fetches_nothing() {
    use std::sync::atomic::Ordering::Release;
    let (mut rig, a, mut ring, raw) = fetching();
    let good = send(&mut ring, &[(0, 4, &[0x320])]);
    let end = ring.write_position();
    for offset in [4, 8, end, end + 8, 3 * PAGE as u32, u32::MAX] {
        assert!(rig.fetch(&a, offset, 4).0.is_err(), "{offset}");
    }
    ring.push(&Outgoing::in_band(1, true), &[&[0; 64]]).unwrap();
    let _ = ring.publish();
    assert!(rig.fetch(&a, end, 4).0.is_err(), "not GPA-direct");
    for ranges in [&[(0, 4, &[RAM / PAGE][..])][..], &[(0, 4, &[1 << 39][..])], &[(5000, 4, &[0x320][..])]] {
        let at = send(&mut ring, ranges);
        assert!(rig.fetch(&a, at, 4).0.is_err(), "{ranges:?}");
    }
    assert!(rig.fetch(&a, good, 4).0.is_ok());
    // Behind the read index, it has been taken.
    raw.word(ControlWord::ReadIndex.offset()).store(end, Release);
    assert!(rig.fetch(&a, good, 4).0.is_err());
    raw.word(ControlWord::ReadIndex.offset()).store(0, Release);
    for (word, value) in
        [(ControlWord::WriteIndex, 8), (ControlWord::WriteIndex, 7), (ControlWord::ReadIndex, u32::MAX)]
    {
        let before = raw.word(word.offset()).swap(value, Release);
        assert!(rig.fetch(&a, good, 4).0.is_err(), "{word:?} {value}");
        raw.word(word.offset()).store(before, Release);
    }
    // A packet that says it is longer than what lies there.
    let before = raw.long(PAGE as usize).swap(9 | 2 << 16 | 0x7fff << 32, Release);
    assert!(rig.fetch(&a, good, 4).0.is_err());
    raw.long(PAGE as usize).store(before, Release);
    assert!(rig.fetch(&a, good, u32::MAX).0.is_ok() && !is_cut_off(&a));
}

#[test]
fn a_device_that_may_not_fetch_does_not() {
    let (mut rig, a, _b) = ready();
    assert!(rig.fetch(&a, 0, 4).0.is_err());
    assert!(!is_cut_off(&a));
    rig.says(&a, &ToCore::Fetch { channel: 2, offset: 0, len: 4 });
    assert!(is_cut_off(&a));
}
