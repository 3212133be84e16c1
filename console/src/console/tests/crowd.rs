//! More people at the door than there are places: who may come in gets in.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, socket};

use super::desk::{Client, Desk};
use crate::rfb::password::{CHALLENGE, Password};
use crate::web::{self, Web};

/// More than there are places of any kind.
const CROWD: usize = 50;

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nonblocking(true).unwrap();
    stream
}

/// They come, one after the other, and say nothing.
fn crowd(desk: &mut Desk, address: SocketAddr) -> Vec<TcpStream> {
    let come = |_| {
        let stream = connect(address);
        desk.turns(2);
        stream
    };
    (0..CROWD).map(come).collect()
}

#[test]
fn silent_strangers_keep_nobody_out() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut desk = Desk::with(Some(listener), Some("secret"), None);
    let mut strangers = crowd(&mut desk, address);
    // Who comes by the Unix socket has to show nothing.
    Client::new(&mut desk);
    // Who knows the password has time to say so.
    let mut known = connect(address);
    known.write_all(b"RFB 003.008\n\x02").unwrap();
    let heard = desk.read(&mut known, 12 + 2 + CHALLENGE);
    let challenge: [u8; CHALLENGE] = heard[14..].try_into().unwrap();
    known.write_all(&Password::of_file(b"secret").unwrap().answer(&challenge)).unwrap();
    known.write_all(&[1]).unwrap();
    desk.read(&mut known, 4 + 24 + 5);
    assert!(desk.is_cut_off(&mut strangers[0]), "the oldest gives way");
    assert!(!desk.is_cut_off(&mut strangers[CROWD - 1]), "the newest has a place");
    // And once he is known he stays.
    let _more = crowd(&mut desk, address);
    assert!(!desk.is_cut_off(&mut known));
    assert_eq!(desk.console.state().viewers, 1);
}

#[test]
fn silent_browsers_keep_none_out_that_has_been_let_in() {
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
    bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    let mut desk = Desk::set(|setting| setting.web = Some(page(socket)));
    let mut control = desk.connect("control");
    let invitation = desk.command(&mut control, r#"{"token":{}}"#);
    let address = invitation["address"].as_str().unwrap().parse().unwrap();
    let mut strangers = crowd(&mut desk, address);
    let mut browser = connect(address);
    let enter = format!("GET /?token={} HTTP/1.1\r\n\r\n", invitation["token"].as_str().unwrap());
    browser.write_all(enter.as_bytes()).unwrap();
    assert_eq!(desk.read(&mut browser, 12), b"HTTP/1.1 303");
    assert!(desk.is_cut_off(&mut strangers[0]) && !desk.is_cut_off(&mut strangers[CROWD - 1]));
    let _more = crowd(&mut desk, address);
    let mut rest = [0; 4096];
    while browser.read(&mut rest).is_ok_and(|len| len > 0) {}
    browser.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(
        desk.read(&mut browser, 12),
        b"HTTP/1.1 403",
        "without its cookie, but on the same connection"
    );
}

fn page(socket: OwnedFd) -> Web {
    let novnc = std::env::temp_dir().join(format!("bulkhead-crowd-{}", std::process::id()));
    std::fs::create_dir_all(&novnc).unwrap();
    std::fs::write(novnc.join("vnc.html"), "<html>").unwrap();
    let web = Web::open(socket, None, None, &web::Args { novnc: Some(novnc.clone()) }).unwrap();
    std::fs::remove_dir_all(&novnc).unwrap();
    web
}
