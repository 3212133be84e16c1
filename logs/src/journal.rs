//! systemd's journal: is stderr connected to it, and a record in its native protocol
//! (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>).

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::linux::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;

use tracing::Level;

use crate::record::{Record, Value};

/// Where journald listens.
const SOCKET: &str = "/run/systemd/journal/socket";

/// A connected socket to journald if `JOURNAL_STREAM` names the file that `stderr` is, else `None`.
///
/// It comes back as a plain file: writing to it sends one datagram, with the same system call
/// (`write`) that every other output uses.
pub(crate) fn connect(stderr: &File) -> Option<File> {
    let named = std::env::var("JOURNAL_STREAM").ok()?;
    let metadata = stderr.metadata().ok()?;
    if !names(&named, metadata.st_dev(), metadata.st_ino()) {
        return None;
    }
    let socket = UnixDatagram::unbound().ok()?;
    socket.connect(SOCKET).ok()?;
    Some(File::from(OwnedFd::from(socket)))
}

/// Whether a `JOURNAL_STREAM` of the form `DEVICE:INODE` names this device and inode.
fn names(journal_stream: &str, device: u64, inode: u64) -> bool {
    let Some((named_device, named_inode)) = journal_stream.split_once(':') else { return false };
    named_device.parse() == Ok(device) && named_inode.parse() == Ok(inode)
}

/// The record as one datagram.
pub(crate) fn datagram(record: &Record<'_>) -> Vec<u8> {
    let priority = match record.level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        _ => "7",
    };
    let mut out = Vec::with_capacity(256);
    field(&mut out, "PRIORITY", priority);
    field(&mut out, "SYSLOG_IDENTIFIER", record.process);
    field(&mut out, "TARGET", record.target);
    for (name, value) in &record.fields {
        let name = field_name(name);
        match value {
            Value::Bool(value) => field(&mut out, &name, &value.to_string()),
            Value::Signed(value) => field(&mut out, &name, &value.to_string()),
            Value::Unsigned(value) => field(&mut out, &name, &value.to_string()),
            Value::Float(value) => field(&mut out, &name, &value.to_string()),
            Value::Text(text) | Value::Printed(text) => field(&mut out, &name, text),
        }
    }
    field(&mut out, "MESSAGE", &message(record));
    out
}

/// What `journalctl` shows by default: the message alone would hide the fields.
fn message(record: &Record<'_>) -> String {
    let mut message = record.message.clone();
    for (name, value) in &record.fields {
        let value = match value {
            Value::Bool(value) => value.to_string(),
            Value::Signed(value) => value.to_string(),
            Value::Unsigned(value) => value.to_string(),
            Value::Float(value) => value.to_string(),
            Value::Text(text) => format!("{text:?}"),
            Value::Printed(text) => text.clone(),
        };
        message.push_str(&format!(" {name}={value}"));
    }
    message
}

/// A field of ours in journald's alphabet: `BULKHEAD_` and then A-Z, 0-9, `_`.
fn field_name(name: &str) -> String {
    let mut out = String::from("BULKHEAD_");
    out.extend(name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }));
    out
}

/// `NAME=value`, or, where the value has a newline, the name, its length in 64 bits little-endian, and the value.
fn field(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        out.push(b'\n');
        out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        out.push(b'=');
    }
    out.extend_from_slice(value.as_bytes());
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn journal_stream_must_name_the_very_file() {
        assert!(names("9:1234", 9, 1234));
        assert!(!names("9:1234", 9, 1235));
        assert!(!names("8:1234", 9, 1234));
        assert!(!names("9", 9, 1234));
        assert!(!names("", 0, 0));
    }

    #[test]
    fn a_record_becomes_one_datagram() {
        let record = Record {
            time: SystemTime::now(),
            level: Level::WARN,
            process: "disk0",
            target: "vsp",
            message: "slow".to_owned(),
            fields: vec![("io.depth", Value::Unsigned(4)), ("why", Value::Text("a\nb".to_owned()))],
        };
        let expected: &[u8] = b"PRIORITY=4\nSYSLOG_IDENTIFIER=disk0\nTARGET=vsp\nBULKHEAD_IO_DEPTH=4\n\
            BULKHEAD_WHY\n\x03\0\0\0\0\0\0\0a\nb\nMESSAGE=slow io.depth=4 why=\"a\\nb\"\n";
        assert_eq!(datagram(&record), expected, "{:?}", String::from_utf8_lossy(&datagram(&record)));
    }
}
