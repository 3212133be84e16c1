//! TCP, one stream, as fast as it goes.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use rustix::net::sockopt::set_tcp_congestion;

use super::town::Stack;

/// Bytes that are given to the stack at once.
const CHUNK: usize = 256 << 10;
/// Part of the time that does not count: the window opens first.
const WARM_UP: u32 = 4;
/// Linux' own choice of congestion control, whatever this host's is: some pace what they send by their idea of the path.
const CONGESTION: &str = "cubic";
/// How long a stream may stand still.
const STALL: Duration = Duration::from_secs(5);

/// Sends from one stack to another, which has `address`; bytes a second that arrived.
pub fn measure(from: &Stack, to: &Stack, address: &str, time: Duration) -> anyhow::Result<f64> {
    let stop = AtomicBool::new(false);
    let (ready, port) = channel();
    thread::scope(|scope| {
        let stop = &stop;
        let receiver = scope.spawn(|| {
            to.inside(move || {
                let listener = TcpListener::bind("0.0.0.0:0")?;
                ready.send(listener.local_addr()?.port())?;
                receive(&listener.accept()?.0, time)
            })
        });
        let port = port.recv().context("the receiver does not listen")?;
        let sender = scope.spawn(move || from.inside(|| send((address, port), stop)));
        let received = receiver.join().map_err(|_| anyhow!("the receiver panicked"));
        stop.store(true, Ordering::SeqCst);
        let sent = sender.join().map_err(|_| anyhow!("the sender panicked"))?;
        let received = received??;
        sent?;
        Ok(received)
    })
}

fn send(to: (&str, u16), stop: &AtomicBool) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_write_timeout(Some(STALL))?;
    set_tcp_congestion(&stream, CONGESTION)?;
    let bytes: Vec<u8> = (0..CHUNK).map(|n| (n % 251) as u8).collect();
    while !stop.load(Ordering::Relaxed) {
        match stream.write(&bytes) {
            Ok(_) => {}
            // The receiver has had enough.
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn receive(mut stream: &TcpStream, time: Duration) -> anyhow::Result<f64> {
    stream.set_read_timeout(Some(STALL))?;
    let mut bytes = vec![0; CHUNK];
    let begin = Instant::now();
    let warm = time / WARM_UP;
    let (mut count, mut start) = (0u64, None);
    while begin.elapsed() < time + warm {
        let len = stream.read(&mut bytes)?;
        ensure!(len > 0, "the stream has ended");
        match start {
            None if begin.elapsed() >= warm => start = Some(Instant::now()),
            None => {}
            Some(_) => count += len as u64,
        }
    }
    let start = start.context("nothing came")?;
    Ok(count as f64 / start.elapsed().as_secs_f64())
}
