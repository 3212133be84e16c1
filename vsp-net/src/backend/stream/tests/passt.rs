//! The real other end: passt answers a question for somebody's address.
//!
//! Where there is no passt, or it does not start (no network that it could offer, no namespaces), there is nothing to be seen.

use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::FdFlag;

use super::*;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// "Who is 192.0.2.1?", of an address nobody has: passt answers for every address but the guest's own.
fn arp_request() -> Vec<u8> {
    let mut frame = [&[0xff; 6], &MAC[..], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &MAC].concat();
    frame.extend([192, 0, 2, 77]);
    frame.extend([0; 6]);
    frame.extend([192, 0, 2, 1]);
    frame
}

#[test]
fn passt_speaks_our_protocol() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let number = theirs.as_raw_fd().to_string();
    let line = ["--foreground", "--quiet", "--fd", &number];
    let started = Command::new("passt").args(line).stdin(Stdio::null()).stderr(Stdio::piped()).spawn();
    let Ok(mut passt) = started else {
        eprintln!("skipped: there is no passt here");
        return;
    };
    drop(theirs);
    let mut backend = Backend::Stream(Stream::new(ours.into()).unwrap());
    backend.start().unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    let (mut answer, pages) = (None, pages());
    let mut asked = 0;
    while answer.is_none() && Instant::now() < until {
        if passt.try_wait().unwrap().is_some() {
            let mut why = String::new();
            passt.stderr.take().unwrap().read_to_string(&mut why).unwrap();
            eprintln!("skipped: passt does not run here: {}", why.trim());
            return;
        }
        if asked < 3 {
            // Half of it comes from pages.
            let request = arp_request();
            pages.copy_in(100, &request[20..]).unwrap();
            let rest = pages.span(100, request.len() - 20).unwrap();
            let sent = backend.send(0, &VnetHeader::default(), &request[..20], [rest]);
            match sent {
                Ok(sent) => assert_eq!(sent, Sent::Whole),
                Err(_) => continue,
            }
            asked += 1;
        }
        thread::sleep(Duration::from_millis(50));
        // The end of passt is noticed above.
        while let Ok(Some(frame)) = try_receive(&mut backend) {
            if frame.len() >= 42 && frame[12..14] == [8, 6] && frame[20..22] == [0, 2] {
                answer = Some(frame);
            }
        }
        let _ = backend.settle();
    }
    passt.kill().unwrap();
    passt.wait().unwrap();
    let answer = answer.expect("passt has answered nothing");
    assert_eq!(answer[..6], MAC);
    assert_eq!(answer[28..32], [192, 0, 2, 1], "its address is what we asked for");
}
