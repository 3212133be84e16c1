//! The `[screen]` section of a spec: a screen, a keyboard and a mouse, and how people get to them.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::reader::{Located, Section, Shape};
use super::size::MIB;
use super::{HOMES, Loader, MOST_DEVICES, files};

pub(super) const SCREEN: Shape =
    Shape { title: "[screen]", keys: &["vram", "spare", "listen", "password_file", "web", "tls", "novnc"] };
const TLS: Shape = Shape { title: "`tls` under [screen]", keys: &["cert", "key"] };

/// What the devices of a screen are called: a VM has one of each.
pub const DEVICES: [&str; 3] = [VIDEO, KEYBOARD, MOUSE];
/// The screen.
pub const VIDEO: &str = "video";
/// The keyboard.
pub const KEYBOARD: &str = "keyboard";
/// The mouse.
pub const MOUSE: &str = "mouse";
/// What shows them to people.
pub const CONSOLE: &str = "console";

/// Sizes of video memory: the least holds 1024 x 768, the most two pictures of 3840 x 2160 and a bit.
const VRAM: std::ops::RangeInclusive<u64> = 4 * MIB..=128 * MIB;
/// Holds 3840 x 2160 with 32 bits a pixel, which is all that the guest is offered.
const USUAL_VRAM: u64 = 32 * MIB;
/// Longest password file that makes sense: VNC uses eight characters of it.
const LONGEST_PASSWORD: u64 = 1024;

/// A screen, a keyboard and a mouse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Screen {
    /// Bytes of video memory; whole MiB.
    pub vram: u64,
    /// A second process of each device stands by.
    pub spare: bool,
    /// Where VNC is served besides the Unix socket in the runtime directory.
    pub listen: Option<SocketAddr>,
    /// The file with the password of that; absolute.
    pub password_file: Option<PathBuf>,
    /// Where the web page is served; `None`: at a port of 127.0.0.1 that `bulkhead console --web` says.
    pub web: Option<SocketAddr>,
    /// How VNC and the web page are encrypted.
    pub tls: Option<Tls>,
    /// Where noVNC is; absolute. `None`: where Debian has it.
    pub novnc: Option<PathBuf>,
}

/// A certificate and its key, as PEM files; absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The certificate, with those that lead up to a root.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Loader<'_> {
    /// The screen, if there is to be one; the outer `None`: something is wrong with it. `names` are those of the other devices, which
    /// have `users` users.
    pub(super) fn screen(
        &mut self,
        top: &Section<'_, '_>,
        names: &HashMap<String, usize>,
        users: usize,
    ) -> Option<Option<Screen>> {
        let (table, span) = match top.table("screen", self.report) {
            Some(found) => found,
            None => return if top.has("screen") { None } else { Some(None) },
        };
        let errors = self.report.errors();
        let section = Section::new(table, &SCREEN, Some(span.clone()), &HOMES, self.report);
        for name in DEVICES.into_iter().chain([CONSOLE]).filter(|name| names.contains_key(*name)) {
            let message = format!("a device is called \"{name}\", and [screen] brings one of that name");
            self.report.error(span.clone(), message, "give the other device another name");
        }
        // Under systemd one more, for what lies between them.
        if users + DEVICES.len() + 2 > MOST_DEVICES {
            let message = "with a screen there are more devices than one VM has users for";
            self.report.error(span, message, "put several disks on one controller");
        }
        let vram = self.vram(&section);
        let spare = section.boolean("spare", false, self.report);
        let password_file = self.password_file(&section);
        let tls = self.tls(&section);
        let listen = self.address(&section, "listen", "127.0.0.1:5900");
        let web = self.address(&section, "web", "127.0.0.1:6080");
        if let Some(listen) = &listen {
            self.guarded(listen, section.has("password_file"), section.has("tls"));
        } else if section.has("password_file") && !section.has("listen") {
            let span = section.string("password_file", self.report).map(|path| path.span);
            let message = "`password_file` means nothing without `listen`: who may use the Unix socket is asked for no password";
            self.report.error(span, message, "remove it, or write listen = \"127.0.0.1:5900\"");
        }
        if let Some(web) = web.as_ref().filter(|web| !web.value.ip().is_loopback() && !section.has("tls")) {
            let message = "`web` can be reached from other hosts, and nothing would be encrypted";
            let fix = "write tls = { cert = \"cert.pem\", key = \"key.pem\" }, or an address such as 127.0.0.1:6080";
            self.report.error(web.span.clone(), message, fix);
        }
        let novnc = self.novnc(&section);
        if self.report.errors() > errors {
            return None;
        }
        let address = |at: Option<Located<SocketAddr>>| at.map(|at| at.value);
        let (listen, web) = (address(listen), address(web));
        Some(Some(Screen { vram: vram?, spare, listen, password_file, web, tls, novnc }))
    }

    fn vram(&mut self, section: &Section<'_, '_>) -> Option<u64> {
        let Some(Located { value: bytes, span }) = section.size("vram", self.report) else {
            return if section.has("vram") { None } else { Some(USUAL_VRAM) };
        };
        if VRAM.contains(&bytes) && bytes % MIB == 0 {
            return Some(bytes);
        }
        let message = "`vram` must be whole MiB, from 4 to 128";
        let fix = match bytes {
            1..=128 => format!("a plain number is bytes; did you mean \"{bytes}MiB\"?"),
            _ => {
                let near = bytes.div_ceil(MIB).clamp(VRAM.start() / MIB, VRAM.end() / MIB);
                format!("write \"{near}MiB\"; 3840 x 2160 takes 32")
            }
        };
        self.report.error(span, message, fix);
        None
    }

    fn address(
        &mut self,
        section: &Section<'_, '_>,
        key: &str,
        example: &str,
    ) -> Option<Located<SocketAddr>> {
        let Located { value: text, span } = section.string(key, self.report)?;
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => Some(Located { value: address, span }),
            _ => {
                let message = format!("`{key}` is no address with a port: \"{text}\"");
                self.report.error(span, message, format!("write {key} = \"{example}\""));
                None
            }
        }
    }

    /// Whoever can connect to a TCP port is asked for a password, and beyond this host nobody may overhear it.
    fn guarded(&mut self, listen: &Located<SocketAddr>, has_password: bool, has_tls: bool) {
        if !has_password {
            let message = "`listen` is for everybody who can connect, and there is no password";
            self.report.error(listen.span.clone(), message, "add password_file = \"vnc-password\"");
        } else if !listen.value.ip().is_loopback() && !has_tls {
            let message = "`listen` can be reached from other hosts, and nothing would be encrypted";
            let fix = "add tls = { cert = \"cert.pem\", key = \"key.pem\" }, or listen at 127.0.0.1";
            self.report.error(listen.span.clone(), message, fix);
        }
    }

    fn password_file(&mut self, section: &Section<'_, '_>) -> Option<PathBuf> {
        let path = section.string("password_file", self.report)?;
        let path = path.map(|path| self.directory.join(path));
        let fix = "create it, with the password as its first line";
        let file = files::open_to_read(&path, "the password file", fix, self.report)?;
        let shown = path.value.display();
        self.is_private(&file, &path, "the password file");
        let mut password = Vec::new();
        let _ = file.take(LONGEST_PASSWORD).read_to_end(&mut password);
        // As the console takes it.
        let line = password.split(|byte| matches!(byte, b'\n' | b'\r')).next().unwrap_or_default();
        if line.is_empty() {
            self.report.error(path.span, format!("the first line of {shown} is empty"), fix);
            return None;
        }
        if line.len() > 8 {
            let message =
                format!("the password in {shown} has {} characters; VNC uses the first 8", line.len());
            self.report.warning(path.span, message, "make those eight hard to guess");
        }
        Some(path.value)
    }

    /// Warns of a secret that others can read.
    fn is_private(&mut self, file: &File, path: &Located<PathBuf>, what: &str) {
        if file.metadata().is_ok_and(|found| found.permissions().mode() & 0o077 != 0) {
            let shown = path.value.display();
            let message = format!("others can read {what} {shown}");
            self.report.warning(path.span.clone(), message, format!("chmod 600 {shown}"));
        }
    }

    fn tls(&mut self, section: &Section<'_, '_>) -> Option<Tls> {
        let (table, span) = section.table("tls", self.report)?;
        let pair = Section::new(table, &TLS, Some(span), &[], self.report);
        let mut file = |key: &str, what: &str, is_secret: bool| {
            let Some(path) = pair.string(key, self.report) else {
                pair.missing(key, &format!("{key} = \"{key}.pem\""), self.report);
                return None;
            };
            let path = path.map(|path| self.directory.join(path));
            let file = files::open_to_read(&path, what, "give it as a PEM file", self.report)?;
            if is_secret {
                self.is_private(&file, &path, what);
            }
            Some(path.value)
        };
        let (cert, key) = (file("cert", "the certificate", false), file("key", "the private key", true));
        Some(Tls { cert: cert?, key: key? })
    }

    fn novnc(&mut self, section: &Section<'_, '_>) -> Option<PathBuf> {
        let Located { value, span } = section.string("novnc", self.report)?;
        let directory = self.directory.join(value);
        if !directory.join("vnc.html").is_file() {
            let message = format!("there is no vnc.html in {}", directory.display());
            let fix = "name noVNC's directory, or leave it out and install it (sudo apt install novnc)";
            self.report.error(span, message, fix);
        }
        Some(directory)
    }
}
