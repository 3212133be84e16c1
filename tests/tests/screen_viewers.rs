//! Hostile viewers: garbage, floods, claims and silence. The console lives, keeps its memory, and serves everybody else.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bulkhead_tests::{
    screen::{
        Canvas, Rig, Viewer,
        picture::texture,
        viewer::{Options, encoding},
    },
    steps::{Dice, LIMIT},
};
use vsc::video::Situation;

const SMALL: Situation = Situation::of(640, 480);
/// How soon whoever claims too much has to be cut off.
const SOON: Duration = Duration::from_secs(15);
/// What the console may use, whatever viewers do: pictures of 32 MiB, a copy, buffers of sixteen viewers.
const MEMORY: u64 = 200 << 20;

/// A rig, a picture, and a viewer that is honest.
fn rig() -> anyhow::Result<(Rig, Canvas, Viewer)> {
    let mut rig = Rig::quiet()?;
    let mut canvas = rig.canvas(SMALL)?;
    let mut viewer = rig.viewer()?;
    canvas.scribble(&mut Dice(2))?;
    viewer.until_same(&canvas.picture)?;
    Ok((rig, canvas, viewer))
}

/// The honest viewer is as well off as before.
fn lives(rig: &mut Rig, canvas: &mut Canvas, viewer: &mut Viewer, seed: u64) -> anyhow::Result<()> {
    let mut dice = Dice(seed + 1);
    let begun = Instant::now();
    for _ in 0..3 {
        canvas.scribble(&mut dice)?;
        viewer.until_same(&canvas.picture)?;
    }
    ensure!(begun.elapsed() < Duration::from_secs(5), "it takes {:?} to see three changes", begun.elapsed());
    rig.all_live()
}

fn connect(rig: &mut Rig) -> anyhow::Result<UnixStream> {
    let stream = UnixStream::connect(rig.console()?.socket())?;
    stream.set_read_timeout(Some(SOON))?;
    stream.set_write_timeout(Some(SOON))?;
    Ok(stream)
}

/// Writes until it is all written or the other end has had enough.
fn offer(stream: &mut UnixStream, bytes: &[u8]) -> anyhow::Result<bool> {
    match stream.write_all(bytes) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => Ok(false),
        Err(error) => Err(error).context("the console neither reads nor ends"),
    }
}

/// Reads until the other end has had enough.
fn ends(stream: &mut UnixStream) -> anyhow::Result<()> {
    let mut scratch = vec![0; 64 << 10];
    let until = Instant::now() + SOON;
    loop {
        match stream.read(&mut scratch) {
            Ok(0) => return Ok(()),
            Ok(_) => ensure!(Instant::now() < until, "it goes on talking"),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error).context("it is not cut off"),
        }
    }
}

#[test]
fn garbage_instead_of_a_greeting() -> anyhow::Result<()> {
    let (mut rig, mut canvas, mut viewer) = rig()?;
    let mut dice = Dice(4);
    let greetings: [&[u8]; 9] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"RFB 004.000\n",
        b"RFB 003.003\n",
        b"RFB 999.999\n",
        b"RFB 003.008\r",
        b"RFB 003.008\n\x07",
        b"RFB 003.008\n\x13\xff\xff\xff\xff",
        b"\0\0\0\0\0\0\0\0\0\0\0\0",
        b"",
    ];
    for greeting in greetings {
        let mut stream = connect(&mut rig)?;
        offer(&mut stream, greeting)?;
        let mut more = vec![0; 300];
        dice.fill(&mut more);
        if greeting.is_empty() {
            drop(stream);
            continue;
        }
        offer(&mut stream, &more)?;
        stream.shutdown(std::net::Shutdown::Write)?;
        ends(&mut stream).with_context(|| format!("{:?}", String::from_utf8_lossy(greeting)))?;
    }
    lives(&mut rig, &mut canvas, &mut viewer, 1)
}

/// Random messages: good ones, spoiled ones, and what is none.
#[test]
fn garbage_instead_of_messages() -> anyhow::Result<()> {
    let (mut rig, mut canvas, mut viewer) = rig()?;
    let mut dice = Dice(6);
    for round in 0..80 {
        let mut bad = rig.viewer().with_context(|| format!("round {round}"))?;
        let bytes = messages(&mut dice);
        // It reads nothing meanwhile, so whoever has much to tell it is not waited for.
        let _ = bad.raw(&bytes);
        if round % 2 == 0 {
            drop(bad);
        } else {
            while bad.receive(Duration::from_millis(5)).is_ok_and(|event| event.is_some()) {}
        }
    }
    lives(&mut rig, &mut canvas, &mut viewer, 2)
}

fn messages(dice: &mut Dice) -> Vec<u8> {
    let mut all = Vec::new();
    for _ in 0..1 + dice.roll(40) {
        let mut message = match dice.roll(12) {
            0 => {
                let mut format = vec![0; 20];
                dice.fill(&mut format[4..]);
                format[4] = [8, 16, 32, 24, 0][dice.roll(5) as usize];
                format
            }
            1 => {
                let mut encodings = vec![2, 0, 0, 20];
                encodings.resize(84, 0);
                dice.fill(&mut encodings[4..]);
                encodings
            }
            2 | 3 => {
                let mut request = vec![3; 10];
                dice.fill(&mut request[1..]);
                request
            }
            4 => vec![4, dice.number() as u8, 0, 0, 0, 0, dice.number() as u8, dice.number() as u8],
            5 => (0..6).map(|n| if n == 0 { 5 } else { dice.number() as u8 }).collect(),
            6 => [&[6, 0, 0, 0, 0, 0, 0, 9][..], b"clipboard"].concat(),
            7 => vec![150, 1, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
            8 => [&[248, 0, 0, 0, 0x80, 0, 0, 7, 64][..], &[5; 64]].concat(),
            9 => vec![251, 0, 0x10, 0, 0x10, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0x10, 0, 0, 0, 0, 0],
            10 => vec![255, 0, 0, 1, 0, 0, 0, 0x61, 0, 0, 0, dice.number() as u8],
            _ => (0..dice.roll(30)).map(|_| dice.number() as u8).collect(),
        };
        if dice.roll(5) == 0 && !message.is_empty() {
            let at = dice.roll(message.len() as u32) as usize;
            message[at] = dice.number() as u8;
        }
        all.extend(message);
    }
    all
}

/// Claims of gigabytes to come: cut off, or passed over without keeping them.
#[test]
fn claims() -> anyhow::Result<()> {
    let (mut rig, mut canvas, mut viewer) = rig()?;
    let before = resident(&mut rig)?;
    let claims: [&[u8]; 6] = [
        &[6, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
        &[6, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff],
        &[6, 0, 0, 0, 0x80, 0, 0, 0],
        &[2, 0, 0xff, 0xff],
        &[251, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0],
        &[248, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff],
    ];
    for claim in claims {
        let bad = rig.viewer()?;
        let mut bad = bad;
        bad.raw(claim)?;
        let some = vec![0x41; 64 << 10];
        for _ in 0..400 {
            if bad.raw(&some).is_err() {
                break;
            }
        }
        ensure!(resident(&mut rig)? < before + (32 << 20), "{claim:x?}: the console keeps what it is sent");
        lives(&mut rig, &mut canvas, &mut viewer, 3)?;
    }
    Ok(())
}

/// Viewers that ask and never read: they slow nobody, and what is kept for them has a bound.
#[test]
fn silence() -> anyhow::Result<()> {
    let mut rig = Rig::quiet()?;
    let mut canvas = rig.canvas(Situation::of(1280, 1024))?;
    let mut viewer = rig.viewer()?;
    viewer.until_same(&canvas.picture)?;
    let mut silent = Vec::new();
    for n in 0..15 {
        let encodings = [&[encoding::RAW][..], encoding::ALL][n % 2];
        let mut bad = rig.console()?.viewer(&Options { encodings, ..Options::default() })?;
        bad.refresh(false)?;
        for _ in 0..50 {
            bad.refresh(true)?;
        }
        silent.push(bad);
    }
    let mut dice = Dice(9);
    let all = canvas.whole();
    for _ in 0..10 {
        let pixels = texture(&mut dice, all);
        canvas.paint(all, &pixels)?;
        let begun = Instant::now();
        viewer.refresh(true)?;
        viewer.next_update(LIMIT)?;
        ensure!(begun.elapsed() < Duration::from_secs(3), "an update took {:?}", begun.elapsed());
        viewer.until_same(&canvas.picture)?;
    }
    ensure!(resident(&mut rig)? < MEMORY, "{} MiB", resident(&mut rig)? >> 20);
    // When they read again they see what there is now, and not all that was.
    for bad in silent.iter_mut().take(4) {
        bad.until_same(&canvas.picture)?;
        ensure!(bad.counts.updates < 60, "{} updates", bad.counts.updates);
    }
    rig.all_live()
}

/// A viewer that asks for everything, again and again, as fast as it can write.
#[test]
fn floods_of_requests() -> anyhow::Result<()> {
    let (mut rig, mut canvas, mut viewer) = rig()?;
    let mut stream = {
        // By hand, since it neither reads nor stops.
        let mut stream = connect(&mut rig)?;
        offer(&mut stream, b"RFB 003.008\n\x01\x01")?;
        stream
    };
    stream.set_write_timeout(Some(Duration::from_millis(200)))?;
    let request = [3, 0, 0, 0, 0, 0, 2, 128, 1, 224].repeat(1000);
    let format = [0u8, 0, 0, 0, 16, 16, 0, 1, 0, 31, 0, 63, 0, 31, 11, 5, 0, 0, 0, 0].repeat(500);
    for n in 0..200 {
        let flood = if n % 2 == 0 { &request } else { &format };
        match stream.write(flood) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(_) => break,
        }
    }
    lives(&mut rig, &mut canvas, &mut viewer, 5)?;
    ensure!(resident(&mut rig)? < MEMORY);
    // Keys that nobody reads either.
    let mut keys = rig.viewer()?;
    for n in 0..20_000u32 {
        if keys.key(n % 2 == 0, 0x61 + n % 26).is_err() {
            break;
        }
    }
    lives(&mut rig, &mut canvas, &mut viewer, 6)
}

/// Connections that say nothing at all do not keep others out for ever.
#[test]
fn those_who_only_connect() -> anyhow::Result<()> {
    let (mut rig, mut canvas, mut viewer) = rig()?;
    let mut idle = Vec::new();
    for _ in 0..200 {
        match UnixStream::connect(rig.console()?.socket()) {
            Ok(stream) => idle.push(stream),
            Err(error) => {
                ensure!(error.kind() == ErrorKind::WouldBlock, "{error}");
                break;
            }
        }
    }
    lives(&mut rig, &mut canvas, &mut viewer, 7)?;
    drop(idle);
    let until = Instant::now() + LIMIT;
    while rig.viewer().is_err() {
        ensure!(Instant::now() < until, "nobody gets in any more");
        std::thread::sleep(Duration::from_millis(20));
    }
    lives(&mut rig, &mut canvas, &mut viewer, 8)
}

/// Requests over the control socket that are too long, unfinished, or many.
#[test]
fn control_sockets_too() -> anyhow::Result<()> {
    let (mut rig, mut canvas, mut viewer) = rig()?;
    let path = rig.vm.directory().join("control.sock");
    for bytes in [vec![b'x'; 1 << 20], vec![b'['; 1 << 20], vec![0xff; 100], b"{\"screenshot\":{}}".to_vec()]
    {
        let mut stream = UnixStream::connect(&path)?;
        stream.set_write_timeout(Some(SOON))?;
        stream.set_read_timeout(Some(SOON))?;
        offer(&mut stream, &bytes)?;
        let _ = stream.shutdown(std::net::Shutdown::Write);
        ends(&mut stream)?;
    }
    let mut deep = b"{\"type\":".to_vec();
    deep.extend(vec![b'['; 30_000]);
    deep.push(b'\n');
    let mut stream = UnixStream::connect(&path)?;
    stream.set_read_timeout(Some(SOON))?;
    offer(&mut stream, &deep)?;
    let mut first = [0];
    ensure!(stream.read(&mut first)? == 0 || first == *b"{", "{first:?}");
    // Screenshots that nobody fetches.
    let mut asked = Vec::new();
    for _ in 0..20 {
        let mut stream = UnixStream::connect(&path)?;
        for _ in 0..20 {
            if !offer(&mut stream, b"{\"screenshot\":{}}\n")? {
                break;
            }
        }
        asked.push(stream);
    }
    lives(&mut rig, &mut canvas, &mut viewer, 9)?;
    ensure!(resident(&mut rig)? < MEMORY);
    drop(asked);
    ensure!(rig.console()?.ask("{\"screenshot\":{}}")?.1.len() > 100);
    lives(&mut rig, &mut canvas, &mut viewer, 10)
}

fn resident(rig: &mut Rig) -> anyhow::Result<u64> {
    let pid = rig.console()?.process().pid();
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let words: Vec<u64> = statm.split_whitespace().map(|word| word.parse().unwrap_or(0)).collect();
    // Without what is shared: video memory is not the console's own.
    Ok((words.get(1).context("no pages")? - words.get(2).context("no pages")?) * 4096)
}
