use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use vsp::GuestRam;
use vsp::ipc::message::RamRegion;
use vsp::ipc::shm::SharedMemory;

use super::*;

fn file() -> File {
    // Nameless: tests run in processes of their own whose thread ids are alike.
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(nix::libc::O_TMPFILE)
        .open(std::env::temp_dir())
        .unwrap();
    file.set_len(1 << 20).unwrap();
    file
}

fn blocks_of(bytes: u32) -> Option<Direct> {
    Some(Direct { memory: bytes, offset: bytes })
}

fn ram() -> Arc<GuestRam> {
    let memory = SharedMemory::create("ram", 1 << 16).unwrap();
    Arc::new(GuestRam::new(&memory, &[RamRegion { gpa: 0, len: 1 << 16, offset: 0 }]).unwrap())
}

fn run(uring: &mut Uring<u32>, operation: Operation) -> (u32, Operation, io::Result<u32>) {
    uring.start(operation, 42).unwrap();
    uring.submit().unwrap();
    loop {
        if let Some(ended) = uring.take_ended() {
            return ended;
        }
        uring.wait().unwrap();
    }
}

#[test]
fn data_moves_between_file_and_guest_pages() {
    let (file, ram) = (file(), ram());
    let mut uring = Uring::new(vec![file.try_clone().unwrap()]).unwrap();
    ram.write(100, b"hello").unwrap();
    ram.write(9000, b" world").unwrap();
    let buffer = GuestBuffer::new(&ram, [(100, 5), (9000, 6)]).unwrap();
    let write = Operation {
        kind: Kind::Write { offset: 7, stable: true },
        file: 0,
        memory: Memory::Guest(buffer.clone()),
    };
    let (context, _, result) = run(&mut uring, write);
    assert_eq!((context, result.unwrap()), (42, 11));
    let mut bytes = [0; 11];
    file.read_exact_at(&mut bytes, 7).unwrap();
    assert_eq!(&bytes, b"hello world");
    let single = GuestBuffer::new(&ram, [(0, 11)]).unwrap();
    let read = Operation { kind: Kind::Read { offset: 7 }, file: 0, memory: Memory::Guest(single) };
    assert_eq!(run(&mut uring, read).2.unwrap(), 11);
    ram.read(0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"hello world");
    assert_eq!(uring.in_flight(), 0);
}

#[test]
fn patterns_flushes_and_holes() {
    let file = file();
    let mut uring = Uring::new(vec![file.try_clone().unwrap()]).unwrap();
    let mut pattern = Pattern::new(Box::from(*b"abcd"));
    pattern.select(6, 11);
    let write = Operation {
        kind: Kind::Write { offset: 4096, stable: false },
        file: 0,
        memory: Memory::Pattern(pattern),
    };
    assert_eq!(run(&mut uring, write).2.unwrap(), 11);
    let mut bytes = [0; 11];
    file.read_exact_at(&mut bytes, 4096).unwrap();
    assert_eq!(&bytes, b"cdabcdabcda");
    let flush = Operation { kind: Kind::Flush, file: 0, memory: Memory::None };
    run(&mut uring, flush).2.unwrap();
    let punch = Operation { kind: Kind::Punch { offset: 4096, len: 4096 }, file: 0, memory: Memory::None };
    run(&mut uring, punch).2.unwrap();
    file.read_exact_at(&mut bytes, 4096).unwrap();
    assert_eq!(bytes, [0; 11]);
}

#[test]
fn errors_come_back_as_such() {
    let (file, ram) = (file(), ram());
    let mut uring = Uring::new(vec![file.try_clone().unwrap()]).unwrap();
    let buffer = GuestBuffer::new(&ram, [(0, 512)]).unwrap();
    let wrong = Operation { kind: Kind::Read { offset: 0 }, file: 7, memory: Memory::Guest(buffer.clone()) };
    assert_eq!(run(&mut uring, wrong).2.unwrap_err().raw_os_error(), Some(libc::EBADF));
    let end = Operation { kind: Kind::Read { offset: 1 << 20 }, file: 0, memory: Memory::Guest(buffer) };
    assert_eq!(run(&mut uring, end).2.unwrap(), 0);
}

#[test]
fn the_ring_refuses_everything_else() {
    let file = file();
    let mut uring = Uring::<u32>::new(vec![file.try_clone().unwrap()]).unwrap();
    assert!(uring.ring.submitter().register_files_sparse(4).is_err());
    assert!(uring.ring.submitter().unregister_files().is_err());
    let path = c"/etc/passwd";
    let forbidden = [
        opcode::Nop::new().build(),
        opcode::OpenAt::new(Fd(libc::AT_FDCWD), path.as_ptr()).build(),
        opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build(),
        opcode::Fsync::new(io_uring::types::Fixed(0)).build(),
        opcode::Fsync::new(Fd(file.as_raw_fd())).build().flags(io_uring::squeue::Flags::IO_LINK),
    ];
    for entry in forbidden {
        // SAFETY: what the entries point at lives until the end of the test.
        unsafe { uring.ring.submission().push(&entry).unwrap() };
        uring.ring.submit_and_wait(1).unwrap();
        let completion = uring.ring.completion().next().unwrap();
        assert_eq!(completion.result(), -libc::EACCES);
    }
}

#[test]
fn more_than_the_queue_holds_is_fine() {
    let (file, ram) = (file(), ram());
    let mut uring = Uring::new(vec![file.try_clone().unwrap()]).unwrap();
    for context in 0..1000u32 {
        let buffer = GuestBuffer::new(&ram, [(0, 512)]).unwrap();
        let read = Operation { kind: Kind::Read { offset: 0 }, file: 0, memory: Memory::Guest(buffer) };
        uring.start(read, context).unwrap();
    }
    let mut seen = [false; 1000];
    while uring.in_flight() > 0 {
        uring.submit().unwrap();
        match uring.take_ended() {
            Some((context, _, result)) => {
                assert_eq!(result.unwrap(), 512);
                assert!(!std::mem::replace(&mut seen[context as usize], true));
            }
            None => uring.wait().unwrap(),
        }
    }
    assert!(seen.iter().all(|seen| *seen));
}

/// The loop watches the ring edge-triggered: it must hear of everything that it has not taken, and should not be
/// woken for what it has.
#[test]
fn only_what_was_not_taken_is_announced() {
    let (file, ram) = (file(), ram());
    let mut uring = Uring::new(vec![file.try_clone().unwrap()]).unwrap();
    let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
    // SAFETY: the ring outlives the borrow.
    let source = unsafe { BorrowedFd::borrow_raw(uring.source()) };
    epoll.add(source, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 1)).unwrap();
    let announced = |milliseconds: u16| {
        let mut events = [EpollEvent::empty()];
        epoll.wait(&mut events, EpollTimeout::from(milliseconds)).unwrap_or(0) == 1
    };
    let read = || {
        let buffer = GuestBuffer::new(&ram, [(0, 512)]).unwrap();
        Operation { kind: Kind::Read { offset: 0 }, file: 0, memory: Memory::Guest(buffer) }
    };
    // So that the pages are in memory and later reads complete at once.
    run(&mut uring, read()).2.unwrap();
    announced(0);
    for context in 0..20 {
        uring.start(read(), context).unwrap();
        uring.submit().unwrap();
        assert!(uring.take_ended().is_some(), "a read of cached pages completes inline");
        assert!(!announced(0), "taken already");
        uring.start(read(), context).unwrap();
        uring.submit().unwrap();
        assert!(announced(1000));
        assert!(uring.take_ended().is_some());
    }
}

/// `O_DIRECT` refuses such memory; a guest never hears of it.
#[test]
fn memory_that_a_disk_cannot_use_takes_a_detour() {
    let (file, ram) = (file(), ram());
    let mut uring = Uring::new(vec![file.try_clone().unwrap()]).unwrap();
    uring.align(0, blocks_of(512));
    let data: Vec<u8> = (0..4096u32).map(|n| (n % 251) as u8).collect();
    ram.write(100, &data).unwrap();
    let buffer = |pieces: &[(u64, u64)]| GuestBuffer::new(&ram, pieces.iter().copied()).unwrap();
    let write = Operation {
        kind: Kind::Write { offset: 512, stable: false },
        file: 0,
        memory: Memory::Guest(buffer(&[(100, 1000), (1100, 3096)])),
    };
    assert!(uring.start(write, 0).unwrap(), "detoured");
    uring.wait().unwrap();
    assert_eq!(uring.take_ended().unwrap().2.unwrap(), 4096);
    let read = |pieces| Operation {
        kind: Kind::Read { offset: 512 },
        file: 0,
        memory: Memory::Guest(buffer(pieces)),
    };
    assert!(!uring.start(read(&[(8192, 4096)]), 0).unwrap(), "aligned");
    assert!(uring.start(read(&[(20_001, 511), (30_000, 3585)]), 0).unwrap());
    while uring.in_flight() > 0 {
        uring.wait().unwrap();
        while let Some((_, _, result)) = uring.take_ended() {
            assert_eq!(result.unwrap(), 4096);
        }
    }
    let mut back = vec![0; 4096];
    ram.read(8192, &mut back).unwrap();
    assert_eq!(back, data);
    ram.read(20_001, &mut back[..511]).unwrap();
    ram.read(30_000, &mut back[511..]).unwrap();
    assert_eq!(back, data);
}

#[test]
fn a_guest_that_misaligns_everything_waits_for_itself() {
    let (file, ram) = (file(), ram());
    let mut uring = Uring::new(vec![file]).unwrap();
    uring.align(0, blocks_of(4096));
    for n in 0..200u32 {
        let buffer = GuestBuffer::new(&ram, [(1, 4096)]).unwrap();
        let memory = Memory::Guest(buffer);
        uring.start(Operation { kind: Kind::Read { offset: 0 }, file: 0, memory }, n).unwrap();
    }
    assert_eq!(uring.in_flight(), 200);
    let mut order = Vec::new();
    while uring.in_flight() > 0 {
        uring.submit().unwrap();
        while let Some((n, _, result)) = uring.take_ended() {
            assert_eq!(result.unwrap(), 4096);
            order.push(n);
        }
    }
    assert_eq!(order, (0..200).collect::<Vec<_>>());
}

/// Transfers that are longer than a piece: each comes back for its rest while others wait for memory.
fn start_long_misaligned(uring: &mut Uring<usize>, ram: &Arc<GuestRam>) -> Vec<Option<GuestBuffer>> {
    let whole = GuestBuffer::new(ram, (0..32).map(|n| (n % 8 * 8192 + 1, 4096))).unwrap();
    let buffers = vec![Some(whole); 40];
    for (n, buffer) in buffers.iter().enumerate() {
        let memory = Memory::Guest(buffer.clone().unwrap());
        uring.start(Operation { kind: Kind::Read { offset: 0 }, file: 0, memory }, n).unwrap();
    }
    buffers
}

#[test]
fn pieces_are_all_given_back_whoever_waits() {
    let (file, ram) = (file(), ram());
    let mut uring = Uring::new(vec![file]).unwrap();
    uring.align(0, blocks_of(512));
    for _ in 0..3 {
        let mut left = start_long_misaligned(&mut uring, &ram);
        let begin = std::time::Instant::now();
        while uring.in_flight() > 0 {
            assert!(begin.elapsed().as_secs() < 10, "{} wait for ever", uring.in_flight());
            uring.submit().unwrap();
            while let Some((n, operation, result)) = uring.take_ended() {
                let mut buffer = left[n].take().unwrap();
                buffer.advance(result.unwrap() as usize);
                if !buffer.is_empty() {
                    left[n] = Some(buffer.clone());
                    uring.start(Operation { memory: Memory::Guest(buffer), ..operation }, n).unwrap();
                }
            }
        }
        assert!(left.iter().all(Option::is_none));
    }
}

#[test]
fn the_end_waits_for_nothing_that_has_not_begun() {
    let (over, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut uring = Uring::new(vec![file()]).unwrap();
        uring.align(0, blocks_of(512));
        start_long_misaligned(&mut uring, &ram());
        drop(uring);
        over.send(()).unwrap();
    });
    assert_eq!(ended.recv_timeout(std::time::Duration::from_secs(10)), Ok(()));
}

/// A piece begins where memory wants it and has whole blocks: only both will do.
#[test]
fn addresses_and_lengths_are_asked_for_different_things() {
    let (file, ram) = (file(), ram());
    let mut uring = Uring::new(vec![file]).unwrap();
    uring.align(0, Some(Direct { memory: 4, offset: 512 }));
    let cases: [(&[(u64, u64)], bool); 4] = [
        (&[(4, 512), (8192, 1024)], false),
        (&[(4, 508), (8192, 516)], true),
        (&[(2, 512)], true),
        (&[(1536, 4096)], false),
    ];
    for (pieces, detour) in cases {
        let memory = Memory::Guest(GuestBuffer::new(&ram, pieces.iter().copied()).unwrap());
        let operation = Operation { kind: Kind::Read { offset: 0 }, file: 0, memory };
        assert_eq!(uring.start(operation, 0).unwrap(), detour, "{pieces:?}");
    }
}

#[test]
fn a_pattern_is_copied_where_it_cannot_be_pointed_at() {
    let file = file();
    let mut uring = Uring::new(vec![file.try_clone().unwrap()]).unwrap();
    uring.align(0, blocks_of(512));
    let mut pattern = Pattern::new(Box::from(*b"abc"));
    pattern.select(4, 1024);
    let kind = Kind::Write { offset: 0, stable: false };
    let (_, _, result) = run(&mut uring, Operation { kind, file: 0, memory: Memory::Pattern(pattern) });
    assert_eq!(result.unwrap(), 1024);
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"bcabcabc");
}

/// What a thread of the kernel's has done: it must end a sleep in epoll, whichever way.
#[test]
fn what_ends_later_wakes_whoever_sleeps() {
    let mut uring = Uring::new(vec![file()]).unwrap();
    let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
    // SAFETY: the ring outlives the borrow.
    let source = unsafe { BorrowedFd::borrow_raw(uring.source()) };
    epoll.add(source, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 1)).unwrap();
    for n in 0..100 {
        let kind = Kind::Punch { offset: 0, len: 4096 };
        uring.start(Operation { kind, file: 0, memory: Memory::None }, n).unwrap();
        uring.submit().unwrap();
        while !uring.has_ended() {
            let woken = epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::from(5000u16));
            assert!(woken != Ok(0), "nobody was woken for the end of {n}");
        }
        uring.submit().unwrap();
        let (ended, _, result) = uring.take_ended().unwrap();
        assert_eq!((ended, result.unwrap()), (n, 0));
    }
}
