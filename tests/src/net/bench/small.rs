//! Frames of 64 bytes (60 and a check sequence that nobody sees), as many as go.

use std::io::IoSlice;
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, sendmmsg};
use nix::unistd::read;

use super::relay::Relay;
use super::town::{GUEST, Stack};
use super::{LONGEST, VNET, plain, wait};

/// Bytes of a frame.
const FRAME: usize = 60;
/// Bytes of UDP's payload in it.
const PAYLOAD: usize = FRAME - 42;
/// Frames that one call has the stack send.
const BURST: u64 = 48;
/// Frames under way: fewer than a TAP keeps before it drops any.
const WINDOW: u64 = 384;

/// A frame that the stack `to` counts and throws away, with a TAP's header before it.
fn frame(to: &Stack) -> Vec<u8> {
    let mut frame = vec![0; VNET + FRAME];
    frame[VNET..VNET + 6].copy_from_slice(&to.address());
    frame[VNET + 6..VNET + 12].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    frame[VNET + 12..VNET + 14].copy_from_slice(&crate::net::frame::ETHERTYPE.to_be_bytes());
    frame
}

/// Frames a second that the stack `host` gets while `send` sends until it is stopped.
fn arriving(
    host: &Stack,
    time: Duration,
    send: impl FnOnce(&AtomicBool) -> anyhow::Result<()> + Send,
) -> anyhow::Result<f64> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let sender = scope.spawn(|| send(&stop));
        thread::sleep(time / 4);
        let (begin, before) = (Instant::now(), host.received());
        thread::sleep(time);
        let (after, took) = (host.received(), begin.elapsed());
        stop.store(true, Ordering::SeqCst);
        sender.join().map_err(|_| anyhow!("the sender panicked"))??;
        Ok((after? - before?) as f64 / took.as_secs_f64())
    })
}

/// A plain loop writes them to the TAP of `host`.
pub fn out_plainly(host: &Stack, tap: &OwnedFd, time: Duration) -> anyhow::Result<f64> {
    let frame = frame(host);
    arriving(host, time, |stop| plain::flood(tap, &frame, stop).map(drop))
}

/// The guest sends them.
pub fn out(host: &Stack, relay: &mut Relay, time: Duration) -> anyhow::Result<f64> {
    let frame = frame(host);
    arriving(host, time, |stop| relay.flood(&frame[VNET..], stop))
}

/// Frames a second that `take` counts while the stack `host` sends.
fn coming(
    host: &Stack,
    time: Duration,
    take: impl FnOnce(&AtomicU64, &AtomicBool) -> anyhow::Result<()> + Send,
) -> anyhow::Result<f64> {
    let (stop, counter) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let taker = scope.spawn(|| take(&counter, &stop));
        let sender = scope.spawn(|| host.inside(|| send(&counter, &stop)));
        thread::sleep(time / 4);
        let (begin, before) = (Instant::now(), counter.load(Ordering::SeqCst));
        thread::sleep(time);
        let (after, took) = (counter.load(Ordering::SeqCst), begin.elapsed());
        stop.store(true, Ordering::SeqCst);
        sender.join().map_err(|_| anyhow!("the sender panicked"))??;
        taker.join().map_err(|_| anyhow!("the taker panicked"))??;
        Ok((after - before) as f64 / took.as_secs_f64())
    })
}

/// Has the stack make them, many at a call; never so many at once that some would be dropped.
fn send(counter: &AtomicU64, stop: &AtomicBool) -> anyhow::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect((GUEST, 9))?;
    let bytes = [0; PAYLOAD];
    let datagram = [IoSlice::new(&bytes)];
    let (all, nowhere) = ([&datagram; BURST as usize], [None::<SockaddrStorage>; BURST as usize]);
    let mut headers = MultiHeaders::preallocate(BURST as usize, None);
    let (mut sent, mut base, mut moved) = (0, counter.load(Ordering::SeqCst), Instant::now());
    let mut last = base;
    while !stop.load(Ordering::Relaxed) {
        let came = counter.load(Ordering::Relaxed);
        if came != last {
            (last, moved) = (came, Instant::now());
        }
        if sent + BURST > (came - base) + WINDOW {
            if moved.elapsed() > Duration::from_millis(50) {
                // Some were dropped after all; they must not stop the others.
                (sent, base, moved) = (0, came, Instant::now());
            }
            thread::sleep(Duration::from_micros(20));
            continue;
        }
        // Some may not go for now.
        let went = sendmmsg(socket.as_raw_fd(), &mut headers, all, nowhere, [], MsgFlags::empty());
        sent += went.map_or(0, |went| went.count() as u64);
    }
    Ok(())
}

/// A plain loop reads them from the TAP of `host`.
pub fn into_plainly(host: &Stack, tap: &OwnedFd, time: Duration) -> anyhow::Result<f64> {
    coming(host, time, |counter, stop| {
        let mut bytes = vec![0; LONGEST];
        while !stop.load(Ordering::Relaxed) {
            match read(tap, &mut bytes) {
                Ok(_) => drop(counter.fetch_add(1, Ordering::Relaxed)),
                Err(Errno::EAGAIN) => wait(&[tap.as_fd()]),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    })
}

/// The guest gets them.
pub fn into(host: &Stack, relay: &mut Relay, time: Duration) -> anyhow::Result<f64> {
    coming(host, time, |counter, stop| relay.count(counter, stop))
}
