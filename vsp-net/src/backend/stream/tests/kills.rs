//! A process that is killed at random, again and again, while it echoes frames: no frame is torn, lost or made up.

use std::env;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::FdFlag;

use super::*;

/// Tells the test, when it runs in a child, which descriptor is its socket.
const SOCKET: &str = "VSP_NET_KILL_TEST_SOCKET";
const NAME: &str = "backend::stream::tests::kills::a_death_at_any_time_tears_no_frame";
const KILLS: u32 = 150;
/// Longest frame of the test; some lie in several of the kernel's buffers.
const LONGEST: usize = 30_000;

/// What the device would do: deliver some frames, then say so.
fn echo(number: RawFd) -> ! {
    let mut stream = Stream::new(sys::adopt(number).unwrap()).unwrap();
    stream.start().unwrap();
    let pages = pages();
    let mut waiting = 0;
    loop {
        let span = pages.span(0, pages.len()).unwrap();
        match stream.receive([span]).unwrap() {
            Received::Frame { len, .. } => {
                let rest = pages.span(10, len - 10).unwrap();
                let mut head = [0; 10];
                pages.copy_out(0, &mut head).unwrap();
                while stream.send(&VnetHeader::default(), len, &head, [rest]).unwrap() == Sent::Later {
                    thread::yield_now();
                }
                waiting += 1;
            }
            Received::Nothing => waiting = 100,
            Received::Dropped => panic!("dropped"),
        }
        if waiting >= 10 {
            stream.settle().unwrap();
            waiting = 0;
        }
    }
}

fn numbered(number: u64) -> Vec<u8> {
    let len = 22 + (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize % (LONGEST - 22);
    let mut bytes = vec![number as u8; len];
    bytes[14..22].copy_from_slice(&number.to_be_bytes());
    bytes
}

fn child(number: RawFd) -> Child {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", NAME, "--nocapture"]).env(SOCKET, number.to_string());
    command.stdout(Stdio::null()).spawn().unwrap()
}

/// Kills a child, which must not have ended by itself: it does if it finds half a frame.
fn end(process: &mut Child) {
    process.kill().unwrap();
    assert_eq!(process.wait().unwrap().signal(), Some(libc::SIGKILL));
}

#[test]
fn a_death_at_any_time_tears_no_frame() {
    if let Ok(number) = env::var(SOCKET) {
        echo(number.parse().unwrap());
    }
    let (ours, theirs) = UnixStream::pair().unwrap();
    // Only the children keep it, and nobody else is started meanwhile that would mind.
    fcntl(&ours, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let (mut reader, mut writer) = (theirs.try_clone().unwrap(), theirs);
    thread::spawn(move || {
        // passt's way: several frames a call, cut where the kernel likes. It ends with the test.
        let mut number = 0;
        loop {
            let batch: Vec<u8> = (number..number + 5).flat_map(|n| framed(&numbered(n))).collect();
            number += 5;
            if writer.write_all(&batch).is_err() {
                return;
            }
        }
    });
    let socket = ours.as_raw_fd();
    let killer = thread::spawn(move || {
        let mut random = 88_172_645_463_325_252u64;
        for _ in 0..KILLS {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let mut process = child(socket);
            thread::sleep(Duration::from_micros(3_000 + random % 17_000));
            end(&mut process);
        }
        let mut last = child(socket);
        thread::sleep(Duration::from_millis(500));
        end(&mut last);
    });
    reader.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let (mut next, mut again, begun) = (0u64, 0u64, Instant::now());
    while !killer.is_finished() {
        let mut prefix = [0; PREFIX];
        match reader.read_exact(&mut prefix) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            result => result.unwrap(),
        }
        let mut bytes = vec![0; u32::from_be_bytes(prefix) as usize];
        assert!(bytes.len() <= LONGEST, "torn after frame {next}");
        reader.read_exact(&mut bytes).unwrap();
        let number = u64::from_be_bytes(bytes[14..22].try_into().unwrap());
        assert!(number <= next, "frames {next} to {number} were lost");
        assert!(bytes == numbered(number), "frame {number} is not what was sent");
        if number == next {
            next += 1;
        } else {
            again += 1;
        }
    }
    killer.join().unwrap();
    assert!(next > u64::from(KILLS), "only {next} frames came through");
    println!("{next} frames, {again} of them repeated, {KILLS} deaths, {:?}", begun.elapsed());
}
