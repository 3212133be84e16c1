//! Disks that come, go and grow while the guest runs: in the test's process, and in the real program in its compartment.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod guest;
mod process;

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::Command;

use guest::{Disk, Guest, INTRODUCTION, Outcome, UNIT};
use process::{PROGRAM, Storage};
use vsp::ipc::message::{ToCore, ToVsp};
use vsp::ipc::socket::Peer;
use vsp::testing::{FakeCore, GuestEnd};
use vsp::vmbus::packet::{Outgoing, gpa_direct_header};
use vsp_storage::cli::DiskSpec;
use vsp_storage::control::{Wanted, json};
use vsp_storage::disk::{self, Given};
use vsp_storage::wire::{self, Address, Direction, operation};

const SECOND: Address = Address { lun: 5, ..UNIT };
const READ_BLOCK: [u8; 10] = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const READY: [u8; 6] = [0; 6];
const READ_CAPACITY: [u8; 10] = [0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const CAPACITY_CHANGED: Outcome = Outcome::Check(6, 0x2A, 9);

/// A disk as somebody opens it who may.
fn given(text: &str) -> (String, Vec<OwnedFd>) {
    let spec: DiskSpec = text.parse().unwrap();
    let Given { file, keeper, shape } = disk::gather(&spec).unwrap();
    let wanted = Wanted::Add { disk: spec, shape, keeper: keeper.is_some() };
    (json(&wanted), [Some(file), keeper].into_iter().flatten().map(OwnedFd::from).collect())
}

fn say(core: &FakeCore, payload: &str, fds: &[OwnedFd]) {
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    core.peer().send(&ToVsp::Control { id: 1, payload: payload.into() }, &fds).unwrap();
}

fn result(answer: ToCore) -> Result<String, String> {
    match answer {
        ToCore::ControlDone { id: 1, result } => result,
        other => panic!("{other:?}"),
    }
}

fn wants(guest: &mut Guest, payload: &str, fds: &[OwnedFd]) -> Result<String, String> {
    say(&guest.bench.core, payload, fds);
    result(guest.bench.answer())
}

fn add(guest: &mut Guest, text: &str) -> Result<String, String> {
    let (payload, fds) = given(text);
    wants(guest, &payload, &fds)
}

fn remove(guest: &mut Guest, lun: u8) -> Result<String, String> {
    wants(guest, &format!("{{\"remove\":{{\"lun\":{lun}}}}}"), &[])
}

/// Whether the guest has been told to look.
fn is_told(end: &mut GuestEnd) -> bool {
    let Some((header, packet)) = end.poll() else { return false };
    assert_eq!((header.transaction_id, &packet[..4]), (0, &operation::ENUMERATE_BUS.to_le_bytes()[..]));
    assert_eq!(packet.len(), 64, "as long as storvsc wants it");
    true
}

fn luns(guest: &mut Guest) -> Vec<u8> {
    let (outcome, data) = guest.read(&[0xA0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0], 512);
    assert!(matches!(outcome, Outcome::Good(_)));
    let len = u32::from_be_bytes(data[..4].try_into().unwrap()) as usize;
    data[8..8 + len].chunks(8).map(|lun| lun[1]).collect()
}

fn ready(guest: &mut Guest) -> Outcome {
    guest.command(Direction::None, &READY, &[]).0
}

#[test]
fn a_disk_comes_and_goes() {
    let (first, second) = (Disk::new("first", 1 << 20), Disk::new("second", 2 << 20));
    second.file.write_all_at(b"second", 0).unwrap();
    let mut guest = Guest::new(&[&first.argument("")]);
    guest.unit = SECOND;
    assert_eq!(guest.read(&READ_BLOCK, 512).0, Outcome::NoUnit);
    let second_as = second.argument(",lun=5,serial=S2");
    assert_eq!(add(&mut guest, &second_as), Ok(r#"{"bytes":2097152}"#.into()));
    assert!(is_told(&mut guest.end), "before the operator is");
    assert_eq!(luns(&mut guest), [0, 5]);
    let (outcome, data) = guest.read(&READ_BLOCK, 512);
    assert_eq!((outcome, &data[..6]), (Outcome::Good(512), &b"second"[..]));
    assert!(File::open(&second.path).unwrap().try_lock().is_err(), "it is ours");
    // Whoever asked may not have heard the answer.
    assert!(add(&mut guest, &second_as).is_ok() && is_told(&mut guest.end));

    assert!(remove(&mut guest, 5).is_ok() && is_told(&mut guest.end));
    assert_eq!((luns(&mut guest), ready(&mut guest)), (vec![0], Outcome::NoUnit));
    assert!(File::open(&second.path).unwrap().try_lock().is_ok(), "it is free");
    assert!(remove(&mut guest, 5).is_ok() && is_told(&mut guest.end), "it is gone, as was wanted");
    // Its place is used again, and by another number.
    for lun in [6, 1] {
        assert!(add(&mut guest, &second.argument(&format!(",lun={lun}"))).is_ok());
        assert!(is_told(&mut guest.end) && luns(&mut guest) == [0, lun]);
        guest.unit = Address { lun, ..UNIT };
        assert_eq!(guest.read(&READ_BLOCK, 512).0, Outcome::Good(512));
        assert!(remove(&mut guest, lun).is_ok() && is_told(&mut guest.end));
    }
    guest.unit = UNIT;
    assert_eq!(guest.read(&READ_BLOCK, 512).0, Outcome::Good(512), "the other one notices nothing");
}

#[test]
fn what_cannot_be_served_is_refused_and_nothing_changes() {
    let (first, second) = (Disk::new("one", 1 << 20), Disk::new("other", 1 << 20));
    let mut guest = Guest::new(&[&first.argument(",serial=A")]);
    assert_eq!(guest.read(&READ_BLOCK, 512).0, Outcome::Good(512));
    let refused = |guest: &mut Guest, text: &str| add(guest, text).unwrap_err();
    assert!(refused(&mut guest, &second.argument(",lun=0")).contains("already"));
    assert!(refused(&mut guest, &second.argument("")).contains("no LUN"));
    assert!(refused(&mut guest, &second.argument(",lun=1,serial=A")).contains("same serial"));
    let lock = File::open(&second.path).unwrap();
    lock.try_lock().unwrap();
    assert!(refused(&mut guest, &second.argument(",lun=1")).contains("in use"));
    drop(lock);
    let (payload, mut fds) = given(&second.argument(",lun=1"));
    fds.pop();
    assert!(wants(&mut guest, &payload, &fds).unwrap_err().contains("has not come"));
    assert!(wants(&mut guest, "{}", &[]).unwrap_err().contains("understand"));
    assert!(wants(&mut guest, r#"{"resize":{"lun":1}}"#, &[]).unwrap_err().contains("no LUN 1"));
    assert!(!is_told(&mut guest.end));
    assert!(File::open(&second.path).unwrap().try_lock().is_ok(), "none of it is held");
    assert!(add(&mut guest, &second.argument(",lun=1")).is_ok());
}

#[test]
fn a_disk_grows_and_a_successor_still_tells() {
    let disk = Disk::new("growing", 1 << 20);
    let argument = disk.argument("");
    let mut guest = Guest::new(&[&argument]);
    assert_eq!(ready(&mut guest), Outcome::Good(0));
    disk.file.set_len(3 << 20).unwrap();
    assert_eq!(guest.read(&READ_CAPACITY, 8).1[..4], 2047u32.to_be_bytes());
    let grown = wants(&mut guest, r#"{"resize":{"lun":0}}"#, &[]);
    assert_eq!(grown, Ok(r#"{"bytes":3145728}"#.into()));
    assert!(is_told(&mut guest.end));
    // Before the guest has asked, but after some answer.
    assert!(matches!(guest.read(&[0x12, 0, 0, 0, 36, 0], 36).0, Outcome::Good(_)));
    guest.bench.quiesce();
    let mut guest = guest.taken_over(&[&argument]);
    assert_eq!(ready(&mut guest), CAPACITY_CHANGED);
    assert_eq!(ready(&mut guest), Outcome::Good(0), "told once");
    assert_eq!(guest.read(&READ_CAPACITY, 8).1[..4], 6143u32.to_be_bytes());
}

#[test]
fn a_guest_is_told_only_when_it_can_bear_it() {
    let (first, second) = (Disk::new("early", 1 << 20), Disk::new("late", 1 << 20));
    let mut guest = Guest::unintroduced(&[&first.argument("")]);
    assert!(add(&mut guest, &second.argument(",lun=5")).is_ok());
    assert!(!is_told(&mut guest.end), "its driver has not even begun");
    let mut guest = guest.introduced();
    assert!(!is_told(&mut guest.end), "its driver has nothing ready that would deal with it");
    let packet = wire::command(UNIT, Direction::None, &READY, 0);
    assert!(guest.end.send(&Outgoing::in_band(7, true), &[&packet]));
    guest.bench.settle();
    let mut told = 0;
    while let Some((header, _)) = guest.end.poll() {
        told += i32::from(header.transaction_id == 0);
    }
    assert_eq!(told, 1);
}

#[test]
fn a_successor_tells_a_guest_only_after_a_command_of_its_own() {
    let (first, second) = (Disk::new("before", 1 << 20), Disk::new("after", 1 << 20));
    let argument = first.argument("");
    let mut guest = Guest::new(&[&argument]);
    // Its introduction is over, and that is all that a ledger says.
    guest.bench.quiesce();
    let mut guest = guest.taken_over(&[&argument]);
    assert!(add(&mut guest, &second.argument(",lun=5")).is_ok());
    assert!(!is_told(&mut guest.end), "perhaps its driver has nothing ready yet");
    let packet = wire::command(UNIT, Direction::None, &READY, 0);
    assert!(guest.end.send(&Outgoing::in_band(7, true), &[&packet]));
    guest.bench.settle();
    let mut told = 0;
    while let Some((header, _)) = guest.end.poll() {
        told += i32::from(header.transaction_id == 0);
    }
    assert_eq!(told, 1);
}

#[test]
fn a_disk_that_is_taken_away_ends_what_it_has_begun() {
    let (first, second) = (Disk::new("stays", 1 << 20), Disk::new("leaves", 8 << 20));
    let mut guest = Guest::new(&[&first.argument(""), &second.argument(",lun=5")]);
    let page = [(0, 4096, &[300u64][..])];
    let header = gpa_direct_header(&page);
    let mut answers = 0;
    for round in 0..50u64 {
        for id in 1..=20 {
            let write = [0x2A, 0, 0, 0, 0, (id * 8) as u8, 0, 0, 8, 0];
            let packet = wire::command(SECOND, Direction::ToDevice, &write, 4096);
            assert!(guest.end.send(&Outgoing::gpa_direct(id, &header), &[&header, &packet]));
        }
        assert!(remove(&mut guest, 5).is_ok(), "round {round}");
        assert!(File::open(&second.path).unwrap().try_lock().is_ok(), "nothing uses it any more");
        guest.bench.settle();
        while let Some((header, packet)) = guest.end.poll() {
            if header.transaction_id != 0 {
                assert!(matches!(Outcome::of(&packet), Outcome::Good(4096) | Outcome::NoUnit));
                answers += 1;
            }
        }
        assert!(add(&mut guest, &second.argument(",lun=5")).is_ok());
        while guest.end.poll().is_some() {}
    }
    assert_eq!(answers, 50 * 20, "each is answered once");
}

#[test]
fn units_tell_what_they_have_done() {
    let (first, second) = (Disk::new("s1", 1 << 20), Disk::new("s2", 1 << 20));
    let mut guest = Guest::new(&[&first.argument(""), &second.argument(",lun=5,ro")]);
    for _ in 0..10 {
        assert_eq!(guest.read(&READ_BLOCK, 512).0, Outcome::Good(512));
    }
    let all = wants(&mut guest, r#"{"stats":{"first":0}}"#, &[]).unwrap();
    for part in [r#""lun":0"#, r#""lun":5"#, r#""reads":10"#, r#""read_bytes":5120"#, r#""read_only":true"#] {
        assert!(all.contains(part), "{part} in {all}");
    }
    let rest = wants(&mut guest, r#"{"stats":{"first":1}}"#, &[]).unwrap();
    assert!(!rest.contains(r#""lun":0"#) && rest.contains(r#""lun":5"#));
}

/// What `bulkhead` does: the program itself opens the disk.
fn opened(text: &str) -> Result<(String, Vec<OwnedFd>), String> {
    let (ours, theirs) = Peer::pair().unwrap();
    let fd = OwnedFd::from(theirs);
    let_children_have(&fd);
    let socket = fd.as_raw_fd().to_string();
    let arguments = ["--device", "disk0", "--disk", text, "--open-for", &socket];
    let status = Command::new(PROGRAM).args(arguments).status().unwrap();
    assert!(status.success());
    let (said, fds) = ours.recv::<Result<String, String>>().unwrap();
    Ok((said?, fds))
}

/// Lets children have it.
fn let_children_have(fd: &OwnedFd) {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
}

#[test]
fn a_confined_process_takes_what_it_could_not_open() {
    let first = Disk::new("confined", 1 << 20);
    let (core, socket) = FakeCore::new(guest::RAM);
    let mut child = Storage::start(socket, &first.argument(""), &[]);
    core.welcome();
    let mut end = core.open(1, 16);
    assert_eq!(core.answer(), ToCore::OpenResult { channel: 1, status: 0, reason: None });
    for (operation, word) in INTRODUCTION {
        assert!(end.send(&Outgoing::in_band(1, true), &[&wire::simple(operation, word)]));
        end.wait();
    }
    for (lun, options) in [(1, ""), (2, ",ro"), (3, ",cache=none"), (4, ",cache=writethrough,iops=1000")] {
        let disk = Disk::new(&format!("confined-{lun}"), 1 << 20);
        let (payload, fds) = opened(&disk.argument(&format!(",lun={lun}{options}"))).unwrap();
        say(&core, &payload, &fds);
        assert_eq!(result(core.answer()), Ok(r#"{"bytes":1048576}"#.into()), "{options}");
        disk.file.set_len(2 << 20).unwrap();
        say(&core, &format!("{{\"resize\":{{\"lun\":{lun}}}}}"), &[]);
        assert_eq!(result(core.answer()), Ok(r#"{"bytes":2097152}"#.into()));
        for expected in [CAPACITY_CHANGED, Outcome::Good(0)] {
            let packet = wire::command(Address { lun, ..UNIT }, Direction::None, &READY, 0);
            assert!(end.send(&Outgoing::in_band(2, true), &[&packet]));
            let answer = loop {
                let (header, answer) = end.wait();
                if header.transaction_id == 2 {
                    break answer;
                }
            };
            assert_eq!(Outcome::of(&answer), expected, "{options}");
        }
        say(&core, r#"{"stats":{}}"#, &[]);
        assert!(result(core.answer()).unwrap().contains(&format!("\"lun\":{lun}")));
        say(&core, &format!("{{\"remove\":{{\"lun\":{lun}}}}}"), &[]);
        assert!(result(core.answer()).is_ok());
    }
    assert!(!child.is_dead());
}

#[test]
fn a_disk_that_cannot_be_opened_is_none() {
    assert!(opened("path=/nonexistent,lun=1").unwrap_err().contains("/nonexistent"));
    assert!(opened("path=/dev/null,lun=1").unwrap_err().contains("neither"));
    assert!(opened("path=/dev/null").unwrap_err().contains("no LUN"));
}
