//! Round trips of a small datagram between the stacks.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};

use super::LOOK;
use super::town::Stack;

/// How long an answer may take; then it is asked for again.
const LOST: Duration = Duration::from_millis(200);
/// Answers that may be lost: a machine may be busy, but not all the time.
const MOST_LOST: u32 = 3;

/// Asks from one stack for answers of another, which has `address`: the median of the round trips.
pub fn measure(from: &Stack, to: &Stack, address: &str, time: Duration) -> anyhow::Result<Duration> {
    let stop = AtomicBool::new(false);
    let (ready, port) = channel();
    thread::scope(|scope| {
        let stop = &stop;
        let echo = scope.spawn(move || {
            to.inside(move || {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                ready.send(socket.local_addr()?.port())?;
                answer(&socket, stop)
            })
        });
        let port = port.recv().context("nobody answers")?;
        let asked = from.inside(|| ask((address, port), time));
        stop.store(true, Ordering::SeqCst);
        echo.join().map_err(|_| anyhow!("the echo panicked"))??;
        asked
    })
}

fn answer(socket: &UdpSocket, stop: &AtomicBool) -> anyhow::Result<()> {
    socket.set_read_timeout(Some(LOOK))?;
    let mut bytes = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((len, from)) = socket.recv_from(&mut bytes) {
            socket.send_to(&bytes[..len], from)?;
        }
    }
    Ok(())
}

fn ask(to: (&str, u16), time: Duration) -> anyhow::Result<Duration> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(LOST))?;
    let begin = Instant::now();
    let (mut all, mut bytes, mut lost) = (Vec::new(), [0; 64], 0);
    while begin.elapsed() < time {
        let start = Instant::now();
        let number = all.len().to_le_bytes();
        socket.send(&number)?;
        match socket.recv(&mut bytes) {
            Ok(len) if bytes[..len] == number => all.push(start.elapsed()),
            // An answer that was thought to be lost.
            Ok(_) => {}
            Err(_) => lost += 1,
        }
        ensure!(lost <= MOST_LOST, "answers are lost");
    }
    all.sort_unstable();
    all.get(all.len() / 2).copied().context("nothing was asked")
}
