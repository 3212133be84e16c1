//! No rule without a use: what a console does for honest people uses every rule of its policy, but for those marked `rare:`, and nothing
//! that is not allowed. (Each rule by itself is executed by `sandbox/tests/compartment`.)
#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipc::shm::SharedMemory;
use policies::audit::Usage;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use sandbox::spawn;
use seat::Sent;
use seat::video::{Depth, DeviceEnd, Surface, ToConsole};

use world::{PROGRAM, Running, Seat, browser, greeted, http};

fn strace() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("strace")).find(|file| file.is_file());
    if found.is_none() || !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: that takes strace and root; the console's policy was NOT audited");
        return None;
    }
    found
}

/// Looks at the whole picture once, as the plainest viewer does (RFC 6143), and presses a key and a button.
fn look(seat: &Seat) {
    let mut viewer = seat.connect("vnc");
    let mut bytes = [0; 64];
    viewer.read_exact(&mut bytes[..12]).unwrap();
    viewer.get_mut().write_all(b"RFB 003.008\n").unwrap();
    viewer.read_exact(&mut bytes[..2]).unwrap();
    viewer.get_mut().write_all(&[1]).unwrap();
    viewer.read_exact(&mut bytes[..4]).unwrap();
    viewer.get_mut().write_all(&[1]).unwrap();
    viewer.read_exact(&mut bytes[..24]).unwrap();
    let [high, low, h, l] = bytes[..4] else { unreachable!() };
    let pixels = usize::from(u16::from_be_bytes([high, low])) * usize::from(u16::from_be_bytes([h, l]));
    let name = u32::from_be_bytes(bytes[20..24].try_into().unwrap()) as usize;
    viewer.read_exact(&mut bytes[..name]).unwrap();
    // A key, a click, and then the picture.
    viewer
        .get_mut()
        .write_all(&[4, 1, 0, 0, 0, 0, 0, 0x61, 4, 0, 0, 0, 0, 0, 0, 0x61, 5, 1, 0, 9, 0, 9])
        .unwrap();
    viewer.get_mut().write_all(&[3, 0, 0, 0, 0, 0, high, low, h, l]).unwrap();
    // An update of one rectangle, raw: 32 bits a pixel is what the console offers first.
    viewer.read_exact(&mut bytes[..16]).unwrap();
    viewer.read_exact(&mut vec![0; pixels * 4]).unwrap();
}

/// A client that trusts this certificate.
fn encrypted(address: &str, cert: &str) -> rustls::StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(cert).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
    let client = ClientConnection::new(config, ServerName::try_from("localhost").unwrap()).unwrap();
    rustls::StreamOwned::new(client, TcpStream::connect(address).unwrap())
}

/// Ends a console, and reads what it has done.
fn end(running: Running, log: &Path, usage: &mut Usage) {
    std::thread::sleep(Duration::from_millis(200));
    running.child.kill().unwrap();
    drop(running);
    usage.read(&String::from_utf8_lossy(&std::fs::read(log).unwrap()));
}

#[test]
fn a_consoles_life_uses_every_rule_of_its_policy() {
    let Some(strace) = strace() else { return };
    let seat = Seat::new("rules");
    let log = seat.directory.join("strace");
    let traced =
        || spawn::Command::new(&strace).args(["-f", "-e", "raw=!seccomp", "-o"]).arg(&log).arg(PROGRAM);
    let running = seat.start_with(traced(), &[]);

    // A screen: one mode, and another one in other memory.
    let video = DeviceEnd::from_fd(seat.pairs[0].0.try_clone().unwrap()).unwrap();
    assert_eq!(video.send(&ToConsole::Hello { build: seat::Build::new("test") }, None).unwrap(), Sent::Whole);
    for (width, height) in [(640, 480), (1280, 1024)] {
        let bytes = u64::from(width * height * 4);
        let memory = SharedMemory::create("vram", bytes).unwrap();
        let surface = Surface {
            width,
            height,
            stride: width * 4,
            depth: Depth::Xrgb8888,
            offset: 0,
            vram_bytes: bytes,
        };
        assert_eq!(video.send(&ToConsole::Surface(surface), Some(&memory)).unwrap(), Sent::Whole);
        let is_there = || seat.ask("{\"state\":{}}")["state"]["width"] == width;
        while !is_there() {
            std::thread::sleep(Duration::from_millis(5));
        }
        look(&seat);
        assert!(seat.ask("{\"screenshot\":{}}")["png"].is_number());
    }
    seat.ask("{\"key\":\"a\"}");
    let invitation = seat.ask("{\"token\":{}}");
    let address = invitation["address"].as_str().unwrap();
    let mut page = browser(address);
    let head = http(&mut page, &format!("/?token={}", invitation["token"].as_str().unwrap()), "");
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let session = field("Location: /").split('/').next().unwrap().to_owned();
    let cookie = format!("Cookie: {}\r\n", field("Set-Cookie: ").split(';').next().unwrap());
    http(&mut page, &format!("/{session}/vnc.html"), &cookie);
    greeted(address, &session, &cookie);
    let mut usage = Usage::default();
    end(running, &log, &mut usage);

    // The same page, encrypted.
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/stream/testdata");
    let [cert, key] = ["cert.pem", "key.pem"].map(|name| data.join(name).display().to_string());
    let running = seat.start_with(traced(), &["--tls-cert", &cert, "--tls-key", &key]);
    let invitation = seat.ask("{\"token\":{}}");
    assert_eq!(invitation["https"], true);
    let request = format!("GET /?token={} HTTP/1.1\r\n\r\n", invitation["token"].as_str().unwrap());
    let mut page = encrypted(invitation["address"].as_str().unwrap(), &cert);
    page.write_all(request.as_bytes()).unwrap();
    let mut answer = [0; 12];
    page.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 303");
    end(running, &log, &mut usage);

    let policy = sandbox::policies::CONSOLE;
    assert!(usage.policies().any(|seen| seen.name == policy.name), "it was never in force");
    assert!(usage.denied().is_empty(), "denied: {:?}", usage.denied());
    let unused = usage.unused(&policy);
    assert!(unused.is_empty(), "nothing used these rules: {unused:#?}");
}
